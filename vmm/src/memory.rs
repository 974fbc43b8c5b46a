// SPDX-License-Identifier: Apache-2.0

//! Guest RAM: where it lies, how it is mapped, and the one place that names vm-memory's
//! types, so that another version of that crate is a change here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

pub use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemory, ReadVolatile, VolatileSlice,
};
use vm_memory::{GuestMemoryMmap, GuestMemoryRegion, MmapRegion, mmap::GuestRegionMmap};

use crate::arch::layout;

/// Guest RAM. Cloning shares the mapping.
pub type GuestRam = GuestMemoryMmap<()>;

/// Maps `size` bytes of guest RAM, below and above the hole for devices. Pages are private,
/// anonymous and cost nothing until the guest touches them.
pub fn map(size: u64) -> Result<GuestRam, MemoryError> {
    let total = host_memory();
    if size > total {
        return Err(MemoryError::TooLarge { size: size >> 20, total: total >> 20 });
    }
    let regions = layout::ram_ranges(size)
        .map(|(start, len)| {
            let mapping = MmapRegion::new(len as usize)?;
            GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(MemoryError::Layout)
        })
        .collect::<Result<Vec<_>, MemoryError>>()?;
    GuestRam::from_regions(regions).map_err(|_| MemoryError::Layout)
}

/// The regions of guest RAM: guest address, length in bytes, host address.
pub fn regions(ram: &GuestRam) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
    ram.iter().map(|r| (r.start_addr().0, r.len(), r.as_ptr() as u64))
}

/// Gives the whole pages of a range back to the host. The guest finds zeros there, or what a
/// file that it is a mapping of has.
pub fn discard(ram: &GuestRam, start: GuestAddress, len: usize) -> io::Result<()> {
    let slice = ram.get_slice(start, len).map_err(io::Error::other)?;
    // SAFETY: sysconf takes no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let guard = slice.ptr_guard_mut();
    let begin = guard.as_ptr() as usize;
    let (first, end) = (begin.next_multiple_of(page), (begin + len) / page * page);
    if first >= end {
        return Ok(());
    }
    // SAFETY: the range lies in a mapping of guest RAM, of which nobody holds references to
    // its bytes.
    match unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends what lies in `slices` to a stream socket, in one call that neither blocks nor raises
/// SIGPIPE. Takes at most IOV_MAX slices; returns the bytes sent.
pub fn send(socket: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    with_message(slices, |message| {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message names memory that `slices` borrows for longer than the call.
        unsafe { libc::sendmsg(socket.as_raw_fd(), message, flags) }
    })
}

/// Receives from a stream socket into `slices`, in one call that does not block. Takes at
/// most IOV_MAX slices; returns the bytes received, 0 at the end of the stream.
pub fn receive(socket: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    with_message(slices, |message| {
        // SAFETY: the message names memory that `slices` borrows for longer than the call, and
        // that volatile slices allow anybody to change.
        unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_DONTWAIT) }
    })
}

fn with_message(
    slices: &[VolatileSlice<'_>],
    call: impl Fn(&mut libc::msghdr) -> libc::ssize_t,
) -> io::Result<usize> {
    let mut iov: Vec<libc::iovec> = slices
        .iter()
        .take(libc::UIO_MAXIOV as usize)
        .map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        })
        .collect();
    // SAFETY: all zeros is a message without name, buffers and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov.as_mut_ptr();
    message.msg_iovlen = iov.len() as _;
    match call(&mut message) {
        -1 => Err(io::Error::last_os_error()),
        count => Ok(count as usize),
    }
}

/// Pieces of guest RAM in the order in which one system call fills or reads them. Keeps the
/// RAM mapped.
pub struct Pieces {
    ram: GuestRam,
    iov: Vec<libc::iovec>,
}

// SAFETY: the vectors point into a mapping that `ram` keeps alive, that is the same for all
// threads, and that anybody may change at any time anyway.
unsafe impl Send for Pieces {}

impl Pieces {
    /// Most that one call takes: the kernel's UIO_MAXIOV, without the one that a call adds.
    pub const MAX: usize = libc::UIO_MAXIOV as usize - 1;

    pub fn new(ram: GuestRam) -> Pieces {
        Pieces { ram, iov: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.iov.len()
    }

    pub fn is_empty(&self) -> bool {
        self.iov.is_empty()
    }

    /// Adds a piece behind the others; it has to lie in RAM.
    pub fn push(&mut self, address: GuestAddress, len: usize) -> io::Result<()> {
        let slice = self.ram.get_slice(address, len).map_err(io::Error::other)?;
        let base = slice.ptr_guard_mut().as_ptr().cast();
        self.iov.push(libc::iovec { iov_base: base, iov_len: len });
        Ok(())
    }

    pub fn remove_first(&mut self, count: usize) {
        self.iov.drain(..count);
    }

    pub fn clear(&mut self) {
        self.iov.clear();
    }

    /// readv: fills the pieces, and then `rest`. Returns the bytes read, of all of them.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>, rest: &mut [u8]) -> io::Result<usize> {
        self.iov.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() });
        // SAFETY: the pieces are in the RAM that we hold, whose contents may change under any
        // code of ours; `rest` is borrowed for longer than the call.
        let count =
            unsafe { libc::readv(fd.as_raw_fd(), self.iov.as_ptr(), self.iov.len() as c_int) };
        self.iov.pop();
        if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
    }

    /// writev: writes `first`, and then the pieces.
    pub fn write_to(&mut self, fd: BorrowedFd<'_>, first: &[u8]) -> io::Result<usize> {
        let first = libc::iovec { iov_base: first.as_ptr() as *mut _, iov_len: first.len() };
        self.iov.insert(0, first);
        // SAFETY: as for `read_from`; nothing is written to `first`.
        let count =
            unsafe { libc::writev(fd.as_raw_fd(), self.iov.as_ptr(), self.iov.len() as c_int) };
        self.iov.remove(0);
        if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("{size} MiB of guest memory is more than this host has ({total} MiB); ask for less")]
    TooLarge { size: u64, total: u64 },
    #[error("cannot map guest memory; is the address space limited (ulimit -v)?")]
    Map(#[from] vm_memory::mmap::MmapRegionError),
    #[error("guest memory regions overlap")]
    Layout,
}

/// RAM of the host, in bytes.
fn host_memory() -> u64 {
    // SAFETY: sysconf takes no pointers.
    let (pages, size) =
        unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    pages.max(0) as u64 * size.max(0) as u64
}
