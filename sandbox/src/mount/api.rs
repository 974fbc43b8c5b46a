// SPDX-License-Identifier: Apache-2.0

//! The mount calls that work on detached trees (Linux 5.12). A bind made this way has its
//! propagation and flags before anybody can see it; with mount(2) there is a moment in
//! which unmounting the copy would unmount the original.

use std::ffi::{CString, c_int, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, IoContext};

// linux/mount.h and linux/fcntl.h.
const OPEN_TREE_CLONE: c_uint = 1;
const OPEN_TREE_CLOEXEC: c_uint = libc::O_CLOEXEC as c_uint;
const AT_RECURSIVE: c_uint = 0x8000;
const AT_EMPTY_PATH: c_uint = libc::AT_EMPTY_PATH as c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;

/// struct mount_attr, first version.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What a bind shows, and how.
#[derive(Debug, Clone, Copy)]
pub struct Bind<'a> {
    pub source: &'a Path,
    /// With the mounts below it.
    pub recursive: bool,
    /// All of them, too.
    pub read_only: bool,
    /// Mounts made or removed later below the source show, where the source's are shared.
    /// Never the other way round.
    pub follows: bool,
}

/// Binds on `target`.
pub fn bind(what: Bind<'_>, target: &Path) -> Result<(), Error> {
    let tree = clone_mount(what.source, what.recursive)?;
    let attr = MountAttr {
        attr_set: if what.read_only { MOUNT_ATTR_RDONLY } else { 0 },
        propagation: if what.follows { libc::MS_SLAVE } else { libc::MS_PRIVATE },
        ..MountAttr::default()
    };
    mount_setattr(tree.as_fd(), c"", AT_EMPTY_PATH | AT_RECURSIVE, &attr)
        .context(|| "cannot set its flags and propagation (this needs Linux 5.12)".to_owned())?;
    attach(&tree, target).context(|| format!("cannot attach it to {}", target.display()))
}

/// A detached copy of what is at `source`: no path leads to it, only this descriptor.
pub fn clone_mount(source: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let path = c_path(source).context(|| "its path".to_owned())?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: path is a zero-terminated string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        let message = format!("cannot open {}: {error}", source.display());
        return Err(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::invalid(message),
            _ => Error::internal(message),
        });
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Makes the mount at `target` read-only and the first of a peer group of its own, so that
/// a mount namespace copied from ours lets go of what we unmount.
pub fn set_read_only_and_shared(target: &Path) -> Result<(), Error> {
    let path = c_path(target).context(|| "its path".to_owned())?;
    let here = cwd();
    let private = MountAttr {
        attr_set: MOUNT_ATTR_RDONLY,
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    let shared = MountAttr { propagation: libc::MS_SHARED, ..MountAttr::default() };
    mount_setattr(here, &path, 0, &private)
        .and_then(|()| mount_setattr(here, &path, 0, &shared))
        .context(|| format!("cannot set the flags of {} (this needs Linux 5.12)", target.display()))
}

fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: both strings are zero-terminated and outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn mount_setattr(
    directory: BorrowedFd<'_>,
    path: &std::ffi::CStr,
    flags: c_uint,
    attr: &MountAttr,
) -> io::Result<()> {
    // SAFETY: path and attr outlive the call, and the size is attr's own.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            path.as_ptr(),
            flags,
            attr as *const MountAttr,
            size_of::<MountAttr>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn cwd() -> BorrowedFd<'static> {
    // SAFETY: AT_FDCWD is not a descriptor that could be closed.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the path contains a zero byte"))
}
