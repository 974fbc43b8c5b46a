// SPDX-License-Identifier: Apache-2.0

//! A virtqueue as a device sees it: the split ring (virtio 1.3, 2.7) with the eventfds by
//! which driver and device wake each other.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;

/// A chain of descriptors. Its iterators and readers yield only buffers inside guest RAM,
/// and at most as many as the queue is long.
pub type Chain<'a> = DescriptorChain<&'a GuestRam>;

/// The same, for as long as it takes and on any thread.
pub type OwnedChain = DescriptorChain<Arc<GuestRam>>;

/// The ring holds something that the specification forbids. The device cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the driver broke the virtqueue: {0}")]
pub struct QueueError(#[from] virtio_queue::Error);

impl From<QueueError> for std::io::Error {
    fn from(error: QueueError) -> Self {
        std::io::Error::other(error)
    }
}

/// A queue and the guest RAM that it lies in; owned by the device's thread.
pub struct VirtQueue {
    queue: Queue,
    ram: GuestRam,
    kick: Arc<EventFd>,
    interrupt: Arc<EventFd>,
}

impl VirtQueue {
    /// `kick` is signalled by the driver, `interrupt` raises the queue's MSI-X vector.
    pub fn new(
        queue: Queue,
        ram: GuestRam,
        kick: Arc<EventFd>,
        interrupt: Arc<EventFd>,
    ) -> VirtQueue {
        VirtQueue { queue, ram, kick, interrupt }
    }

    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Serves every chain that is available: `handle` returns how many bytes it wrote into
    /// the chain. The driver is interrupted once for all of them.
    pub fn serve(
        &mut self,
        mut handle: impl FnMut(Chain<'_>) -> std::io::Result<u32>,
    ) -> std::io::Result<()> {
        loop {
            self.disable_kicks()?;
            while let Some(chain) = self.pop()? {
                let head = chain.head_index();
                let written = handle(chain)?;
                self.push(head, written)?;
            }
            self.notify()?;
            if !self.enable_kicks()? {
                return Ok(());
            }
        }
    }

    /// Takes the next chain that the driver has made available.
    pub fn pop(&mut self) -> Result<Option<Chain<'_>>, QueueError> {
        Ok(self.queue.iter(&self.ram)?.next())
    }

    /// The same, with `ram`, which is this queue's.
    pub fn pop_owned(&mut self, ram: Arc<GuestRam>) -> Result<Option<OwnedChain>, QueueError> {
        Ok(self.queue.iter(ram)?.next())
    }

    /// Puts the chain popped last back, to be popped again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns a chain with `written` bytes of device-written data. The driver hears of it
    /// at the next [`notify`](Self::notify).
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        Ok(self.queue.add_used(&self.ram, head, written)?)
    }

    /// Interrupts the driver if it wants to know of what was pushed since the last call.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        if self.queue.needs_notification(&self.ram)? {
            // Fails only when the counter is full, and then an interrupt is pending anyway.
            let _ = self.interrupt.write(1);
        }
        Ok(())
    }

    /// Asks the driver for kicks. True when chains came in since the last `pop` returned
    /// `None`: the caller goes round again instead of sleeping.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(&self.ram)?)
    }

    /// Saves the driver kicks while the device is looking at the ring anyway.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(&self.ram)?)
    }

    /// Becomes readable when the driver has kicked.
    pub fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }

    /// Takes the kick, so that `kick_fd` is no longer readable.
    pub fn take_kick(&self) {
        // Nonblocking: nothing to take is no error.
        let _ = self.kick.read();
    }
}
