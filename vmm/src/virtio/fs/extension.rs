// SPDX-License-Identifier: Apache-2.0

//! Requests that fuse-backend-rs (0.14.0) does not know, or knows an older form of: INIT and
//! SETXATTR with what access control lists need, TMPFILE, SYNCFS, COPY_FILE_RANGE. The
//! structures are those of Linux's include/uapi/linux/fuse.h.

use std::ffi::CStr;
use std::io::{self, Read, Write};

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, EntryOut, FsOptions, InHeader, InitIn, InitIn2, InitOut, KERNEL_MINOR_VERSION,
    KERNEL_VERSION, Opcode, OpenOut, OutHeader, WriteOut,
};
use fuse_backend_rs::api::filesystem::{Context, OpenOptions};
use fuse_backend_rs::api::server::MAX_REQ_PAGES;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};

use super::tree::{Place, Tree};
use crate::memory::ByteValued;

const SYNCFS: u32 = 50;
const TMPFILE: u32 = 51;

/// SETXATTR has a second word of flags (FUSE_SETXATTR_EXT).
pub const SETXATTR_EXT: u64 = 1 << 29;
const SETXATTR_ACL_KILL_SGID: u32 = 1;

/// Longest name and value of an extended attribute (XATTR_NAME_MAX and a NUL, XATTR_SIZE_MAX).
const MAX_SETXATTR: usize = 256 + (64 << 10);

const PAGE: u32 = 4096;

/// fuse_copy_file_range_in.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct CopyFileRangeIn {
    pub fh_in: u64,
    pub off_in: u64,
    pub nodeid_out: u64,
    pub fh_out: u64,
    pub off_out: u64,
    pub len: u64,
    pub flags: u64,
}

// SAFETY: numbers without padding between them.
unsafe impl ByteValued for CopyFileRangeIn {}

/// fuse_setxattr_in.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct SetxattrIn {
    pub size: u32,
    pub flags: u32,
    pub setxattr_flags: u32,
    pub padding: u32,
}

// SAFETY: numbers without padding between them.
unsafe impl ByteValued for SetxattrIn {}

/// Whether a request may take as long as a disk likes, and needs nothing of the thread that
/// serves the others.
pub fn is_slow(opcode: u32) -> bool {
    let known = [Opcode::Fsync, Opcode::Fsyncdir, Opcode::Fallocate, Opcode::CopyFileRange];
    opcode == SYNCFS || known.into_iter().any(|known| known as u32 == opcode)
}

/// Serves the request if it is one of these: returns the length of the reply. `reader` is
/// behind the header. An error here means that there was no room for a reply.
pub fn serve(
    tree: &Tree,
    header: &InHeader,
    reader: &mut Reader<'_>,
    writer: &mut VirtioFsWriter<'_>,
) -> Option<io::Result<u32>> {
    let ctx = Context::from(header);
    let body = match header.opcode {
        opcode if opcode == Opcode::Init as u32 => initialize(tree, reader),
        opcode if opcode == Opcode::Setxattr as u32 => set_xattr(tree, header, reader),
        opcode if opcode == Opcode::CopyFileRange as u32 => copy(tree, &ctx, header, reader),
        SYNCFS => tree.flush_all(header.nodeid).map(|()| Vec::new()),
        TMPFILE => create_nameless(tree, &ctx, header, reader),
        _ => return None,
    };
    let (error, body) = match body {
        Ok(body) => (0, body),
        Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
    };
    let len = (size_of::<OutHeader>() + body.len()) as u32;
    let out = OutHeader { len, error, unique: header.unique };
    Some(writer.write_all(&[out.as_slice(), &body].concat()).map(|()| len))
}

/// Which of the things that the guest can do it is to do.
fn initialize(tree: &Tree, reader: &mut Reader<'_>) -> io::Result<Vec<u8>> {
    let init: InitIn = reader.read_obj()?;
    if init.major < KERNEL_VERSION {
        return Err(io::Error::from_raw_os_error(libc::EPROTO));
    }
    let mut out =
        InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..InitOut::default() };
    if init.major > KERNEL_VERSION {
        // The guest asks again by our version.
        return Ok(out.as_slice().to_vec());
    }
    let mut capable = u64::from(init.flags);
    if capable & FsOptions::INIT_EXT.bits() != 0 {
        capable |= u64::from(reader.read_obj::<InitIn2>()?.flags2) << 32;
    }
    let wanted = FsOptions::ASYNC_READ
        | FsOptions::ASYNC_DIO
        | FsOptions::ATOMIC_O_TRUNC
        | FsOptions::AUTO_INVAL_DATA
        | FsOptions::BIG_WRITES
        | FsOptions::CACHE_SYMLINKS
        | FsOptions::DO_READDIRPLUS
        // The umask is for us to apply: a default access control list comes before it.
        | FsOptions::DONT_MASK
        | FsOptions::HANDLE_KILLPRIV_V2
        | FsOptions::MAX_PAGES
        | FsOptions::PARALLEL_DIROPS
        | FsOptions::POSIX_ACL
        | FsOptions::READDIRPLUS_AUTO
        | FsOptions::SUBMOUNTS;
    let enabled = capable & (wanted.bits() | SETXATTR_EXT);
    tree.start_over(enabled & FsOptions::SUBMOUNTS.bits() != 0, enabled & SETXATTR_EXT != 0);
    out.flags = enabled as u32;
    out.flags2 = (enabled >> 32) as u32;
    out.max_readahead = init.max_readahead;
    out.max_background = u16::MAX;
    out.congestion_threshold = u16::MAX / 4 * 3;
    out.max_write = u32::from(MAX_REQ_PAGES) * PAGE;
    out.max_pages = MAX_REQ_PAGES;
    out.time_gran = 1;
    Ok(out.as_slice().to_vec())
}

fn set_xattr(tree: &Tree, header: &InHeader, reader: &mut Reader<'_>) -> io::Result<Vec<u8>> {
    let mut args = SetxattrIn::default();
    // Without the extension the second half is not sent.
    let half = if tree.has_long_setxattr() { size_of::<SetxattrIn>() } else { 8 };
    reader.read_exact(&mut args.as_mut_slice()[..half])?;
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let mut rest = Vec::new();
    reader.take(MAX_SETXATTR as u64 + 1).read_to_end(&mut rest)?;
    let name = CStr::from_bytes_until_nul(&rest).map_err(|_| invalid())?;
    let value = &rest[name.count_bytes() + 1..];
    let value = value.get(..args.size as usize).ok_or_else(invalid)?;
    let kills_sgid = args.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0;
    tree.set_xattr(header.nodeid, name, value, args.flags, kills_sgid)?;
    Ok(Vec::new())
}

fn copy(
    tree: &Tree,
    ctx: &Context,
    header: &InHeader,
    reader: &mut Reader<'_>,
) -> io::Result<Vec<u8>> {
    let args: CopyFileRangeIn = reader.read_obj()?;
    if args.flags != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let from = Place { inode: header.nodeid, handle: args.fh_in, offset: args.off_in };
    let to = Place { inode: args.nodeid_out, handle: args.fh_out, offset: args.off_out };
    let size = tree.copy(ctx, from, to, args.len)?;
    Ok(WriteOut { size, ..WriteOut::default() }.as_slice().to_vec())
}

fn create_nameless(
    tree: &Tree,
    ctx: &Context,
    header: &InHeader,
    reader: &mut Reader<'_>,
) -> io::Result<Vec<u8>> {
    let args: CreateIn = reader.read_obj()?;
    let (entry, fh) = tree.create_nameless(ctx, header.nodeid, args)?;
    let open_flags = OpenOptions::KEEP_CACHE.bits();
    let open = OpenOut { fh, open_flags, ..OpenOut::default() };
    Ok([EntryOut::from(entry).as_slice(), open.as_slice()].concat())
}
