// SPDX-License-Identifier: Apache-2.0

//! What a guest may try that no driver does: to get out of the directory, at files of other
//! kinds, and at the server itself.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use fuse_backend_rs::abi::fuse_abi::{
    BatchForgetIn, GetattrIn, GetxattrIn, InHeader, MknodIn, Opcode, OpenIn, OpenOut, OutHeader,
    ROOT_ID, ReadIn, RenameIn, SetattrIn, WriteIn, WriteOut,
};
use vmm_sys_util::tempdir::TempDir;

use super::{Guest, Mounted, REPLY, REPLY_SIZE, one_at_a_time, read};
use crate::memory::ByteValued;
use crate::virtio::VirtioDevice;
use crate::virtio::driver::DEADLINE;
use crate::virtio::fs::Fs;

#[test]
fn no_name_leads_out_of_the_directory() {
    let mut guest = Guest::new();
    let dir = guest.mkdir(ROOT_ID, "dir").expect("mkdir").nodeid;
    for name in ["..", ".", "a/b", "/etc", "../..", ""] {
        for parent in [ROOT_ID, dir] {
            assert_eq!(guest.lookup(parent, name).err(), Some(libc::EINVAL), "{name:?}");
            assert_eq!(guest.mkdir(parent, name).err(), Some(libc::EINVAL));
            assert_eq!(guest.create(parent, name, libc::O_RDWR).err(), Some(libc::EINVAL));
            let unlink = guest.named(Opcode::Unlink, parent, &[], &[name]);
            assert_eq!(unlink.err(), Some(libc::EINVAL));
        }
        let rename = RenameIn { newdir: ROOT_ID };
        if !name.is_empty() {
            let renamed = guest.named(Opcode::Rename, ROOT_ID, rename.as_slice(), &["dir", name]);
            assert_eq!(renamed.err(), Some(libc::EINVAL));
        }
    }
}

#[test]
fn symlinks_are_not_followed() {
    let mut guest = Guest::new();
    let outside = TempDir::new().expect("directory");
    let secret = outside.as_path().join("secret");
    fs::write(&secret, "secret").expect("write");
    symlink(&secret, guest.path("file")).expect("symlink");
    symlink(outside.as_path(), guest.path("dir")).expect("symlink");
    let before = fs::metadata(&secret).expect("metadata");

    let link = guest.lookup(ROOT_ID, "file").expect("lookup");
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    for flags in [libc::O_RDONLY, libc::O_RDWR | libc::O_TRUNC, libc::O_PATH] {
        assert!(guest.open(link.nodeid, flags).is_err());
        assert!(guest.create(ROOT_ID, "file", flags).is_err());
    }
    let dir = guest.lookup(ROOT_ID, "dir").expect("lookup").nodeid;
    assert_eq!(guest.lookup(dir, "secret").err(), Some(libc::ENOTDIR));
    assert_eq!(guest.create(dir, "new", libc::O_RDWR).err(), Some(libc::ENOTDIR));
    assert!(guest.call(Opcode::Opendir, dir, OpenIn::default().as_slice()).is_err());
    // Attributes are the link's own.
    for valid in [1 << 0, 1 << 1, 1 << 3, 1 << 5] {
        let args = SetattrIn { valid, mode: 0o777, uid: 9, mtime: 9, ..SetattrIn::default() };
        let _ = guest.call(Opcode::Setattr, link.nodeid, args.as_slice());
    }
    let after = fs::metadata(&secret).expect("metadata");
    let facts = |m: &fs::Metadata| (m.mode(), m.uid(), m.size(), m.mtime());
    assert_eq!(facts(&before), facts(&after));
}

#[test]
fn special_files_are_neither_opened_nor_made() {
    let mut guest = Guest::new();
    let fifo = CString::new(guest.path("fifo").as_os_str().as_bytes()).expect("path");
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let fifo = guest.lookup(ROOT_ID, "fifo").expect("lookup").nodeid;
    // Would block.
    assert_eq!(guest.open(fifo, libc::O_RDONLY).err(), Some(libc::EOPNOTSUPP));
    let mut mknod = |name: &str, mode: u32, rdev| {
        let args = MknodIn { mode: mode | 0o600, rdev, ..MknodIn::default() };
        guest.named(Opcode::Mknod, ROOT_ID, args.as_slice(), &[name]).map(drop)
    };
    assert_eq!(mknod("null", libc::S_IFCHR, 0x103), Err(libc::EPERM));
    assert_eq!(mknod("disk", libc::S_IFBLK, 0), Err(libc::EPERM));
    assert_eq!(mknod("socket", libc::S_IFSOCK, 0), Ok(()));
    assert_eq!(mknod("whiteout", libc::S_IFCHR, 0), Ok(()));
    let socket = fs::metadata(guest.path("socket")).expect("metadata");
    assert!(socket.file_type().is_socket());
}

#[test]
fn sizes_that_lie_are_harmless() {
    let mut guest = Guest::new();
    let (file, fh) = guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create");
    guest.write(file.nodeid, fh, 0, &[1; 5000]).expect("write");
    // More than the reply has room for, and than there is.
    let all = ReadIn { fh, size: u32::MAX, ..ReadIn::default() };
    let reply = guest.call_with(Opcode::Read, file.nodeid, all.as_slice(), 1000);
    assert_eq!(reply.expect("read").len(), 1000 - size_of::<OutHeader>());
    let lie = WriteIn { fh, size: u32::MAX, ..WriteIn::default() };
    let reply = guest.call(Opcode::Write, file.nodeid, &[lie.as_slice(), b"short"].concat());
    assert_eq!(read::<WriteOut>(&reply.expect("write")).size, 5);
    let dir = guest.call(Opcode::Opendir, ROOT_ID, OpenIn::default().as_slice());
    let dir = read::<OpenOut>(&dir.expect("opendir")).fh;
    let args = ReadIn { fh: dir, size: u32::MAX, ..ReadIn::default() };
    assert!(guest.call(Opcode::Readdir, ROOT_ID, args.as_slice()).is_err());
    let args = GetxattrIn { size: u32::MAX, ..GetxattrIn::default() };
    assert!(guest.named(Opcode::Getxattr, file.nodeid, args.as_slice(), &["user.x"]).is_err());
    guest.call(Opcode::Listxattr, file.nodeid, args.as_slice()).expect("listxattr");
    // A header that promises more than there is, and more than anything may be.
    for len in [0, 1, 39, 5000, 1 << 20, u32::MAX] {
        let header = InHeader { len, ..guest.header(Opcode::Lookup, ROOT_ID, 0) };
        assert!(guest.raw(&header, b"x\0", REPLY_SIZE).expect("a reply").is_err());
    }
    // No room for a reply; no request at all; numbers that mean nothing.
    let header = guest.header(Opcode::Getattr, ROOT_ID, size_of::<GetattrIn>());
    assert!(guest.raw(&header, GetattrIn::default().as_slice(), 0).is_none());
    assert!(guest.raw(&header, GetattrIn::default().as_slice(), 15).is_none());
    guest.requests.add(&[(REPLY, 100, true)]);
    guest.requests.kick();
    assert_eq!(guest.requests.wait_used().1, 0);
    let count = BatchForgetIn { count: u32::MAX, dummy: 0 };
    let header = guest.header(Opcode::BatchForget, 0, size_of::<BatchForgetIn>());
    assert!(guest.raw(&header, count.as_slice(), 0).is_none());
    assert_eq!(guest.read(file.nodeid, 999, 0, 1).err(), Some(libc::EBADF));
    assert_eq!(guest.read(999, fh, 0, 1).err(), Some(libc::EBADF));
    assert_eq!(guest.lookup(999, "file").err(), Some(libc::EBADF));
    assert_eq!(guest.read(ROOT_ID, dir, 0, 1).err(), Some(libc::EBADF));
    let header = InHeader { opcode: 12345, ..guest.header(Opcode::Lookup, ROOT_ID, 0) };
    assert_eq!(guest.raw(&header, &[], 100), Some(Err(libc::ENOSYS)));
    // And it still works.
    guest.lookup(ROOT_ID, "file").expect("lookup");
}

#[test]
fn flags_of_a_read_cannot_close_the_file() {
    let _alone = one_at_a_time();
    let mut guest = Guest::new();
    // On tmpfs fcntl may refuse O_DIRECT.
    let _mount = Mounted::tmpfs(guest.path(""));
    let directory = fs::File::open(guest.dir.as_path()).expect("directory");
    guest.device = Fs::new("share", directory.into()).expect("device");
    guest.activate();
    let (file, fh) = guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create");
    guest.write(file.nodeid, fh, 0, b"data").expect("write");
    for flags in [libc::O_DIRECT, libc::O_ASYNC, !0] {
        let args = ReadIn { fh, size: 9, flags: flags as u32, ..ReadIn::default() };
        let reply = guest.call(Opcode::Read, file.nodeid, args.as_slice());
        assert_eq!(reply, Ok(b"data".to_vec()));
    }
    guest.device.reset();
}

#[test]
fn broken_rings_end_the_vm() {
    let mut guest = Guest::new();
    guest.requests.set_avail_idx(1000);
    guest.requests.kick();
    assert!(guest.faults.recv_timeout(DEADLINE).expect("a fault").contains("virtqueue"));

    let mut guest = Guest::new();
    guest.requests.add(&[(1 << 40, 100, false)]);
    guest.requests.kick();
    assert!(guest.faults.recv_timeout(DEADLINE).expect("a fault").contains("outside guest RAM"));
}
