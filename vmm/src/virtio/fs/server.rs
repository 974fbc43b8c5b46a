// SPDX-License-Identifier: Apache-2.0

//! The device at work, on its own thread: one request after the other, except that slow ones
//! are for the threads of `slow`. Each reply is told to the driver at once, for the next
//! request may block for as long as a disk takes; a driver that is looking at the ring anyway
//! suppresses the interrupt.

use std::io::{self, Write};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use vmm_sys_util::epoll::EventSet;

use super::slow::Pool;
use super::tree::{Anchor, Tree};
use super::{QUEUE_SIZES, caller, extension};
use crate::memory::{ByteValued, GuestRam};
use crate::virtio::queue::{OwnedChain, VirtQueue};
use crate::virtio::worker::{FIRST_DEVICE_TOKEN, Poll, Serve};

/// Requests of a queue before other events are looked at.
const BATCH: usize = 64;

pub struct Device {
    queues: Vec<VirtQueue>,
    ram: Arc<GuestRam>,
    anchor: Arc<Anchor>,
    files: Arc<Files>,
    slow: Pool<Answer>,
    pending: [bool; 2],
}

/// A reply that has been written.
struct Answer {
    queue: usize,
    head: u16,
    written: io::Result<u32>,
}

impl Device {
    pub fn new(ram: GuestRam, queues: Vec<VirtQueue>, anchor: Arc<Anchor>) -> io::Result<Device> {
        let tree = Arc::new(Tree::new(Arc::clone(&anchor))?);
        let files = Arc::new(Files { server: Server::new(Arc::clone(&tree)), tree });
        // No more than that can wait for an answer unless the driver uses a buffer twice.
        let limit = QUEUE_SIZES.iter().map(|&size| usize::from(size)).sum();
        let (ram, slow) = (Arc::new(ram), Pool::new(limit)?);
        Ok(Device { queues, ram, anchor, files, slow, pending: [true; 2] })
    }

    /// True when there is more.
    fn serve(&mut self, queue: usize) -> io::Result<bool> {
        let ram = Arc::clone(&self.ram);
        self.queues[queue].disable_kicks()?;
        for _ in 0..BATCH {
            let Some(chain) = self.queues[queue].pop_owned(Arc::clone(&ram))? else {
                if self.queues[queue].enable_kicks()? {
                    continue;
                }
                return Ok(false);
            };
            let head = chain.head_index();
            let request = Request::read(&ram, chain.clone())?;
            if extension::is_slow(request.header.opcode) {
                let (ram, files) = (Arc::clone(&ram), Arc::clone(&self.files));
                self.slow.start(move || {
                    let answer = || Request::read(&ram, chain.clone())?.answer(&files, &ram, chain);
                    Answer { queue, head, written: answer() }
                })?;
            } else {
                let written = request.answer(&self.files, &ram, chain);
                self.reply(Answer { queue, head, written })?;
            }
        }
        Ok(true)
    }

    fn reply(&mut self, answer: Answer) -> io::Result<()> {
        let queue = &mut self.queues[answer.queue];
        queue.push(answer.head, answer.written?)?;
        Ok(queue.notify()?)
    }
}

/// The file system by both ways that requests go.
struct Files {
    tree: Arc<Tree>,
    server: Server<Arc<Tree>>,
}

struct Request<'a> {
    /// All zeros, which is no request, if the chain is too short for one.
    header: InHeader,
    whole: Reader<'a>,
    /// What follows the header.
    body: Reader<'a>,
}

impl<'a> Request<'a> {
    fn read(ram: &'a GuestRam, chain: OwnedChain) -> io::Result<Request<'a>> {
        let whole = Reader::from_descriptor_chain(ram, chain).map_err(outside)?;
        let mut body = whole.clone();
        Ok(Request { header: body.read_obj().unwrap_or_default(), whole, body })
    }

    /// Returns the length of the reply.
    fn answer(mut self, files: &Files, ram: &GuestRam, chain: OwnedChain) -> io::Result<u32> {
        let mut writer = VirtioFsWriter::new(ram, chain.clone()).map_err(outside)?;
        let done = extension::serve(&files.tree, &self.header, &mut self.body, &mut writer);
        if let Some(done) = done {
            return Ok(done.unwrap_or(0));
        }
        match files.server.handle_message(self.whole, writer.into(), None, None) {
            Ok(written) => Ok(written as u32),
            // The request was no FUSE message, or the reply did not fit. The driver waits for
            // an answer unless it left no room for one.
            Err(_) => {
                let mut writer = VirtioFsWriter::new(ram, chain).map_err(outside)?;
                let len = size_of::<OutHeader>() as u32;
                let reply = OutHeader { len, error: -libc::EIO, unique: self.header.unique };
                let silent = [0, Opcode::Forget as u32, Opcode::BatchForget as u32];
                if silent.contains(&self.header.opcode)
                    || writer.write_all(reply.as_slice()).is_err()
                {
                    return Ok(0);
                }
                Ok(len)
            }
        }
    }
}

fn outside(_: fuse_backend_rs::transport::Error) -> io::Error {
    io::Error::other("the driver named a buffer outside guest RAM")
}

impl Serve for Device {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        poll.add(self.slow.done_fd(), FIRST_DEVICE_TOKEN, EventSet::IN)?;
        caller::prepare_thread(self.anchor.descriptors())
    }

    fn kicked(&mut self, queue: usize, _poll: &Poll) -> io::Result<()> {
        if let Some(pending) = self.pending.get_mut(queue) {
            *pending = true;
        }
        Ok(())
    }

    fn ready(&mut self, _token: u64, _events: EventSet, _poll: &Poll) -> io::Result<()> {
        for answer in self.slow.take_results() {
            self.reply(answer)?;
        }
        Ok(())
    }

    fn settle(&mut self, _poll: &Poll) -> io::Result<bool> {
        for queue in 0..self.pending.len() {
            if self.pending[queue] {
                self.pending[queue] = self.serve(queue)?;
            }
        }
        Ok(self.pending.contains(&true))
    }
}
