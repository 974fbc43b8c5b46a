// SPDX-License-Identifier: Apache-2.0

//! Virtio 1.3 devices. A device is a description (type, features, queue sizes, its
//! configuration space) until the driver sets DRIVER_OK; then `activate` moves its queues to
//! a [`Worker`](worker::Worker), a thread of its own, which nobody else reaches into. The
//! transport in `transport` is the only caller of [`VirtioDevice`].

pub mod balloon;
pub mod block;
pub mod console;
#[cfg(test)]
pub mod driver;
pub mod fs;
pub mod mem;
pub mod net;
pub mod queue;
pub mod rng;
pub mod status;
pub mod transport;
pub mod vsock;
pub mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use queue::VirtQueue;

/// Device types (virtio 1.3, section 5).
pub const TYPE_NET: u16 = 1;
pub const TYPE_BLOCK: u16 = 2;
pub const TYPE_CONSOLE: u16 = 3;
pub const TYPE_RNG: u16 = 4;
pub const TYPE_BALLOON: u16 = 5;
pub const TYPE_VSOCK: u16 = 19;
pub const TYPE_MEM: u16 = 24;
pub const TYPE_FS: u16 = 26;

/// What the transport calls. All calls come from vCPU threads, one at a time for a device.
pub trait VirtioDevice: Send {
    /// Name for thread names and messages, such as "vsock".
    fn name(&self) -> &'static str;
    fn device_type(&self) -> u16;
    /// Device-specific feature bits; the transport adds VERSION_1 and EVENT_IDX.
    fn features(&self) -> u64;
    /// Largest size of each queue; powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// The device configuration structure; reads beyond its end give zeros.
    fn config(&self) -> &[u8];
    /// Reads it, for a device whose configuration changes.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(self.config(), offset, data);
    }
    /// The driver is ready: start working. Called once after creation or `reset`. An error
    /// leaves the device as it was; the transport then sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> std::io::Result<()>;
    /// Stop working and forget everything of the driver; returns when no buffer of the
    /// guest is in use any more. Also called when never activated, and before the device goes.
    fn reset(&mut self);
}

/// What a device gets from its driver.
pub struct Activation {
    pub ram: GuestRam,
    /// Accepted feature bits.
    pub features: u64,
    /// As many as `queue_sizes`; a queue that the driver did not enable fails on use.
    pub queues: Vec<VirtQueue>,
    pub config_change: ConfigChange,
    pub fault: Fault,
}

/// Tells the driver that the device's configuration has changed (4.1.5.4).
#[derive(Clone)]
pub struct ConfigChange {
    generation: Arc<AtomicU8>,
    interrupt: Arc<EventFd>,
}

impl ConfigChange {
    /// `generation` is config_generation, `interrupt` raises the configuration's vector.
    pub fn new(generation: Arc<AtomicU8>, interrupt: Arc<EventFd>) -> ConfigChange {
        ConfigChange { generation, interrupt }
    }

    /// Call it after the change.
    pub fn tell(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        // Fails only when the counter is full, and then an interrupt is pending anyway.
        let _ = self.interrupt.write(1);
    }
}

/// Reads from `offset` of a structure on; what is beyond its end is 0.
fn read_bytes(structure: &[u8], offset: usize, data: &mut [u8]) {
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = structure.get(offset + i).copied().unwrap_or(0);
    }
}

/// Tells whoever looks after the host, in a sentence, of what has not gone as expected though the
/// VM goes on. The guest must not be able to bring it about again and again.
pub type Note = Arc<dyn Fn(String) + Send + Sync>;

/// Ends the VM because a device cannot go on, for example on a malformed ring. Only the
/// first report counts.
#[derive(Clone)]
pub struct Fault(Arc<dyn Fn(String) + Send + Sync>);

impl Fault {
    pub fn new(report: impl Fn(String) + Send + Sync + 'static) -> Fault {
        Fault(Arc::new(report))
    }

    pub fn report(&self, what: String) {
        (self.0)(what)
    }
}
