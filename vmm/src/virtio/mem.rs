// SPDX-License-Identifier: Apache-2.0

//! Memory that comes and goes (virtio 1.3, 5.15): the host says how much of a region is to be
//! RAM, and the guest plugs and unplugs blocks of it until that is so. Blocks that are not
//! plugged have no pages on the host.
//!
//! The device is plugged into a guest that is resized for the first time, so no other pays for
//! it. What it keeps is one bit for each block; a request either has exactly the effect that
//! the specification gives it or none.

use std::io;
use std::sync::{Arc, Mutex};

use super::queue::{Chain, VirtQueue};
use super::worker::{Poll, Serve, Worker};
use super::{Activation, ConfigChange, TYPE_MEM, VirtioDevice};
use crate::memory::{self, GuestAddress, GuestRam};
use crate::pci::lock;

/// Bytes that are plugged at once: Linux moves no less, so that huge pages stay whole.
pub const BLOCK: u64 = 2 << 20;

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: the driver does not even read what is not plugged.
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// Requests (5.15.6.2).
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
/// Bytes of a request: type, padding, address, number of blocks, padding.
const REQUEST: usize = 24;

/// Answers.
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;
/// Bytes of an answer: type, padding, state.
const ANSWER: usize = 10;

/// What STATE says of a range.
const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

/// The device.
pub struct Mem {
    region: Region,
    worker: Option<Worker>,
}

/// What host and guest have agreed on, for the host. Clones are the same.
#[derive(Clone)]
pub struct Region(Arc<Mutex<State>>);

struct State {
    /// Guest address of the region.
    start: u64,
    /// Whether each block is plugged.
    blocks: Vec<bool>,
    /// Bytes; a multiple of BLOCK.
    plugged: u64,
    requested: u64,
    /// Told once, when `plugged` is what was requested.
    reached: Option<Box<dyn FnOnce() + Send>>,
    driver: Option<ConfigChange>,
}

impl Region {
    /// `len` bytes of guest addresses from `start` on, of which none is plugged. Both are
    /// multiples of [`BLOCK`].
    pub fn new(start: u64, len: u64) -> Region {
        Region(Arc::new(Mutex::new(State {
            start,
            blocks: vec![false; (len / BLOCK) as usize],
            plugged: 0,
            requested: 0,
            reached: None,
            driver: None,
        })))
    }

    /// Asks the guest to make `bytes` of it RAM, rounded up to blocks and at most all of it.
    /// `reached` is called when it has, unless something else is asked for before, on any
    /// thread, and must not block for long.
    pub fn request(&self, bytes: u64, reached: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.0);
        let most = state.blocks.len() as u64 * BLOCK;
        state.requested = bytes.min(most).next_multiple_of(BLOCK);
        state.reached = Some(Box::new(reached));
        if let Some(driver) = &state.driver {
            driver.tell();
        }
        drop(state);
        self.tell_reached();
    }

    fn tell_reached(&self) {
        let reached = {
            let mut state = lock(&self.0);
            if state.plugged == state.requested { state.reached.take() } else { None }
        };
        if let Some(reached) = reached {
            reached();
        }
    }

    /// The configuration structure (5.15.4).
    fn config(&self) -> [u8; 56] {
        let state = lock(&self.0);
        let len = state.blocks.len() as u64 * BLOCK;
        // The second is the memory node, of which there is one, and padding; all of the region
        // is usable.
        let fields = [BLOCK, 0, state.start, len, len, state.plugged, state.requested];
        let mut config = [0; 56];
        for (bytes, field) in config.chunks_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        config
    }
}

impl Mem {
    pub fn new(region: Region) -> Mem {
        Mem { region, worker: None }
    }
}

impl VirtioDevice for Mem {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn device_type(&self) -> u16 {
        TYPE_MEM
    }

    fn features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE
    }

    fn queue_sizes(&self) -> &[u16] {
        // Linux has one request under way.
        &[16]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        super::read_bytes(&self.region.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        lock(&self.region.0).driver = Some(activation.config_change);
        let server = Server { region: self.region.clone(), queues: activation.queues };
        self.worker = Some(Worker::spawn("mem", server, activation.fault)?);
        Ok(())
    }

    /// What is plugged stays: the next driver asks, or unplugs all (5.15.5.2).
    fn reset(&mut self) {
        self.worker = None;
        lock(&self.region.0).driver = None;
    }
}

struct Server {
    region: Region,
    queues: Vec<VirtQueue>,
}

impl Serve for Server {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn kicked(&mut self, _queue: usize, _poll: &Poll) -> io::Result<()> {
        let ram = self.queues[0].ram().clone();
        let region = &self.region;
        self.queues[0].serve(|chain| lock(&region.0).serve(&ram, chain))?;
        region.tell_reached();
        Ok(())
    }
}

impl State {
    /// Does one request; the bytes written. Only one that is no request is an error of the ring.
    fn serve(&mut self, ram: &GuestRam, chain: Chain<'_>) -> io::Result<u32> {
        use std::io::{Read, Write};
        let mut request = [0; REQUEST];
        chain.clone().reader(ram).map_err(io::Error::other)?.read_exact(&mut request)?;
        let word = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        let mut address = [0; 8];
        address.copy_from_slice(&request[8..16]);
        let range = self.range(u64::from_le_bytes(address), word(16));
        let (code, state) = match (word(0), range) {
            (PLUG, Some(range)) => (self.plug(range), 0),
            (UNPLUG, Some(range)) => (self.unplug(range, ram)?, 0),
            (UNPLUG_ALL, _) => {
                self.discard(0..self.blocks.len(), ram)?;
                (ACK, 0)
            }
            (STATE, Some(range)) => (ACK, self.state(range)),
            _ => (ERROR, 0),
        };
        let mut answer = [0; ANSWER];
        answer[..2].copy_from_slice(&code.to_le_bytes());
        answer[8..].copy_from_slice(&state.to_le_bytes());
        chain.writer(ram).map_err(io::Error::other)?.write_all(&answer)?;
        Ok(ANSWER as u32)
    }

    /// The blocks that a request names, if they are some of ours.
    fn range(&self, address: u64, count: u16) -> Option<std::ops::Range<usize>> {
        let offset = address.checked_sub(self.start).filter(|offset| offset % BLOCK == 0)?;
        let first = usize::try_from(offset / BLOCK).ok()?;
        let end = first.checked_add(usize::from(count))?;
        (count > 0 && end <= self.blocks.len()).then_some(first..end)
    }

    fn plug(&mut self, range: std::ops::Range<usize>) -> u16 {
        let bytes = range.len() as u64 * BLOCK;
        if self.state(range.clone()) != UNPLUGGED {
            return ERROR;
        }
        if self.plugged + bytes > self.requested {
            return NACK;
        }
        self.blocks[range].fill(true);
        self.plugged += bytes;
        ACK
    }

    fn unplug(&mut self, range: std::ops::Range<usize>, ram: &GuestRam) -> io::Result<u16> {
        if self.state(range.clone()) != PLUGGED {
            return Ok(ERROR);
        }
        self.discard(range, ram)?;
        Ok(ACK)
    }

    /// Takes blocks away, with their pages.
    fn discard(&mut self, range: std::ops::Range<usize>, ram: &GuestRam) -> io::Result<()> {
        let address = GuestAddress(self.start + range.start as u64 * BLOCK);
        memory::discard(ram, address, range.len() * BLOCK as usize)?;
        let plugged = self.blocks[range.clone()].iter().filter(|&&plugged| plugged).count();
        self.plugged -= plugged as u64 * BLOCK;
        self.blocks[range].fill(false);
        Ok(())
    }

    fn state(&self, range: std::ops::Range<usize>) -> u16 {
        let blocks = &self.blocks[range];
        match blocks.iter().filter(|&&plugged| plugged).count() {
            0 => UNPLUGGED,
            all if all == blocks.len() => PLUGGED,
            _ => MIXED,
        }
    }
}

#[cfg(test)]
mod tests;
