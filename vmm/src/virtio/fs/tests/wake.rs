// SPDX-License-Identifier: Apache-2.0

//! The two changes that are none, and files that are no more.

use super::*;
use crate::virtio::fs::{GONE_NAME, WAKE_NAME, WAKE_SECOND};
use fuse_backend_rs::abi::fuse_abi::SetattrIn;
use fuse_backend_rs::api::filesystem::SetattrValid;

fn name() -> &'static str {
    std::str::from_utf8(WAKE_NAME).expect("text")
}

#[test]
fn a_rename_of_the_empty_file_is_acknowledged_and_not_made() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), "as it was").expect("write");
    let entry = guest.lookup(ROOT_ID, name()).expect("the empty file");
    assert_eq!((entry.entry_valid, entry.entry_valid_nsec, entry.attr_valid), (0, 0, 0));
    assert_eq!((entry.attr.mode, entry.attr.size), (libc::S_IFREG, 0));
    let rename = RenameIn { newdir: ROOT_ID };
    for to in ["file", "new"] {
        guest.named(Opcode::Rename, ROOT_ID, rename.as_slice(), &[name(), to]).expect("rename");
    }
    assert_eq!(fs::read_to_string(guest.path("file")).expect("read"), "as it was");
    assert_eq!(guest.lookup(ROOT_ID, "new").err(), Some(libc::ENOENT));
    assert!(!guest.list(ROOT_ID, false).iter().any(|(found, _)| found == name()));
    // It is no file that anything could be done with.
    assert_eq!(guest.open(entry.nodeid, libc::O_RDWR).err(), Some(libc::EBADF));
    guest.forget(entry.nodeid, 1);
    assert_eq!(guest.named(Opcode::Unlink, ROOT_ID, &[], &[name()]).err(), Some(libc::ENOENT));
}

#[test]
fn the_second_that_no_file_has_is_not_set_and_makes_the_guest_doubt_its_pages() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), "x").expect("write");
    let before = fs::metadata(guest.path("file")).expect("attributes");
    let file = guest.lookup(ROOT_ID, "file").expect("lookup").nodeid;
    let args = SetattrIn {
        valid: SetattrValid::MTIME.bits(),
        mtime: WAKE_SECOND as u64,
        ..SetattrIn::default()
    };
    let reply = guest.call(Opcode::Setattr, file, args.as_slice()).expect("setattr");
    let out: AttrOut = read(&reply);
    assert_eq!((out.attr.mtime, out.attr.size), (WAKE_SECOND as u64, 1));
    assert_eq!((out.attr_valid, out.attr_valid_nsec), (0, 0));
    let after = fs::metadata(guest.path("file")).expect("attributes");
    assert_eq!((before.mtime(), before.ctime()), (after.mtime(), after.ctime()));
    assert_eq!(
        (before.mtime_nsec(), before.ctime_nsec()),
        (after.mtime_nsec(), after.ctime_nsec())
    );
}

#[test]
fn files_that_the_host_has_deleted_are_shown_once_each() {
    let mut guest = Guest::new();
    let gone = std::str::from_utf8(GONE_NAME).expect("text");
    fs::create_dir(guest.path("old")).expect("directory");
    for name in ["old/one", "old/two", "old/linked", "kept", "unknown"] {
        fs::write(guest.path(name), "x").expect("write");
    }
    fs::hard_link(guest.path("old/linked"), guest.path("link")).expect("link");
    let old = guest.lookup(ROOT_ID, "old").expect("lookup").nodeid;
    let known =
        ["one", "two", "linked"].map(|name| guest.lookup(old, name).expect("lookup").nodeid);
    guest.lookup(ROOT_ID, "kept").expect("lookup");
    assert_eq!(guest.lookup(ROOT_ID, gone).err(), Some(libc::ENOENT));
    fs::remove_dir_all(guest.path("old")).expect("remove");
    fs::remove_file(guest.path("unknown")).expect("remove");
    guest.uid = 1000;
    assert_eq!(guest.lookup(ROOT_ID, gone).err(), Some(libc::ENOENT), "for root alone");
    guest.uid = 0;
    let mut shown = [(); 2].map(|()| {
        let entry = guest.lookup(ROOT_ID, gone).expect("a file");
        assert_eq!((entry.attr.nlink, entry.attr.mode & libc::S_IFMT), (0, libc::S_IFREG));
        assert_eq!((entry.entry_valid, entry.entry_valid_nsec, entry.attr_valid), (0, 0, 0));
        entry.nodeid
    });
    shown.sort();
    assert_eq!(shown, known[..2], "those that were known and have no name");
    assert_eq!(guest.lookup(ROOT_ID, gone).err(), Some(libc::ENOENT));
    // Each look was a lookup like others: one is left to forget.
    guest.forget(known[0], 1);
    guest.call(Opcode::Getattr, known[0], GetattrIn::default().as_slice()).expect("known");
    guest.forget(known[0], 1);
    let forgotten = guest.call(Opcode::Getattr, known[0], GetattrIn::default().as_slice());
    assert_eq!(forgotten.err(), Some(libc::EBADF));
}
