// SPDX-License-Identifier: Apache-2.0

//! Attributes and identity of a file of the host.

use std::io;
use std::os::fd::AsFd;

use fuse_backend_rs::abi::fuse_abi::{Attr, stat64};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

/// What makes a file the same file. The mount is part of it: the same file seen through two
/// mounts may be writable through one of them only, and one may go away first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    pub mount: u64,
    device: (u32, u32),
    inode: u64,
}

pub struct Facts {
    pub identity: Identity,
    pub kind: FileType,
    pub attr: stat64,
}

impl Facts {
    /// Of the file itself, be it a symlink.
    pub fn of(file: impl AsFd) -> io::Result<Facts> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let st = statx(file, c"", flags, wanted)?;
        let attr = Attr {
            ino: st.stx_ino,
            size: st.stx_size,
            blocks: st.stx_blocks,
            // Before 1970 is negative, on the wire too.
            atime: st.stx_atime.tv_sec as u64,
            mtime: st.stx_mtime.tv_sec as u64,
            ctime: st.stx_ctime.tv_sec as u64,
            atimensec: st.stx_atime.tv_nsec,
            mtimensec: st.stx_mtime.tv_nsec,
            ctimensec: st.stx_ctime.tv_nsec,
            mode: u32::from(st.stx_mode),
            nlink: st.stx_nlink,
            uid: st.stx_uid,
            gid: st.stx_gid,
            rdev: device_number(st.stx_rdev_major, st.stx_rdev_minor),
            blksize: st.stx_blksize,
            flags: 0,
        };
        Ok(Facts {
            identity: Identity {
                mount: st.stx_mnt_id,
                device: (st.stx_dev_major, st.stx_dev_minor),
                inode: st.stx_ino,
            },
            kind: FileType::from_raw_mode(attr.mode),
            attr: attr.into(),
        })
    }
}

/// The kernel's 32-bit encoding, which FUSE uses.
fn device_number(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
