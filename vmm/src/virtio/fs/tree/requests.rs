// SPDX-License-Identifier: Apache-2.0

//! The requests of FUSE as fuse-backend-rs hands them on. Those that it does not know, or
//! only in part, are in `extension`.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::PoisonError;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, WRITE_KILL_PRIV, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, OpenOptions, SetattrValid,
    ZeroCopyReader, ZeroCopyWriter,
};
use rustix::fs::{AtFlags, FileType, OFlags, RenameFlags, SeekFrom};

use super::files::drop_suid;
use super::{Facts, Tree, VALIDITY, error, permissions, wake};
use crate::virtio::fs::caller::Caller;

impl FileSystem for Tree {
    type Inode = u64;
    type Handle = u64;

    fn destroy(&self) {
        self.start_over(false, false);
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = self.parent(parent, name)?;
        match name.to_bytes() {
            wake::NAME => Ok(wake::entry()),
            // Others would come to files through directories that are closed to them.
            wake::GONE if ctx.uid != 0 => Err(error(libc::ENOENT)),
            wake::GONE => self.look_up_gone(&parent),
            _ => self.look_up(&parent, name),
        }
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
        if wake::is_meant(&attr, valid) {
            return self.doubtful_attributes(number);
        }
        self.set_attributes(number, attr, handle, valid)?;
        self.getattr(ctx, number, None)
    }

    fn readlink(&self, _ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let inode = self.inodes().get(inode)?;
        Ok(rustix::fs::readlinkat(&inode.fd, c"", Vec::new())?.into_bytes())
    }

    fn symlink(&self, ctx: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = self.parent(parent, name)?;
        let caller = Caller::become_owner(ctx.uid, ctx.gid, 0)?;
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
        umask: u32,
    ) -> io::Result<Entry> {
        let parent = self.parent(parent, name)?;
        let kind = FileType::from_raw_mode(mode);
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice if rdev == 0 => {}
            _ => return Err(error(libc::EPERM)),
        }
        let caller = Caller::become_owner(ctx.uid, ctx.gid, umask)?;
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
        umask: u32,
    ) -> io::Result<Entry> {
        let parent = self.parent(parent, name)?;
        let caller = Caller::become_owner(ctx.uid, ctx.gid, umask)?;
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
        if old_name.to_bytes() == wake::NAME {
            return Ok(());
        }
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
        let handle = self.open_file(inode, flags, fuse_flags)?;
        Ok((Some(handle), OpenOptions::KEEP_CACHE, None))
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (entry, handle) = self.create_file(ctx, parent, name, args)?;
        Ok((entry, Some(handle), OpenOptions::KEEP_CACHE, None))
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
        self.flush_file(inode, handle, datasync)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.allocate(ctx, inode, handle, mode, offset, length)
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
        Ok((Some(self.add_handle(number, file, true)?), OpenOptions::empty()))
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
        self.read_directory_plus(number, handle, offset, add_entry)
    }

    fn getxattr(
        &self,
        _ctx: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        self.get_xattr(inode, name, size)
    }

    fn listxattr(&self, _ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.list_xattrs(inode, size)
    }

    fn removexattr(&self, _ctx: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.remove_xattr(inode, name)
    }
}
