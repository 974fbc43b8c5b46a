// SPDX-License-Identifier: Apache-2.0

//! The PCI bus: configuration mechanism #1 on ports 0xcf8 and 0xcfc, a host bridge in slot
//! 0 and one function in each further slot. Every function has one range of memory, at an
//! address that its slot fixes. Functions come and go while the guest runs: a slot's lock is
//! held for as long as a vCPU is in its function, so one that was unplugged is in no use.

pub mod config_space;
pub mod msix;

use std::sync::Mutex;

use crate::arch::layout::{self, DEVICE_SIZE, DEVICES};
use config_space::ConfigSpace;

pub const SLOTS: usize = 32;

/// A function in a slot of the bus. Called by vCPU threads, under the slot's lock.
pub trait PciFunction: Send {
    fn config(&self) -> &ConfigSpace;
    /// Writes one to four bytes, which do not cross a 32-bit register.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    fn read_memory(&mut self, offset: u64, data: &mut [u8]);
    fn write_memory(&mut self, offset: u64, data: &[u8]);
}

/// Guest address of the memory of the function in `slot`.
pub fn memory_address(slot: usize) -> u64 {
    DEVICES + slot as u64 * DEVICE_SIZE
}

pub struct PciBus {
    /// CONFIG_ADDRESS as the guest wrote it.
    address: Mutex<u32>,
    host_bridge: ConfigSpace,
    slots: [Mutex<Option<Box<dyn PciFunction>>>; SLOTS],
}

/// Bit 31 of CONFIG_ADDRESS.
const ENABLE: u32 = 1 << 31;

impl PciBus {
    pub fn new() -> PciBus {
        PciBus {
            address: Mutex::new(0),
            // Intel 440FX: Linux's check of the mechanism wants a host bridge class.
            host_bridge: ConfigSpace::new(0x8086, 0x1237, [0x06, 0x00, 0x00], None),
            slots: std::array::from_fn(|_| Mutex::new(None)),
        }
    }

    /// The first slot that a function can be put into.
    pub fn free_slot(&self) -> Option<usize> {
        (1..SLOTS).find(|&slot| lock(&self.slots[slot]).is_none())
    }

    /// Puts a function into a free slot. From here on the guest may find it.
    pub fn plug(&self, slot: usize, function: Box<dyn PciFunction>) {
        *lock(&self.slots[slot]) = Some(function);
    }

    /// Takes the function out of a slot, for the caller to drop. No vCPU is in it any more,
    /// and none will be.
    pub fn unplug(&self, slot: usize) -> Option<Box<dyn PciFunction>> {
        lock(self.slots.get(slot)?).take()
    }

    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        let address = *lock(&self.address);
        if port < layout::PCI_CONFIG_DATA {
            copy_register(address, usize::from(port - layout::PCI_CONFIG_ADDRESS), data);
            return;
        }
        data.fill(0xff);
        let Some((slot, register)) = decode(address) else { return };
        let offset = usize::from(port - layout::PCI_CONFIG_DATA);
        if slot == 0 {
            copy_register(self.host_bridge.read(register), offset, data);
        } else if let Some(function) = &*lock(&self.slots[slot]) {
            copy_register(function.config().read(register), offset, data);
        }
    }

    pub fn write_port(&self, port: u16, data: &[u8]) {
        if port == layout::PCI_CONFIG_ADDRESS {
            // Narrower writes to this register are not defined; Linux probes with one.
            if let Ok(bytes) = data.try_into() {
                *lock(&self.address) = u32::from_le_bytes(bytes);
            }
        } else if port >= layout::PCI_CONFIG_DATA {
            let Some((slot, register)) = decode(*lock(&self.address)) else { return };
            let offset = usize::from(port - layout::PCI_CONFIG_DATA);
            if let Some(function) = &mut *lock(&self.slots[slot])
                && offset + data.len() <= 4
            {
                function.write_config(register + offset, data);
            }
        }
    }

    /// Reads at an address in the window of the functions' memory. Where none is it gives
    /// zeros: a driver that finds its device gone waits for a status of 0.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some((slot, offset)) = decode_memory(address)
            && let Some(function) = &mut *lock(&self.slots[slot])
        {
            function.read_memory(offset, data);
        }
    }

    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((slot, offset)) = decode_memory(address)
            && let Some(function) = &mut *lock(&self.slots[slot])
        {
            function.write_memory(offset, data);
        }
    }
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

/// Slot and register (byte offset, multiple of 4) of bus 0, function 0.
fn decode(address: u32) -> Option<(usize, usize)> {
    let bus_and_function = address & 0x00ff_0700;
    (address & ENABLE != 0 && bus_and_function == 0)
        .then_some(((address >> 11 & 31) as usize, (address & 0xfc) as usize))
}

/// Slot and offset in its function's memory.
fn decode_memory(address: u64) -> Option<(usize, u64)> {
    let offset = address.checked_sub(DEVICES)?;
    let slot = (offset / DEVICE_SIZE) as usize;
    (slot < SLOTS).then_some((slot, offset % DEVICE_SIZE))
}

fn copy_register(value: u32, offset: usize, data: &mut [u8]) {
    let bytes = value.to_le_bytes();
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = bytes.get(offset + i).copied().unwrap_or(0xff);
    }
}

/// A poisoned lock means that a thread of ours panicked while it held it; the state behind
/// these locks is plain registers, which stay valid.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_bridge_answers_on_an_empty_bus() {
        let bus = PciBus::new();
        let read = |address: u32| {
            bus.write_port(0xcf8, &address.to_le_bytes());
            let mut data = [0; 4];
            bus.read_port(0xcfc, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(ENABLE), 0x1237_8086);
        assert_eq!(read(ENABLE | 8) >> 16, 0x0600, "class: host bridge");
        assert_eq!(read(ENABLE | 1 << 11), !0);
        assert_eq!(read(ENABLE | 1 << 8), !0, "no function 1");
        assert_eq!(read(0), !0, "not enabled");
    }

    /// Memory that holds what was written last.
    struct Echo(ConfigSpace, u8);

    impl PciFunction for Echo {
        fn config(&self) -> &ConfigSpace {
            &self.0
        }
        fn write_config(&mut self, offset: usize, data: &[u8]) {
            self.0.write(offset, data)
        }
        fn read_memory(&mut self, _offset: u64, data: &mut [u8]) {
            data.fill(self.1)
        }
        fn write_memory(&mut self, _offset: u64, data: &[u8]) {
            self.1 = data[0]
        }
    }

    #[test]
    fn functions_come_and_go() {
        let bus = PciBus::new();
        let vendor = |slot: usize| {
            bus.write_port(0xcf8, &(ENABLE | (slot as u32) << 11).to_le_bytes());
            let mut data = [0; 2];
            bus.read_port(0xcfc, &mut data);
            u16::from_le_bytes(data)
        };
        for slot in 1..SLOTS {
            assert_eq!(bus.free_slot(), Some(slot));
            bus.plug(slot, Box::new(Echo(ConfigSpace::new(7, 8, [0; 3], None), 0)));
            bus.write_memory(memory_address(slot), &[slot as u8]);
        }
        assert_eq!(bus.free_slot(), None, "all are taken");
        let mut byte = [0xee];
        bus.read_memory(memory_address(5) + DEVICE_SIZE - 1, &mut byte);
        assert_eq!((vendor(5), byte), (7, [5]));

        assert!(bus.unplug(5).is_some() && bus.unplug(5).is_none());
        bus.write_memory(memory_address(5), &[1]);
        bus.read_memory(memory_address(5), &mut byte);
        assert_eq!((vendor(5), byte), (0xffff, [0]), "nothing is there");
        assert_eq!((vendor(6), bus.free_slot()), (7, Some(5)));
        assert!(bus.unplug(SLOTS).is_none(), "no such slot");
        bus.read_memory(memory_address(SLOTS), &mut byte);
        bus.write_memory(DEVICES - 1, &byte);
    }

    #[test]
    fn reads_of_every_width_and_offset_stay_in_the_register() {
        let bus = PciBus::new();
        bus.write_port(0xcf8, &ENABLE.to_le_bytes());
        let mut word = [0; 2];
        bus.read_port(0xcfe, &mut word);
        assert_eq!(u16::from_le_bytes(word), 0x1237);
        let mut beyond = [0; 4];
        bus.read_port(0xcff, &mut beyond);
        assert_eq!(beyond, [0x12, 0xff, 0xff, 0xff]);
    }
}
