// SPDX-License-Identifier: Apache-2.0

//! Attributes that the guest sets: mode, owner, size and times.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::PoisonError;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::SetattrValid;
use rustix::fs::{AtFlags, Gid, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use super::files::drop_suid;
use super::{Tree, permissions};

impl Tree {
    pub(super) fn set_attributes(
        &self,
        number: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<()> {
        let inode = self.inodes().get(number)?;
        let (descriptors, name) = (&self.anchor.descriptors, inode.fd.as_raw_fd().to_string());
        if valid.contains(SetattrValid::MODE) {
            rustix::fs::chmodat(descriptors, &name, permissions(attr.st_mode), AtFlags::empty())?;
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let owner = |flag, id: u32| (valid.contains(flag) && id != u32::MAX).then_some(id);
            let uid = owner(SetattrValid::UID, attr.st_uid).map(Uid::from_raw);
            let gid = owner(SetattrValid::GID, attr.st_gid).map(Gid::from_raw);
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&inode.fd, c"", uid, gid, flags)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let resize = |file: &File| {
                rustix::fs::ftruncate(file, attr.st_size as u64)?;
                if valid.contains(SetattrValid::KILL_SUIDGID) { drop_suid(file) } else { Ok(()) }
            };
            match handle {
                Some(handle) => {
                    let handle = self.handle(handle, number, false)?;
                    resize(&handle.file.lock().unwrap_or_else(PoisonError::into_inner))?;
                }
                None => resize(&self.open_contents(&inode, OFlags::WRONLY)?)?,
            }
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let time = |set, now, tv_sec, tv_nsec| match valid {
                _ if valid.contains(now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
                _ if valid.contains(set) => Timespec { tv_sec, tv_nsec },
                _ => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            };
            let (atime, mtime) = (SetattrValid::ATIME, SetattrValid::MTIME);
            let (anow, mnow) = (SetattrValid::ATIME_NOW, SetattrValid::MTIME_NOW);
            let times = Timestamps {
                last_access: time(atime, anow, attr.st_atime, attr.st_atime_nsec),
                last_modification: time(mtime, mnow, attr.st_mtime, attr.st_mtime_nsec),
            };
            rustix::fs::utimensat(descriptors, &name, &times, AtFlags::empty())?;
        }
        Ok(())
    }
}
