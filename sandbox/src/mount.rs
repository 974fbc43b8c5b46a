// SPDX-License-Identifier: Apache-2.0

//! Mounts on the host: what containerd asks for a root file system, binds into the share,
//! and taking them away again. A [`Mounted`] undoes its mount when it is dropped.

mod api;
mod loopback;
mod options;
mod overlay;

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

use crate::error::{Error, IoContext};
use loopback::LoopDevice;

pub use api::{Bind, bind, clone_mount, set_read_only_and_shared};
pub use options::{Options, translate};

/// A mount as containerd describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// File system type, or "bind".
    pub kind: String,
    pub source: String,
    /// fstab style.
    pub options: Vec<String>,
}

/// A mount point of ours; dropping it takes everything mounted there away.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Takes charge of what is mounted, or about to be, at `target`.
    pub fn at(target: PathBuf) -> Mounted {
        Mounted(target)
    }

    /// Takes the mounts away now and reports a failure, which a drop cannot.
    pub fn unmount(self) -> Result<(), Error> {
        unmount_all(&self.0)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // `unmount` has reported; a second try finds nothing and is harmless.
        let _ = unmount_all(&self.0);
    }
}

/// Mounts `mount` on the existing directory `target`. Blocks.
pub fn mount(mount: &Mount, target: &Path) -> Result<(), Error> {
    let options = translate(&mount.options);
    let what =
        || format!("cannot mount {} from {} on {}", mount.kind, mount.source, target.display());
    if mount.kind == "bind" || options.flags.contains(MsFlags::MS_BIND) {
        let source = Bind {
            source: Path::new(&mount.source),
            recursive: options.flags.contains(MsFlags::MS_REC),
            read_only: options.flags.contains(MsFlags::MS_RDONLY),
            follows: true,
        };
        bind(source, target).map_err(|error| error.context(what()))?;
    } else if mount.kind == "overlay" {
        overlay::mount(mount, &options, target).map_err(|error| error.context(what()))?;
    } else {
        let device = options
            .wants_loop
            .then(|| {
                let read_only = options.flags.contains(MsFlags::MS_RDONLY);
                LoopDevice::attach(Path::new(&mount.source), read_only)
            })
            .transpose()
            .map_err(|error| error.context(what()))?;
        let source = device.as_ref().map_or(Path::new(&mount.source), |device| &device.path);
        nix::mount::mount(
            Some(source),
            target,
            Some(mount.kind.as_str()),
            options.flags,
            Some(options.data.as_str()),
        )
        .context(what)?;
    }
    if let Some(propagation) = options.propagation {
        nix::mount::mount(None::<&str>, target, None::<&str>, propagation, None::<&str>)
            .context(|| format!("cannot set the propagation of {}", target.display()))?;
    }
    Ok(())
}

/// Takes away all that is mounted at `target` and below, at once for everybody who looks,
/// even while it is in use. Nothing mounted there, or no such path, is success. A symbolic
/// link at `target` is never followed.
pub fn unmount_all(target: &Path) -> Result<(), Error> {
    /// More mounts on one point than anybody stacks; an end where the kernel gives none.
    const MAX_STACKED: usize = 64;
    for _ in 0..MAX_STACKED {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(error) => {
                return Err(Error::internal(format!(
                    "cannot unmount {}: {error}",
                    target.display()
                )));
            }
        }
    }
    Err(Error::internal(format!("{} does not run out of mounts", target.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmounting_nothing_is_success() {
        let dir = tempfile::tempdir().expect("directory");
        unmount_all(dir.path()).expect("not a mount point");
        unmount_all(&dir.path().join("missing")).expect("missing");
    }

    #[test]
    fn a_file_system_in_a_file_is_mounted_and_its_device_goes_with_it() {
        let dir = tempfile::tempdir().expect("directory");
        let (tree, image, target) =
            (dir.path().join("tree"), dir.path().join("image"), dir.path().join("target"));
        std::fs::create_dir_all(tree.join("etc")).expect("tree");
        std::fs::create_dir(&target).expect("target");
        let made = std::process::Command::new("mkfs.erofs").arg(&image).arg(&tree).output();
        let Ok(made) = made else { return println!("not run: there is no mkfs.erofs") };
        assert!(made.status.success(), "{made:?}");
        let mount_spec = Mount {
            kind: "erofs".into(),
            source: image.display().to_string(),
            options: vec!["ro".into(), "loop".into()],
        };
        if let Err(error) = mount(&mount_spec, &target) {
            // A machine without the right to mount, without loop devices or without erofs.
            let named = error.message.contains("image");
            return assert!(named, "{error}");
        }
        let mounted = Mounted::at(target.clone());
        assert!(target.join("etc").is_dir());
        mounted.unmount().expect("unmount");
        assert!(loopback::is_let_go(&image), "the loop device is still there");
    }

    #[test]
    fn a_failed_mount_names_all_that_matters() {
        let mount_spec =
            Mount { kind: "nosuchfs".into(), source: "/dev/x".into(), options: vec![] };
        let dir = tempfile::tempdir().expect("directory");
        let error = mount(&mount_spec, dir.path()).expect_err("fails");
        for part in ["nosuchfs", "/dev/x", &dir.path().display().to_string()] {
            assert!(error.message.contains(part), "{error}");
        }
    }
}
