// SPDX-License-Identifier: Apache-2.0

//! Virtio over PCI (virtio 1.3, 4.1), modern only, MSI-X only. Turns the registers that the
//! driver reads and writes into calls of [`VirtioDevice`]. Queues are configured between
//! FEATURES_OK and DRIVER_OK and frozen afterwards, whatever the driver writes.
//!
//! The optional access to BARs through configuration space (VIRTIO_PCI_CAP_PCI_CFG) is not
//! offered: every driver of this machine has memory-mapped access.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::{Counters, VirtQueue};
use super::status::{self, Status};
use super::{Activation, ConfigChange, Fault, VirtioDevice};
use crate::arch::layout::DEVICE_SIZE;
use crate::memory::GuestRam;
use crate::pci::config_space::ConfigSpace;
use crate::pci::msix::{Msix, Routes};
use crate::pci::{PciFunction, memory_address};

const VENDOR: u16 = 0x1af4;
/// Device IDs are this plus the virtio device type (4.1.2.1).
const FIRST_DEVICE_ID: u16 = 0x1040;

/// Where the structures lie in the function's memory.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;
const STRUCTURE: u64 = 0x1000;
/// Distance of the notification addresses of two queues, in bytes.
const NOTIFY_STEP: u64 = 4;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
/// "No vector" in config_msix_vector and queue_msix_vector.
const NO_VECTOR: u16 = 0xffff;

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT_DESC: u64 = 1 << 28;
/// What the transport and the queues offer for every device.
pub const TRANSPORT_FEATURES: u64 = VERSION_1 | EVENT_IDX | INDIRECT_DESC;

pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    ram: GuestRam,
    fault: Fault,
    config: ConfigSpace,
    msix: Msix,
    /// Offset of the MSI-X capability.
    msix_capability: usize,
    registers: Registers,
    /// config_generation.
    generation: Arc<AtomicU8>,
    queues: Vec<Slot>,
    counters: Arc<Counters>,
}

/// The part of the common configuration structure that is not of one queue (4.1.4.3).
#[derive(Default)]
struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    queue_select: u16,
    status: Status,
}

/// A queue before it goes to the device.
struct Slot {
    queue: Queue,
    vector: u16,
    kick: Kick,
}

/// A queue's notification address, which signals the event while this lives.
struct Kick {
    vm: Arc<VmFd>,
    address: IoEventAddress,
    event: Arc<EventFd>,
}

impl Kick {
    fn new(vm: Arc<VmFd>, address: u64) -> io::Result<Kick> {
        let (address, event) = (IoEventAddress::Mmio(address), EventFd::new(EFD_NONBLOCK)?);
        vm.register_ioevent(&event, &address, NoDatamatch)?;
        Ok(Kick { vm, address, event: Arc::new(event) })
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // It can only fail for an address that is not registered.
        let _ = self.vm.unregister_ioevent(&self.event, &self.address, NoDatamatch);
    }
}

impl VirtioPci {
    /// Makes the function for `slot`, with its kicks attached to KVM.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        slot: usize,
        vm: Arc<VmFd>,
        routes: Arc<Routes>,
        ram: GuestRam,
        fault: Fault,
    ) -> io::Result<VirtioPci> {
        let sizes = device.queue_sizes();
        let msix = Msix::new(routes, sizes.len() + 1)?;
        let (config, msix_capability) = config_space(&*device, slot, msix.len());
        let queues = sizes
            .iter()
            .enumerate()
            .map(|(index, &size)| {
                let address = memory_address(slot) + NOTIFY + NOTIFY_STEP * index as u64;
                let kick = Kick::new(vm.clone(), address)?;
                let queue = Queue::new(size).map_err(io::Error::other)?;
                Ok(Slot { queue, vector: NO_VECTOR, kick })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let registers = Registers { config_vector: NO_VECTOR, ..Default::default() };
        let (counters, generation) = (Arc::default(), Arc::default());
        Ok(VirtioPci {
            device,
            ram,
            fault,
            config,
            msix,
            msix_capability,
            registers,
            generation,
            queues,
            counters,
        })
    }

    /// What the device's queues have done since it was made.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    fn features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn selected(&mut self) -> Option<&mut Slot> {
        self.queues.get_mut(usize::from(self.registers.queue_select))
    }

    fn read_common(&mut self, offset: u64) -> u64 {
        use common::*;
        let registers = &self.registers;
        match offset {
            DEVICE_FEATURE_SELECT => registers.device_feature_select.into(),
            DEVICE_FEATURE => half(self.features(), registers.device_feature_select),
            DRIVER_FEATURE_SELECT => registers.driver_feature_select.into(),
            DRIVER_FEATURE => half(registers.driver_features, registers.driver_feature_select),
            CONFIG_VECTOR => registers.config_vector.into(),
            NUM_QUEUES => self.queues.len() as u64,
            DEVICE_STATUS => registers.status.0.into(),
            CONFIG_GENERATION => self.generation.load(Ordering::Acquire).into(),
            QUEUE_SELECT => registers.queue_select.into(),
            _ => {
                let notify_off = u64::from(self.registers.queue_select);
                let Some(slot) = self.selected() else { return 0 };
                match offset {
                    QUEUE_SIZE => slot.queue.size().into(),
                    QUEUE_VECTOR => slot.vector.into(),
                    QUEUE_ENABLE => slot.queue.ready().into(),
                    QUEUE_NOTIFY_OFF => notify_off,
                    QUEUE_DESC => slot.queue.desc_table(),
                    QUEUE_DRIVER => slot.queue.avail_ring(),
                    QUEUE_DEVICE => slot.queue.used_ring(),
                    _ => 0,
                }
            }
        }
    }

    fn write_common(&mut self, offset: u64, value: u64) {
        use common::*;
        let (low, word) = (value as u32, value as u16);
        match offset {
            DEVICE_FEATURE_SELECT => self.registers.device_feature_select = low,
            DRIVER_FEATURE_SELECT => self.registers.driver_feature_select = low,
            DRIVER_FEATURE if self.registers.status.features_open() => {
                let (features, select) =
                    (&mut self.registers.driver_features, self.registers.driver_feature_select);
                match select {
                    0 => *features = *features & !0xffff_ffff | u64::from(low),
                    1 => *features = *features & 0xffff_ffff | u64::from(low) << 32,
                    _ => {}
                }
            }
            CONFIG_VECTOR => self.registers.config_vector = self.vector(word),
            DEVICE_STATUS => self.write_status(value as u8),
            QUEUE_SELECT => self.registers.queue_select = word,
            _ if self.registers.status.queues_open() => self.write_queue(offset, value),
            _ => {}
        }
    }

    /// Registers of the selected queue; only called while queues may be configured.
    fn write_queue(&mut self, offset: u64, value: u64) {
        use common::*;
        let vector = self.vector(value as u16);
        let Some(slot) = self.selected() else { return };
        let low = Some(value as u32);
        match offset {
            // An enabled queue stays as it is until reset (4.1.4.3.2).
            _ if slot.queue.ready() => {}
            QUEUE_SIZE => slot.queue.set_size(value as u16),
            QUEUE_VECTOR => slot.vector = vector,
            QUEUE_ENABLE => slot.queue.set_ready(value == 1),
            QUEUE_DESC => slot.queue.set_desc_table_address(low, None),
            QUEUE_DESC_HIGH => slot.queue.set_desc_table_address(None, low),
            QUEUE_DRIVER => slot.queue.set_avail_ring_address(low, None),
            QUEUE_DRIVER_HIGH => slot.queue.set_avail_ring_address(None, low),
            QUEUE_DEVICE => slot.queue.set_used_ring_address(low, None),
            QUEUE_DEVICE_HIGH => slot.queue.set_used_ring_address(None, low),
            _ => {}
        }
    }

    /// A vector that exists, or none (4.1.5.1.2.1: the driver reads back what was taken).
    fn vector(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.len() { vector } else { NO_VECTOR }
    }

    fn write_status(&mut self, value: u8) {
        let features_acceptable = self.registers.driver_features & !self.features() == 0
            && self.registers.driver_features & VERSION_1 != 0;
        match self.registers.status.write(value, features_acceptable) {
            status::Change::None => {}
            status::Change::Reset => self.reset(),
            status::Change::Activate => {
                if let Err(error) = self.activate() {
                    self.registers.status.needs_reset();
                    self.fault.report(format!("virtio-{}: {error}", self.device.name()));
                }
            }
        }
    }

    fn activate(&mut self) -> io::Result<()> {
        let features = self.registers.driver_features;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, slot) in self.queues.iter().enumerate() {
            let mut queue = Queue::new(slot.queue.max_size()).map_err(io::Error::other)?;
            queue.set_size(slot.queue.size());
            let set = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
            let (low, high) = set(slot.queue.desc_table());
            queue.set_desc_table_address(low, high);
            let (low, high) = set(slot.queue.avail_ring());
            queue.set_avail_ring_address(low, high);
            let (low, high) = set(slot.queue.used_ring());
            queue.set_used_ring_address(low, high);
            queue.set_ready(slot.queue.ready());
            queue.set_event_idx(features & EVENT_IDX != 0);
            if queue.ready() && !queue.is_valid(&self.ram) {
                return Err(io::Error::other(format!("queue {index} is outside guest memory")));
            }
            let interrupt = self.event(slot.vector)?;
            queues.push(VirtQueue::new(
                queue,
                self.ram.clone(),
                slot.kick.event.clone(),
                interrupt,
                self.counters.clone(),
            ));
        }
        let interrupt = self.event(self.registers.config_vector)?;
        self.device.activate(Activation {
            ram: self.ram.clone(),
            features,
            queues,
            config_change: ConfigChange::new(self.generation.clone(), interrupt),
            fault: self.fault.clone(),
        })
    }

    /// Raises a vector; without one the driver polls.
    fn event(&self, vector: u16) -> io::Result<Arc<EventFd>> {
        let event = self.msix.event(usize::from(vector));
        event.map_or_else(|| Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?)), Ok)
    }

    fn reset(&mut self) {
        self.device.reset();
        self.registers = Registers { config_vector: NO_VECTOR, ..Default::default() };
        for slot in &mut self.queues {
            slot.queue.reset();
            slot.vector = NO_VECTOR;
            // Kicks of the driver before: nonblocking, none is no error.
            let _ = slot.kick.event.read();
        }
    }

    /// KVM refused an interrupt route: the device would be mute.
    fn check(&self, result: io::Result<()>) {
        if let Err(error) = result {
            self.fault.report(format!("virtio-{}: MSI-X: {error}", self.device.name()));
        }
    }
}

impl Drop for VirtioPci {
    /// Nothing reaches the device any more; it lets go of the guest's buffers, and the last
    /// are the vectors, which its thread may have signalled until then.
    fn drop(&mut self) {
        self.queues.clear();
        self.device.reset();
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        let control = self.config.word(self.msix_capability + 2);
        let result = self.msix.set_control(control);
        self.check(result);
    }

    fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let at = offset % STRUCTURE;
        match offset - at {
            COMMON => {
                let value = self.read_common(at).to_le_bytes();
                let len = data.len().min(8);
                data[..len].copy_from_slice(&value[..len]);
            }
            DEVICE => self.device.read_config(at as usize, data),
            MSIX_TABLE => self.msix.read_table(at as usize, data),
            MSIX_PENDING => self.msix.read_pending(at as usize, data),
            // With MSI-X on, the ISR status register stays 0 (4.1.4.5.1).
            _ => {}
        }
    }

    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        let at = offset % STRUCTURE;
        match offset - at {
            COMMON if data.len() <= 8 => {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                self.write_common(at, u64::from_le_bytes(value));
            }
            MSIX_TABLE if (at as usize).is_multiple_of(4) => {
                let result = self.msix.write_table(at as usize, data);
                self.check(result);
            }
            // KVM takes the kicks; this is for a write that it does not match.
            NOTIFY => {
                if let Some(slot) = self.queues.get((at / NOTIFY_STEP) as usize) {
                    let _ = slot.kick.event.write(1);
                }
            }
            _ => {}
        }
    }
}

/// Offsets in the common configuration structure (4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DESC_HIGH: u64 = 0x24;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x2c;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x34;
}

fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}

fn config_space(device: &dyn VirtioDevice, slot: usize, vectors: usize) -> (ConfigSpace, usize) {
    let id = FIRST_DEVICE_ID + device.device_type();
    let class = match device.device_type() {
        super::TYPE_NET => [0x02, 0x00, 0x00],
        super::TYPE_BLOCK => [0x01, 0x00, 0x00],
        super::TYPE_CONSOLE => [0x07, 0x80, 0x00],
        _ => [0xff, 0x00, 0x00],
    };
    let memory = (memory_address(slot) as u32, DEVICE_SIZE as u32);
    let mut config = ConfigSpace::new(VENDOR, id, class, Some(memory));
    // Revision 1 and subsystem IDs as 4.1.2.1 asks of modern devices.
    config.set(0x08, &[1]);
    config.set(0x2c, &VENDOR.to_le_bytes());
    config.set(0x2e, &(0x40 + device.device_type()).to_le_bytes());

    for (structure, offset) in [(1, COMMON), (2, NOTIFY), (3, ISR), (4, DEVICE)] {
        // struct virtio_pci_cap (4.1.4) after id and link: length, type, BAR 0, id,
        // padding, offset, length; notifications add their step.
        let mut body = vec![16, structure, 0, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((STRUCTURE as u32).to_le_bytes());
        if offset == NOTIFY {
            body[0] = 20;
            body.extend((NOTIFY_STEP as u32).to_le_bytes());
        }
        config.add_capability(CAPABILITY_VENDOR, &body, &[]);
    }
    let mut body = Vec::new();
    body.extend((vectors as u16 - 1).to_le_bytes());
    body.extend((MSIX_TABLE as u32).to_le_bytes());
    body.extend((MSIX_PENDING as u32).to_le_bytes());
    let capability = config.add_capability(CAPABILITY_MSIX, &body, &[0x00, 0xc0]);
    (config, capability)
}

#[cfg(test)]
mod tests;
