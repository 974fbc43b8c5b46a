// SPDX-License-Identifier: Apache-2.0

//! What the guest holds on to: inodes that it has looked up and files that it has opened.
//! Both cost descriptors, so both are capped.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use rustix::fs::FileType;
use rustix::process::{Resource, getrlimit};

use super::attr::Identity;

/// Most inodes and most open files, if the process may have as many descriptors.
const MAX_INODES: u64 = 1 << 20;
const MAX_FILES: u64 = 1 << 18;

pub struct Inode {
    /// O_PATH: names the file, whatever happens to its name.
    pub fd: OwnedFd,
    pub identity: Identity,
    pub kind: FileType,
}

/// Inodes by number. Numbers are never used twice.
pub struct Inodes {
    by_number: HashMap<u64, Entry>,
    by_identity: HashMap<Identity, u64>,
    next: u64,
    max: u64,
}

struct Entry {
    inode: Arc<Inode>,
    /// How often the guest has been told of it, less how often it forgot.
    lookups: u64,
    /// The guest has been shown that it is deleted.
    gone: bool,
}

impl Entry {
    fn new(inode: Inode) -> Entry {
        Entry { inode: Arc::new(inode), lookups: 1, gone: false }
    }
}

impl Inodes {
    pub fn new(root: Inode) -> Inodes {
        let by_identity = HashMap::from([(root.identity, ROOT_ID)]);
        let by_number = HashMap::from([(ROOT_ID, Entry::new(root))]);
        let max = (descriptors() / 2).min(MAX_INODES);
        Inodes { by_number, by_identity, next: ROOT_ID + 1, max }
    }

    pub fn get(&self, number: u64) -> io::Result<Arc<Inode>> {
        self.by_number.get(&number).map(|e| Arc::clone(&e.inode)).ok_or_else(stale)
    }

    /// Counts a lookup of `inode`, which may be known already; returns its number.
    pub fn add(&mut self, inode: Inode) -> io::Result<u64> {
        if let Some(&number) = self.by_identity.get(&inode.identity)
            && let Some(entry) = self.by_number.get_mut(&number)
        {
            entry.lookups += 1;
            return Ok(number);
        }
        if self.by_number.len() as u64 >= self.max {
            return Err(full());
        }
        let number = self.next;
        self.next += 1;
        self.by_identity.insert(inode.identity, number);
        self.by_number.insert(number, Entry::new(inode));
        Ok(number)
    }

    /// Regular files of a mount which are not known to be deleted, `max` at most.
    pub fn files_of(&self, mount: u64, max: usize) -> Vec<(u64, Arc<Inode>)> {
        let entries = self.by_number.iter().filter(|(_, entry)| {
            let Inode { identity, kind, .. } = &*entry.inode;
            identity.mount == mount && *kind == FileType::RegularFile && !entry.gone
        });
        entries.take(max).map(|(&number, entry)| (number, entry.inode.clone())).collect()
    }

    /// Counts a lookup that shows the guest that an inode is deleted; false if it has had
    /// one, or has forgotten the inode.
    pub fn show_gone(&mut self, number: u64) -> bool {
        let Some(entry) = self.by_number.get_mut(&number).filter(|entry| !entry.gone) else {
            return false;
        };
        entry.gone = true;
        entry.lookups += 1;
        true
    }

    pub fn forget(&mut self, number: u64, count: u64) {
        if number == ROOT_ID {
            return;
        }
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.lookups = entry.lookups.saturating_sub(count);
            if entry.lookups == 0 {
                let identity = entry.inode.identity;
                self.by_identity.remove(&identity);
                self.by_number.remove(&number);
            }
        }
    }

    /// Forgets all but the root.
    pub fn clear(&mut self) {
        self.by_number.retain(|&number, _| number == ROOT_ID);
        self.by_identity.retain(|_, number| *number == ROOT_ID);
    }
}

/// An open file or directory.
pub struct Handle {
    inode: u64,
    pub is_dir: bool,
    /// Locked for the traits of fuse-backend-rs, which want it exclusively, and for the
    /// position in a directory.
    pub file: Mutex<File>,
}

/// Open files by number. Numbers are never used twice.
pub struct Handles {
    by_number: HashMap<u64, Arc<Handle>>,
    next: u64,
    max: u64,
}

impl Handles {
    pub fn new() -> Handles {
        let max = (descriptors() / 4).min(MAX_FILES);
        Handles { by_number: HashMap::new(), next: 1, max }
    }

    pub fn add(&mut self, inode: u64, file: File, is_dir: bool) -> io::Result<u64> {
        if self.by_number.len() as u64 >= self.max {
            return Err(full());
        }
        let number = self.next;
        self.next += 1;
        let handle = Handle { inode, is_dir, file: Mutex::new(file) };
        self.by_number.insert(number, Arc::new(handle));
        Ok(number)
    }

    pub fn get(&self, number: u64, inode: u64) -> io::Result<Arc<Handle>> {
        let handle = self.by_number.get(&number).filter(|handle| handle.inode == inode);
        handle.map(Arc::clone).ok_or_else(stale)
    }

    pub fn remove(&mut self, number: u64, inode: u64) -> io::Result<()> {
        self.get(number, inode)?;
        self.by_number.remove(&number);
        Ok(())
    }

    pub fn clear(&mut self) {
        self.by_number.clear();
    }
}

/// How many descriptors the process may have.
fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(libc::ENFILE)
}
