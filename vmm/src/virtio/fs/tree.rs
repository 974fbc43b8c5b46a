// SPDX-License-Identifier: Apache-2.0

//! The file system: the requests of FUSE on a directory of the host.
//!
//! No path leaves the directory. A name is one component, never "." or "..", opened with
//! O_PATH and O_NOFOLLOW below a directory that is held open, so symlinks are only ever read
//! as such. Only regular files and directories are opened for more than their name; device
//! nodes, FIFOs and sockets are the guest's kernel's business.
//!
//! Mounts below the directory are part of it, whenever they are made. The guest's kernel is
//! told where one begins (ATTR_SUBMOUNT) and mounts it as a file system of its own there:
//! inode numbers do not collide, and unmounting it in the guest lets go of all its inodes,
//! without which the host could not unmount it.
//!
//! Caching: pages stay cached across opens and are dropped when size or time of change
//! differ (AUTO_INVAL_DATA); attributes hold for a second. Names hold for a second below a
//! mount, where usually only the guest makes changes; in the shared directory itself, where
//! the supervisor makes and removes mount points, they do not hold at all. No write-back:
//! the host sees what the guest wrote, and each sees the other's appends.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{
    ATTR_SUBMOUNT, CreateIn, FOPEN_IN_KILL_SUIDGID, WRITE_KILL_PRIV, stat64, statvfs64,
};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Timespec,
    Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags,
};

use super::attr::Facts;
use super::caller::Caller;
use super::inodes::{Handle, Handles, Inode, Inodes};

/// How long the guest may believe attributes, and names below mounts.
const VALIDITY: Duration = Duration::from_secs(1);

/// Bytes of directory entries that are read at a time.
const DIRECTORY_BUFFER: usize = 16 << 10;

/// Longest value and longest list of extended attributes (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_XATTR: usize = 64 << 10;

/// Flags of open that are handed on. Others could name files instead of opening them
/// (O_PATH), follow symlinks, or make a file of another kind.
const OPEN_FLAGS: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::DIRECT)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC)
    .union(OFlags::NOATIME);

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
        })
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

    fn start_over(&self) {
        self.handles().clear();
        self.inodes().clear();
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

    fn add_handle(&self, inode: u64, file: File, is_dir: bool) -> io::Result<Option<u64>> {
        self.handles().add(inode, file, is_dir).map(Some)
    }

    fn open_regular(&self, number: u64, flags: u32, kills_suid: bool) -> io::Result<Option<u64>> {
        let inode = self.inodes().get(number)?;
        if inode.kind != FileType::RegularFile {
            return Err(error(libc::EOPNOTSUPP));
        }
        let flags = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
        let file = self.open_contents(&inode, flags)?;
        if kills_suid && flags.contains(OFlags::TRUNC) {
            drop_suid(&file)?;
        }
        self.add_handle(number, file, false)
    }

    /// Calls `each` with the entries of a directory until it has no room (false).
    fn read_directory(
        &self,
        inode: u64,
        handle: u64,
        offset: u64,
        mut each: impl FnMut(DirEntry<'_>, &CStr) -> io::Result<bool>,
    ) -> io::Result<()> {
        let handle = self.handle(handle, inode, true)?;
        let file = handle.file.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::seek(&*file, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); DIRECTORY_BUFFER];
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

    /// Calls `with` the file of an inode that extended attributes are asked of.
    fn with_xattrs<T>(
        &self,
        number: u64,
        with: impl FnOnce(File) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let inode = self.inodes().get(number)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        Ok(with(self.open_contents(&inode, flags)?)?)
    }
}

impl FileSystem for Tree {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.start_over();
        self.submounts.store(capable.contains(FsOptions::SUBMOUNTS), Ordering::Relaxed);
        Ok(FsOptions::ASYNC_READ
            | FsOptions::ASYNC_DIO
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::DO_READDIRPLUS
            | FsOptions::HANDLE_KILLPRIV_V2
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::READDIRPLUS_AUTO
            | FsOptions::SUBMOUNTS)
    }

    fn destroy(&self) {
        self.start_over();
    }

    fn lookup(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = self.parent(parent, name)?;
        self.look_up(&parent, name)
    }

    fn forget(&self, _ctx: &Context, inode: u64, count: u64) {
        self.inodes().forget(inode, count);
    }

    fn getattr(
        &self,
        _ctx: &Context,
        inode: u64,
        _handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        let inode = self.inodes().get(inode)?;
        Ok((Facts::of(&inode.fd)?.attr, VALIDITY))
    }

    fn setattr(
        &self,
        ctx: &Context,
        number: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let inode = self.inodes().get(number)?;
        let (descriptors, name) = (&self.anchor.descriptors, inode.fd.as_raw_fd().to_string());
        if valid.contains(SetattrValid::MODE) {
            rustix::fs::chmodat(descriptors, &name, permissions(attr.st_mode), AtFlags::empty())?;
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let owner = |flag, id: u32| (valid.contains(flag) && id != u32::MAX).then_some(id);
            let uid = owner(SetattrValid::UID, attr.st_uid).map(Uid::from_raw);
            let gid = owner(SetattrValid::GID, attr.st_gid).map(Gid::from_raw);
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&inode.fd, c"", uid, gid, flags)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let resize = |file: &File| {
                rustix::fs::ftruncate(file, attr.st_size as u64)?;
                if valid.contains(SetattrValid::KILL_SUIDGID) { drop_suid(file) } else { Ok(()) }
            };
            match handle {
                Some(handle) => {
                    let handle = self.handle(handle, number, false)?;
                    resize(&handle.file.lock().unwrap_or_else(PoisonError::into_inner))?;
                }
                None => resize(&self.open_contents(&inode, OFlags::WRONLY)?)?,
            }
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let time = |set, now, tv_sec, tv_nsec| match valid {
                _ if valid.contains(now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
                _ if valid.contains(set) => Timespec { tv_sec, tv_nsec },
                _ => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            };
            let (atime, mtime) = (SetattrValid::ATIME, SetattrValid::MTIME);
            let (anow, mnow) = (SetattrValid::ATIME_NOW, SetattrValid::MTIME_NOW);
            let times = Timestamps {
                last_access: time(atime, anow, attr.st_atime, attr.st_atime_nsec),
                last_modification: time(mtime, mnow, attr.st_mtime, attr.st_mtime_nsec),
            };
            rustix::fs::utimensat(descriptors, &name, &times, AtFlags::empty())?;
        }
        self.getattr(ctx, number, None)
    }

    fn readlink(&self, _ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let inode = self.inodes().get(inode)?;
        Ok(rustix::fs::readlinkat(&inode.fd, c"", Vec::new())?.into_bytes())
    }

    fn symlink(&self, ctx: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = self.parent(parent, name)?;
        let caller = Caller::become_owner(ctx.uid, ctx.gid)?;
        rustix::fs::symlinkat(target, &parent.fd, name)?;
        drop(caller);
        self.look_up(&parent, name)
    }

    /// Device nodes are refused, but for the one that is none: overlayfs's whiteout (0:0).
    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        _umask: u32,
    ) -> io::Result<Entry> {
        let parent = self.parent(parent, name)?;
        let kind = FileType::from_raw_mode(mode);
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice if rdev == 0 => {}
            _ => return Err(error(libc::EPERM)),
        }
        let caller = Caller::become_owner(ctx.uid, ctx.gid)?;
        rustix::fs::mknodat(&parent.fd, name, kind, permissions(mode), 0)?;
        drop(caller);
        self.look_up(&parent, name)
    }

    fn mkdir(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        _umask: u32,
    ) -> io::Result<Entry> {
        let parent = self.parent(parent, name)?;
        let caller = Caller::become_owner(ctx.uid, ctx.gid)?;
        rustix::fs::mkdirat(&parent.fd, name, permissions(mode))?;
        drop(caller);
        self.look_up(&parent, name)
    }

    fn unlink(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let parent = self.parent(parent, name)?;
        Ok(rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty())?)
    }

    fn rmdir(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let parent = self.parent(parent, name)?;
        Ok(rustix::fs::unlinkat(&parent.fd, name, AtFlags::REMOVEDIR)?)
    }

    fn rename(
        &self,
        _ctx: &Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let old = self.parent(old_parent, old_name)?;
        let new = self.parent(new_parent, new_name)?;
        let flags = RenameFlags::from_bits(flags).ok_or_else(|| error(libc::EINVAL))?;
        Ok(rustix::fs::renameat_with(&old.fd, old_name, &new.fd, new_name, flags)?)
    }

    fn link(&self, _ctx: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = self.parent(parent, name)?;
        let inode = self.inodes().get(inode)?;
        // Through /proc, for AT_EMPTY_PATH wants CAP_DAC_READ_SEARCH of the whole host.
        let old = inode.fd.as_raw_fd().to_string();
        let descriptors = &self.anchor.descriptors;
        rustix::fs::linkat(descriptors, old, &parent.fd, name, AtFlags::SYMLINK_FOLLOW)?;
        self.look_up(&parent, name)
    }

    fn open(
        &self,
        _ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let kills_suid = fuse_flags & FOPEN_IN_KILL_SUIDGID != 0;
        let handle = self.open_regular(inode, flags, kills_suid)?;
        Ok((handle, OpenOptions::KEEP_CACHE, None))
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let parent = self.parent(parent, name)?;
        let asked = OFlags::from_bits_retain(args.flags);
        let flags =
            asked & OPEN_FLAGS | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let caller = Caller::become_owner(ctx.uid, ctx.gid)?;
        let created = rustix::fs::openat(&parent.fd, name, flags, permissions(args.mode));
        drop(caller);
        let entry;
        let handle = match created {
            Ok(file) => {
                // Of the very file, whatever its name means by now.
                let path = reopen(&self.anchor.descriptors, &file, OFlags::PATH)?;
                entry = self.entry(&parent, path)?;
                self.add_handle(entry.inode, file.into(), false)
            }
            Err(rustix::io::Errno::EXIST) if !asked.contains(OFlags::EXCL) => {
                entry = self.look_up(&parent, name)?;
                let kills_suid = args.fuse_flags & FOPEN_IN_KILL_SUIDGID != 0;
                self.open_regular(entry.inode, args.flags, kills_suid)
            }
            Err(error) => return Err(error.into()),
        };
        match handle {
            Ok(handle) => Ok((entry, handle, OpenOptions::KEEP_CACHE, None)),
            Err(error) => {
                self.inodes().forget(entry.inode, 1);
                Err(error)
            }
        }
    }

    fn read(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        let handle = self.handle(handle, inode, false)?;
        let mut file = handle.file.lock().unwrap_or_else(PoisonError::into_inner);
        let size = (size as usize).min(writer.available_bytes());
        writer.write_from(&mut *file, size, offset)
    }

    fn write(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        reader: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _delayed_write: bool,
        _flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let handle = self.handle(handle, inode, false)?;
        let mut file = handle.file.lock().unwrap_or_else(PoisonError::into_inner);
        if fuse_flags & WRITE_KILL_PRIV != 0 {
            drop_suid(&file)?;
        }
        reader.read_to(&mut *file, size as usize, offset)
    }

    fn release(
        &self,
        _ctx: &Context,
        inode: u64,
        _flags: u32,
        handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.handles().remove(handle, inode)
    }

    fn fsync(&self, _ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        let handle = self.handles().get(handle, inode)?;
        let file = handle.file.lock().unwrap_or_else(PoisonError::into_inner);
        if datasync { file.sync_data() } else { file.sync_all() }
    }

    fn fallocate(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let handle = self.handle(handle, inode, false)?;
        let mode = FallocateFlags::from_bits(mode).ok_or_else(|| error(libc::EOPNOTSUPP))?;
        let file = handle.file.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(rustix::fs::fallocate(&*file, mode, offset, length)?)
    }

    /// Only for what depends on the host: where data and holes are.
    fn lseek(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let handle = self.handle(handle, inode, false)?;
        let position = match whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(error(libc::EINVAL)),
        };
        let file = handle.file.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(rustix::fs::seek(&*file, position)?)
    }

    fn statfs(&self, _ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        let inode = self.inodes().get(inode)?;
        let found = rustix::fs::fstatvfs(&inode.fd)?;
        // SAFETY: a structure of numbers, for which all zeros is a value.
        let mut st: statvfs64 = unsafe { std::mem::zeroed() };
        st.f_bsize = found.f_bsize;
        st.f_frsize = found.f_frsize;
        st.f_blocks = found.f_blocks;
        st.f_bfree = found.f_bfree;
        st.f_bavail = found.f_bavail;
        st.f_files = found.f_files;
        st.f_ffree = found.f_ffree;
        st.f_favail = found.f_favail;
        st.f_namemax = found.f_namemax;
        Ok(st)
    }

    fn opendir(
        &self,
        _ctx: &Context,
        number: u64,
        _flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let inode = self.inodes().get(number)?;
        let file = self.open_contents(&inode, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok((self.add_handle(number, file, true)?, OpenOptions::empty()))
    }

    fn releasedir(&self, _ctx: &Context, inode: u64, _flags: u32, handle: u64) -> io::Result<()> {
        self.handles().remove(handle, inode)
    }

    fn fsyncdir(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.fsync(ctx, inode, datasync, handle)
    }

    fn readdir(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_directory(inode, handle, offset, |found, _| Ok(add_entry(found)? > 0))
    }

    fn readdirplus(
        &self,
        _ctx: &Context,
        number: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let parent = self.inodes().get(number)?;
        self.read_directory(number, handle, offset, |mut found, name| {
            if found.name == b"." || found.name == b".." {
                // No inode: the guest knows these.
                return Ok(add_entry(found, Entry::default())? > 0);
            }
            let entry = match self.look_up(&parent, name) {
                Ok(entry) => entry,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(error) => return Err(error),
            };
            found.ino = entry.attr.st_ino;
            let added = add_entry(found, entry);
            if !matches!(added, Ok(1..)) {
                self.inodes().forget(entry.inode, 1);
            }
            Ok(added? > 0)
        })
    }

    fn setxattr(
        &self,
        _ctx: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        if is_trusted(name.to_bytes()) {
            return Err(error(libc::EPERM));
        }
        let flags = XattrFlags::from_bits(flags).ok_or_else(|| error(libc::EINVAL))?;
        self.with_xattrs(inode, |file| rustix::fs::fsetxattr(file, name, value, flags))
    }

    fn getxattr(
        &self,
        _ctx: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        if is_trusted(name.to_bytes()) {
            return Err(error(libc::ENODATA));
        }
        if size == 0 {
            let len = self.with_xattrs(inode, |file| rustix::fs::fgetxattr_query(file, name))?;
            return Ok(GetxattrReply::Count(len as u32));
        }
        let mut value = vec![0; (size as usize).min(MAX_XATTR)];
        let len = self.with_xattrs(inode, |f| rustix::fs::fgetxattr(f, name, &mut value[..]))?;
        value.truncate(len);
        Ok(GetxattrReply::Value(value))
    }

    fn listxattr(&self, _ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let mut names = vec![0; MAX_XATTR];
        let len = self.with_xattrs(inode, |file| rustix::fs::flistxattr(file, &mut names[..]))?;
        let names: Vec<u8> = names[..len]
            .split_inclusive(|&byte| byte == 0)
            .filter(|name| !is_trusted(name))
            .flatten()
            .copied()
            .collect();
        match size as usize {
            0 => Ok(ListxattrReply::Count(names.len() as u32)),
            size if size < names.len() => Err(error(libc::ERANGE)),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    fn removexattr(&self, _ctx: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        if is_trusted(name.to_bytes()) {
            return Err(error(libc::EPERM));
        }
        self.with_xattrs(inode, |file| rustix::fs::fremovexattr(file, name))
    }
}

/// In a namespace of the host's root, who may keep overlayfs's secrets there.
fn is_trusted(name: &[u8]) -> bool {
    name.starts_with(b"trusted.")
}

fn inode(fd: OwnedFd) -> io::Result<(Inode, Facts)> {
    let facts = Facts::of(&fd)?;
    Ok((Inode { fd, identity: facts.identity, kind: facts.kind }, facts))
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// What the host's kernel does for a caller without CAP_FSETID, which ours always has.
fn drop_suid(file: &File) -> io::Result<()> {
    let mode = rustix::fs::fstat(file)?.st_mode;
    let mut kept = mode & !libc::S_ISUID;
    // Without execution by the group it means mandatory locking.
    if mode & libc::S_IXGRP != 0 {
        kept &= !libc::S_ISGID;
    }
    if kept != mode {
        rustix::fs::fchmod(file, permissions(kept))?;
    }
    Ok(())
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
