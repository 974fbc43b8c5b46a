// SPDX-License-Identifier: Apache-2.0

//! Requests beyond those of fuse-backend-rs, as drivers send them and as none does.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, EntryOut, FallocateIn, FsOptions, FsyncIn, GetxattrIn, InitIn, InitIn2, InitOut,
    LinkIn, Opcode, OpenIn, OpenOut, OutHeader, ROOT_ID, WriteOut,
};

use super::{Guest, read};
use crate::memory::ByteValued;
use crate::virtio::fs::extension::{CopyFileRangeIn, SetxattrIn};
use crate::virtio::fs::slow::{MAX_THREADS, Pool};

const SYNCFS: u32 = 50;
const TMPFILE: u32 = 51;

/// An access control list that gives user 1000 what the mask leaves of everything.
fn list(mask: u8) -> Vec<u8> {
    let entry = |kind: u8, permissions: u8, id: u32| {
        [&[kind, 0, permissions, 0][..], &id.to_le_bytes()].concat()
    };
    let nobody = u32::MAX;
    let entries = [
        entry(1, 6, nobody),
        entry(2, 7, 1000),
        entry(4, 0, nobody),
        entry(0x10, mask, nobody),
        entry(0x20, 0, nobody),
    ];
    [&2u32.to_le_bytes()[..], &entries.concat()].concat()
}

impl Guest {
    pub(super) fn set_xattr(
        &mut self,
        inode: u64,
        name: &str,
        value: &[u8],
        kill: u32,
    ) -> Result<(), i32> {
        let size = value.len() as u32;
        let args = SetxattrIn { size, setxattr_flags: kill, ..SetxattrIn::default() };
        let body = [args.as_slice(), name.as_bytes(), b"\0", value].concat();
        self.call(Opcode::Setxattr, inode, &body).map(drop)
    }

    fn get_xattr(&mut self, inode: u64, name: &str) -> Result<Vec<u8>, i32> {
        let args = GetxattrIn { size: 1000, ..GetxattrIn::default() };
        self.named(Opcode::Getxattr, inode, args.as_slice(), &[name])
    }

    fn other(&mut self, opcode: u32, inode: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let mut header = self.header(Opcode::Getattr, inode, body.len());
        header.opcode = opcode;
        self.raw(&header, body, super::REPLY_SIZE).expect("a reply")
    }

    fn copy(&mut self, inode: u64, args: CopyFileRangeIn) -> Result<u32, i32> {
        let reply = self.call(Opcode::CopyFileRange, inode, args.as_slice());
        reply.map(|reply| read::<WriteOut>(&reply).size)
    }
}

#[test]
fn access_control_lists_are_set_inherited_and_apply_before_the_umask() {
    let mut guest = Guest::new();
    let (file, dir) = (
        guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create").0.nodeid,
        guest.mkdir(ROOT_ID, "dir").expect("mkdir").nodeid,
    );
    guest.set_xattr(file, "system.posix_acl_access", &list(6), 0).expect("setxattr");
    assert_eq!(guest.get_xattr(file, "system.posix_acl_access"), Ok(list(6)));
    assert_eq!(fs::metadata(guest.path("file")).expect("metadata").mode() & 0o777, 0o660);
    assert_eq!(guest.get_xattr(dir, "system.posix_acl_access"), Err(libc::ENODATA));
    guest.set_xattr(dir, "system.posix_acl_default", &list(6), 0).expect("setxattr");
    for (parent, name, mode) in [(dir, "dir/inherits", 0o660), (ROOT_ID, "masked", 0o600)] {
        let leaf = name.rsplit('/').next().expect("a name");
        let args =
            CreateIn { flags: libc::O_RDWR as u32, mode: 0o100666, umask: 0o077, fuse_flags: 0 };
        guest.named(Opcode::Create, parent, args.as_slice(), &[leaf]).expect("create");
        assert_eq!(fs::metadata(guest.path(name)).expect("metadata").mode() & 0o777, mode);
    }
    // The mask was for that file only.
    guest.create(ROOT_ID, "plain", libc::O_RDWR).expect("create");
    assert_eq!(fs::metadata(guest.path("plain")).expect("metadata").mode() & 0o777, 0o644);

    fs::set_permissions(guest.path("file"), Permissions::from_mode(0o2755)).expect("chmod");
    guest.set_xattr(file, "system.posix_acl_access", &list(7), 0).expect("setxattr");
    assert_eq!(fs::metadata(guest.path("file")).expect("metadata").mode() & 0o7000, 0o2000);
    guest.set_xattr(file, "system.posix_acl_access", &list(7), 1).expect("setxattr");
    assert_eq!(fs::metadata(guest.path("file")).expect("metadata").mode() & 0o7000, 0);
}

#[test]
fn the_short_form_of_setxattr_is_understood_when_it_was_agreed_on() {
    let mut guest = Guest::new();
    let init = InitIn { major: 7, minor: 31, ..InitIn::default() };
    guest.call(Opcode::Init, 0, init.as_slice()).expect("init");
    let file = guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create").0.nodeid;
    let body = [&5u32.to_le_bytes()[..], &[0; 4], b"user.a\0value"].concat();
    guest.call(Opcode::Setxattr, file, &body).expect("setxattr");
    assert_eq!(guest.get_xattr(file, "user.a"), Ok(b"value".to_vec()));
}

#[test]
fn attributes_of_symlinks_and_special_files_are_their_own() {
    let mut guest = Guest::new();
    fs::write(guest.path("target"), "").expect("write");
    let link = guest.named(Opcode::Symlink, ROOT_ID, &[], &["link", "target"]).expect("symlink");
    let link = read::<EntryOut>(&link).nodeid;
    // Refused by the host for what they are, and not because of the link's target.
    assert_eq!(guest.set_xattr(link, "user.a", b"x", 0), Err(libc::EPERM));
    assert_eq!(guest.get_xattr(link, "security.none"), Err(libc::ENODATA));
    let list = GetxattrIn { size: 100, ..GetxattrIn::default() };
    assert_eq!(guest.call(Opcode::Listxattr, link, list.as_slice()), Ok(vec![]));
    let target = guest.lookup(ROOT_ID, "target").expect("lookup").nodeid;
    assert_eq!(guest.get_xattr(target, "user.a"), Err(libc::ENODATA));
}

#[test]
fn only_some_attributes_are_the_guests_to_set() {
    let mut guest = Guest::new();
    let file = guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create").0.nodeid;
    for (name, error) in [
        ("trusted.overlay.redirect", libc::EPERM),
        ("security.selinux", libc::EPERM),
        ("security.ima", libc::EPERM),
        ("system.nfs4_acl", libc::EOPNOTSUPP),
        ("nonsense", libc::EOPNOTSUPP),
    ] {
        assert_eq!(guest.set_xattr(file, name, b"x", 0), Err(error), "{name}");
        let removed = guest.named(Opcode::Removexattr, file, &[], &[name]);
        assert_eq!(removed, Err(error), "{name}");
    }
}

#[test]
fn files_without_a_name_are_made_linked_and_their_makers() {
    let mut guest = Guest::new();
    (guest.uid, guest.gid) = (1000, 1000);
    let flags = (libc::O_TMPFILE | libc::O_RDWR | libc::O_EXCL) as u32;
    let args = CreateIn { flags, mode: 0o100666, umask: 0o027, fuse_flags: 0 };
    let body = [args.as_slice(), b"#1\0"].concat();
    let reply = guest.other(TMPFILE, ROOT_ID, &body).expect("tmpfile");
    let (entry, open): (EntryOut, OpenOut) = (read(&reply), read(&reply[size_of::<EntryOut>()..]));
    assert_eq!((entry.attr.nlink, entry.attr.mode & 0o7777), (0, 0o640));
    assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 1000));
    assert_eq!(guest.write(entry.nodeid, open.fh, 0, b"data"), Ok(4));
    assert_eq!(guest.list(ROOT_ID, false).len(), 2);
    let link = LinkIn { oldnodeid: entry.nodeid };
    guest.named(Opcode::Link, ROOT_ID, link.as_slice(), &["named"]).expect("link");
    assert_eq!(fs::read(guest.path("named")).expect("file"), b"data");

    let file = guest.lookup(ROOT_ID, "named").expect("lookup").nodeid;
    assert_eq!(guest.other(TMPFILE, file, &body), Err(libc::ENOTDIR));
    assert_eq!(guest.other(TMPFILE, 999, &body), Err(libc::EBADF));
    assert_eq!(guest.other(TMPFILE, ROOT_ID, &[0; 7]), Err(libc::EIO));
    // Whatever else the flags say, a file without a name is what comes of it.
    let flags = !0 - libc::O_ACCMODE as u32 + libc::O_RDWR as u32;
    let args = CreateIn { flags, mode: !0, umask: !0, fuse_flags: !0 };
    let _ = guest.other(TMPFILE, ROOT_ID, args.as_slice());
    assert_eq!(guest.list(ROOT_ID, false).len(), 3);
}

#[test]
fn slow_requests_are_answered_beside_others() {
    let mut guest = Guest::new();
    let (file, fh) = guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create");
    guest.write(file.nodeid, fh, 0, &[7; 9000]).expect("write");
    let dir = guest.call(Opcode::Opendir, ROOT_ID, OpenIn::default().as_slice());
    let dir = read::<OpenOut>(&dir.expect("opendir")).fh;
    let sync = |fh| FsyncIn { fh, ..FsyncIn::default() };
    for _ in 0..3 * MAX_THREADS {
        guest.call(Opcode::Fsync, file.nodeid, sync(fh).as_slice()).expect("fsync");
        guest.call(Opcode::Fsyncdir, ROOT_ID, sync(dir).as_slice()).expect("fsyncdir");
    }
    guest.other(SYNCFS, ROOT_ID, &[0; 8]).expect("syncfs");
    let punch = FallocateIn { fh, offset: 0, length: 4096, mode: 3, padding: 0 };
    guest.call(Opcode::Fallocate, file.nodeid, punch.as_slice()).expect("fallocate");
    assert_eq!(guest.read(file.nodeid, fh, 4095, 2), Ok(vec![0, 7]));

    assert_eq!(guest.call(Opcode::Fsync, 999, sync(fh).as_slice()), Err(libc::EBADF));
    assert_eq!(guest.call(Opcode::Fsync, file.nodeid, sync(99).as_slice()), Err(libc::EBADF));
    assert_eq!(guest.other(SYNCFS, 999, &[]), Err(libc::EBADF));
    // Too short, and without room for a reply.
    assert!(guest.call(Opcode::Fsync, file.nodeid, &[1, 2]).is_err());
    let header = guest.header(Opcode::Fsync, file.nodeid, size_of::<FsyncIn>());
    assert!(guest.raw(&header, sync(fh).as_slice(), 0).is_none());
    assert!(guest.raw(&header, sync(fh).as_slice(), size_of::<OutHeader>() as u32 - 1).is_none());
}

#[test]
fn ranges_are_copied_on_the_host() {
    let mut guest = Guest::new();
    let (from, fh_in) = guest.create(ROOT_ID, "from", libc::O_RDWR).expect("create");
    let (to, fh_out) = guest.create(ROOT_ID, "to", libc::O_RDWR).expect("create");
    guest.write(from.nodeid, fh_in, 0, b"0123456789").expect("write");
    let args = CopyFileRangeIn {
        fh_in,
        off_in: 3,
        nodeid_out: to.nodeid,
        fh_out,
        off_out: 2,
        len: u64::MAX >> 1,
        flags: 0,
    };
    assert_eq!(guest.copy(from.nodeid, args), Ok(7));
    assert_eq!(fs::read(guest.path("to")).expect("file"), b"\0\x003456789");
    fs::set_permissions(guest.path("to"), Permissions::from_mode(0o4755)).expect("chmod");
    guest.uid = 1000;
    assert_eq!(guest.copy(from.nodeid, args), Ok(7));
    let mode = fs::metadata(guest.path("to")).expect("metadata").mode();
    assert_eq!(mode & 0o7777, 0o755, "a user's copy takes set-user-ID away");

    for wrong in [
        CopyFileRangeIn { fh_in: fh_out, ..args },
        CopyFileRangeIn { fh_out: fh_in, ..args },
        CopyFileRangeIn { nodeid_out: 999, ..args },
    ] {
        assert_eq!(guest.copy(from.nodeid, wrong), Err(libc::EBADF));
    }
    let flags = CopyFileRangeIn { flags: 1, ..args };
    assert_eq!(guest.copy(from.nodeid, flags), Err(libc::EINVAL));
    for off_in in [u64::MAX, 1 << 63] {
        assert!(guest.copy(from.nodeid, CopyFileRangeIn { off_in, ..args }).is_err());
    }
    assert!(guest.call(Opcode::CopyFileRange, from.nodeid, &[0; 55]).is_err());
}

#[test]
fn lengths_of_setxattr_that_lie_are_refused() {
    let mut guest = Guest::new();
    let file = guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create").0.nodeid;
    let mut set = |size: u32, rest: &[u8]| {
        let args = SetxattrIn { size, ..SetxattrIn::default() };
        guest.call(Opcode::Setxattr, file, &[args.as_slice(), rest].concat()).map(drop)
    };
    for size in [2, 1000, u32::MAX] {
        assert_eq!(set(size, b"user.a\0x"), Err(libc::EINVAL));
    }
    assert_eq!(set(1, b"user.a without an end"), Err(libc::EINVAL));
    assert_eq!(set(0, b""), Err(libc::EINVAL));
    // As long as the rings allow: no more than a name and a value is taken of it.
    assert_eq!(set(500_000, &[b'x'; 600_000]), Err(libc::EINVAL));
    let long = [b"user.a\0".as_slice(), &[b'x'; 70_000]].concat();
    assert_eq!(set(70_000, &long), Err(libc::EINVAL));
    assert_eq!(set(1, b"user.a\0x"), Ok(()));
    assert!(guest.call(Opcode::Setxattr, file, &[0; 15]).is_err());
    assert!(guest.call(Opcode::Setxattr, file, &[]).is_err());
}

#[test]
fn what_is_agreed_on_is_what_both_can() {
    let mut guest = Guest::new();
    let mut init = |major, flags: u64| {
        let first = InitIn { major, minor: 41, max_readahead: 4096, flags: flags as u32 };
        let second = InitIn2 { flags2: (flags >> 32) as u32, unused: [0; 11] };
        let reply = guest.call(Opcode::Init, 0, &[first.as_slice(), second.as_slice()].concat());
        reply.map(|reply| read::<InitOut>(&reply))
    };
    let all = init(7, !0).expect("init");
    let enabled = FsOptions::from_bits_truncate(all.flags.into());
    assert!(enabled.contains(FsOptions::POSIX_ACL | FsOptions::DONT_MASK));
    assert_eq!((all.max_readahead, all.flags2), (4096, 0));
    assert_eq!(init(7, 0).expect("init").flags, 0);
    assert_eq!(init(6, 0).err(), Some(libc::EPROTO));
    assert_eq!(init(8, !0).expect("init").flags, 0, "the guest asks again by version 7");
    // The second half is promised and missing.
    let short = InitIn { major: 7, minor: 41, flags: !0, ..InitIn::default() };
    assert!(guest.call(Opcode::Init, 0, short.as_slice()).is_err());
}

#[test]
fn a_pool_does_all_that_it_is_given_up_to_its_limit() {
    let mut pool = Pool::new(100).expect("pool");
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Arc::new(std::sync::Mutex::new(gate));
    for number in 0..100u32 {
        let gate = gate.clone();
        // All threads wait for the same gate: more jobs than threads are there.
        pool.start(move || gate.lock().expect("gate").recv().map(|()| number)).expect("start");
    }
    // A driver that uses a buffer again before it has been answered could go on for ever.
    assert!(pool.start(|| Ok(100)).is_err());
    for _ in 0..100 {
        release.send(()).expect("send");
    }
    let mut found = Vec::new();
    while found.len() < 100 {
        found.extend(pool.take_results().into_iter().flatten());
        std::thread::yield_now();
    }
    found.sort();
    assert!(found.into_iter().eq(0..100));
    // Threads that wait for nothing end with it.
    drop(pool);
}
