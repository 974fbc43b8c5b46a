// SPDX-License-Identifier: Apache-2.0

//! One stream: its state, its credit in both directions (virtio 1.3, 5.10.6.3), and the
//! bytes of the guest that the host has not taken yet. Knows nothing of queues and epoll.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::packet::{Buffers, Header, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::{GUEST_CID, HOST_CID};
use crate::memory::{self, VolatileSlice};

/// The buffer that each connection advertises to the guest, and the most that it ever holds:
/// what Linux uses for its own sockets, and four of its largest packets.
pub const BUF_ALLOC: u32 = 256 << 10;

/// The guest hears of room in the buffer when this much has become free since it last did.
const CREDIT_STEP: u32 = BUF_ALLOC / 4;

/// The guest broke the protocol; the connection is reset.
#[derive(Debug)]
pub struct Violation;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The host asked; the guest has not answered.
    Dialing,
    Open,
    /// The guest was told that the host has closed, and will answer RST.
    Closing,
    /// The guest has closed; what it sent before is still on its way to the host.
    Draining,
}

pub struct Connection {
    pub host_port: u32,
    pub guest_port: u32,
    pub phase: Phase,
    /// When the guest must have answered, in phases that wait for it.
    pub deadline: Option<Instant>,
    /// Waits for its turn to send to the guest.
    pub queued: bool,
    /// What epoll watches the stream for.
    pub watched: Option<EventSet>,
    /// Written to the stream when the guest accepts.
    greets: bool,
    stream: UnixStream,

    /// The stream may have something to read.
    readable: bool,
    /// Was not read, for the guest had no room.
    blocked: bool,
    /// Nothing more will be read from the stream.
    finished: bool,
    /// Bytes sent to the guest, modulo 2^32.
    sent: u32,
    guest_alloc: u32,
    guest_forwarded: u32,

    /// Bytes from the guest that the stream has not taken; at most BUF_ALLOC.
    buffer: VecDeque<u8>,
    /// Bytes received from the guest, and taken by the stream, modulo 2^32; and the latter as
    /// the guest knows it.
    received: u32,
    forwarded: u32,
    told: u32,
    /// Flags of the guest's SHUTDOWNs.
    guest_shut: u32,
    /// The stream takes no more: what the guest sends is thrown away.
    deaf: bool,

    /// What the guest is to hear next.
    asks: bool,
    answers: bool,
    updates_credit: bool,
    wants_credit: bool,
    shuts: u32,
    told_shut: u32,
}

impl Connection {
    /// The guest's `request` was accepted.
    pub fn accepted(request: &Header, stream: UnixStream) -> Connection {
        let mut connection = Connection::new(request.dst_port, request.src_port, stream);
        connection.phase = Phase::Open;
        connection.answers = true;
        connection.credit_from(request);
        connection
    }

    /// Asks the guest's port for a connection. With `greets` the stream reads `OK <host
    /// port>\n` before anything else.
    pub fn dialed(
        host_port: u32,
        guest_port: u32,
        stream: UnixStream,
        greets: bool,
        deadline: Instant,
    ) -> Connection {
        let mut connection = Connection::new(host_port, guest_port, stream);
        connection.asks = true;
        connection.greets = greets;
        connection.deadline = Some(deadline);
        connection
    }

    fn new(host_port: u32, guest_port: u32, stream: UnixStream) -> Connection {
        Connection {
            host_port,
            guest_port,
            phase: Phase::Dialing,
            deadline: None,
            queued: false,
            watched: None,
            greets: false,
            stream,
            readable: false,
            blocked: false,
            finished: false,
            sent: 0,
            guest_alloc: 0,
            guest_forwarded: 0,
            buffer: VecDeque::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            guest_shut: 0,
            deaf: false,
            asks: false,
            answers: false,
            updates_credit: false,
            wants_credit: false,
            shuts: 0,
            told_shut: 0,
        }
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub fn stream(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// A packet of the guest. `Err` resets the connection.
    pub fn receive(&mut self, header: &Header, payload: &Buffers<'_>) -> Result<(), Violation> {
        self.credit_from(header);
        match (header.op, self.phase) {
            (op::RESPONSE, Phase::Dialing) => self.answered(),
            (_, Phase::Dialing) => Err(Violation),
            (op::RW, _) => self.take_data(header, payload),
            (op::SHUTDOWN, _) => {
                self.take_shutdown(header.flags);
                Ok(())
            }
            (op::CREDIT_UPDATE, _) => Ok(()),
            (op::CREDIT_REQUEST, _) => {
                self.updates_credit = true;
                Ok(())
            }
            _ => Err(Violation),
        }
    }

    fn credit_from(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
    }

    fn answered(&mut self) -> Result<(), Violation> {
        self.phase = Phase::Open;
        self.deadline = None;
        self.readable = true;
        if self.greets {
            let mut line = format!("OK {}\n", self.host_port).into_bytes();
            let len = line.len();
            // The socket is fresh: a line fits, or the client has gone.
            let sent = memory::send(self.stream.as_fd(), &[VolatileSlice::from(&mut line[..])]);
            if sent.ok() != Some(len) {
                return Err(Violation);
            }
        }
        Ok(())
    }

    fn take_data(&mut self, header: &Header, payload: &Buffers<'_>) -> Result<(), Violation> {
        let outstanding = self.received.wrapping_sub(self.told);
        if payload.len() != header.len as usize
            || header.len > BUF_ALLOC - outstanding
            || self.guest_shut & SHUTDOWN_SEND != 0
        {
            return Err(Violation);
        }
        self.received = self.received.wrapping_add(header.len);
        if self.phase != Phase::Open || self.deaf {
            self.forward(header.len);
            return Ok(());
        }
        let mut sent = 0;
        if self.buffer.is_empty() && header.len > 0 {
            match memory::send(self.stream.as_fd(), payload.slices()) {
                Ok(count) => sent = count,
                Err(error) if is_transient(&error) => {}
                Err(_) => {
                    self.forward(header.len);
                    self.stop_writing();
                    return Ok(());
                }
            }
            self.forward(sent as u32);
        }
        if sent < header.len as usize {
            // At once and exactly: growing would double it past what it ever holds.
            self.buffer.reserve_exact(BUF_ALLOC as usize - self.buffer.len());
        }
        let mut skip = sent;
        let mut bytes = [0; 4096];
        for slice in payload.slices() {
            let mut rest = *slice;
            if skip >= rest.len() {
                skip -= rest.len();
                continue;
            }
            while let Ok(at) = rest.offset(skip)
                && !at.is_empty()
            {
                let count = at.copy_to(&mut bytes);
                self.buffer.extend(&bytes[..count]);
                rest = at;
                skip = count;
            }
            skip = 0;
        }
        Ok(())
    }

    fn take_shutdown(&mut self, flags: u32) {
        let new = flags & SHUTDOWN_BOTH & !self.guest_shut;
        self.guest_shut |= new;
        // A stream that is gone already needs no shutdown; that is all that can fail here.
        if new & SHUTDOWN_RCV != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
            self.finished = true;
        }
        if new & SHUTDOWN_SEND != 0 && self.buffer.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// The guest has shut both directions down: it is to be answered RST, and the connection
    /// lives on only for what is still in the buffer.
    pub fn guest_closed(&self) -> bool {
        self.guest_shut == SHUTDOWN_BOTH
    }

    pub fn is_drained(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The stream has become ready.
    pub fn ready(&mut self, events: EventSet) {
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if !self.buffer.is_empty() && (hung_up || events.contains(EventSet::OUT)) {
            self.flush();
        }
        if self.phase != Phase::Open {
            return;
        }
        if self.finished && hung_up {
            self.stop_writing();
            self.shuts = SHUTDOWN_BOTH;
        } else if !self.finished {
            self.readable = true;
        }
    }

    fn flush(&mut self) {
        while !self.buffer.is_empty() {
            let (front, back) = self.buffer.as_mut_slices();
            let slices = [VolatileSlice::from(front), VolatileSlice::from(back)];
            match memory::send(self.stream.as_fd(), &slices) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.forward(count as u32);
                }
                Err(error) if is_transient(&error) => return,
                Err(_) => return self.stop_writing(),
            }
        }
        self.buffer = VecDeque::new();
        if self.guest_shut & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// The host reads no more: the guest hears so, and what it sends meanwhile is lost.
    fn stop_writing(&mut self) {
        self.deaf = true;
        self.shuts |= SHUTDOWN_RCV;
        let lost = std::mem::take(&mut self.buffer).len();
        self.forward(lost as u32);
    }

    fn forward(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
        if self.forwarded.wrapping_sub(self.told) >= CREDIT_STEP {
            self.updates_credit = true;
        }
    }

    /// How many bytes the guest has room for.
    fn credit(&self) -> u32 {
        let outstanding = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_alloc.saturating_sub(outstanding)
    }

    /// How many bytes to read from the stream for the guest, at most: 0 when there are none,
    /// or the guest has no room.
    pub fn readable(&mut self) -> u32 {
        if self.phase != Phase::Open || !self.readable || self.finished {
            return 0;
        }
        let credit = self.credit();
        if credit == 0 {
            // Once: the next packet of the guest brings its credit, and another try.
            self.readable = false;
            self.blocked = true;
            self.wants_credit = true;
        }
        credit
    }

    /// `wanted` bytes were asked of the stream. Gives what goes to the guest; less than
    /// `wanted` means that the stream is empty for now.
    pub fn has_read(&mut self, wanted: usize, result: io::Result<usize>) -> usize {
        match result {
            Ok(count) if count > 0 => {
                self.readable = count == wanted;
                self.sent = self.sent.wrapping_add(count as u32);
                count
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) if is_transient(&error) => {
                self.readable = false;
                0
            }
            Ok(_) => {
                self.finished = true;
                self.shuts |= SHUTDOWN_SEND;
                0
            }
            Err(_) => {
                self.finished = true;
                self.stop_writing();
                self.shuts = SHUTDOWN_BOTH;
                0
            }
        }
    }

    /// The next packet without data that the guest is to get: operation and flags.
    pub fn next_control(&self) -> Option<(u16, u32)> {
        if self.asks {
            return Some((op::REQUEST, 0));
        }
        if self.phase != Phase::Open {
            return None;
        }
        if self.answers {
            Some((op::RESPONSE, 0))
        } else if self.shuts & !self.told_shut != 0 {
            Some((op::SHUTDOWN, self.shuts))
        } else if self.updates_credit {
            Some((op::CREDIT_UPDATE, 0))
        } else if self.wants_credit {
            Some((op::CREDIT_REQUEST, 0))
        } else {
            None
        }
    }

    /// The packet of [`next_control`](Self::next_control) has been sent.
    pub fn control_sent(&mut self, operation: u16, deadline: Instant) {
        match operation {
            op::REQUEST => self.asks = false,
            op::RESPONSE => self.answers = false,
            op::CREDIT_UPDATE => self.updates_credit = false,
            op::CREDIT_REQUEST => self.wants_credit = false,
            op::SHUTDOWN => {
                self.told_shut = self.shuts;
                if self.told_shut == SHUTDOWN_BOTH {
                    self.phase = Phase::Closing;
                    self.deadline = Some(deadline);
                }
            }
            _ => {}
        }
    }

    /// The header of a packet to the guest, which tells it of its credit on the way.
    pub fn header(&mut self, operation: u16, flags: u32, len: u32) -> Header {
        self.told = self.forwarded;
        self.updates_credit = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: self.host_port,
            dst_port: self.guest_port,
            len,
            kind: TYPE_STREAM,
            op: operation,
            flags,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.forwarded,
        }
    }

    /// The guest has said something: its credit may allow what it did not before.
    pub fn retry(&mut self) {
        if self.blocked && self.credit() > 0 {
            self.blocked = false;
            self.wants_credit = false;
            self.readable = true;
        }
    }

    /// There is something for the guest.
    pub fn has_work(&self) -> bool {
        let reads = self.phase == Phase::Open && self.readable && !self.finished;
        reads || self.next_control().is_some()
    }

    /// What epoll should watch the stream for; `None` for nothing, not even a hang-up.
    pub fn interest(&self) -> Option<EventSet> {
        let open = self.phase == Phase::Open;
        let mut events = EventSet::empty();
        if open && !self.readable && !self.finished && self.credit() > 0 {
            events |= EventSet::IN;
        }
        if !self.buffer.is_empty() {
            events |= EventSet::OUT;
        }
        // After the end of the host's data only its close is left to wait for, which epoll
        // reports unasked; before, it would report it over and over.
        let awaits_close = open && self.finished && self.shuts != SHUTDOWN_BOTH;
        (!events.is_empty() || awaits_close).then_some(events)
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_any_length_cost_no_more_than_the_buffer() {
        let (near, _far) = UnixStream::pair().expect("socketpair");
        near.set_nonblocking(true).expect("nonblocking");
        let mut connection = Connection::accepted(&Header::default(), near);
        // More than the stream and the buffer take, in pieces of which no power of two is a
        // multiple; the guest may send only what it has credit for.
        for _ in 0..4 * BUF_ALLOC / 3000 {
            connection.header(op::CREDIT_UPDATE, 0, 0);
            let mut bytes = [0; 3000];
            let header = Header { op: op::RW, len: bytes.len() as u32, ..Header::default() };
            if connection.receive(&header, &Buffers::of(&mut bytes)).is_err() {
                break;
            }
        }
        assert!(connection.buffer.len() > BUF_ALLOC as usize - 3000, "the buffer is full");
        assert_eq!(connection.buffer.capacity(), BUF_ALLOC as usize);
    }
}
