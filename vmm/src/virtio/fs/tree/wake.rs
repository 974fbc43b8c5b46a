// SPDX-License-Identifier: Apache-2.0

//! What changes nothing. A guest's kernel tells those who watch a file (inotify) of changes
//! that are made through it, and knows of no others. So that the guest can have it tell of
//! the host's, two changes are acknowledged here and not made: a rename of [`NAME`], which in
//! every directory leads to an empty file that is not there, and a time of change in
//! [`SECOND`]. And it is shown what the host has deleted, as [`GONE`]. Whatever the guest's
//! kernel takes from the answers holds for no time.

use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{Attr, stat64};
use fuse_backend_rs::api::filesystem::{Entry, SetattrValid};

use super::{Tree, error};
use crate::virtio::fs::attr::Facts;
use crate::virtio::fs::inodes::Inode;

/// Hidden by this, should the host have such a file.
pub const NAME: &[u8] = b".husk-wake";

/// A second that no file has: long before there were any stars.
pub const SECOND: i64 = -0x6875_736b_6875_736b;

/// Each look at it shows another file that has no name any more. Hidden by this, too.
pub const GONE: &[u8] = b".husk-gone";

/// Most files of a mount among which one is looked for; of more, some may not be shown.
const MAX_SEARCH: usize = 4096;

/// The number of the empty file: one that `Inodes` never gets to.
const INODE: u64 = u64::MAX;

/// The entry of the empty file.
pub fn entry() -> Entry {
    let attr = Attr { ino: INODE, mode: libc::S_IFREG, nlink: 1, ..Attr::default() };
    Entry { inode: INODE, attr: attr.into(), ..Entry::default() }
}

/// Whether attributes are set for the sake of those who watch.
pub fn is_meant(attr: &stat64, valid: SetattrValid) -> bool {
    valid.contains(SetattrValid::MTIME) && attr.st_mtime == SECOND
}

impl Tree {
    /// A file that the guest knows from the directory's mount and that the host has deleted,
    /// each once. By the path that led to it the guest would find that nothing is there, and
    /// go on believing that the file has another. So it learns that there are no links; when
    /// it has let go of all names, it tells those who watch the file (IN_DELETE_SELF).
    pub(super) fn look_up_gone(&self, directory: &Inode) -> io::Result<Entry> {
        let known = self.inodes().files_of(directory.identity.mount, MAX_SEARCH);
        for (inode, file) in known {
            let attr = Facts::of(&file.fd)?.attr;
            if attr.st_nlink == 0 && self.inodes().show_gone(inode) {
                return Ok(Entry { inode, attr, ..Entry::default() });
            }
        }
        Err(error(libc::ENOENT))
    }

    /// The attributes of an inode with an impossible time of change: the next ones that the
    /// guest gets will differ, and so it drops the pages that it has of the file.
    pub(super) fn doubtful_attributes(&self, number: u64) -> io::Result<(stat64, Duration)> {
        let inode = self.inodes().get(number)?;
        let mut attr = Facts::of(&inode.fd)?.attr;
        (attr.st_mtime, attr.st_mtime_nsec) = (SECOND, 0);
        Ok((attr, Duration::ZERO))
    }
}
