// SPDX-License-Identifier: Apache-2.0

//! Guest RAM: where it lies, how it is mapped, and the one place that names vm-memory's
//! types, so that another version of that crate is a change here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use libc::c_int;

pub use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemory, ReadVolatile, VolatileSlice,
};
use vm_memory::{GuestMemoryMmap, GuestMemoryRegion, MmapRegion, mmap::GuestRegionMmap};

use crate::arch::layout;

/// Guest RAM. Cloning shares the mapping.
#[derive(Clone)]
pub struct GuestRam {
    boot: GuestMemoryMmap<()>,
    /// What the guest can get while it runs.
    room: Option<Arc<Room>>,
}

/// Address space behind the RAM that is there at boot. Until it is opened nothing in it can be
/// reached, by devices either.
struct Room {
    region: GuestRegionMmap<()>,
    open: AtomicBool,
}

impl GuestMemory for GuestRam {
    type R = GuestRegionMmap<()>;

    fn find_region(&self, address: GuestAddress) -> Option<&Self::R> {
        let in_room = || self.open_room().filter(|room| room.to_region_addr(address).is_some());
        self.boot.find_region(address).or_else(in_room)
    }

    fn iter(&self) -> impl Iterator<Item = &Self::R> {
        self.boot.iter().chain(self.open_room())
    }
}

impl GuestRam {
    /// RAM at these addresses, without room for more.
    pub fn from_ranges(ranges: &[(GuestAddress, usize)]) -> Result<GuestRam, MemoryError> {
        let boot = GuestMemoryMmap::from_ranges(ranges).map_err(|_| MemoryError::Layout)?;
        Ok(GuestRam { boot, room: None })
    }

    fn open_room(&self) -> Option<&GuestRegionMmap<()>> {
        let room = self.room.as_deref()?;
        room.open.load(Ordering::Acquire).then_some(&room.region)
    }

    /// Where there is room for more RAM: guest address and length in bytes.
    pub fn room(&self) -> Option<(u64, u64)> {
        let region = &self.room.as_deref()?.region;
        Some((region.start_addr().0, region.len()))
    }

    /// Makes the room usable as RAM; returns it as [`regions`] does.
    pub fn open(&self) -> io::Result<Option<(u64, u64, u64)>> {
        let Some(room) = self.room.as_deref() else { return Ok(None) };
        let (address, len) = (room.region.as_ptr(), room.region.size());
        // SAFETY: the range is a mapping of ours, of which nobody holds references.
        if unsafe { libc::mprotect(address.cast(), len, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        room.open.store(true, Ordering::Release);
        Ok(Some((room.region.start_addr().0, room.region.len(), address as u64)))
    }
}

/// Maps `size` bytes of guest RAM, below and above the hole for devices, with room for as much
/// more as makes `most`. Pages are private, anonymous and cost nothing until the guest touches
/// them, and of the room only the addresses are taken.
pub fn map(size: u64, most: u64) -> Result<GuestRam, MemoryError> {
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
    let boot = GuestMemoryMmap::from_regions(regions).map_err(|_| MemoryError::Layout)?;
    let room = match layout::room(size, most) {
        Some((start, len)) => {
            let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
            let mapping = MmapRegion::build(None, len as usize, libc::PROT_NONE, flags)?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(start));
            let region = region.ok_or(MemoryError::Layout)?;
            Some(Arc::new(Room { region, open: AtomicBool::new(false) }))
        }
        None => None,
    };
    Ok(GuestRam { boot, room })
}

/// The regions of guest RAM: guest address, length in bytes, host address.
pub fn regions(ram: &GuestRam) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
    ram.iter().map(place)
}

/// The same, with the room whether it is open or not: for the kernel's devices, which are not
/// told when that is. Until then their accesses fail, as it is mapped without any.
pub fn regions_and_room(ram: &GuestRam) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
    ram.boot.iter().chain(ram.room.as_deref().map(|room| &room.region)).map(place)
}

fn place(region: &GuestRegionMmap<()>) -> (u64, u64, u64) {
    (region.start_addr().0, region.len(), region.as_ptr() as u64)
}

/// KVM's number for the room of [`GuestRam::open`]; what is there at boot has the numbers below.
pub const ROOM_SLOT: u32 = 2;

/// Gives the guest memory: guest address, length in bytes, host address.
pub fn attach(vm: &VmFd, slot: u32, region: (u64, u64, u64)) -> io::Result<()> {
    let (guest_phys_addr, memory_size, userspace_addr) = region;
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr,
        memory_size,
        userspace_addr,
    };
    // SAFETY: the host range is a mapping that the devices' clones of the RAM keep alive as
    // long as the VM, and that Rust code only reaches through volatile accesses.
    Ok(unsafe { vm.set_user_memory_region(region) }?)
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
