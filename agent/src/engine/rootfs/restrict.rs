// SPDX-License-Identifier: Apache-2.0

//! What a container must not write (linux.readonlyPaths) or see (linux.maskedPaths), after
//! its root is entered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::options::Attributes;
use super::paths::{Why, resolve};
use super::{has_namespace, mount};

pub fn restrict(spec: &Spec) -> Result<(), String> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let read_only = linux.readonly_paths().as_deref().unwrap_or_default();
    let masked = linux.masked_paths().as_deref().unwrap_or_default();
    if read_only.is_empty() && masked.is_empty() {
        return Ok(());
    }
    if !has_namespace(spec, LinuxNamespaceType::Mount) {
        return Err("maskedPaths and readonlyPaths need a mount namespace".into());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty()).why(|| "open the root")?;
    for path in read_only {
        if let Some(at) = find(root.as_fd(), path)? {
            make_read_only(at).why(|| format!("make {path} read-only"))?;
        }
    }
    let mut covers = Covers { null: None, empty: None };
    for path in masked {
        if let Some(at) = find(root.as_fd(), path)? {
            covers.put(at)?;
        }
    }
    Ok(())
}

/// A path that does not exist needs nothing.
fn find(root: BorrowedFd, path: &str) -> Result<Option<OwnedFd>, String> {
    match resolve(root, Path::new(path), OFlags::empty()) {
        Err(Errno::NOENT) => Ok(None),
        result => result.map(Some).why(|| format!("open {path}")),
    }
}

/// Covers a path with itself, read-only and otherwise with the same attributes.
fn make_read_only(at: OwnedFd) -> rustix::io::Result<()> {
    let tree = mount::clone(&at, true)?;
    mount::set_attributes(&tree, false, Attributes::READ_ONLY)?;
    mount::attach(tree, at)
}

/// What paths are covered with; made when first needed, then copied.
struct Covers {
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
}

impl Covers {
    fn put(&mut self, at: OwnedFd) -> Result<(), String> {
        let stat = fstat(&at).why(|| "look at a masked path")?;
        let cover = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match &self.empty {
                Some(empty) => mount::clone(empty, false),
                None => empty_directory(),
            },
            _ => mount::clone(null(&mut self.null)?, false),
        };
        let cover = cover.why(|| "make a cover")?;
        mount::attach(&cover, at).why(|| "cover a masked path")?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.empty = Some(cover);
        }
        Ok(())
    }
}

/// The container's /dev/null. What the image has there instead would show through.
fn null(known: &mut Option<OwnedFd>) -> Result<&OwnedFd, String> {
    if let Some(null) = known {
        return Ok(null);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = openat(CWD, "/dev/null", flags, Mode::empty()).why(|| "open /dev/null")?;
    let stat = fstat(&null).why(|| "look at /dev/null")?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !device || stat.st_rdev != makedev(1, 3) {
        return Err("/dev/null is not the null device, so nothing can be masked with it".into());
    }
    Ok(known.insert(null))
}

/// A detached tmpfs with nothing in it, read-only.
pub(super) fn empty_directory() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}
