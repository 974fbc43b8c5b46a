// SPDX-License-Identifier: Apache-2.0

//! The 256 bytes of configuration space of a type 0 function (PCI 3.0, chapter 6), of
//! which the guest may write only what `writable` marks.

/// Byte offsets of the header.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CAPABILITIES: usize = 0x34;
const BAR0: usize = 0x10;
const FIRST_CAPABILITY: usize = 0x40;
const SIZE: usize = 256;

/// Command register: memory space, bus master and INTx disable.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// BAR type: 32 bits of memory space, not prefetchable.
const BAR_FLAGS: u32 = 0;

pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Address and size of BAR 0.
    bar: Option<(u32, u32)>,
    /// Offset of the pointer to the next capability, and of the first free byte.
    link: usize,
    free: usize,
}

impl ConfigSpace {
    /// `class` is class, subclass, programming interface.
    pub fn new(vendor: u16, device: u16, class: [u8; 3], bar: Option<(u32, u32)>) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bar,
            link: CAPABILITIES,
            free: FIRST_CAPABILITY,
        };
        space.bytes[0..2].copy_from_slice(&vendor.to_le_bytes());
        space.bytes[2..4].copy_from_slice(&device.to_le_bytes());
        space.bytes[9..12].copy_from_slice(&[class[2], class[1], class[0]]);
        if let Some((address, _)) = bar {
            space.bytes[BAR0..BAR0 + 4].copy_from_slice(&(address | BAR_FLAGS).to_le_bytes());
            // Memory decoding is on from the start: the address is fixed.
            space.bytes[COMMAND] = 1 << 1;
            space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
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
        if offset == BAR0 && data.len() == 4 {
            self.write_bar(data);
            return;
        }
        for (i, byte) in data.iter().enumerate() {
            let mask = self.writable[offset + i];
            let old = self.bytes[offset + i];
            self.bytes[offset + i] = old & !mask | byte & mask;
        }
    }

    /// The sizing protocol (PCI 3.0, 6.2.5.1): all ones read back as the size; anything
    /// else restores the one address there is.
    fn write_bar(&mut self, data: &[u8]) {
        if let Some((address, size)) = self.bar {
            let value = if data == [0xff; 4] { !(size - 1) } else { address };
            self.bytes[BAR0..BAR0 + 4].copy_from_slice(&(value | BAR_FLAGS).to_le_bytes());
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
    fn a_bar_tells_its_size_and_keeps_its_address() {
        let mut space = ConfigSpace::new(1, 2, [0, 0, 0], Some((0xc000_8000, 0x8000)));
        space.write(BAR0, &[0xff; 4]);
        assert_eq!(space.read(BAR0), 0xffff_8000);
        space.write(BAR0, &0xdead_0000u32.to_le_bytes());
        assert_eq!(space.read(BAR0), 0xc000_8000);
    }

    #[test]
    fn the_guest_writes_only_what_it_may() {
        let mut space = ConfigSpace::new(0x1af4, 2, [0, 0, 0], Some((0xc000_0000, 0x8000)));
        let cap = space.add_capability(0x11, &[0x01, 0x00], &[0x00, 0xc0]);
        space.write(0, &[0xff; 4]);
        space.write(cap, &[0xff; 4]);
        assert_eq!(space.read(0) & 0xffff, 0x1af4);
        assert_eq!(space.read(cap), 0xc001_0011);
        assert_eq!(space.read(0x34), cap as u32);
    }
}
