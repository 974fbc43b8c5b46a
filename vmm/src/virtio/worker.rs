// SPDX-License-Identifier: Apache-2.0

//! The thread of a device: sleeps on the queues' kicks and on what else the device adds,
//! and stops when the device is reset.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Fault;
use super::queue::VirtQueue;

/// Tokens below this are queue indices.
pub const FIRST_DEVICE_TOKEN: u64 = 64;
const STOP: u64 = u64::MAX;

/// Stacks hold no large buffers; the default of 2 MiB would only be address space, but a
/// device must not come to rely on it.
const STACK: usize = 256 << 10;

/// What a device does on its own thread. An error ends the VM: it means that the driver
/// broke the rules or that the host cannot serve it.
pub trait Serve: Send + 'static {
    /// The device's queues, in the order of the specification.
    fn queues(&self) -> &[VirtQueue];
    /// Called once on the thread, before anything else: registers further descriptors.
    fn start(&mut self, _poll: &Poll) -> io::Result<()> {
        Ok(())
    }
    /// The driver kicked this queue. The kick has been taken.
    fn kicked(&mut self, queue: usize, poll: &Poll) -> io::Result<()>;
    /// A descriptor that the device registered with this token is ready.
    fn ready(&mut self, _token: u64, _events: EventSet, _poll: &Poll) -> io::Result<()> {
        Ok(())
    }
    /// All events of one wake-up have been told: the place for work and notifications in
    /// batches. True when there is more to do: the thread looks for events, the stop among
    /// them, without sleeping, and calls this again.
    fn settle(&mut self, _poll: &Poll) -> io::Result<bool> {
        Ok(false)
    }
}

/// The set of descriptors that a worker sleeps on, level-triggered.
pub struct Poll(Epoll);

impl Poll {
    /// Watches `fd`; `token` is at least [`FIRST_DEVICE_TOKEN`].
    pub fn add(&self, fd: RawFd, token: u64, events: EventSet) -> io::Result<()> {
        self.0.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    pub fn modify(&self, fd: RawFd, token: u64, events: EventSet) -> io::Result<()> {
        self.0.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, token))
    }

    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.0.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }
}

/// A running device thread. Dropping it stops the thread and waits for it.
pub struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread `name`. If a queue already holds chains the first round serves
    /// them: the transport's kicks are signalled at activation.
    pub fn spawn(name: &str, mut device: impl Serve, fault: Fault) -> io::Result<Worker> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let poll = Poll(Epoll::new()?);
        poll.add(stop.as_raw_fd(), STOP, EventSet::IN)?;
        for (index, queue) in device.queues().iter().enumerate() {
            poll.add(queue.kick_fd(), index as u64, EventSet::IN)?;
        }
        let title = name.to_owned();
        let thread =
            std::thread::Builder::new().name(title.clone()).stack_size(STACK).spawn(move || {
                if let Err(error) = run(&mut device, &poll) {
                    fault.report(format!("virtio-{title}: {error}"));
                }
            })?;
        Ok(Worker { stop, thread: Some(thread) })
    }
}

fn run(device: &mut impl Serve, poll: &Poll) -> io::Result<()> {
    device.start(poll)?;
    let mut events = [EpollEvent::default(); 32];
    let mut more = false;
    loop {
        let count = match poll.0.wait(if more { 0 } else { -1 }, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        for event in &events[..count] {
            match event.data() {
                STOP => return Ok(()),
                token if token < FIRST_DEVICE_TOKEN => {
                    let index = token as usize;
                    device.queues()[index].take_kick();
                    device.kicked(index, poll)?;
                }
                token => device.ready(token, event.event_set(), poll)?,
            }
        }
        more = device.settle(poll)?;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // The thread only panics on a bug of ours; the device is gone either way.
            let _ = thread.join();
        }
    }
}
