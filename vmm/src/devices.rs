// SPDX-License-Identifier: Apache-2.0

//! The devices of a VM: what puts them on its bus, before the guest runs or while it does, and
//! takes them away again. A slot and its memory's address are one thing, so a device comes and
//! goes by a single step, the last and the first: before it is on the bus all of it works, and
//! from when it is off nothing of the guest reaches it.
//!
//! The guest is told nothing: whoever has a device plugged makes the guest rescan its bus, and
//! remove the device before it is unplugged. A guest that does not only loses the device.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;

use crate::config::Plug;
use crate::memory::GuestRam;
use crate::pci::msix::Routes;
use crate::pci::{PciBus, SLOTS, lock};
use crate::virtio::block::Block;
use crate::virtio::net::Net;
use crate::virtio::transport::VirtioPci;
use crate::virtio::{Fault, VirtioDevice};

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
    bus: Arc<PciBus>,
    /// The slots of the devices that were plugged. Locked while one comes or goes.
    plugged: Mutex<BTreeSet<u8>>,
}

impl Devices {
    pub fn new(vm: Arc<VmFd>, ram: GuestRam, fault: Fault) -> Devices {
        let routes = Arc::new(Routes::new(vm.clone()));
        let (bus, plugged) = (Arc::new(PciBus::new()), Mutex::default());
        Devices { vm, routes, ram, fault, bus, plugged }
    }

    pub fn bus(&self) -> Arc<PciBus> {
        self.bus.clone()
    }

    /// Puts a device that stays into the first free slot; returns it.
    pub fn add(&self, device: Box<dyn VirtioDevice>) -> Result<u8, PlugError> {
        self.attach(device, &mut lock(&self.plugged))
    }

    /// Puts a device on the bus that can be unplugged; returns its slot.
    pub fn plug(&self, device: Plug<OwnedFd>) -> Result<u8, PlugError> {
        let mut plugged = lock(&self.plugged);
        let slot = self.attach(open(device)?, &mut plugged)?;
        plugged.insert(slot);
        Ok(slot)
    }

    /// Takes away what was plugged into `slot`. Returns when its thread has ended and its
    /// files are closed; a request that it is at is finished first.
    pub fn unplug(&self, slot: u8) -> Result<(), PlugError> {
        let mut plugged = lock(&self.plugged);
        if !plugged.remove(&slot) {
            return Err(PlugError::NotPlugged(slot));
        }
        drop(self.bus.unplug(usize::from(slot)));
        Ok(())
    }

    /// `_plugged` shows that nothing else comes or goes meanwhile.
    fn attach(
        &self,
        device: Box<dyn VirtioDevice>,
        _plugged: &mut BTreeSet<u8>,
    ) -> Result<u8, PlugError> {
        let slot = self.bus.free_slot().ok_or(PlugError::NoSlot)?;
        let (vm, routes) = (self.vm.clone(), self.routes.clone());
        let (ram, fault) = (self.ram.clone(), self.fault.clone());
        let function =
            VirtioPci::new(device, slot, vm, routes, ram, fault).map_err(PlugError::Attach)?;
        self.bus.plug(slot, Box::new(function));
        Ok(slot as u8)
    }
}

/// Makes the device of a configuration.
pub fn open(device: Plug<OwnedFd>) -> Result<Box<dyn VirtioDevice>, PlugError> {
    Ok(match device {
        Plug::Net(net) => Box::new(Net::new(net).map_err(PlugError::Net)?),
        Plug::Disk(disk) => Box::new(
            Block::new(File::from(disk.file), disk.read_only, &disk.serial)
                .map_err(PlugError::Disk)?,
        ),
    })
}
