// SPDX-License-Identifier: Apache-2.0

//! Reading directories, with and without the entries' attributes.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::sync::PoisonError;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{RawDir, SeekFrom};

use super::Tree;

/// Bytes of directory entries that are read at a time.
const BUFFER: usize = 16 << 10;

impl Tree {
    /// Calls `each` with the entries of a directory until it has no room (false).
    pub(super) fn read_directory(
        &self,
        inode: u64,
        handle: u64,
        offset: u64,
        mut each: impl FnMut(DirEntry<'_>, &CStr) -> io::Result<bool>,
    ) -> io::Result<()> {
        let handle = self.handle(handle, inode, true)?;
        let file = handle.file.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::seek(&*file, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(&*file, &mut buffer);
        let mut first = true;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let found = DirEntry {
                ino: entry.ino(),
                offset: entry.next_entry_cookie(),
                type_: entry.file_type().as_raw_mode() >> 12,
                name: entry.file_name().to_bytes(),
            };
            match each(found, entry.file_name()) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if first => return Err(error),
                // What came before has been counted: it must reach the guest.
                Err(_) => break,
            }
            first = false;
        }
        Ok(())
    }

    /// The same with a lookup of each entry that `each` has room for.
    pub(super) fn read_directory_plus(
        &self,
        number: u64,
        handle: u64,
        offset: u64,
        mut each: impl FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let parent = self.inodes().get(number)?;
        self.read_directory(number, handle, offset, |mut found, name| {
            if found.name == b"." || found.name == b".." {
                // No inode: the guest knows these.
                return Ok(each(found, Entry::default())? > 0);
            }
            let entry = match self.look_up(&parent, name) {
                Ok(entry) => entry,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(error) => return Err(error),
            };
            found.ino = entry.attr.st_ino;
            let added = each(found, entry);
            if !matches!(added, Ok(1..)) {
                self.inodes().forget(entry.inode, 1);
            }
            Ok(added? > 0)
        })
    }
}
