// SPDX-License-Identifier: Apache-2.0

//! The device, driven as the guest's driver would, on directories of the host.

mod extension;
mod hostile;
mod wake;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::abi::fuse_abi::{
    ATTR_SUBMOUNT, AttrOut, CreateIn, Dirent, EntryOut, ForgetIn, FsOptions, GetattrIn, GetxattrIn,
    InHeader, InitIn, InitOut, MkdirIn, Opcode, OpenIn, OpenOut, OutHeader, ROOT_ID, ReadIn,
    ReleaseIn, RenameIn, WRITE_KILL_PRIV, WriteIn, WriteOut,
};
use vmm_sys_util::tempdir::TempDir;

use super::Fs;
use super::extension::SETXATTR_EXT;
use crate::memory::{ByteValued, Bytes, GuestAddress, GuestRam};
use crate::virtio::VirtioDevice;
use crate::virtio::driver::{self, Ring};

const RINGS: u64 = 0x10000;
const REQUEST: u64 = 0x40000;
const REPLY: u64 = 0x200000;
const REPLY_SIZE: u32 = 0x100000;

/// A guest with its driver and a shared directory.
struct Guest {
    dir: TempDir,
    device: Fs,
    ram: GuestRam,
    hiprio: Ring,
    requests: Ring,
    faults: Receiver<String>,
    uid: u32,
    gid: u32,
}

impl Guest {
    fn new() -> Guest {
        let dir = TempDir::new().expect("directory");
        let directory = fs::File::open(dir.as_path()).expect("directory");
        let device = Fs::new("share", directory.into()).expect("device");
        let ram = driver::ram(4 << 20);
        let hiprio = Ring::new(&ram, RINGS, 128);
        let requests = Ring::new(&ram, RINGS + 0x1000, 256);
        let (_, faults) = channel();
        let mut guest = Guest { dir, device, ram, hiprio, requests, faults, uid: 0, gid: 0 };
        guest.activate();
        guest
    }

    fn activate(&mut self) {
        self.hiprio = Ring::new(&self.ram, RINGS, 128);
        self.requests = Ring::new(&self.ram, RINGS + 0x1000, 256);
        let rings = [&self.hiprio, &self.requests];
        self.faults = driver::activate(&mut self.device, &self.ram, &rings);
        let flags = (FsOptions::all() - FsOptions::INIT_EXT).bits() as u32 | SETXATTR_EXT as u32;
        let init = InitIn { major: 7, minor: 41, max_readahead: 1 << 17, flags };
        let reply = self.call(Opcode::Init, 0, init.as_slice()).expect("init");
        let out: InitOut = read(&reply);
        assert_eq!((out.major, out.max_write, out.max_pages), (7, 1 << 20, 256));
        let enabled = FsOptions::from_bits_truncate(out.flags.into());
        assert!(enabled.contains(FsOptions::SUBMOUNTS | FsOptions::AUTO_INVAL_DATA));
        assert!(!enabled.contains(FsOptions::WRITEBACK_CACHE));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.as_path().join(name)
    }

    /// Sends a request and waits for its reply: the body, or the error.
    fn call(&mut self, opcode: Opcode, inode: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.call_with(opcode, inode, body, REPLY_SIZE)
    }

    fn call_with(
        &mut self,
        opcode: Opcode,
        inode: u64,
        body: &[u8],
        room: u32,
    ) -> Result<Vec<u8>, i32> {
        let header = self.header(opcode, inode, body.len());
        self.raw(&header, body, room).expect("a reply")
    }

    fn header(&self, opcode: Opcode, inode: u64, len: usize) -> InHeader {
        InHeader {
            len: (size_of::<InHeader>() + len) as u32,
            opcode: opcode as u32,
            unique: 77,
            nodeid: inode,
            uid: self.uid,
            gid: self.gid,
            ..InHeader::default()
        }
    }

    fn raw(&mut self, header: &InHeader, body: &[u8], room: u32) -> Option<Result<Vec<u8>, i32>> {
        self.ram.write_slice(header.as_slice(), GuestAddress(REQUEST)).expect("RAM");
        let at = REQUEST + size_of::<InHeader>() as u64;
        self.ram.write_slice(body, GuestAddress(at)).expect("RAM");
        // Header, body and reply each in a buffer of its own.
        let mut chain = vec![(REQUEST, size_of::<InHeader>() as u32, false)];
        if !body.is_empty() {
            chain.push((at, body.len() as u32, false));
        }
        if room > 0 {
            chain.push((REPLY, room, true));
        }
        self.requests.add(&chain);
        self.requests.kick();
        let (_, len) = self.requests.wait_used();
        if len == 0 {
            return None;
        }
        let mut reply = vec![0; len as usize];
        self.ram.read_slice(&mut reply, GuestAddress(REPLY)).expect("RAM");
        let body = reply.split_off(size_of::<OutHeader>());
        let out: OutHeader = read(&reply);
        assert_eq!((out.unique, out.len), (77, len));
        Some(if out.error == 0 { Ok(body) } else { Err(-out.error) })
    }

    fn named(
        &mut self,
        opcode: Opcode,
        parent: u64,
        args: &[u8],
        names: &[&str],
    ) -> Result<Vec<u8>, i32> {
        let mut body = args.to_vec();
        for name in names {
            body.extend(name.as_bytes());
            body.push(0);
        }
        self.call(opcode, parent, &body)
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        self.named(Opcode::Lookup, parent, &[], &[name]).map(|reply| read(&reply))
    }

    fn forget(&mut self, inode: u64, count: u64) {
        let header = self.header(Opcode::Forget, inode, size_of::<ForgetIn>());
        let mut bytes = header.as_slice().to_vec();
        bytes.extend(ForgetIn { nlookup: count }.as_slice());
        self.ram.write_slice(&bytes, GuestAddress(REQUEST)).expect("RAM");
        self.hiprio.add(&[(REQUEST, bytes.len() as u32, false)]);
        self.hiprio.kick();
        assert_eq!(self.hiprio.wait_used().1, 0);
    }

    fn mkdir(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        let args = MkdirIn { mode: 0o755, umask: 0 };
        self.named(Opcode::Mkdir, parent, args.as_slice(), &[name]).map(|reply| read(&reply))
    }

    fn create(&mut self, parent: u64, name: &str, flags: i32) -> Result<(EntryOut, u64), i32> {
        let args = CreateIn { flags: flags as u32, mode: 0o100644, umask: 0, fuse_flags: 0 };
        let reply = self.named(Opcode::Create, parent, args.as_slice(), &[name])?;
        let open: OpenOut = read(&reply[size_of::<EntryOut>()..]);
        Ok((read(&reply), open.fh))
    }

    fn open(&mut self, inode: u64, flags: i32) -> Result<u64, i32> {
        let args = OpenIn { flags: flags as u32, fuse_flags: 0 };
        self.call(Opcode::Open, inode, args.as_slice()).map(|reply| read::<OpenOut>(&reply).fh)
    }

    fn write(&mut self, inode: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let args = WriteIn { fh, offset, size: data.len() as u32, ..WriteIn::default() };
        let body = [args.as_slice(), data].concat();
        self.call(Opcode::Write, inode, &body).map(|reply| read::<WriteOut>(&reply).size)
    }

    fn read(&mut self, inode: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let args = ReadIn { fh, offset, size, ..ReadIn::default() };
        self.call(Opcode::Read, inode, args.as_slice())
    }

    /// Names, and with `plus` their entries.
    fn list(&mut self, inode: u64, plus: bool) -> Vec<(String, Option<EntryOut>)> {
        let reply = self.call(Opcode::Opendir, inode, OpenIn::default().as_slice());
        let fh = read::<OpenOut>(&reply.expect("opendir")).fh;
        let opcode = || if plus { Opcode::Readdirplus } else { Opcode::Readdir };
        let mut found = Vec::new();
        let mut offset = 0;
        loop {
            // Room for a few entries: several calls.
            let args = ReadIn { fh, offset, size: 600, ..ReadIn::default() };
            let reply = self.call(opcode(), inode, args.as_slice()).expect("readdir");
            if reply.is_empty() {
                break;
            }
            let mut rest = &reply[..];
            while !rest.is_empty() {
                let entry = plus.then(|| read::<EntryOut>(rest));
                rest = &rest[if plus { size_of::<EntryOut>() } else { 0 }..];
                let dirent: Dirent = read(rest);
                let name = &rest[size_of::<Dirent>()..][..dirent.namelen as usize];
                found.push((String::from_utf8(name.to_vec()).expect("a name"), entry));
                offset = dirent.off;
                let len = (size_of::<Dirent>() + name.len()).next_multiple_of(8);
                rest = &rest[len..];
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }
}

fn read<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    value.as_mut_slice().copy_from_slice(&bytes[..size_of::<T>()]);
    value
}

/// Tests that mount do so one at a time: a process that one of them starts holds the
/// descriptors of all until its exec, and a mount that they lead to cannot be unmounted.
static MOUNTING: Mutex<()> = Mutex::new(());

fn one_at_a_time() -> MutexGuard<'static, ()> {
    MOUNTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mount that goes with this.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: PathBuf) -> Mounted {
        let status = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&path).status();
        assert!(status.expect("mount").success());
        Mounted(path)
    }

    /// As the supervisor would: fails if anything below is still in use.
    fn unmount(self) {
        let status = Command::new("umount").arg(&self.0).status();
        assert!(status.expect("umount").success());
        std::mem::forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn files_are_made_written_read_listed_and_removed() {
    let mut guest = Guest::new();
    let dir = guest.mkdir(ROOT_ID, "dir").expect("mkdir").nodeid;
    let (file, fh) = guest.create(dir, "file", libc::O_RDWR).expect("create");
    let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(guest.write(file.nodeid, fh, 0, &data), Ok(300_000));
    assert_eq!(fs::read(guest.path("dir/file")).expect("file"), data);
    assert_eq!(guest.read(file.nodeid, fh, 100, 200_000).expect("read"), data[100..200_100]);
    assert_eq!(guest.read(file.nodeid, fh, 299_999, 10), Ok(vec![data[299_999]]));
    let attr = guest.call(Opcode::Getattr, file.nodeid, GetattrIn::default().as_slice());
    assert_eq!(read::<AttrOut>(&attr.expect("getattr")).attr.size, 300_000);

    // The host's changes show.
    fs::write(guest.path("dir/file"), "other").expect("write");
    assert_eq!(guest.read(file.nodeid, fh, 0, 100), Ok(b"other".to_vec()));

    guest.named(Opcode::Symlink, dir, &[], &["link", "../where"]).expect("symlink");
    let link = guest.lookup(dir, "link").expect("lookup").nodeid;
    assert_eq!(guest.call(Opcode::Readlink, link, &[]), Ok(b"../where".to_vec()));
    let rename = RenameIn { newdir: ROOT_ID };
    guest.named(Opcode::Rename, dir, rename.as_slice(), &["file", "moved"]).expect("rename");
    assert_eq!(guest.lookup(ROOT_ID, "moved").expect("lookup").nodeid, file.nodeid);
    assert_eq!(guest.lookup(dir, "file").err(), Some(libc::ENOENT));
    let link = |inode: u64| inode.to_le_bytes();
    guest.named(Opcode::Link, dir, &link(file.nodeid), &["hard"]).expect("link");
    assert_eq!(guest.lookup(dir, "hard").expect("lookup").nodeid, file.nodeid);

    for i in 0..40 {
        guest.create(dir, &format!("many{i:02}"), libc::O_RDWR).expect("create");
    }
    let names: Vec<_> = guest.list(dir, false).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        (names.len(), &names[..5]),
        (44, &[".", "..", "hard", "link", "many00"].map(String::from)[..])
    );
    for (name, entry) in guest.list(dir, true) {
        let entry = entry.expect("an entry");
        if name != "." && name != ".." {
            let metadata = fs::symlink_metadata(guest.path("dir").join(&name)).expect("metadata");
            assert_eq!((entry.attr.ino, entry.attr.mode), (metadata.ino(), metadata.mode()));
            assert_eq!(guest.lookup(dir, &name).expect("lookup").nodeid, entry.nodeid);
        }
    }
    assert_eq!(guest.named(Opcode::Rmdir, ROOT_ID, &[], &["dir"]).err(), Some(libc::ENOTEMPTY));
    guest.named(Opcode::Unlink, dir, &[], &["hard"]).expect("unlink");
    guest.named(Opcode::Unlink, ROOT_ID, &[], &["moved"]).expect("unlink");
    assert!(!guest.path("moved").exists());
    // Still open.
    assert_eq!(guest.read(file.nodeid, fh, 0, 100), Ok(b"other".to_vec()));
}

#[test]
fn files_belong_to_the_caller_whatever_the_host_thinks_of_it() {
    let mut guest = Guest::new();
    // A directory of a group that the host does not know the caller to be in.
    let dir = guest.path("volume");
    fs::create_dir(&dir).expect("mkdir");
    chown(&dir, Some(0), Some(2000)).expect("chown");
    fs::set_permissions(&dir, Permissions::from_mode(0o2770)).expect("chmod");
    let volume = guest.lookup(ROOT_ID, "volume").expect("lookup").nodeid;
    (guest.uid, guest.gid) = (1000, 1000);
    guest.create(volume, "file", libc::O_RDWR).expect("create");
    guest.mkdir(volume, "dir").expect("mkdir");
    guest.named(Opcode::Symlink, volume, &[], &["link", "target"]).expect("symlink");
    guest.create(ROOT_ID, "plain", libc::O_RDWR).expect("create");
    let owner = |path: &Path| {
        let metadata = fs::symlink_metadata(path).expect("metadata");
        (metadata.uid(), metadata.gid())
    };
    for name in ["file", "dir", "link"] {
        assert_eq!(owner(&dir.join(name)), (1000, 2000), "{name}");
    }
    assert_eq!(owner(&guest.path("plain")), (1000, 1000));
    guest.uid = u32::MAX;
    assert_eq!(guest.mkdir(volume, "nobody").err(), Some(libc::EINVAL));
    (guest.uid, guest.gid) = (0, 0);
    guest.mkdir(ROOT_ID, "root").expect("mkdir");
    assert_eq!(owner(&guest.path("root")), (0, 0));
}

#[test]
fn writing_takes_set_user_id_away_when_told_so() {
    let mut guest = Guest::new();
    let (file, fh) = guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create");
    let path = guest.path("file");
    fs::set_permissions(&path, Permissions::from_mode(0o6775)).expect("chmod");
    guest.write(file.nodeid, fh, 0, b"x").expect("write");
    assert_eq!(fs::metadata(&path).expect("metadata").mode() & 0o7777, 0o6775);
    let args = WriteIn { fh, size: 1, fuse_flags: WRITE_KILL_PRIV, ..WriteIn::default() };
    guest.call(Opcode::Write, file.nodeid, &[args.as_slice(), b"x"].concat()).expect("write");
    assert_eq!(fs::metadata(&path).expect("metadata").mode() & 0o7777, 0o775);
}

#[test]
fn extended_attributes_pass_but_for_the_hosts_own() {
    let mut guest = Guest::new();
    let file = guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create").0.nodeid;
    guest.set_xattr(file, "user.mine", b"value", 0).expect("setxattr");
    let refused = guest.set_xattr(file, "trusted.overlay.opaque", b"y", 0);
    assert_eq!(refused, Err(libc::EPERM));
    let args = GetxattrIn { size: 100, ..GetxattrIn::default() };
    let mut get = |name| guest.named(Opcode::Getxattr, file, args.as_slice(), &[name]);
    assert_eq!(get("user.mine"), Ok(b"value".to_vec()));
    assert_eq!(get("trusted.x"), Err(libc::ENODATA));
    assert_eq!(get("user.none"), Err(libc::ENODATA));
    let list = guest.call(Opcode::Listxattr, file, args.as_slice());
    assert_eq!(list, Ok(b"user.mine\0".to_vec()));
    guest.named(Opcode::Removexattr, file, &[], &["user.mine"]).expect("removexattr");
    let none = guest.call(Opcode::Listxattr, file, args.as_slice());
    assert_eq!(none, Ok(vec![]));
}

#[test]
fn mounts_made_below_later_are_seen_and_let_go() {
    let _alone = one_at_a_time();
    let mut guest = Guest::new();
    for name in ["a", "b"] {
        fs::create_dir(guest.path(name)).expect("mkdir");
    }
    let under = guest.lookup(ROOT_ID, "a").expect("lookup");
    assert_eq!((under.attr.flags, under.entry_valid, under.entry_valid_nsec), (0, 0, 0));
    let mounts = ["a", "b"].map(|name| {
        let mount = Mounted::tmpfs(guest.path(name));
        fs::write(guest.path(name).join("file"), name).expect("write");
        mount
    });

    // Fresh tmpfs number their inodes alike; the guest must not take them for the same.
    let (a, b) = (guest.lookup(ROOT_ID, "a"), guest.lookup(ROOT_ID, "b"));
    let (a, b) = (a.expect("lookup"), b.expect("lookup"));
    assert_eq!(a.attr.ino, b.attr.ino);
    assert!(a.nodeid != b.nodeid && a.nodeid != under.nodeid);
    assert_eq!((a.attr.flags, b.attr.flags), (ATTR_SUBMOUNT, ATTR_SUBMOUNT));
    for (dir, text) in [(a, "a"), (b, "b")] {
        let file = guest.lookup(dir.nodeid, "file").expect("lookup");
        assert_eq!((file.attr.flags, file.entry_valid), (0, 1));
        let fh = guest.open(file.nodeid, libc::O_RDONLY).expect("open");
        assert_eq!(guest.read(file.nodeid, fh, 0, 9), Ok(text.as_bytes().to_vec()));

        let release = ReleaseIn { fh, ..ReleaseIn::default() };
        guest.call(Opcode::Release, file.nodeid, release.as_slice()).expect("release");
        guest.forget(file.nodeid, 1);
    }
    let listed = guest.list(ROOT_ID, true);
    let [_, _, (_, la), (_, lb)] = &listed[..] else { panic!("{} entries", listed.len()) };
    assert_eq!(la.map(|e| (e.nodeid, e.attr.flags)), Some((a.nodeid, ATTR_SUBMOUNT)));
    assert_eq!(lb.map(|e| e.nodeid), Some(b.nodeid));

    // Nothing holds the mounts once the guest has forgotten them.
    guest.forget(a.nodeid, 2);
    guest.forget(b.nodeid, 2);
    mounts.into_iter().for_each(Mounted::unmount);
    assert_eq!(guest.lookup(ROOT_ID, "a").expect("lookup").nodeid, under.nodeid);
}

#[test]
fn a_device_works_again_after_a_reset() {
    let mut guest = Guest::new();
    let (file, fh) = guest.create(ROOT_ID, "file", libc::O_RDWR).expect("create");
    guest.write(file.nodeid, fh, 0, b"data").expect("write");
    guest.device.reset();
    guest.device.reset();
    guest.activate();
    assert_eq!(guest.read(file.nodeid, fh, 0, 9).err(), Some(libc::EBADF));
    let again = guest.lookup(ROOT_ID, "file").expect("lookup").nodeid;
    let fh = guest.open(again, libc::O_RDONLY).expect("open");
    assert_eq!(guest.read(again, fh, 0, 9), Ok(b"data".to_vec()));
    // A second INIT, as after an unmount, forgets too.
    let init = InitIn { major: 7, minor: 41, ..InitIn::default() };
    guest.call(Opcode::Init, 0, init.as_slice()).expect("init");
    assert_eq!(guest.read(again, fh, 0, 9).err(), Some(libc::EBADF));
}

#[test]
fn tags_have_a_length() {
    let directory = || fs::File::open("/").expect("directory").into();
    assert!(Fs::new("", directory()).is_err());
    assert!(Fs::new(&"x".repeat(37), directory()).is_err());
    let device = Fs::new(&"x".repeat(36), directory()).expect("device");
    assert_eq!(device.config()[35..], [b'x', 1, 0, 0, 0]);
    assert!(Fs::new("x", fs::File::open("/etc/passwd").expect("file").into()).is_err());
}
