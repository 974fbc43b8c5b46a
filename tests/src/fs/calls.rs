// SPDX-License-Identifier: Apache-2.0

//! System calls in the short form that the cases read well in. Names are relative to the
//! case's directory, and what a call is refused with is an `Errno`.

use std::fs::File;
use std::panic::Location;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Uid};
use rustix::io::{Errno, Result};

use super::Outcome;

pub fn open(name: &str, flags: OFlags) -> Result<File> {
    open_mode(name, flags, 0o644)
}

pub fn open_mode(name: &str, flags: OFlags, mode: u32) -> Result<File> {
    let flags = flags | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, name, flags, Mode::from_raw_mode(mode))?.into())
}

/// A new file, open for reading and writing.
pub fn create(name: &str) -> Result<File> {
    open(name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR)
}

/// A new file with this content.
pub fn fill(name: &str, content: &[u8]) -> Outcome {
    create(name)?;
    std::fs::write(name, content)?;
    Ok(())
}

pub fn mkdir(name: &str, mode: u32) -> Result<()> {
    rustix::fs::mkdirat(CWD, name, Mode::from_raw_mode(mode))
}

pub fn mknod(name: &str, kind: FileType, mode: u32, device: u64) -> Result<()> {
    rustix::fs::mknodat(CWD, name, kind, Mode::from_raw_mode(mode), device)
}

pub fn chmod(name: &str, mode: u32) -> Result<()> {
    rustix::fs::chmodat(CWD, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Of the file itself, be it a symbolic link.
pub fn chown(name: &str, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    rustix::fs::chownat(CWD, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

pub fn link(old: &str, new: &str) -> Result<()> {
    rustix::fs::linkat(CWD, old, CWD, new, AtFlags::empty())
}

pub fn symlink(target: &str, name: &str) -> Result<()> {
    rustix::fs::symlinkat(target, CWD, name)
}

pub fn readlink(name: &str) -> Result<String> {
    let target = rustix::fs::readlinkat(CWD, name, Vec::new())?;
    Ok(target.to_string_lossy().into_owned())
}

pub fn unlink(name: &str) -> Result<()> {
    rustix::fs::unlinkat(CWD, name, AtFlags::empty())
}

pub fn rmdir(name: &str) -> Result<()> {
    rustix::fs::unlinkat(CWD, name, AtFlags::REMOVEDIR)
}

pub fn rename(old: &str, new: &str) -> Result<()> {
    rustix::fs::renameat(CWD, old, CWD, new)
}

pub fn rename_with(old: &str, new: &str, flags: RenameFlags) -> Result<()> {
    rustix::fs::renameat_with(CWD, old, CWD, new, flags)
}

/// Of the file itself, be it a symbolic link.
pub fn stat(name: &str) -> Result<Stat> {
    rustix::fs::statat(CWD, name, AtFlags::SYMLINK_NOFOLLOW)
}

pub fn exists(name: &str) -> bool {
    stat(name).is_ok()
}

pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The permission bits, set-user-ID, set-group-ID and sticky among them.
pub fn mode(name: &str) -> Result<u32> {
    Ok(stat(name)?.st_mode & 0o7777)
}

pub fn owner(name: &str) -> Result<(u32, u32)> {
    stat(name).map(|stat| (stat.st_uid, stat.st_gid))
}

pub type Nanoseconds = i128;

pub fn mtime(stat: &Stat) -> Nanoseconds {
    Nanoseconds::from(stat.st_mtime) * 1_000_000_000 + Nanoseconds::from(stat.st_mtime_nsec)
}

pub fn ctime(stat: &Stat) -> Nanoseconds {
    Nanoseconds::from(stat.st_ctime) * 1_000_000_000 + Nanoseconds::from(stat.st_ctime_nsec)
}

pub fn atime(stat: &Stat) -> Nanoseconds {
    Nanoseconds::from(stat.st_atime) * 1_000_000_000 + Nanoseconds::from(stat.st_atime_nsec)
}

pub fn timespec(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

/// Names in a directory, in order, without "." and "..".
pub fn list(name: &str) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(name)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Checks that a call was refused with this error.
#[track_caller]
pub fn refused<T>(result: Result<T>, wanted: Errno) -> Outcome {
    let place = Location::caller();
    match result {
        Err(error) if error == wanted => Ok(()),
        Err(error) => differs(format!("refused with {error}, not {wanted} ({place})")),
        Ok(_) => differs(format!("done, not refused with {wanted} ({place})")),
    }
}

/// Checks that two values are equal; `what` they are.
#[track_caller]
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Outcome {
    match found == wanted {
        true => Ok(()),
        false => differs(format!("{what} is {found:?}, not {wanted:?} ({})", Location::caller())),
    }
}

/// Checks a condition; `what` it says.
#[track_caller]
pub fn holds(what: &str, condition: bool) -> Outcome {
    if condition { Ok(()) } else { differs(format!("not so: {what} ({})", Location::caller())) }
}

pub fn differs<T>(text: String) -> Outcome<T> {
    Err(super::Failure::Differs(text))
}

pub fn skip<T>(why: impl Into<String>) -> Outcome<T> {
    Err(super::Failure::Skipped(why.into()))
}
