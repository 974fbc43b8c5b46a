// SPDX-License-Identifier: Apache-2.0

//! The option `tmpcopyup`: a new tmpfs starts with a copy of the directory it covers.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chmodat, chownat, mkdirat, mknodat,
    openat, readlinkat, statat, symlinkat,
};

/// Copies what is in one directory, with owners and modes, to another, which is empty and
/// nobody else's.
pub fn copy(from: BorrowedFd, to: BorrowedFd) -> Result<(), String> {
    copy_entries(from, to).map_err(|e| format!("tmpcopyup: copy the directory: {e}"))
}

fn copy_entries(from: BorrowedFd, to: BorrowedFd) -> io::Result<()> {
    for entry in Dir::new(open(from, c".", OFlags::DIRECTORY)?)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let private = Mode::from_raw_mode(0o700);
        match kind {
            FileType::Directory => {
                mkdirat(to, name, private)?;
                let from = open(from, name, OFlags::DIRECTORY)?;
                let to = open(to, name, OFlags::DIRECTORY)?;
                copy_entries(from.as_fd(), to.as_fd())?;
            }
            FileType::Symlink => symlinkat(&readlinkat(from, name, Vec::new())?, to, name)?,
            FileType::RegularFile => {
                let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut from = File::from(open(from, name, OFlags::RDONLY)?);
                io::copy(&mut from, &mut File::from(openat(to, name, new, private)?))?;
            }
            _ => mknodat(to, name, kind, private, stat.st_rdev)?,
        }
        keep_owner(to, name, &stat, kind)?;
    }
    Ok(())
}

fn keep_owner(to: BorrowedFd, name: &CStr, stat: &Stat, kind: FileType) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    // After chown, which takes the set-user-ID bit away.
    if kind != FileType::Symlink {
        chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    Ok(())
}

fn open(at: BorrowedFd, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat(at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}
