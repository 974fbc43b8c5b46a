// SPDX-License-Identifier: Apache-2.0

//! The 256 bytes of configuration space of a type 0 function (PCI 3.0, chapter 6), of
//! which the guest may write only what `writable` marks.
//!
//! The function's memory is no BAR but an entry of the Enhanced Allocation capability (PCI
//! Express 4.0, 7.8.5), which says that its address is fixed. A BAR Linux would move at each
//! rescan of a running guest's bus.

/// Byte offsets of the header.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
const SIZE: usize = 256;

/// Command register: memory space, bus master and INTx disable.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const CAPABILITY_ENHANCED_ALLOCATION: u8 = 0x14;
/// First word of an entry: enabled, no secondary property, memory space that is not
/// prefetchable, in the place of BAR 0, and two more words.
const ALLOCATION: u32 = 1 << 31 | 0xff << 16 | 2;

pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Offset of the pointer to the next capability, and of the first free byte.
    link: usize,
    free: usize,
}

impl ConfigSpace {
    /// `class` is class, subclass, programming interface; `memory` is the address and the
    /// size of what is there in the place of BAR 0, multiples of 4.
    pub fn new(
        vendor: u16,
        device: u16,
        class: [u8; 3],
        memory: Option<(u32, u32)>,
    ) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            link: CAPABILITIES,
            free: FIRST_CAPABILITY,
        };
        space.bytes[0..2].copy_from_slice(&vendor.to_le_bytes());
        space.bytes[2..4].copy_from_slice(&device.to_le_bytes());
        space.bytes[9..12].copy_from_slice(&[class[2], class[1], class[0]]);
        if let Some((address, size)) = memory {
            // Memory decoding is on from the start: the address is fixed.
            space.bytes[COMMAND] = 1 << 1;
            space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
            // One entry: what it is, its address and its last word's offset, both of 32 bits.
            let mut body = vec![1, 0];
            body.extend(ALLOCATION.to_le_bytes());
            body.extend(address.to_le_bytes());
            body.extend((size - 4).to_le_bytes());
            space.add_capability(CAPABILITY_ENHANCED_ALLOCATION, &body, &[]);
        }
        space
    }

    /// Sets read-only bytes of the header.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Adds a capability to the list. `body` follows its id and link; `writable` marks the
    /// bits of the body that the guest may write. Returns the capability's offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let offset = self.free;
        self.bytes[self.link] = offset as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES as u8;
        self.bytes[offset] = id;
        self.bytes[offset + 2..offset + 2 + body.len()].copy_from_slice(body);
        self.writable[offset + 2..offset + 2 + writable.len()].copy_from_slice(writable);
        self.link = offset + 1;
        self.free = (offset + 2 + body.len()).next_multiple_of(4);
        offset
    }

    /// Reads the 32-bit register at `register`, a multiple of 4 below 256.
    pub fn read(&self, register: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.bytes[register..register + 4]);
        u32::from_le_bytes(bytes)
    }

    /// Writes what is writable of one to four bytes at `offset`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            let mask = self.writable[offset + i];
            let old = self.bytes[offset + i];
            self.bytes[offset + i] = old & !mask | byte & mask;
        }
    }

    /// A 16-bit value, for capabilities that their owner watches.
    pub fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_a_fixed_address_and_no_bar() {
        let mut space = ConfigSpace::new(1, 2, [0, 0, 0], Some((0xc000_8000, 0x8000)));
        space.write(0x10, &[0xff; 4]);
        assert_eq!(space.read(0x10), 0, "BAR 0 has no size");
        let capability = space.read(0x34) as usize;
        let words: Vec<u32> = (0..4).map(|i| space.read(capability + 4 * i)).collect();
        assert_eq!(words, [0x0001_0014, 0x80ff_0002, 0xc000_8000, 0x7ffc]);
        space.write(capability + 8, &[0xff; 4]);
        assert_eq!(space.read(capability + 8), 0xc000_8000, "the address stays");
    }

    #[test]
    fn the_guest_writes_only_what_it_may() {
        let mut space = ConfigSpace::new(0x1af4, 2, [0, 0, 0], Some((0xc000_0000, 0x8000)));
        let cap = space.add_capability(0x11, &[0x01, 0x00], &[0x00, 0xc0]);
        space.write(0, &[0xff; 4]);
        space.write(cap, &[0xff; 4]);
        assert_eq!(space.read(0) & 0xffff, 0x1af4);
        assert_eq!(space.read(cap), 0xc001_0011);
        assert_eq!(space.read(space.read(0x34) as usize) >> 8 & 0xff, cap as u32, "the second");
    }
}
