// SPDX-License-Identifier: Apache-2.0

//! From the tap into the guest. The driver's buffers are taken before there is a frame, as
//! many as the largest needs, and stay here until one fills them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use super::features::*;
use super::header::{self, MAX_FRAME};
use super::pair::{BATCH, Next};
use super::{Direction, QUEUE_SIZE};
use crate::memory::{Address, Bytes, GuestAddress, GuestRam, Pieces};
use crate::virtio::queue::{Chain, VirtQueue};

/// Most pieces that one buffer of the driver may have: as many as its queue (2.7.5.3.1).
const MAX_PIECES: usize = QUEUE_SIZE as usize;

pub struct Receive {
    ram: GuestRam,
    /// Room of the buffers that are ready, in order.
    pieces: Pieces,
    ready: VecDeque<Buffer>,
    /// Bytes of `ready`.
    room: usize,
    /// A frame may take several buffers (5.1.6.3.1).
    mergeable: bool,
}

struct Buffer {
    head: u16,
    room: usize,
    pieces: usize,
    /// Where the two bytes of num_buffers are, if a frame begins in this buffer.
    count: [GuestAddress; 2],
}

impl Receive {
    pub fn new(ram: GuestRam, features: u64) -> Receive {
        let mergeable = features & MRG_RXBUF != 0;
        let (pieces, ready) = (Pieces::new(ram.clone()), VecDeque::new());
        Receive { ram, pieces, ready, room: 0, mergeable }
    }

    /// Gives the guest up to [`BATCH`] frames.
    pub fn run(
        &mut self,
        queue: &mut VirtQueue,
        tap: BorrowedFd<'_>,
        counted: &Direction,
    ) -> io::Result<Next> {
        for _ in 0..BATCH {
            if !self.fill(queue)? {
                queue.notify()?;
                return Ok(Next::Driver);
            }
            // A frame that does not fit is cut by the tap, and is seen by one byte too many.
            match self.pieces.read_from(tap, &mut [0]) {
                Ok(len) if (header::LEN..=self.room).contains(&len) => {
                    self.give(queue, len)?;
                    counted.passed(len - header::LEN);
                }
                Ok(_) => counted.lost(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    queue.notify()?;
                    let empty = error.kind() == io::ErrorKind::WouldBlock;
                    return Ok(if empty { Next::Tap } else { Next::Never });
                }
            }
        }
        queue.notify()?;
        Ok(Next::More)
    }

    /// Takes buffers until any frame fits; false when the driver has to bring more. If it has
    /// none left to bring, what fits is what counts.
    fn fill(&mut self, queue: &mut VirtQueue) -> io::Result<bool> {
        while !self.enough() {
            if let Some(chain) = queue.pop()? {
                let (head, room, before) = (chain.head_index(), self.room, self.pieces.len());
                let count = self.take(chain)?;
                let (room, pieces) = (self.room - room, self.pieces.len() - before);
                self.ready.push_back(Buffer { head, room, pieces, count });
            } else if self.ready.len() >= usize::from(queue.size()) {
                return Ok(true);
            } else if !queue.enable_kicks()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn enough(&self) -> bool {
        let full = self.room >= header::LEN + MAX_FRAME;
        let full = full || self.pieces.len() + MAX_PIECES > Pieces::MAX;
        if self.mergeable { full } else { !self.ready.is_empty() }
    }

    /// Adds the pieces of a buffer; the one place that looks at what the driver offers.
    fn take(&mut self, chain: Chain<'_>) -> io::Result<[GuestAddress; 2]> {
        let mut count = [GuestAddress(0); 2];
        let (mut len, mut pieces) = (0, 0);
        for descriptor in chain {
            let (address, size) = (descriptor.addr(), descriptor.len() as usize);
            pieces += 1;
            if !descriptor.is_write_only() || pieces > MAX_PIECES {
                return Err(bad("is not for writing, or has too many pieces"));
            }
            self.pieces.push(address, size)?;
            for (i, place) in count.iter_mut().enumerate() {
                let at = header::NUM_BUFFERS + i;
                if (len..len + size).contains(&at) {
                    *place = address.unchecked_add((at - len) as u64);
                }
            }
            len += size;
        }
        if len < header::LEN {
            return Err(bad("is smaller than the header"));
        }
        self.room += len;
        Ok(count)
    }

    /// Returns as many buffers as `len` bytes have filled.
    fn give(&mut self, queue: &mut VirtQueue, len: usize) -> io::Result<()> {
        let (mut left, mut filled, mut pieces) = (len, Vec::new(), 0);
        let Some(count) = self.ready.front().map(|buffer| buffer.count) else { return Ok(()) };
        while left > 0 {
            let Some(buffer) = self.ready.pop_front() else { break };
            let used = left.min(buffer.room);
            left -= used;
            pieces += buffer.pieces;
            self.room -= buffer.room;
            filled.push((buffer.head, used as u32));
        }
        self.pieces.remove_first(pieces);
        for (byte, address) in (filled.len() as u16).to_le_bytes().into_iter().zip(count) {
            self.ram.write_obj(byte, address).map_err(io::Error::other)?;
        }
        Ok(queue.push_all(filled)?)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::other(format!("a buffer for received frames {what}"))
}
