// SPDX-License-Identifier: Apache-2.0

//! Finds and makes what paths name inside a root that nobody trusts: the kernel resolves
//! each path as if the root was `/`, so no symbolic link of an image leads out. What was
//! found is a descriptor; no path is looked up twice.

use std::ffi::OsString;
use std::fmt::Display;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::fs::{mkdirat, mknodat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// As many as the kernel follows.
const MAX_LINKS: u32 = 40;
/// The kernel gives up a path with `..` when anything on the system is renamed or mounted
/// meanwhile.
const MAX_RACES: u32 = 128;

/// What a missing path is made as.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Directory,
    File,
}

/// A result whose failure is told as `<what>: <reason>`, the reason in the words that
/// runc has for it, since people look for them.
pub trait Why<T> {
    fn why<W: Display>(self, what: impl FnOnce() -> W) -> Result<T, String>;
}

impl<T> Why<T> for rustix::io::Result<T> {
    fn why<W: Display>(self, what: impl FnOnce() -> W) -> Result<T, String> {
        self.map_err(|errno| format!("{}: {}", what(), reason(errno)))
    }
}

pub fn reason(errno: Errno) -> String {
    nix::errno::Errno::from_raw(errno.raw_os_error()).desc().to_lowercase()
}

/// Opens (O_PATH) what a path names inside `root`.
pub fn resolve(root: BorrowedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut races = 0;
    loop {
        match openat2(root, path, flags, Mode::empty(), inside) {
            Err(Errno::AGAIN) if races < MAX_RACES => races += 1,
            result => return result,
        }
    }
}

/// Like `resolve`, but makes what is missing, with the directories above. Tells whether
/// something was missing.
pub fn ensure(root: BorrowedFd, path: &Path, kind: Kind) -> rustix::io::Result<(OwnedFd, bool)> {
    ensure_within(root, path, kind, &mut 0)
}

fn ensure_within(
    root: BorrowedFd,
    path: &Path,
    kind: Kind,
    links: &mut u32,
) -> rustix::io::Result<(OwnedFd, bool)> {
    match resolve(root, path, OFlags::empty()) {
        Ok(found) => return Ok((found, false)),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let (Some(parent_path), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::NOENT);
    };
    let parent = if parent_path.as_os_str().is_empty() { Path::new("/") } else { parent_path };
    let (parent, _) = ensure_within(root, parent, Kind::Directory, links)?;
    let made = match kind {
        Kind::Directory => mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
        Kind::File => mknodat(&parent, name, FileType::RegularFile, Mode::from_raw_mode(0o755), 0),
    };
    match made {
        Ok(()) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return Ok((openat(&parent, name, flags, Mode::empty())?, true));
        }
        Err(Errno::EXIST) if *links < MAX_LINKS => *links += 1,
        Err(Errno::EXIST) => return Err(Errno::LOOP),
        Err(errno) => return Err(errno),
    }
    // Something has the name, but leads nowhere: a symbolic link to what is missing, as
    // /etc/resolv.conf often is in images. Its target is made.
    let target = match readlinkat(&parent, name, Vec::new()) {
        Ok(target) => PathBuf::from(OsString::from_vec(target.into_bytes())),
        // Somebody else has just made it.
        Err(Errno::INVAL) => path.to_owned(),
        Err(errno) => return Err(errno),
    };
    ensure_within(root, &parent_path.join(target), kind, links)
}

/// The path from the root, without `.`, `..` and doubled slashes; relative ones are taken
/// to start there.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::Normal(name) => clean.push(name),
            _ => {}
        }
    }
    clean
}

/// Where a descriptor leads, as the kernel tells it.
pub fn location(fd: BorrowedFd) -> rustix::io::Result<PathBuf> {
    let link = readlinkat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    Ok(OsString::from_vec(link.into_bytes()).into())
}
