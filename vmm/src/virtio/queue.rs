// SPDX-License-Identifier: Apache-2.0

//! A virtqueue as a device sees it: the split ring (virtio 1.3, 2.7) with the eventfds by
//! which driver and device wake each other.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::{Bytes, GuestAddress, GuestMemory, GuestRam};

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

/// Offsets in the rings (2.7.6 and 2.7.8): the used ring's index, and the length of the fields
/// before the elements and of an element. The event index is behind the available elements.
const USED_INDEX: u64 = 2;
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
const AVAIL_HEADER: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;
/// Length of a descriptor (2.7.5).
const DESCRIPTOR: u64 = 16;

/// The ring was checked to lie in RAM before it was taken into use.
fn in_ring(error: vm_memory::GuestMemoryError) -> virtio_queue::Error {
    virtio_queue::Error::GuestMemory(error)
}

/// What the queues of a device have done so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Chains that were returned to the driver.
    pub requests: AtomicU64,
    /// Bytes that the device wrote into them.
    pub written_bytes: AtomicU64,
    /// Notifications that came from the driver.
    pub kicks: AtomicU64,
    /// Interrupts that were raised.
    pub interrupts: AtomicU64,
    by_kernel: AtomicBool,
}

impl Counters {
    /// Whether the host's kernel serves the queues, and nothing is counted.
    pub fn by_kernel(&self) -> bool {
        self.by_kernel.load(Ordering::Relaxed)
    }
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// What somebody else needs to serve a queue: its rings by their addresses in this process, as
/// a whole in RAM, and the eventfds.
pub struct Shared {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub kick: RawFd,
    pub interrupt: RawFd,
}

/// A queue and the guest RAM that it lies in; owned by the device's thread.
pub struct VirtQueue {
    queue: Queue,
    ram: GuestRam,
    kick: Arc<EventFd>,
    interrupt: Arc<EventFd>,
    /// Chains pushed since the last look at whether the driver wants an interrupt.
    pushed: u16,
    counters: Arc<Counters>,
}

impl VirtQueue {
    /// `kick` is signalled by the driver, `interrupt` raises the queue's MSI-X vector;
    /// `counters` are the device's.
    pub fn new(
        queue: Queue,
        ram: GuestRam,
        kick: Arc<EventFd>,
        interrupt: Arc<EventFd>,
        counters: Arc<Counters>,
    ) -> VirtQueue {
        VirtQueue { queue, ram, kick, interrupt, pushed: 0, counters }
    }

    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// How many entries the driver has given it.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// For whoever serves it in our place, from its beginning.
    pub fn share(&self) -> Result<Shared, QueueError> {
        if !self.queue.is_valid(&self.ram) {
            return Err(virtio_queue::Error::QueueNotReady.into());
        }
        let entries = u64::from(self.queue.size());
        let host = |start: u64, len: u64| {
            // In one region, so that nothing of ours is behind it.
            let slice = self.ram.get_slice(GuestAddress(start), len as usize).map_err(in_ring)?;
            Ok::<u64, QueueError>(slice.ptr_guard_mut().as_ptr() as u64)
        };
        Ok(Shared {
            size: self.queue.size(),
            descriptors: host(self.queue.desc_table(), DESCRIPTOR * entries)?,
            // Each with an event index behind its elements.
            available: host(self.queue.avail_ring(), AVAIL_HEADER + AVAIL_ELEMENT * entries + 2)?,
            used: host(self.queue.used_ring(), USED_HEADER + USED_ELEMENT * entries + 2)?,
            kick: self.kick.as_raw_fd(),
            interrupt: self.interrupt.as_raw_fd(),
        })
    }

    /// The host's kernel serves this one, and with it its device.
    pub fn is_by_kernel(&self) {
        self.counters.by_kernel.store(true, Ordering::Relaxed);
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
        self.push_all([(head, written)])
    }

    /// Returns several chains, which the driver sees at the same moment: it may be looking at
    /// the ring while they are written.
    pub fn push_all(
        &mut self,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), QueueError> {
        let (ring, size) = (self.queue.used_ring(), self.queue.size());
        let mut next = self.queue.next_used();
        for (head, written) in chains {
            if head >= size {
                return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
            }
            let element = ring + USED_HEADER + USED_ELEMENT * u64::from(next % size);
            let value = u64::from(head) | u64::from(written) << 32;
            self.ram.write_obj(value.to_le(), GuestAddress(element)).map_err(in_ring)?;
            next = next.wrapping_add(1);
            count(&self.counters.requests, 1);
            count(&self.counters.written_bytes, written.into());
            self.pushed = self.pushed.saturating_add(1);
        }
        self.queue.set_next_used(next);
        let index = GuestAddress(ring + USED_INDEX);
        Ok(self.ram.store(next.to_le(), index, Ordering::Release).map_err(in_ring)?)
    }

    /// Interrupts the driver if it wants to know of what was pushed since the last call.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        let pushed = std::mem::take(&mut self.pushed);
        if pushed > 0 && self.wanted(pushed)? {
            count(&self.counters.interrupts, 1);
            // Fails only when the counter is full, and then an interrupt is pending anyway.
            let _ = self.interrupt.write(1);
        }
        Ok(())
    }

    /// Whether the driver's used_event is among the chains that were pushed (2.7.7).
    fn wanted(&self, pushed: u16) -> Result<bool, QueueError> {
        if !self.queue.event_idx_enabled() {
            return Ok(true);
        }
        // The driver writes its event and then looks at the ring; we do it the other way round.
        fence(Ordering::SeqCst);
        let event = AVAIL_HEADER + AVAIL_ELEMENT * u64::from(self.queue.size());
        let event = GuestAddress(self.queue.avail_ring() + event);
        let event: u16 = self.ram.load(event, Ordering::Relaxed).map_err(in_ring)?;
        let behind = self.queue.next_used().wrapping_sub(u16::from_le(event));
        Ok(behind.wrapping_sub(1) < pushed)
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
        // Nonblocking: nothing to take is no error. Kicks that came together are one.
        if self.kick.read().is_ok() {
            count(&self.counters.kicks, 1);
        }
    }
}
