// SPDX-License-Identifier: Apache-2.0

//! Files that the guest opens, makes, and works on beyond reading and writing.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::PoisonError;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FOPEN_IN_KILL_SUIDGID};
use fuse_backend_rs::api::filesystem::{Context, Entry};
use rustix::fs::{FallocateFlags, FileType, OFlags};

use super::{Tree, error, permissions, reopen};
use crate::virtio::fs::caller::Caller;

/// Flags of open that are handed on. Others could name files instead of opening them
/// (O_PATH), follow symlinks, or make a file of another kind.
const OPEN_FLAGS: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::DIRECT)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC)
    .union(OFlags::NOATIME);

/// Most bytes that one request copies: programs ask again for the rest, and other requests
/// of that kind get their turn.
const MAX_COPY: u64 = 64 << 20;

/// Where a range begins that is copied.
pub struct Place {
    pub inode: u64,
    pub handle: u64,
    pub offset: u64,
}

impl Tree {
    pub(super) fn open_file(&self, number: u64, flags: u32, fuse_flags: u32) -> io::Result<u64> {
        let inode = self.inodes().get(number)?;
        if inode.kind != FileType::RegularFile {
            return Err(error(libc::EOPNOTSUPP));
        }
        let flags = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
        let file = self.open_contents(&inode, flags)?;
        if flags.contains(OFlags::TRUNC) && fuse_flags & FOPEN_IN_KILL_SUIDGID != 0 {
            drop_suid(&file)?;
        }
        self.add_handle(number, file, false)
    }

    pub(super) fn create_file(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, u64)> {
        let parent = self.parent(parent, name)?;
        let asked = OFlags::from_bits_retain(args.flags);
        let flags =
            asked & OPEN_FLAGS | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let caller = Caller::become_owner(ctx.uid, ctx.gid, args.umask)?;
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
                self.open_file(entry.inode, args.flags, args.fuse_flags)
            }
            Err(error) => return Err(error.into()),
        };
        self.with_handle(entry, handle)
    }

    /// Makes a file that has no name (O_TMPFILE). Whether it may get one later (O_EXCL) the
    /// guest's kernel knows.
    pub fn create_nameless(
        &self,
        ctx: &Context,
        parent: u64,
        args: CreateIn,
    ) -> io::Result<(Entry, u64)> {
        let parent = self.inodes().get(parent)?;
        let flags = OFlags::from_bits_retain(args.flags) & (OPEN_FLAGS - OFlags::TRUNC);
        let flags = flags | OFlags::TMPFILE | OFlags::CLOEXEC;
        let caller = Caller::become_owner(ctx.uid, ctx.gid, args.umask)?;
        let file = rustix::fs::openat(&parent.fd, c".", flags, permissions(args.mode))?;
        drop(caller);
        let entry = self.entry(&parent, reopen(&self.anchor.descriptors, &file, OFlags::PATH)?)?;
        self.with_handle(entry, self.add_handle(entry.inode, file.into(), false))
    }

    /// An entry counts as looked up only if the guest hears of it.
    fn with_handle(&self, entry: Entry, handle: io::Result<u64>) -> io::Result<(Entry, u64)> {
        match handle {
            Ok(handle) => Ok((entry, handle)),
            Err(error) => {
                self.inodes().forget(entry.inode, 1);
                Err(error)
            }
        }
    }

    /// A descriptor for what may take long, during which others use the handle.
    fn second_descriptor(&self, number: u64, inode: u64) -> io::Result<File> {
        let handle = self.handles().get(number, inode)?;
        handle.file.lock().unwrap_or_else(PoisonError::into_inner).try_clone()
    }

    pub(super) fn flush_file(&self, inode: u64, handle: u64, only_data: bool) -> io::Result<()> {
        let file = self.second_descriptor(handle, inode)?;
        if only_data { file.sync_data() } else { file.sync_all() }
    }

    /// Writes out all of the file system that an inode is in.
    pub fn flush_all(&self, inode: u64) -> io::Result<()> {
        let inode = self.inodes().get(inode)?;
        Ok(rustix::fs::syncfs(self.open_contents(&inode, OFlags::RDONLY)?)?)
    }

    pub(super) fn allocate(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.handle(handle, inode, false)?;
        let mode = FallocateFlags::from_bits(mode).ok_or_else(|| error(libc::EOPNOTSUPP))?;
        let file = self.second_descriptor(handle, inode)?;
        rustix::fs::fallocate(&file, mode, offset, length)?;
        changed_by(ctx, &file)
    }

    /// Copies between two open files on the host; returns how many bytes.
    pub fn copy(&self, ctx: &Context, from: Place, to: Place, length: u64) -> io::Result<u32> {
        let open = |place: &Place| {
            self.handle(place.handle, place.inode, false)?;
            self.second_descriptor(place.handle, place.inode)
        };
        let (source, target) = (open(&from)?, open(&to)?);
        let (mut from, mut to) = (from.offset, to.offset);
        let length = length.min(MAX_COPY) as usize;
        let copied =
            rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), length)?;
        changed_by(ctx, &target)?;
        Ok(copied as u32)
    }
}

/// Where FUSE does not say whether the caller has CAP_FSETID, only root is taken to.
fn changed_by(ctx: &Context, file: &File) -> io::Result<()> {
    if ctx.uid == 0 { Ok(()) } else { drop_suid(file) }
}

/// What the host's kernel does for a caller without CAP_FSETID, which ours always has.
pub(super) fn drop_suid(file: &File) -> io::Result<()> {
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
