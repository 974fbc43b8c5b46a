// SPDX-License-Identifier: Apache-2.0

//! A VM that grows and shrinks while it runs. vCPUs beyond those of the boot are made when they
//! are first wanted, and the guest brings them up and down itself; one that is down sleeps in
//! KVM. Memory beyond that of the boot is a virtio-mem device, plugged when it is first wanted.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use kvm_ioctls::VmFd;

use crate::control::ExitReason;
use crate::devices::{Devices, PlugError};
use crate::memory::{self, GuestRam};
use crate::platform::Platform;
use crate::vcpu::{self, Maker};
use crate::virtio::mem::{Mem, Region};

#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    #[error("{0} vCPUs are more than the VM was made for ({1})")]
    Vcpus(u8, u8),
    #[error("{0} MiB of memory are more than the VM was made for ({1} MiB)")]
    Memory(u64, u64),
    #[error("cannot make a vCPU: {0}")]
    Vcpu(io::Error),
    #[error("cannot give the guest more memory: {0}")]
    Open(io::Error),
    #[error(transparent)]
    Plug(#[from] PlugError),
}

/// What one VM can become.
pub struct Resizer {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) ram: GuestRam,
    pub(crate) devices: Arc<Devices>,
    pub(crate) maker: Maker,
    pub(crate) platform: Platform,
    pub(crate) exits: Sender<ExitReason>,
    /// vCPUs that have been made, and that can be.
    pub(crate) vcpus: u8,
    pub(crate) most_vcpus: u8,
    /// MiB that were there at boot.
    pub(crate) memory_mib: u64,
    /// The slot of the memory device, and what it is asked for.
    pub(crate) memory: Option<(u8, Region)>,
}

impl Resizer {
    /// Makes the vCPUs that are missing to `vcpus`, and asks the guest to have `memory_mib` of
    /// RAM, or what it had at boot if that is more. `reached` is called when it has, on any
    /// thread, unless it is asked for something else before. Returns the slot of the device
    /// that does it, which the guest may not know yet; `None` if it needs none.
    pub fn resize(
        &mut self,
        vcpus: u8,
        memory_mib: u64,
        reached: impl FnOnce() + Send + 'static,
    ) -> Result<Option<u8>, ResizeError> {
        if vcpus > self.most_vcpus {
            return Err(ResizeError::Vcpus(vcpus, self.most_vcpus));
        }
        let more = memory_mib.saturating_sub(self.memory_mib) << 20;
        let (start, len) = self.ram.room().unwrap_or_default();
        if more > len {
            return Err(ResizeError::Memory(memory_mib, self.memory_mib + (len >> 20)));
        }
        while self.vcpus < vcpus {
            let made = self.maker.make(self.vcpus).map_err(ResizeError::Vcpu)?;
            vcpu::spawn(made, self.vcpus, self.platform.clone(), self.exits.clone())
                .map_err(ResizeError::Vcpu)?;
            self.vcpus += 1;
        }
        if more > 0 && self.memory.is_none() {
            let region = Region::new(start, len);
            if let Some(opened) = self.ram.open().map_err(ResizeError::Open)? {
                memory::attach(&self.vm, memory::ROOM_SLOT, opened).map_err(ResizeError::Open)?;
            }
            let slot = self.devices.add(Box::new(Mem::new(region.clone())))?;
            self.memory = Some((slot, region));
        }
        match &self.memory {
            Some((_, region)) => region.request(more, reached),
            None => reached(),
        }
        Ok(self.memory.as_ref().map(|(slot, _)| *slot))
    }
}
