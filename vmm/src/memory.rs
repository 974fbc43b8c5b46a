// SPDX-License-Identifier: Apache-2.0

//! Guest RAM: where it lies, how it is mapped, and the one place that names vm-memory's
//! types, so that another version of that crate is a change here.

pub use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemory, ReadVolatile};
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
