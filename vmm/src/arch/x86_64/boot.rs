// SPDX-License-Identifier: Apache-2.0

//! What lies in guest RAM when the kernel starts: the kernel, the initramfs, the command
//! line and the PVH start info (Xen's x86/HVM direct boot ABI).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{Error, KernelLoader, elf, load_cmdline};

use super::layout;
use crate::memory::{Address, Bytes, GuestAddress, GuestMemory, GuestRam};

/// hvm_start_info.magic
const MAGIC: u32 = 0x336e_c578;
/// Types of memory map entries: as in e820.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("the kernel is not an ELF image; give an uncompressed vmlinux")]
    NotElf,
    #[error("the kernel has no PVH entry ({0}); build it with CONFIG_PVH=y and keep its notes")]
    NoPvhEntry(String),
    #[error("the kernel does not fit in {0} MiB of guest memory; give it more")]
    KernelTooLarge(u64),
    #[error("the initramfs of {size} bytes does not fit in {memory} MiB of guest memory")]
    InitramfsTooLarge { size: u64, memory: u64 },
    #[error("cannot read the {0}: {1}")]
    Read(&'static str, io::Error),
    #[error("the kernel command line is not usable: {0}")]
    Cmdline(String),
    #[error("cannot write to guest memory: {0}")]
    Write(String),
}

/// Loads the kernel; returns its PVH entry point and the first address behind it.
pub fn load_kernel(ram: &GuestRam, mut kernel: &File) -> Result<(u64, u64), BootError> {
    let mut magic = [0; 4];
    let count = kernel.read_at(&mut magic, 0).map_err(|e| BootError::Read("kernel", e))?;
    if &magic[..count] != b"\x7fELF" {
        return Err(BootError::NotElf);
    }
    let loaded = Elf::load(ram, None, &mut kernel, Some(GuestAddress(layout::HIGH_RAM))).map_err(
        |error| match error {
            Error::Elf(elf::Error::ReadKernelImage) => BootError::KernelTooLarge(ram_mib(ram)),
            error => BootError::NoPvhEntry(error.to_string()),
        },
    )?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok((entry.0, loaded.kernel_end)),
        _ => Err(BootError::NoPvhEntry("no such note".to_owned())),
    }
}

/// Loads the initramfs at the end of low RAM; returns its address and size.
pub fn load_initramfs(
    ram: &GuestRam,
    mut initramfs: &File,
    kernel_end: u64,
) -> Result<(u64, u64), BootError> {
    let read = |e| BootError::Read("initramfs", e);
    let size = initramfs.metadata().map_err(read)?.len();
    let low_end = low_ram_end(ram);
    let address = low_end.checked_sub(size).map(|a| a & !0xfff).filter(|&a| a >= kernel_end);
    let Some(address) = address else {
        return Err(BootError::InitramfsTooLarge { size, memory: ram_mib(ram) });
    };
    let len = usize::try_from(size).map_err(|e| read(io::Error::other(e)))?;
    ram.read_exact_volatile_from(GuestAddress(address), &mut initramfs, len)
        .map_err(|e| read(io::Error::other(e)))?;
    Ok((address, size))
}

/// Writes command line and start info.
pub fn write_start_info(
    ram: &GuestRam,
    cmdline: &str,
    initramfs: Option<(u64, u64)>,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut line = linux_loader::cmdline::Cmdline::new(crate::config::MAX_CMDLINE)
        .map_err(|e| BootError::Cmdline(e.to_string()))?;
    line.insert_str(cmdline).map_err(|e| BootError::Cmdline(e.to_string()))?;
    load_cmdline(ram, GuestAddress(layout::CMDLINE), &line)
        .map_err(|e| BootError::Cmdline(e.to_string()))?;

    let map = memory_map(ram);
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        nr_modules: initramfs.is_some() as u32,
        modlist_paddr: if initramfs.is_some() { layout::MODULE_LIST } else { 0 },
        ..Default::default()
    };
    let mut params =
        BootParams::new::<hvm_start_info>(&start_info, GuestAddress(layout::START_INFO));
    params.set_sections::<hvm_memmap_table_entry>(&map, GuestAddress(layout::MEMORY_MAP));
    if let Some((paddr, size)) = initramfs {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        params.set_modules::<hvm_modlist_entry>(&[module], GuestAddress(layout::MODULE_LIST));
    }
    PvhBootConfigurator::write_bootparams(&params, ram).map_err(|e| BootError::Write(e.to_string()))
}

fn memory_map(ram: &GuestRam) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, size, type_| hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
    let low_end = low_ram_end(ram);
    let mut map = vec![
        entry(0, layout::LOW_RAM_END, RAM),
        entry(layout::LOW_RAM_END, layout::HIGH_RAM - layout::LOW_RAM_END, RESERVED),
        entry(layout::HIGH_RAM, low_end - layout::HIGH_RAM, RAM),
    ];
    let last = ram.last_addr().0 + 1;
    if last > layout::HOLE_END {
        map.push(entry(layout::HOLE_END, last - layout::HOLE_END, RAM));
    }
    map
}

fn low_ram_end(ram: &GuestRam) -> u64 {
    (ram.last_addr().raw_value() + 1).min(layout::HOLE)
}

fn ram_mib(ram: &GuestRam) -> u64 {
    crate::memory::regions(ram).map(|(_, len, _)| len).sum::<u64>() >> 20
}
