// SPDX-License-Identifier: Apache-2.0

//! The file system: a directory of the host, and what the requests for it share. The
//! requests themselves are by subject in `tree/`.
//!
//! No path leaves the directory: a name is one component, never "." or "..", opened with
//! O_PATH and O_NOFOLLOW below a directory that is held open, so symlinks are only ever read
//! as such. Only regular files and directories are opened for more than their name; device
//! nodes, FIFOs and sockets are the guest's kernel's business.

mod attributes;
mod directories;
mod files;
mod requests;
mod wake;
mod xattrs;

pub use files::Place;
pub use wake::{GONE as GONE_NAME, NAME as WAKE_NAME, SECOND as WAKE_SECOND};

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::ATTR_SUBMOUNT;
use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::{FileType, Mode, OFlags};

use super::attr::Facts;
use super::inodes::{Handle, Handles, Inode, Inodes};

/// How long the guest may believe attributes, and names below mounts.
///
/// Pages stay cached across opens and are dropped when size or time of change differ
/// (AUTO_INVAL_DATA). Names hold below a mount, where usually only the guest makes changes;
/// in the shared directory itself, where the supervisor makes and removes mount points, they
/// do not hold at all. No write-back: the host sees what the guest wrote, and each sees the
/// other's appends.
const VALIDITY: Duration = Duration::from_secs(1);

/// What stays when the guest starts over.
pub struct Anchor {
    root: OwnedFd,
    /// The directory /proc/self/fd: opening N there reopens descriptor N with other flags.
    descriptors: OwnedFd,
}

impl Anchor {
    pub fn new(directory: OwnedFd) -> io::Result<Anchor> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
        let root = reopen(&descriptors, &directory, flags)?;
        Ok(Anchor { root, descriptors })
    }

    pub fn descriptors(&self) -> &OwnedFd {
        &self.descriptors
    }
}

/// Opens the file of `fd` anew.
fn reopen(descriptors: &OwnedFd, fd: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
    let name = fd.as_fd().as_raw_fd().to_string();
    Ok(rustix::fs::openat(descriptors, name, flags | OFlags::CLOEXEC, Mode::empty())?)
}

pub struct Tree {
    anchor: Arc<Anchor>,
    inodes: Mutex<Inodes>,
    handles: Mutex<Handles>,
    /// The mount that the shared directory is in.
    root_mount: u64,
    /// The guest's kernel mounts submounts.
    submounts: AtomicBool,
    /// The guest's kernel sends SETXATTR in its longer form.
    long_setxattr: AtomicBool,
}

impl Tree {
    pub fn new(anchor: Arc<Anchor>) -> io::Result<Tree> {
        let root = inode(anchor.root.try_clone()?)?.0;
        Ok(Tree {
            root_mount: root.identity.mount,
            anchor,
            inodes: Mutex::new(Inodes::new(root)),
            handles: Mutex::new(Handles::new()),
            submounts: AtomicBool::new(false),
            long_setxattr: AtomicBool::new(false),
        })
    }

    /// Forgets all that the guest held: it mounts anew, or has unmounted.
    pub fn start_over(&self, submounts: bool, long_setxattr: bool) {
        self.handles().clear();
        self.inodes().clear();
        self.submounts.store(submounts, Ordering::Relaxed);
        self.long_setxattr.store(long_setxattr, Ordering::Relaxed);
    }

    pub fn has_long_setxattr(&self) -> bool {
        self.long_setxattr.load(Ordering::Relaxed)
    }

    /// Tables are whole after any panic: they only ever gain or lose entries.
    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, number: u64, inode: u64, is_dir: bool) -> io::Result<Arc<Handle>> {
        let handle = self.handles().get(number, inode)?;
        if handle.is_dir == is_dir { Ok(handle) } else { Err(error(libc::EBADF)) }
    }

    fn add_handle(&self, inode: u64, file: File, is_dir: bool) -> io::Result<u64> {
        self.handles().add(inode, file, is_dir)
    }

    /// Opens an inode for its contents.
    fn open_contents(&self, inode: &Inode, flags: OFlags) -> io::Result<File> {
        if !matches!(inode.kind, FileType::RegularFile | FileType::Directory) {
            return Err(error(libc::EOPNOTSUPP));
        }
        Ok(reopen(&self.anchor.descriptors, &inode.fd, flags)?.into())
    }

    /// Counts a lookup of what `fd`, opened O_PATH, names in `parent`.
    fn entry(&self, parent: &Inode, fd: OwnedFd) -> io::Result<Entry> {
        let (inode, facts) = inode(fd)?;
        let crosses = inode.identity.mount != parent.identity.mount;
        let is_submount =
            crosses && inode.kind == FileType::Directory && self.submounts.load(Ordering::Relaxed);
        let is_workshop = parent.identity.mount == self.root_mount;
        Ok(Entry {
            inode: self.inodes().add(inode)?,
            attr: facts.attr,
            attr_flags: if is_submount { ATTR_SUBMOUNT } else { 0 },
            attr_timeout: VALIDITY,
            entry_timeout: if is_workshop { Duration::ZERO } else { VALIDITY },
            ..Entry::default()
        })
    }

    fn look_up(&self, parent: &Inode, name: &CStr) -> io::Result<Entry> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, name, flags, Mode::empty())?;
        self.entry(parent, fd)
    }

    /// The inode `parent`, in which `name` is to be used.
    fn parent(&self, parent: u64, name: &CStr) -> io::Result<Arc<Inode>> {
        let bytes = name.to_bytes();
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(error(libc::EINVAL));
        }
        self.inodes().get(parent)
    }
}

fn inode(fd: OwnedFd) -> io::Result<(Inode, Facts)> {
    let facts = Facts::of(&fd)?;
    Ok((Inode { fd, identity: facts.identity, kind: facts.kind }, facts))
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
