// SPDX-License-Identifier: Apache-2.0

//! mount_setattr(2), and the calls that clone and attach mounts by descriptor.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::options::Attributes;

/// Changes the mount at whose root `mount` is; all mounts below it too if `recursive`.
fn mount_setattr(mount: impl AsFd, recursive: bool, attr: libc::mount_attr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string; the kernel reads the structure, of that size, during
    // the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    // Always an errno of the C library, so never out of range.
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

const UNCHANGED: libc::mount_attr =
    libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };

pub fn set_attributes(
    mount: impl AsFd,
    recursive: bool,
    attributes: Attributes,
) -> Result<(), Errno> {
    let Attributes { set, clear } = attributes;
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, ..UNCHANGED };
    mount_setattr(mount, recursive, attr)
}

/// `propagation` is MS_PRIVATE, MS_SLAVE, MS_SHARED or MS_UNBINDABLE.
pub fn set_propagation(mount: impl AsFd, recursive: bool, propagation: u64) -> Result<(), Errno> {
    mount_setattr(mount, recursive, libc::mount_attr { propagation, ..UNCHANGED })
}

/// Only for detached mounts.
pub fn map_ids(mount: impl AsFd, recursive: bool, user_namespace: &OwnedFd) -> Result<(), Errno> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        userns_fd: user_namespace.as_raw_fd() as u64,
        ..UNCHANGED
    };
    mount_setattr(mount, recursive, attr)
}

/// A detached copy of the mount from `at` on; with all mounts below if `recursive`.
pub fn clone(at: impl AsFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(at, "", flags)
}

pub fn attach(mount: impl AsFd, at: impl AsFd) -> Result<(), Errno> {
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", at, "", empty)
}
