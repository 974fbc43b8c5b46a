// SPDX-License-Identifier: Apache-2.0

//! Network device (virtio 1.3, 5.1) on a tap of the host, which the supervisor opens: one
//! descriptor for each queue pair, and a thread for each (`pair`). Frames go from the tap into
//! the guest's buffers (`receive`) and back (`transmit`) without a copy in between. Where the
//! supervisor gives vhost-net too, the host's kernel does all of that instead (`vhost`).
//!
//! Checksums and segmentation are left to whoever has to do them last: a header before each
//! frame says what is still to do (`header`).

mod header;
mod pair;
mod receive;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;
mod vhost;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::VirtQueue;
use super::worker::Worker;
use super::{Activation, Fault, Note, TYPE_NET, VirtioDevice};
use crate::config::{MAX_QUEUE_PAIRS, NetConfig};
use crate::memory::GuestRam;
use features::*;
use pair::{Beside, Pair, Switch};
use tap::Tap;
use vhost::Vhost;

const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 16;
/// Least MTU that may be said (5.1.4.1).
const MIN_MTU: u16 = 68;

/// Feature bits (5.1.3).
mod features {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
}

/// What went through a device since it was made; received is what the guest received.
#[derive(Debug, Default)]
struct Counters {
    receive: Direction,
    transmit: Direction,
}

/// Frames and their bytes, without headers, and frames that were lost.
#[derive(Debug, Default)]
struct Direction {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    fn passed(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn lost(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

pub struct Net {
    taps: Vec<Arc<Tap>>,
    /// One for each tap, or none.
    vhosts: Vec<Vhost>,
    note: Note,
    offered: u64,
    config: [u8; 12],
    queue_sizes: Vec<u16>,
    counters: Arc<Counters>,
    workers: Vec<Worker>,
}

impl Net {
    /// The host's kernel does the work if the configuration has vhost-net for that, and if it
    /// can; it is noted if not.
    pub fn new(config: NetConfig<OwnedFd>, note: Note) -> io::Result<Net> {
        let refused = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        let pairs = config.queues.len();
        if !(1..=MAX_QUEUE_PAIRS).contains(&pairs) {
            return refused(format!("{pairs} queue pairs; give 1 to {MAX_QUEUE_PAIRS}"));
        }
        if config.mac[0] & 1 != 0 || config.mac == [0; 6] {
            return refused(format!("{:02x?} is not the MAC of one interface", config.mac));
        }
        if config.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return refused(format!("an MTU below {MIN_MTU}"));
        }
        let taps = config.queues.into_iter().map(|fd| Tap::new(fd, pairs > 1).map(Arc::new));
        let taps = taps.collect::<io::Result<Vec<_>>>()?;

        if ![0, pairs].contains(&config.vhost.len()) {
            return refused(format!("vhost-net for {} of {pairs} pairs", config.vhost.len()));
        }
        let vhosts = config.vhost.into_iter().map(Vhost::new).collect::<io::Result<_>>();
        let vhosts = vhosts.unwrap_or_else(|error| {
            note(not_by_kernel(&error));
            Vec::new()
        });

        let mut offered = MAC | CSUM | GUEST_CSUM | MRG_RXBUF | HOST_ECN | GUEST_ECN;
        offered |= HOST_TSO4 | HOST_TSO6 | GUEST_TSO4 | GUEST_TSO6;
        if taps[0].knows_udp_segmentation() {
            offered |= HOST_USO | GUEST_USO4 | GUEST_USO6;
        }
        if config.mtu.is_some() {
            offered |= MTU;
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        if pairs > 1 {
            offered |= CTRL_VQ | MQ;
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        // The MAC, a status that is not offered, the pairs, the MTU (5.1.4).
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&config.mac);
        bytes[8..10].copy_from_slice(&(pairs as u16).to_le_bytes());
        bytes[10..].copy_from_slice(&config.mtu.unwrap_or(0).to_le_bytes());
        let (counters, workers) = (Arc::default(), Vec::new());
        Ok(Net { taps, vhosts, note, offered, config: bytes, queue_sizes, counters, workers })
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &'static str {
        "net"
    }

    fn device_type(&self) -> u16 {
        TYPE_NET
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { ram, features, mut queues, fault, .. } = activation;
        // It fails if the tap is gone; otherwise the host leaves nothing to the guest.
        let _ = self.taps[0].offload(features);
        // Where the control queue is depends on whether the driver knows of more than one
        // pair (5.1.2).
        let pairs = if features & MQ != 0 { self.taps.len() } else { 1 };
        let mut control = (queues.len() > 2 * pairs).then(|| queues.swap_remove(2 * pairs));
        if features & CTRL_VQ == 0 {
            control = None;
        }
        queues.truncate(2 * pairs);
        // The host deals frames to the first pair alone until the driver asks for more.
        for tap in &self.taps[1..] {
            let _ = tap.attach(false);
        }
        if !self.vhosts.is_empty() {
            match self.hand_over(&queues, &ram, features) {
                Ok(broken) => return self.stay_beside(queues, control, broken, fault),
                Err(error) => self.take_back(&error)?,
            }
        }
        let switches = (1..pairs).map(|_| Switch::new().map(Arc::new));
        let switches = switches.collect::<io::Result<Vec<_>>>()?;
        let mut queues = queues.into_iter();
        let mut next = || -> Option<[VirtQueue; 2]> { Some([queues.next()?, queues.next()?]) };
        let mut workers = Vec::new();
        for (index, tap) in self.taps[..pairs].iter().enumerate() {
            let Some([receive, transmit]) = next() else { break };
            let (tap, counters) = (tap.clone(), self.counters.clone());
            let mut pair = Pair::new(tap, [receive, transmit], &ram, features, counters);
            match index {
                0 => pair.add_control(control.take(), switches.clone()),
                _ => pair.follow(switches[index - 1].clone()),
            }
            workers.push(Worker::spawn(&format!("net{index}"), pair, fault.clone())?);
        }
        self.workers = workers;
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.clear();
        for vhost in &self.vhosts {
            vhost.stop();
        }
    }
}

impl Net {
    /// Has the host's kernel serve these queues, two for each pair. What is returned is
    /// signalled when it cannot go on with one.
    fn hand_over(
        &self,
        queues: &[VirtQueue],
        ram: &GuestRam,
        features: u64,
    ) -> io::Result<EventFd> {
        let broken = EventFd::new(EFD_NONBLOCK)?;
        let served = || self.vhosts.iter().zip(queues.chunks_exact(2)).zip(&self.taps);
        for ((vhost, pair), _) in served() {
            vhost.prepare(features, ram, pair, &broken)?;
        }
        for ((vhost, _), tap) in served() {
            vhost.start(tap)?;
        }
        Ok(broken)
    }

    /// Does what the kernel leaves to us.
    fn stay_beside(
        &mut self,
        queues: Vec<VirtQueue>,
        control: Option<VirtQueue>,
        broken: EventFd,
        fault: Fault,
    ) -> io::Result<()> {
        queues.iter().for_each(VirtQueue::is_by_kernel);
        let taps = self.taps[..queues.len() / 2].to_vec();
        self.workers.push(Worker::spawn("net", Beside { control, taps, broken }, fault)?);
        Ok(())
    }

    /// Does without the host's kernel from now on, which cannot serve the queues.
    fn take_back(&mut self, error: &io::Error) -> io::Result<()> {
        let touched = self.vhosts.drain(..).filter(|vhost| !vhost.stop()).count();
        if touched > 0 {
            return Err(io::Error::other(format!("vhost-net failed while it served: {error}")));
        }
        (self.note)(not_by_kernel(error));
        Ok(())
    }
}

fn not_by_kernel(error: &io::Error) -> String {
    format!("vhost-net cannot serve a network device, so husk-vmm does: {error}")
}
