// SPDX-License-Identifier: Apache-2.0

//! The devices of a VM: what puts them on its bus, before the guest runs or while it does, and
//! takes them away again. A slot and its memory's address are one thing, so a device comes and
//! goes by a single step, the last and the first: before it is on the bus all of it works, and
//! from when it is off nothing of the guest reaches it.
//!
//! The guest is told nothing: whoever has a device plugged makes the guest rescan its bus, and
//! remove the device before it is unplugged. A guest that does not only loses the device.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;

use crate::config::Plug;
use crate::control::DeviceCounters;
use crate::memory::GuestRam;
use crate::pci::msix::Routes;
use crate::pci::{PciBus, SLOTS, lock};
use crate::virtio::block::Block;
use crate::virtio::net::Net;
use crate::virtio::queue::Counters;
use crate::virtio::transport::VirtioPci;
use crate::virtio::{Fault, Note, VirtioDevice};

#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    #[error("all {} slots of the guest's bus are taken; unplug a device first", SLOTS - 1)]
    NoSlot,
    #[error("nothing was plugged into slot {0}, so nothing can be unplugged from it")]
    NotPlugged(u8),
    #[error("cannot use the disk: {0}")]
    Disk(io::Error),
    #[error("cannot use the network interface: {0}")]
    Net(io::Error),
    #[error("cannot put a device on the bus: {0}")]
    Attach(io::Error),
}

pub struct Devices {
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
    ram: GuestRam,
    fault: Fault,
    note: Note,
    bus: Arc<PciBus>,
    /// What is in which slot. Locked while a device comes or goes.
    present: Mutex<BTreeMap<u8, Present>>,
}

/// A device that is on the bus.
struct Present {
    name: &'static str,
    counters: Arc<Counters>,
    /// It came later, and may be unplugged.
    plugged: bool,
}

impl Devices {
    pub fn new(vm: Arc<VmFd>, ram: GuestRam, fault: Fault, note: Note) -> Devices {
        let routes = Arc::new(Routes::new(vm.clone()));
        let (bus, present) = (Arc::new(PciBus::new()), Mutex::default());
        Devices { vm, routes, ram, fault, note, bus, present }
    }

    pub fn bus(&self) -> Arc<PciBus> {
        self.bus.clone()
    }

    /// Puts a device that stays into the first free slot; returns it.
    pub fn add(&self, device: Box<dyn VirtioDevice>) -> Result<u8, PlugError> {
        self.attach(device, false)
    }

    /// Puts a device on the bus that can be unplugged; returns its slot.
    pub fn plug(&self, device: Plug<OwnedFd>) -> Result<u8, PlugError> {
        self.attach(self.open(device)?, true)
    }

    /// Takes away what was plugged into `slot`. Returns when its thread has ended and its
    /// files are closed; a request that it is at is finished first.
    pub fn unplug(&self, slot: u8) -> Result<(), PlugError> {
        let mut present = lock(&self.present);
        if !present.get(&slot).is_some_and(|device| device.plugged) {
            return Err(PlugError::NotPlugged(slot));
        }
        present.remove(&slot);
        drop(self.bus.unplug(usize::from(slot)));
        Ok(())
    }

    /// What the devices have done so far.
    pub fn counters(&self) -> Vec<DeviceCounters> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = |(&slot, Present { name, counters, .. }): (&u8, &Present)| DeviceCounters {
            slot,
            device: (*name).to_owned(),
            requests: read(&counters.requests),
            written_bytes: read(&counters.written_bytes),
            kicks: read(&counters.kicks),
            interrupts: read(&counters.interrupts),
        };
        let present = lock(&self.present);
        let counted = present.iter().filter(|(_, device)| !device.counters.by_kernel());
        counted.map(counters).collect()
    }

    /// Makes the device of a configuration.
    pub fn open(&self, device: Plug<OwnedFd>) -> Result<Box<dyn VirtioDevice>, PlugError> {
        Ok(match device {
            Plug::Net(net) => Box::new(Net::new(net, self.note.clone()).map_err(PlugError::Net)?),
            Plug::Disk(disk) => Box::new(
                Block::new(File::from(disk.file), disk.read_only, &disk.serial)
                    .map_err(PlugError::Disk)?,
            ),
        })
    }

    fn attach(&self, device: Box<dyn VirtioDevice>, plugged: bool) -> Result<u8, PlugError> {
        let mut present = lock(&self.present);
        let name = device.name();
        let slot = self.bus.free_slot().ok_or(PlugError::NoSlot)?;
        let (vm, routes) = (self.vm.clone(), self.routes.clone());
        let (ram, fault) = (self.ram.clone(), self.fault.clone());
        let function =
            VirtioPci::new(device, slot, vm, routes, ram, fault).map_err(PlugError::Attach)?;
        let counters = function.counters();
        self.bus.plug(slot, Box::new(function));
        present.insert(slot as u8, Present { name, counters, plugged });
        Ok(slot as u8)
    }
}
