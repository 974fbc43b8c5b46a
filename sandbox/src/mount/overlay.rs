// SPDX-License-Identifier: Apache-2.0

//! overlayfs with more layers than fit into mount(2)'s one page of data: the layers are
//! named relative to their common directory, from a thread that has gone there.

use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use super::{Mount, Options};
use crate::error::{Error, IoContext};

/// mount(2) takes one page of data, its terminating zero included.
const MAX_DATA: usize = 4095;

/// Mounts an overlay. Blocks.
pub fn mount(mount: &Mount, options: &Options, target: &Path) -> Result<(), Error> {
    let flags = options.flags;
    if options.data.len() <= MAX_DATA {
        return nix::mount::mount(
            Some(mount.source.as_str()),
            target,
            Some("overlay"),
            flags,
            Some(options.data.as_str()),
        )
        .context(|| "mount(2)".to_owned());
    }
    let (directory, data) =
        shorten(&options.data).filter(|(_, data)| data.len() <= MAX_DATA).ok_or_else(|| {
            Error::invalid(format!(
                "its options take {} bytes, more than the kernel's {MAX_DATA}, even relative to \
                 the layers' common directory; use an image with fewer layers",
                options.data.len()
            ))
        })?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // The working directory belongs to the process; this thread gets its own.
            unshare(CloneFlags::CLONE_FS).context(|| "cannot leave the directory".to_owned())?;
            nix::unistd::chdir(directory.as_str())
                .context(|| format!("cannot enter {directory}"))?;
            nix::mount::mount(
                Some(mount.source.as_str()),
                target,
                Some("overlay"),
                flags,
                Some(data.as_str()),
            )
            .context(|| "mount(2)".to_owned())
        });
        thread.join().unwrap_or_else(|_| Err(Error::internal("the mounting thread died")))
    })
}

/// The common directory of all lower layers, and the data with the layers relative to it.
fn shorten(data: &str) -> Option<(String, String)> {
    let lower = data.split(',').find_map(|option| option.strip_prefix("lowerdir="))?;
    // A colon or comma in a path would be escaped; such paths are left alone.
    if lower.contains('\\') {
        return None;
    }
    let layers: Vec<&str> = lower.split(':').collect();
    let first = layers.first()?;
    let mut common = first.len();
    for layer in &layers {
        common = first.bytes().zip(layer.bytes()).take(common).take_while(|(a, b)| a == b).count();
    }
    // Back to a whole component, so that what is left of each layer is a path.
    let directory = &first[..first[..common].rfind('/')?];
    if directory.is_empty() {
        return None;
    }
    let relative: Vec<&str> = layers.iter().map(|layer| &layer[directory.len() + 1..]).collect();
    if relative.iter().any(|layer| layer.is_empty()) {
        return None;
    }
    let data: Vec<String> = data
        .split(',')
        .map(|option| {
            if option.starts_with("lowerdir=") {
                format!("lowerdir={}", relative.join(":"))
            } else {
                option.to_owned()
            }
        })
        .collect();
    Some((directory.to_owned(), data.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_become_relative_to_their_common_directory() {
        let data = "index=off,workdir=/v/3/work,upperdir=/v/3/fs,lowerdir=/v/s/12/fs:/v/s/1/fs";
        let (directory, short) = shorten(data).expect("shorter");
        assert_eq!(directory, "/v/s");
        assert_eq!(short, "index=off,workdir=/v/3/work,upperdir=/v/3/fs,lowerdir=12/fs:1/fs");
    }

    #[test]
    fn what_cannot_be_shortened_is_left() {
        for data in ["upperdir=/a", "lowerdir=/a:/b", "lowerdir=/a/b\\:c:/a/d", "lowerdir=/x/a:/x/"]
        {
            assert_eq!(shorten(data), None, "{data}");
        }
    }

    #[test]
    fn a_real_overlay_with_two_hundred_layers_is_mounted() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("directory");
        let long = dir.path().join("a-directory-name-that-is-long-enough-to-matter");
        let mut layers = Vec::new();
        for n in 0..200 {
            let layer = long.join(format!("{n}/fs"));
            std::fs::create_dir_all(&layer).expect("layer");
            std::fs::write(layer.join(format!("file-{n}")), b"").expect("file");
            layers.push(layer.display().to_string());
        }
        let target = dir.path().join("target");
        std::fs::create_dir(&target).expect("target");
        let mount_spec = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec![format!("lowerdir={}", layers.join(":"))],
        };
        match super::super::mount(&mount_spec, &target) {
            Ok(()) => {}
            // A machine without overlayfs or without the right to mount cannot run this.
            Err(error) if error.message.contains("EPERM") || error.message.contains("ENODEV") => {
                return;
            }
            Err(error) => panic!("{error}"),
        }
        let mounted = super::super::Mounted::at(target.clone());
        assert!(target.join("file-0").exists() && target.join("file-199").exists());
        mounted.unmount().expect("unmount");
        assert!(!target.join("file-0").exists());
    }
}
