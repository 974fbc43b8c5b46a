// SPDX-License-Identifier: Apache-2.0

//! From the guest to the tap. A frame that makes no sense is dropped and counted; one that
//! the tap has no room for waits in the guest's queue.

use std::io;
use std::os::fd::BorrowedFd;

use super::header::{self, MAX_FRAME};
use super::pair::{BATCH, Next};
use super::{Direction, QUEUE_SIZE};
use crate::memory::{Address, Bytes, GuestRam, Pieces};
use crate::virtio::queue::{Chain, VirtQueue};

/// Most pieces of one frame: as many as its queue is long (2.7.5.3.1).
const MAX_PIECES: usize = QUEUE_SIZE as usize;

pub struct Transmit {
    ram: GuestRam,
    /// The frame at hand.
    pieces: Pieces,
    features: u64,
}

impl Transmit {
    pub fn new(ram: GuestRam, features: u64) -> Transmit {
        Transmit { pieces: Pieces::new(ram.clone()), ram, features }
    }

    /// Sends up to [`BATCH`] frames.
    pub fn run(
        &mut self,
        queue: &mut VirtQueue,
        tap: BorrowedFd<'_>,
        counted: &Direction,
    ) -> io::Result<Next> {
        for _ in 0..BATCH {
            let Some(chain) = queue.pop()? else {
                queue.notify()?;
                return Ok(if queue.enable_kicks()? { Next::More } else { Next::Driver });
            };
            let head = chain.head_index();
            let sent = match self.take(chain)? {
                Some((header, len)) => self.pieces.write_to(tap, &header).map(|_| len),
                None => Err(io::ErrorKind::InvalidData.into()),
            };
            match sent {
                Ok(len) => counted.passed(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    queue.undo_pop();
                    queue.notify()?;
                    return Ok(Next::Tap);
                }
                // Of a tap that is down or gone, too: frames are lost where there is no wire.
                Err(_) => counted.lost(),
            }
            queue.push(head, 0)?;
        }
        queue.notify()?;
        Ok(Next::More)
    }

    /// Collects the pieces of a frame; the one place that looks at what the driver sends.
    /// Returns the header to send it with and its length, or `None` for one to drop.
    fn take(&mut self, chain: Chain<'_>) -> io::Result<Option<([u8; header::LEN], usize)>> {
        self.pieces.clear();
        // The header is copied, and the copy checked: the guest may change its own meanwhile.
        let (mut header, mut have, mut len) = ([0; header::LEN], 0, 0);
        for descriptor in chain {
            if descriptor.is_write_only() {
                return Err(io::Error::other("a frame to send has a buffer for writing"));
            }
            let (mut address, mut size) = (descriptor.addr(), descriptor.len() as usize);
            let part = size.min(header::LEN - have);
            let place = &mut header[have..have + part];
            self.ram.read_slice(place, address).map_err(io::Error::other)?;
            have += part;
            size -= part;
            if size > 0 {
                address = address.unchecked_add(part as u64);
                len += size;
                if len > MAX_FRAME || self.pieces.len() == MAX_PIECES {
                    return Ok(None);
                }
                self.pieces.push(address, size)?;
            }
        }
        if have < header::LEN {
            return Ok(None);
        }
        Ok(header::checked(&header, len, self.features).map(|header| (header, len)))
    }
}
