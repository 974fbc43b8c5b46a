// SPDX-License-Identifier: Apache-2.0

//! The thread of a queue pair: waits for the driver's kicks and for the tap, whichever the
//! next frame needs. The first pair's thread serves the control queue too, by which the driver
//! says how many pairs it uses; each other pair follows a switch of its own.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Counters;
use super::receive::Receive;
use super::tap::Tap;
use super::transmit::Transmit;
use crate::memory::GuestRam;
use crate::virtio::queue::VirtQueue;
use crate::virtio::worker::{FIRST_DEVICE_TOKEN, Poll, Serve};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

const TAP: u64 = FIRST_DEVICE_TOKEN;
const SWITCH: u64 = FIRST_DEVICE_TOKEN + 1;
const BROKEN: u64 = FIRST_DEVICE_TOKEN + 2;

/// Frames in one go, so that neither direction holds up the other or the stop.
pub const BATCH: usize = 64;

/// Control commands (5.1.6.5): class and command, and the answers.
const MQ_PAIRS_SET: [u8; 2] = [4, 0];
const OK: u8 = 0;
const ERR: u8 = 1;

/// What a direction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: there is more to do.
    More,
    /// A kick.
    Driver,
    /// Frames, or room for them.
    Tap,
    /// The tap is gone.
    Never,
}

/// Whether the driver uses a pair.
pub struct Switch {
    on: AtomicBool,
    changed: EventFd,
}

impl Switch {
    pub fn new() -> io::Result<Switch> {
        Ok(Switch { on: AtomicBool::new(false), changed: EventFd::new(EFD_NONBLOCK)? })
    }

    fn turn(&self, on: bool) {
        if self.on.swap(on, Ordering::AcqRel) != on {
            // Fails only when the counter is full, and then the thread is on its way.
            let _ = self.changed.write(1);
        }
    }
}

pub struct Pair {
    tap: Arc<Tap>,
    /// In the order of the constants above.
    queues: Vec<VirtQueue>,
    receive: Receive,
    transmit: Transmit,
    next_receive: Next,
    next_transmit: Next,
    /// What the tap is watched for; not at all if empty.
    watched: EventSet,
    counters: Arc<Counters>,
    /// The switches of the other pairs, for the first.
    others: Vec<Arc<Switch>>,
    /// The pair's own, if it is not the first.
    switch: Option<Arc<Switch>>,
    /// Whether the tap deals frames to this pair, and takes any from it.
    attached: bool,
}

impl Pair {
    pub fn new(
        tap: Arc<Tap>,
        queues: [VirtQueue; 2],
        ram: &GuestRam,
        features: u64,
        counters: Arc<Counters>,
    ) -> Pair {
        Pair {
            tap,
            queues: queues.into(),
            receive: Receive::new(ram.clone(), features),
            transmit: Transmit::new(ram.clone(), features),
            next_receive: Next::Driver,
            next_transmit: Next::Driver,
            watched: EventSet::empty(),
            counters,
            others: Vec::new(),
            switch: None,
            attached: true,
        }
    }

    /// Serves the control queue, if there is one; the other pairs do as their switches say.
    pub fn add_control(&mut self, queue: Option<VirtQueue>, others: Vec<Arc<Switch>>) {
        self.queues.extend(queue);
        self.others = others;
    }

    /// Is used when the switch is on; until then the tap's queue is detached.
    pub fn follow(&mut self, switch: Arc<Switch>) {
        self.switch = Some(switch);
        self.attached = false;
    }

    /// Watches the tap for what is waited for, and for nothing that would wake us in vain.
    fn watch(&mut self, poll: &Poll) -> io::Result<()> {
        let mut wanted = EventSet::empty();
        if self.attached && matches!(self.next_receive, Next::Tap | Next::More) {
            wanted |= EventSet::IN;
        }
        if self.attached && self.next_transmit == Next::Tap {
            wanted |= EventSet::OUT;
        }
        let fd = self.tap.fd().as_raw_fd();
        match (self.watched.is_empty(), wanted.is_empty()) {
            _ if wanted == self.watched => {}
            (true, _) => poll.add(fd, TAP, wanted)?,
            (_, true) => poll.remove(fd)?,
            _ => poll.modify(fd, TAP, wanted)?,
        }
        self.watched = wanted;
        Ok(())
    }

    fn control(&mut self) -> io::Result<()> {
        let Pair { queues, others, .. } = self;
        serve_control(&mut queues[CONTROL], others.len(), |other, on| others[other].turn(on))
    }
}

/// Serves the control queue of a device with so many pairs beside the first; `turn` has one
/// of them used or not.
fn serve_control(
    queue: &mut VirtQueue,
    others: usize,
    turn: impl Fn(usize, bool),
) -> io::Result<()> {
    let ram = queue.ram().clone();
    queue.serve(|chain| {
        let mut reader = chain.clone().reader(&ram).map_err(io::Error::other)?;
        let mut writer = chain.writer(&ram).map_err(io::Error::other)?;
        let answer = match (reader.read_obj::<[u8; 2]>(), reader.read_obj::<u16>()) {
            // The driver uses this many pairs (5.1.6.5).
            (Ok(MQ_PAIRS_SET), Ok(pairs)) if (1..=others + 1).contains(&usize::from(pairs)) => {
                (0..others).for_each(|other| turn(other, other + 1 < usize::from(pairs)));
                OK
            }
            _ => ERR,
        };
        writer.write_all(&[answer])?;
        Ok(1)
    })
}

/// What is left to do for a device whose pairs the host's kernel serves.
pub struct Beside {
    pub control: Option<VirtQueue>,
    /// Those of all pairs.
    pub taps: Vec<Arc<Tap>>,
    /// Signalled by the kernel when it cannot go on with a queue.
    pub broken: EventFd,
}

impl Serve for Beside {
    fn queues(&self) -> &[VirtQueue] {
        self.control.as_slice()
    }

    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        poll.add(self.broken.as_raw_fd(), BROKEN, EventSet::IN)
    }

    fn kicked(&mut self, _queue: usize, _poll: &Poll) -> io::Result<()> {
        let Beside { control: Some(queue), taps, .. } = self else { return Ok(()) };
        serve_control(queue, taps.len() - 1, |other, on| {
            // It fails if it is so already, or the tap is gone; then no frames come or go.
            let _ = taps[other + 1].attach(on);
        })
    }

    fn ready(&mut self, _token: u64, _events: EventSet, poll: &Poll) -> io::Result<()> {
        // What is sent to a tap that was deleted is an error, too, and not the driver's.
        if self.taps.iter().any(|tap| tap.is_gone()) {
            return poll.remove(self.broken.as_raw_fd());
        }
        // As on our own path: the kernel would go on, and the guest's interface be dead.
        Err(io::Error::other(
            "the driver broke a virtqueue, as vhost-net of the host's kernel says",
        ))
    }
}

impl Serve for Pair {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        match &self.switch {
            Some(switch) => poll.add(switch.changed.as_raw_fd(), SWITCH, EventSet::IN),
            None => Ok(()),
        }
    }

    fn kicked(&mut self, queue: usize, _poll: &Poll) -> io::Result<()> {
        let next = match queue {
            RECEIVE => &mut self.next_receive,
            TRANSMIT => &mut self.next_transmit,
            _ => return self.control(),
        };
        if *next == Next::Driver {
            *next = Next::More;
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, events: EventSet, _poll: &Poll) -> io::Result<()> {
        if token == SWITCH {
            if let Some(switch) = &self.switch {
                let _ = switch.changed.read();
                let on = switch.on.load(Ordering::Acquire);
                // It fails if the tap is gone; then no frames come or go.
                self.attached = self.tap.attach(on).is_ok() && on;
            }
            return Ok(());
        }
        if events.contains(EventSet::IN) && self.next_receive == Next::Tap {
            self.next_receive = Next::More;
        }
        if events.contains(EventSet::OUT) && self.next_transmit == Next::Tap {
            self.next_transmit = Next::More;
        }
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            // The tap was deleted and would be ready for ever. What is sent from now on fails.
            self.next_receive = Next::Never;
            if self.next_transmit == Next::Tap {
                self.next_transmit = Next::More;
            }
        }
        Ok(())
    }

    fn settle(&mut self, poll: &Poll) -> io::Result<bool> {
        let fd = self.tap.fd();
        if self.attached && self.next_receive == Next::More {
            let queue = &mut self.queues[RECEIVE];
            self.next_receive = self.receive.run(queue, fd, &self.counters.receive)?;
        }
        if self.attached && self.next_transmit == Next::More {
            let queue = &mut self.queues[TRANSMIT];
            self.next_transmit = self.transmit.run(queue, fd, &self.counters.transmit)?;
        }
        self.watch(poll)?;
        Ok(self.attached && [self.next_receive, self.next_transmit].contains(&Next::More))
    }
}
