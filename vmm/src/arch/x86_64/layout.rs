// SPDX-License-Identifier: Apache-2.0

//! Guest physical addresses and I/O ports of an x86_64 machine.

/// GDT for the PVH entry.
pub const GDT: u64 = 0x500;
/// hvm_start_info, then its module list, then its memory map (PVH boot ABI).
pub const START_INFO: u64 = 0x6000;
pub const MODULE_LIST: u64 = 0x6100;
pub const MEMORY_MAP: u64 = 0x6200;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// End of the RAM that the guest may use below 1 MiB.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// VMGenID's 16 bytes, then the ACPI tables: reserved in the memory map.
pub const VMGENID: u64 = 0xd_f000;
pub const ACPI: u64 = 0xe_0000;
/// Where RAM goes on after the legacy hole.
pub const HIGH_RAM: u64 = 0x10_0000;

/// The hole below 4 GiB that holds devices, the IOAPIC, the LAPICs and KVM's own pages.
pub const HOLE: u64 = 0xc000_0000;
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Memory of devices: a window of DEVICE_SIZE for each slot of the PCI bus.
pub const DEVICES: u64 = HOLE;
pub const DEVICE_SIZE: u64 = 0x8000;

pub const IOAPIC: u32 = 0xfec0_0000;
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs for real mode on Intel processors.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Interrupt lines of the IOAPIC; MSI-X vectors get the GSIs above.
pub const IOAPIC_PINS: u32 = 24;
/// Line of the ACPI generic event device.
pub const GED_GSI: u32 = 5;

/// PCI configuration mechanism #1.
pub const PCI_CONFIG_ADDRESS: u16 = 0xcf8;
pub const PCI_CONFIG_DATA: u16 = 0xcfc;
/// pvpanic.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI sleep control, sleep status and reset registers (ACPI 6.5, 4.8.3.6 and .7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
pub const SLEEP_STATUS_PORT: u16 = 0x601;
pub const RESET_PORT: u16 = 0x602;
/// Transmit-only UART for `earlyprintk=serial,0x3f8`.
pub const EARLY_UART_PORT: u16 = 0x3f8;

/// Start and length of each range of RAM when the guest has `size` bytes.
pub fn ram_ranges(size: u64) -> impl Iterator<Item = (u64, u64)> {
    let low = size.min(HOLE);
    [(0, low), (HOLE_END, size - low)].into_iter().filter(|&(_, len)| len > 0)
}

/// Linux adds RAM to a running x86 guest in blocks of this many bytes, at multiples of it, or
/// of more for a large guest; the first is at a multiple of [`ROOM_START`].
pub const ROOM_BLOCK: u64 = 128 << 20;
const ROOM_START: u64 = 2 << 30;

/// Start and length of what a guest with `size` bytes of RAM can have beyond them, so that all
/// of it is `most` at most.
pub fn room(size: u64, most: u64) -> Option<(u64, u64)> {
    let end = ram_ranges(size).last().map_or(0, |(start, len)| start + len).max(HOLE_END);
    let len = most.saturating_sub(size) / ROOM_BLOCK * ROOM_BLOCK;
    (len > 0).then_some((end.next_multiple_of(ROOM_START), len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_lies_on_both_sides_of_the_hole() {
        let ranges = |size| ram_ranges(size).collect::<Vec<_>>();
        assert_eq!(ranges(256 << 20), [(0, 256 << 20)]);
        assert_eq!(ranges(HOLE), [(0, HOLE)]);
        assert_eq!(ranges(4 << 30), [(0, HOLE), (HOLE_END, 1 << 30)]);
    }

    #[test]
    fn room_is_behind_ram_in_whole_blocks() {
        const MIB: u64 = 1 << 20;
        assert_eq!(room(256 * MIB, 256 * MIB), None);
        assert_eq!(room(256 * MIB, 383 * MIB), None, "less than a block");
        assert_eq!(room(256 * MIB, 700 * MIB), Some((HOLE_END, 384 * MIB)));
        assert_eq!(room(HOLE + MIB, 1 << 40).map(|room| room.0), Some(HOLE_END + (2 << 30)));
    }
}
