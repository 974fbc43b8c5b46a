// SPDX-License-Identifier: Apache-2.0

//! Extended attributes, access control lists among them.
//!
//! The calls take the name N in /proc/self/fd, the working directory of the thread: it leads
//! to the file of descriptor N and no further, be it a symlink, and opens nothing.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use fuse_backend_rs::api::filesystem::{GetxattrReply, ListxattrReply};
use rustix::fs::{FileType, XattrFlags};
use rustix::io::Errno;

use super::{Tree, error};

/// Longest value and longest list (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX: usize = 64 << 10;

const ACCESS_LIST: &[u8] = b"system.posix_acl_access";
const DEFAULT_LIST: &[u8] = b"system.posix_acl_default";

/// In a namespace of the host's root, who may keep overlayfs's secrets there.
fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(b"trusted.")
}

/// Of what the host's kernel and its security modules go by, only file capabilities and
/// access control lists are for the guest to set.
fn check_settable(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"security.capability" | ACCESS_LIST | DEFAULT_LIST => Ok(()),
        name if name.starts_with(b"trusted.") || name.starts_with(b"security.") => {
            Err(error(libc::EPERM))
        }
        name if name.starts_with(b"system.") => Err(error(libc::EOPNOTSUPP)),
        _ => Ok(()),
    }
}

impl Tree {
    /// Calls `with` the path of an inode.
    fn at_inode<T>(
        &self,
        number: u64,
        with: impl FnOnce(&str) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let inode = self.inodes().get(number)?;
        Ok(with(&inode.fd.as_raw_fd().to_string())?)
    }

    /// With `kills_sgid` an access control list takes set-group-ID away: its setter is not
    /// in the file's group.
    pub fn set_xattr(
        &self,
        number: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
        kills_sgid: bool,
    ) -> io::Result<()> {
        check_settable(name)?;
        let flags = XattrFlags::from_bits(flags).ok_or_else(|| error(libc::EINVAL))?;
        self.at_inode(number, |path| rustix::fs::setxattr(path, name, value, flags))?;
        if kills_sgid {
            self.drop_sgid(number)?;
        }
        Ok(())
    }

    fn drop_sgid(&self, number: u64) -> io::Result<()> {
        let inode = self.inodes().get(number)?;
        let mode = rustix::fs::fstat(&inode.fd)?.st_mode;
        if inode.kind == FileType::RegularFile && mode & libc::S_ISGID != 0 {
            let mode = super::permissions(mode & !libc::S_ISGID);
            let (descriptors, name) = (&self.anchor.descriptors, inode.fd.as_raw_fd().to_string());
            rustix::fs::chmodat(descriptors, name, mode, rustix::fs::AtFlags::empty())?;
        }
        Ok(())
    }

    pub(super) fn get_xattr(
        &self,
        number: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        if is_hidden(name.to_bytes()) {
            return Err(error(libc::ENODATA));
        }
        let mut value = vec![0; (size as usize).min(MAX)];
        let found = self.at_inode(number, |path| match size {
            0 => rustix::fs::getxattr_query(path, name),
            _ => rustix::fs::getxattr(path, name, &mut value[..]),
        });
        match found {
            Ok(len) if size == 0 => Ok(GetxattrReply::Count(len as u32)),
            Ok(len) => {
                value.truncate(len);
                Ok(GetxattrReply::Value(value))
            }
            // Of a file system without such lists: the guest's kernel would let nobody in.
            Err(unsupported)
                if unsupported.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error())
                    && matches!(name.to_bytes(), ACCESS_LIST | DEFAULT_LIST) =>
            {
                Err(error(libc::ENODATA))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn list_xattrs(&self, number: u64, size: u32) -> io::Result<ListxattrReply> {
        let mut names = vec![0; MAX];
        let len = self.at_inode(number, |path| rustix::fs::listxattr(path, &mut names[..]))?;
        let names: Vec<u8> = names[..len]
            .split_inclusive(|&byte| byte == 0)
            .filter(|name| !is_hidden(name))
            .flatten()
            .copied()
            .collect();
        match size as usize {
            0 => Ok(ListxattrReply::Count(names.len() as u32)),
            size if size < names.len() => Err(error(libc::ERANGE)),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    pub(super) fn remove_xattr(&self, number: u64, name: &CStr) -> io::Result<()> {
        check_settable(name)?;
        self.at_inode(number, |path| rustix::fs::removexattr(path, name))
    }
}
