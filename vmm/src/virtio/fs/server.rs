// SPDX-License-Identifier: Apache-2.0

//! The device at work, on its own thread: one request after the other. Each reply is told to
//! the driver at once, for the next request may block for as long as a disk takes; a driver
//! that is looking at the ring anyway suppresses the interrupt.

use std::io::{self, Write};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};

use super::caller;
use super::tree::{Anchor, Tree};
use crate::memory::{ByteValued, GuestRam};
use crate::virtio::queue::{Chain, VirtQueue};
use crate::virtio::worker::{Poll, Serve};

/// Requests of a queue before other events are looked at.
const BATCH: usize = 64;

pub struct Device {
    queues: Vec<VirtQueue>,
    ram: Arc<GuestRam>,
    server: Server<Tree>,
    pending: [bool; 2],
}

impl Device {
    pub fn new(ram: GuestRam, queues: Vec<VirtQueue>, anchor: Arc<Anchor>) -> io::Result<Device> {
        let server = Server::new(Tree::new(anchor)?);
        Ok(Device { queues, ram: Arc::new(ram), server, pending: [true; 2] })
    }

    /// True when there is more.
    fn serve(&mut self, queue: usize) -> io::Result<bool> {
        let ram = Arc::clone(&self.ram);
        self.queues[queue].disable_kicks()?;
        for _ in 0..BATCH {
            let Some(chain) = self.queues[queue].pop()? else {
                if self.queues[queue].enable_kicks()? {
                    continue;
                }
                return Ok(false);
            };
            let head = chain.head_index();
            let written = answer(&self.server, &ram, chain)?;
            self.queues[queue].push(head, written)?;
            self.queues[queue].notify()?;
        }
        Ok(true)
    }
}

/// Serves one request; returns the length of the reply.
fn answer(server: &Server<Tree>, ram: &GuestRam, chain: Chain<'_>) -> io::Result<u32> {
    let outside = |_| io::Error::other("the driver named a buffer outside guest RAM");
    let mut reader = Reader::from_descriptor_chain(ram, chain.clone()).map_err(outside)?;
    let writer = VirtioFsWriter::new(ram, chain.clone()).map_err(outside)?;
    let request = reader.clone();
    match server.handle_message(request, writer.into(), None, None) {
        Ok(written) => Ok(written as u32),
        // The request was no FUSE message, or the reply did not fit. The driver waits for an
        // answer unless it left no room for one.
        Err(_) => {
            let Ok(header) = reader.read_obj::<InHeader>() else { return Ok(0) };
            let mut writer = VirtioFsWriter::new(ram, chain).map_err(outside)?;
            let len = size_of::<OutHeader>() as u32;
            let reply = OutHeader { len, error: -libc::EIO, unique: header.unique };
            let silent = [Opcode::Forget as u32, Opcode::BatchForget as u32];
            if silent.contains(&header.opcode) || writer.write_all(reply.as_slice()).is_err() {
                return Ok(0);
            }
            Ok(len)
        }
    }
}

impl Serve for Device {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn start(&mut self, _poll: &Poll) -> io::Result<()> {
        caller::prepare_thread()
    }

    fn kicked(&mut self, queue: usize, _poll: &Poll) -> io::Result<()> {
        if let Some(pending) = self.pending.get_mut(queue) {
            *pending = true;
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
