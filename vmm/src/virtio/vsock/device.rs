// SPDX-License-Identifier: Apache-2.0

//! The device at work, on its own thread: what the guest sent goes to streams, what streams
//! hold goes to the guest, and nothing ever waits for a slow peer.
//!
//! Events only take note of what has become possible; `settle` then does it for all of
//! them, so that one wake-up ends in one notification for each queue.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{BUF_ALLOC, Connection, Phase};
use super::hybrid::{Handshake, Step};
use super::packet::{Header, Room, Sent, TYPE_STREAM, op};
use super::table::Table;
use super::{Dialer, GUEST_CID, HOST_CID, HostSide};
use crate::memory::{self, GuestRam};
use crate::virtio::queue::VirtQueue;
use crate::virtio::worker::{FIRST_DEVICE_TOKEN, Poll, Serve};

const RX: usize = 0;
const TX: usize = 1;

const DIALS: u64 = FIRST_DEVICE_TOKEN;
const LISTENER: u64 = DIALS + 1;
const TIMER: u64 = DIALS + 2;
const FIRST_HANDSHAKE: u64 = 0x1000;
const FIRST_CONNECTION: u64 = 0x10000;

/// Most clients of the listener that have not named a port yet.
const MAX_HANDSHAKES: usize = 16;

/// How long the guest may take to answer a request or a close, and a client to name a port:
/// what Linux grants a close.
const PATIENCE: Duration = Duration::from_secs(8);

/// Most RSTs that wait for receive buffers; more are dropped, and their peers time out.
const MAX_RESETS: usize = 1024;

/// Packets that the guest sent, and turns of connections, before other events are looked at.
const TX_BATCH: usize = 128;
const RX_BATCH: usize = 64;

/// Bytes that a connection may send to the guest before it is another's turn.
const TURN: usize = 64 << 10;

pub struct Device {
    queues: Vec<VirtQueue>,
    ram: Arc<GuestRam>,
    host: Arc<dyn HostSide>,
    dialer: Dialer,
    listener: Option<Arc<UnixListener>>,
    listening: bool,
    handshakes: [Option<Handshake>; MAX_HANDSHAKES],
    timer: TimerFd,
    timer_runs: bool,

    table: Table,
    /// Slots that have something for the guest, in the order of their turns.
    turns: VecDeque<usize>,
    /// Answers to packets of no connection.
    resets: VecDeque<Header>,
    /// Slots whose interest in events may have changed.
    touched: Vec<usize>,
    /// Connections that ended in this round.
    ended: Vec<Connection>,
    tx_pending: bool,
    /// The guest has no receive buffers; its kick will tell of new ones.
    rx_starved: bool,
}

/// How a connection's turn ended.
enum Turn {
    Done,
    /// There is more, but it is another's turn.
    Again,
    /// There is more, but no receive buffer.
    Starved,
}

impl Device {
    pub fn new(
        ram: GuestRam,
        queues: Vec<VirtQueue>,
        host: Arc<dyn HostSide>,
        dialer: Dialer,
        listener: Option<Arc<UnixListener>>,
    ) -> io::Result<Device> {
        Ok(Device {
            queues,
            ram: Arc::new(ram),
            host,
            dialer,
            listener,
            listening: false,
            handshakes: [const { None }; MAX_HANDSHAKES],
            timer: TimerFd::new()?,
            timer_runs: false,
            table: Table::default(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            touched: Vec::new(),
            ended: Vec::new(),
            tx_pending: true,
            rx_starved: false,
        })
    }

    /// Handles what the guest sent. True when there is more.
    fn transmit(&mut self) -> io::Result<bool> {
        let ram = Arc::clone(&self.ram);
        self.queues[TX].disable_kicks()?;
        let mut count = 0;
        let more = loop {
            if count == TX_BATCH {
                break true;
            }
            let Some(chain) = self.queues[TX].pop()? else {
                if self.queues[TX].enable_kicks()? {
                    continue;
                }
                break false;
            };
            let head = chain.head_index();
            if let Some(packet) = Sent::read(&ram, chain)? {
                self.receive(&packet);
            }
            self.queues[TX].push(head, 0)?;
            count += 1;
        };
        if count > 0 {
            self.queues[TX].notify()?;
        }
        Ok(more)
    }

    fn receive(&mut self, packet: &Sent<'_>) {
        let header = &packet.header;
        if header.src_cid != GUEST_CID || header.dst_cid != HOST_CID {
            return; // Nobody that we know, and nobody to answer.
        }
        let known = match header.kind {
            TYPE_STREAM => self.table.find(header.dst_port, header.src_port),
            _ => None,
        };
        match (header.op, known) {
            (op::RST, None) => {}
            (op::RST, Some(slot)) => self.end(slot),
            (op::REQUEST, None) if header.kind == TYPE_STREAM => self.accept(header),
            (_, None) => self.refuse(header),
            (_, Some(slot)) => self.receive_for(slot, packet),
        }
    }

    fn receive_for(&mut self, slot: usize, packet: &Sent<'_>) {
        let Some(connection) = self.table.get(slot) else { return };
        if connection.receive(&packet.header, &packet.payload).is_err() {
            self.end(slot);
            return self.refuse(&packet.header);
        }
        if connection.guest_closed() {
            connection.phase = Phase::Draining;
            connection.deadline = None;
            let drained = connection.is_drained();
            self.table.release_ports(slot);
            self.refuse(&packet.header);
            if drained {
                return self.end(slot);
            }
        } else {
            connection.retry();
        }
        self.touch(slot);
    }

    fn accept(&mut self, request: &Header) {
        if self.table.is_full() {
            return self.refuse(request);
        }
        match self.host.connect(request.dst_port) {
            Ok(stream) => {
                let slot = self.table.insert(Connection::accepted(request, stream));
                self.touch(slot);
            }
            Err(_) => self.refuse(request),
        }
    }

    /// Answers a packet with RST.
    fn refuse(&mut self, packet: &Header) {
        self.reset(packet.dst_port, packet.src_port, packet.kind);
    }

    fn reset(&mut self, host_port: u32, guest_port: u32, kind: u16) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: GUEST_CID,
                src_port: host_port,
                dst_port: guest_port,
                kind,
                op: op::RST,
                buf_alloc: BUF_ALLOC,
                ..Header::default()
            });
        }
    }

    fn dial(&mut self, port: u32, stream: UnixStream, greets: bool) {
        if self.table.is_full() {
            return; // Closes the stream.
        }
        let host_port = self.table.fresh_port(port);
        let deadline = Instant::now() + PATIENCE;
        let slot = self.table.insert(Connection::dialed(host_port, port, stream, greets, deadline));
        self.start_timer();
        self.touch(slot);
    }

    /// Gives the connection a turn if it has something for the guest, and a new look at what
    /// it waits for.
    fn touch(&mut self, slot: usize) {
        self.touched.push(slot);
        if let Some(connection) = self.table.get(slot)
            && !connection.queued
            && connection.has_work()
        {
            connection.queued = true;
            self.turns.push_back(slot);
        }
    }

    fn end(&mut self, slot: usize) {
        if let Some(connection) = self.table.remove(slot) {
            if connection.queued {
                self.turns.retain(|&turn| turn != slot);
            }
            self.ended.push(connection);
        }
    }

    /// Sends to the guest what there is. True when there is more, and room for it.
    fn deliver(&mut self) -> io::Result<bool> {
        if self.rx_starved || self.resets.is_empty() && self.turns.is_empty() {
            return Ok(false);
        }
        let ram = Arc::clone(&self.ram);
        self.queues[RX].disable_kicks()?;
        let mut more = true;
        for _ in 0..RX_BATCH {
            more = self.deliver_one(&ram)?;
            if !more {
                break;
            }
        }
        self.queues[RX].notify()?;
        Ok(more)
    }

    /// One RST, or one turn. False when there is nothing more, or no room.
    fn deliver_one(&mut self, ram: &GuestRam) -> io::Result<bool> {
        if let Some(header) = self.resets.front().copied() {
            let Some(room) = self.room(ram)? else { return Ok(false) };
            self.queues[RX].push(room.head, room.finish(&header))?;
            self.resets.pop_front();
            return Ok(true);
        }
        let Some(slot) = self.turns.pop_front() else { return Ok(false) };
        let turn = self.turn(slot, ram)?;
        self.touched.push(slot);
        if let Some(connection) = self.table.get(slot) {
            connection.queued = !matches!(turn, Turn::Done);
        }
        match turn {
            Turn::Done => {}
            Turn::Again => self.turns.push_back(slot),
            Turn::Starved => {
                self.turns.push_front(slot);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn turn(&mut self, slot: usize, ram: &GuestRam) -> io::Result<Turn> {
        loop {
            let Some(connection) = self.table.get(slot) else { return Ok(Turn::Done) };
            if let Some((operation, flags)) = connection.next_control() {
                let Some(room) = self.room(ram)? else { return Ok(Turn::Starved) };
                let Some(connection) = self.table.get(slot) else { return Ok(Turn::Done) };
                let header = connection.header(operation, flags, 0);
                connection.control_sent(operation, Instant::now() + PATIENCE);
                if connection.deadline.is_some() {
                    self.start_timer();
                }
                self.queues[RX].push(room.head, room.finish(&header))?;
                continue;
            }
            let wanted = connection.readable() as usize;
            if wanted == 0 {
                if connection.next_control().is_some() {
                    continue; // A request for credit.
                }
                return Ok(Turn::Done);
            }
            let Some(count) = self.copy_to_guest(slot, wanted.min(TURN), ram)? else {
                return Ok(Turn::Starved);
            };
            if count > 0 {
                let more = self.table.get(slot).is_some_and(|c| c.has_work());
                return Ok(if more { Turn::Again } else { Turn::Done });
            }
        }
    }

    /// Reads up to `wanted` bytes of a stream into receive buffers, in one call, and makes
    /// packets of them. `None` when there are no buffers.
    fn copy_to_guest(
        &mut self,
        slot: usize,
        wanted: usize,
        ram: &GuestRam,
    ) -> io::Result<Option<usize>> {
        let mut rooms = Vec::new();
        let mut slices = Vec::new();
        let mut total = 0;
        while total < wanted {
            let Some(mut room) = self.room(ram)? else { break };
            if room.payload.len() == 0 {
                return Err(io::Error::other("the driver offered a receive buffer without room"));
            }
            room.payload.truncate(wanted - total);
            total += room.payload.len();
            slices.extend_from_slice(room.payload.slices());
            rooms.push(room);
        }
        let Some(connection) = self.table.get(slot).filter(|_| total > 0) else { return Ok(None) };
        let result = memory::receive(connection.stream(), &slices);
        let count = connection.has_read(total, result);

        let mut rest = count;
        for room in &rooms {
            if rest == 0 {
                self.queues[RX].undo_pop();
                self.rx_starved = false;
                continue;
            }
            let len = rest.min(room.payload.len());
            rest -= len;
            let Some(connection) = self.table.get(slot) else { break };
            let header = connection.header(op::RW, 0, len as u32);
            self.queues[RX].push(room.head, room.finish(&header))?;
        }
        Ok(Some(count))
    }

    /// The next receive buffer. Without one the guest is asked for a kick.
    fn room<'a>(&mut self, ram: &'a GuestRam) -> io::Result<Option<Room<'a>>> {
        loop {
            if let Some(chain) = self.queues[RX].pop()? {
                return Room::new(ram, chain).map(Some);
            }
            if !self.queues[RX].enable_kicks()? {
                self.rx_starved = true;
                return Ok(None);
            }
        }
    }

    /// Takes connections from the listener while there is place for their handshakes.
    fn accept_clients(&mut self, poll: &Poll) -> io::Result<()> {
        let Some(listener) = self.listener.clone() else { return Ok(()) };
        while let Some(index) = self.handshakes.iter().position(Option::is_none) {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Such as no descriptors left: the timer tries again.
                Err(_) => {
                    self.start_timer();
                    break;
                }
            };
            let deadline = Instant::now() + PATIENCE;
            let Ok(handshake) = Handshake::new(stream, deadline) else { continue };
            poll.add(handshake.fd(), FIRST_HANDSHAKE + index as u64, EventSet::IN)?;
            self.handshakes[index] = Some(handshake);
            self.start_timer();
        }
        poll.remove(listener.as_raw_fd())?;
        self.listening = false;
        Ok(())
    }

    fn listen(&mut self, poll: &Poll) -> io::Result<()> {
        if let Some(listener) = &self.listener
            && !self.listening
        {
            poll.add(listener.as_raw_fd(), LISTENER, EventSet::IN)?;
            self.listening = true;
        }
        Ok(())
    }

    fn read_handshake(&mut self, index: usize, poll: &Poll) -> io::Result<()> {
        let Some(handshake) = self.handshakes.get_mut(index).and_then(Option::take) else {
            return Ok(());
        };
        let fd = handshake.fd();
        match handshake.read() {
            Step::Wait(handshake) => {
                self.handshakes[index] = Some(handshake);
                return Ok(());
            }
            Step::Dial(port, stream) => {
                poll.remove(fd)?;
                self.dial(port, stream, true);
            }
            // Closed with its stream, which takes it out of the set.
            Step::Close => {}
        }
        self.listen(poll)
    }

    fn start_timer(&mut self) {
        if !self.timer_runs {
            // Fails for no duration that we use.
            self.timer_runs = self.timer.reset(PATIENCE, None).is_ok();
        }
    }

    /// Ends what has waited too long, and waits for the rest.
    fn expire(&mut self, poll: &Poll) -> io::Result<()> {
        let _ = self.timer.wait();
        self.timer_runs = false;
        let now = Instant::now();
        let is_late = |deadline: &Instant| *deadline <= now;
        for handshake in &mut self.handshakes {
            handshake.take_if(|h| is_late(&h.deadline));
        }
        let late: Vec<usize> = self
            .table
            .iter()
            .filter(|(_, c)| c.deadline.as_ref().is_some_and(is_late))
            .map(|(slot, _)| slot)
            .collect();
        for slot in late {
            let ports = self.table.get(slot).map(|c| (c.host_port, c.guest_port));
            self.end(slot);
            if let Some((host_port, guest_port)) = ports {
                self.reset(host_port, guest_port, TYPE_STREAM);
            }
        }
        let handshakes = self.handshakes.iter().flatten().map(|h| h.deadline);
        let connections = self.table.iter().filter_map(|(_, c)| c.deadline);
        if let Some(next) = handshakes.chain(connections).min() {
            let wait = next.saturating_duration_since(now).max(Duration::from_millis(1));
            self.timer_runs = self.timer.reset(wait, None).is_ok();
        }
        self.listen(poll)
    }

    /// Brings epoll's view of the touched connections up to date.
    fn watch(&mut self, poll: &Poll) -> io::Result<()> {
        for connection in self.ended.drain(..) {
            if connection.watched.is_some() {
                poll.remove(connection.fd())?;
            }
        }
        for slot in self.touched.drain(..) {
            let Some(connection) = self.table.get(slot) else { continue };
            let token = FIRST_CONNECTION + slot as u64;
            let interest = connection.interest();
            match (connection.watched, interest) {
                (None, Some(events)) => poll.add(connection.fd(), token, events)?,
                (Some(_), None) => poll.remove(connection.fd())?,
                (Some(old), Some(new)) if old != new => poll.modify(connection.fd(), token, new)?,
                _ => {}
            }
            connection.watched = interest;
        }
        Ok(())
    }
}

impl Serve for Device {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        poll.add(self.dialer.wake_fd(), DIALS, EventSet::IN)?;
        poll.add(self.timer.as_raw_fd(), TIMER, EventSet::IN)?;
        self.listen(poll)
    }

    fn kicked(&mut self, queue: usize, _poll: &Poll) -> io::Result<()> {
        match queue {
            RX => self.rx_starved = false,
            TX => self.tx_pending = true,
            // Buffers for events, of which there are none.
            _ => {}
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, events: EventSet, poll: &Poll) -> io::Result<()> {
        match token {
            DIALS => {
                for (port, stream) in self.dialer.take() {
                    self.dial(port, stream, false);
                }
            }
            LISTENER => self.accept_clients(poll)?,
            TIMER => self.expire(poll)?,
            token if token >= FIRST_CONNECTION => {
                let slot = (token - FIRST_CONNECTION) as usize;
                let Some(connection) = self.table.get(slot) else { return Ok(()) };
                connection.ready(events);
                if connection.phase == Phase::Draining && connection.is_drained() {
                    self.end(slot);
                } else {
                    self.touch(slot);
                }
            }
            token => self.read_handshake((token - FIRST_HANDSHAKE) as usize, poll)?,
        }
        Ok(())
    }

    fn settle(&mut self, poll: &Poll) -> io::Result<bool> {
        if self.tx_pending {
            self.tx_pending = self.transmit()?;
        }
        let more = self.deliver()?;
        self.watch(poll)?;
        Ok(self.tx_pending || more)
    }
}
