// SPDX-License-Identifier: Apache-2.0

//! Console (virtio 1.3, 5.3): one port. Output goes to a sink that the early UART shares;
//! input comes from a terminal, if there is one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::EventSet;

use super::queue::VirtQueue;
use super::worker::{FIRST_DEVICE_TOKEN, Poll, Serve, Worker};
use super::{Activation, TYPE_CONSOLE, VirtioDevice};
use crate::pci::lock;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Bytes moved at once.
const PIECE: usize = 4096;

/// Where console output goes.
pub type Output = Arc<Mutex<dyn Write + Send>>;

pub struct Console {
    output: Output,
    input: Option<Arc<File>>,
    worker: Option<Worker>,
}

impl Console {
    pub fn new(output: Output, input: Option<File>) -> Console {
        Console { output, input: input.map(Arc::new), worker: None }
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &'static str {
        "console"
    }

    fn device_type(&self) -> u16 {
        TYPE_CONSOLE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let server = Server {
            queues: activation.queues,
            output: self.output.clone(),
            input: self.input.clone(),
            watching: false,
        };
        self.worker = Some(Worker::spawn("console", server, activation.fault)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

struct Server {
    queues: Vec<VirtQueue>,
    output: Output,
    input: Option<Arc<File>>,
    /// The input is watched only while the guest has room for it.
    watching: bool,
}

impl Serve for Server {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn kicked(&mut self, queue: usize, poll: &Poll) -> io::Result<()> {
        match queue {
            TRANSMIT => self.transmit(),
            _ => self.watch(true, poll),
        }
    }

    fn ready(&mut self, _token: u64, _events: EventSet, poll: &Poll) -> io::Result<()> {
        self.receive(poll)
    }
}

impl Server {
    fn transmit(&mut self) -> io::Result<()> {
        let ram = self.queues[TRANSMIT].ram().clone();
        let output = &self.output;
        self.queues[TRANSMIT].serve(|chain| {
            let mut reader = chain.reader(&ram).map_err(io::Error::other)?;
            let mut piece = [0; PIECE];
            loop {
                let count = reader.read(&mut piece)?;
                if count == 0 {
                    return Ok(0);
                }
                // A console that cannot be written to must not stop the guest.
                let _ = lock(output).write_all(&piece[..count]);
            }
        })
    }

    fn receive(&mut self, poll: &Poll) -> io::Result<()> {
        let Some(input) = self.input.clone() else { return Ok(()) };
        let queue = &mut self.queues[RECEIVE];
        let ram = queue.ram().clone();
        let Some(chain) = queue.pop()? else {
            // Kicks are on: the driver says when it has room again.
            return if queue.enable_kicks()? { Ok(()) } else { self.watch(false, poll) };
        };
        let head = chain.head_index();
        let mut writer = chain.writer(&ram).map_err(io::Error::other)?;
        let mut piece = [0; PIECE];
        let room = writer.available_bytes().min(PIECE);
        match (&*input).read(&mut piece[..room]) {
            Ok(0) | Err(_) => {
                // End of input, for good: nothing to give, and nothing to watch.
                queue.undo_pop();
                self.watch(false, poll)?;
                self.input = None;
                Ok(())
            }
            Ok(count) => {
                writer.write_all(&piece[..count])?;
                queue.push(head, count as u32)?;
                Ok(queue.notify()?)
            }
        }
    }

    fn watch(&mut self, on: bool, poll: &Poll) -> io::Result<()> {
        let Some(input) = &self.input else { return Ok(()) };
        if on == self.watching {
            return Ok(());
        }
        self.watching = on;
        if !on {
            return poll.remove(input.as_raw_fd());
        }
        match poll.add(input.as_raw_fd(), FIRST_DEVICE_TOKEN, EventSet::IN) {
            // Regular files and /dev/null cannot be watched; as input they mean "none".
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.input = None;
                Ok(())
            }
            result => result,
        }
    }
}
