// SPDX-License-Identifier: Apache-2.0

//! The driver's half of a virtqueue, for tests of devices: rings in guest RAM, kicks and
//! waiting for interrupts, both only when the other side asked for them (EVENT_IDX), as in
//! Linux: a device that forgets to ask hangs here too.

use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::VirtQueue;
use super::{Activation, ConfigChange, Fault, VirtioDevice};
use crate::memory::{Bytes, GuestAddress, GuestRam};

/// How long a device may take for anything before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;

/// Address, length and whether the device writes.
pub type Descriptor = (u64, u32, bool);

pub fn ram(size: usize) -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), size)]).expect("guest RAM")
}

/// One queue. Descriptors are used in a circle; a test keeps track of which are in flight.
pub struct Ring {
    ram: GuestRam,
    base: u64,
    size: u16,
    next_descriptor: u16,
    next_avail: u16,
    seen_used: u16,
    /// The available index at the last kick.
    kicked_avail: u16,
    /// Without it every kick is made, and every interrupt is expected.
    pub event_idx: bool,
    pub kick: Arc<EventFd>,
    pub interrupt: Arc<EventFd>,
}

impl Ring {
    /// A ring at `base`, which takes less than 32 bytes for each entry.
    pub fn new(ram: &GuestRam, base: u64, size: u16) -> Ring {
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"));
        let (kick, interrupt) = (event(), event());
        let zeros = vec![0u8; usize::from(size) * 32];
        ram.write_slice(&zeros, GuestAddress(base)).expect("ring in RAM");
        Ring {
            ram: ram.clone(),
            base,
            size,
            next_descriptor: 0,
            next_avail: 0,
            seen_used: 0,
            kicked_avail: 0,
            event_idx: true,
            kick,
            interrupt,
        }
    }

    fn avail(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        (self.avail() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// The device's half.
    pub fn device_side(&self) -> VirtQueue {
        let mut queue = Queue::new(self.size).expect("queue size");
        queue.set_size(self.size);
        let parts = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = parts(self.base);
        queue.set_desc_table_address(low, high);
        let (low, high) = parts(self.avail());
        queue.set_avail_ring_address(low, high);
        let (low, high) = parts(self.used());
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        let (kick, interrupt) = (Arc::clone(&self.kick), Arc::clone(&self.interrupt));
        VirtQueue::new(queue, self.ram.clone(), kick, interrupt, Arc::default())
    }

    /// The head that the next chain will have.
    pub fn next_head(&self) -> u16 {
        self.next_descriptor
    }

    /// Makes a chain available, without a kick; returns its head.
    pub fn add(&mut self, chain: &[Descriptor]) -> u16 {
        let head = self.next_descriptor;
        for (i, &(address, len, write)) in chain.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let next = if i + 1 < chain.len() { F_NEXT } else { 0 };
            let flags = next | if write { F_WRITE } else { 0 };
            self.write_descriptor(index, address, len, flags, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    fn write_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[0..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&next.to_le_bytes());
        let at = GuestAddress(self.base + 16 * u64::from(index));
        self.ram.write_slice(&bytes, at).expect("descriptor in RAM");
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, head: u16) {
        let entry = self.avail() + 4 + 2 * u64::from(self.next_avail % self.size);
        self.ram.write_obj(head, GuestAddress(entry)).expect("ring in RAM");
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_idx(self.next_avail);
    }

    pub fn set_avail_idx(&self, idx: u16) {
        fence(Ordering::SeqCst);
        self.ram.write_obj(idx, GuestAddress(self.avail() + 2)).expect("ring in RAM");
    }

    /// Tells the device of what was made available, if it wants to know.
    pub fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let avail: u16 = self.ram.read_obj(GuestAddress(self.avail() + 2)).expect("ring in RAM");
        let avail_event = self.used() + 4 + 8 * u64::from(self.size);
        let event: u16 = self.ram.read_obj(GuestAddress(avail_event)).expect("ring in RAM");
        let is_new = avail.wrapping_sub(event).wrapping_sub(1);
        if !self.event_idx || is_new < avail.wrapping_sub(self.kicked_avail) {
            self.kick.write(1).expect("kick");
        }
        self.kicked_avail = avail;
    }

    /// Asks for an interrupt at the next returned chain.
    fn want_interrupt(&self) {
        let used_event = self.avail() + 4 + 2 * u64::from(self.size);
        self.ram.write_obj(self.seen_used, GuestAddress(used_event)).expect("ring in RAM");
        fence(Ordering::SeqCst);
    }

    /// The next chain that the device has returned: head and bytes written.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        let idx: u16 = self.ram.read_obj(GuestAddress(self.used() + 2)).expect("ring in RAM");
        if idx == self.seen_used {
            return None;
        }
        fence(Ordering::SeqCst);
        let entry = self.used() + 4 + 8 * u64::from(self.seen_used % self.size);
        let used: u64 = self.ram.read_obj(GuestAddress(entry)).expect("ring in RAM");
        self.seen_used = self.seen_used.wrapping_add(1);
        Some((used as u16, (used >> 32) as u32))
    }

    /// Waits for the next returned chain.
    pub fn wait_used(&mut self) -> (u16, u32) {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(used) = self.pop_used() {
                return used;
            }
            self.want_interrupt();
            if let Some(used) = self.pop_used() {
                return used;
            }
            assert!(wait(self.interrupt.as_raw_fd(), end), "the device did not return a buffer");
            let _ = self.interrupt.read();
        }
    }
}

/// Waits until `fd` is readable; false at `end`.
pub fn wait(fd: i32, end: Instant) -> bool {
    let epoll = Epoll::new().expect("epoll");
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).expect("epoll");
    loop {
        let left = end.saturating_duration_since(Instant::now()).as_millis() as i32;
        match epoll.wait(left, &mut [EpollEvent::default()]) {
            Ok(count) => return count == 1,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::Interrupted),
        }
    }
}

/// A configuration vector that nobody looks at.
fn config_change() -> ConfigChange {
    let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
    ConfigChange::new(Arc::default(), Arc::new(event))
}

/// Activates a device on rings; what it reports as a fault arrives at the receiver.
pub fn activate(
    device: &mut dyn VirtioDevice,
    ram: &GuestRam,
    rings: &[&Ring],
) -> Receiver<String> {
    let (sender, faults) = channel();
    let sender = Mutex::new(sender);
    let fault = Fault::new(move |what| {
        // Shown if the test fails, for instance because nobody answers any more.
        eprintln!("fault: {what}");
        let _ = sender.lock().expect("fault lock").send(what);
    });
    let activation = Activation {
        ram: ram.clone(),
        features: device.features(),
        queues: rings.iter().map(|ring| ring.device_side()).collect(),
        config_change: config_change(),
        fault,
    };
    device.activate(activation).expect("activate");
    faults
}
