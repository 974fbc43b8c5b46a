// SPDX-License-Identifier: Apache-2.0

//! Entropy device (virtio 1.3, 5.4): fills the guest's buffers from the host's generator.

use std::io::{self, Write};

use super::queue::VirtQueue;
use super::worker::{Poll, Serve, Worker};
use super::{Activation, TYPE_RNG, VirtioDevice};

/// Most bytes for one request: more than the kernel's pool takes at once, and little work
/// for the host. The device may return less than was asked for (5.4.6.2).
const MAX_REQUEST: usize = 4096;

#[derive(Default)]
pub struct Rng {
    worker: Option<Worker>,
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device_type(&self) -> u16 {
        TYPE_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let server = Server { queues: activation.queues };
        self.worker = Some(Worker::spawn("rng", server, activation.fault)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

struct Server {
    queues: Vec<VirtQueue>,
}

impl Serve for Server {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn kicked(&mut self, _queue: usize, _poll: &Poll) -> io::Result<()> {
        let ram = self.queues[0].ram().clone();
        self.queues[0].serve(|chain| {
            let mut writer = chain.writer(&ram).map_err(io::Error::other)?;
            let mut bytes = [0; MAX_REQUEST];
            let bytes = &mut bytes[..writer.available_bytes().min(MAX_REQUEST)];
            random(bytes)?;
            writer.write_all(bytes)?;
            Ok(bytes.len() as u32)
        })
    }
}

/// Fills `bytes` from the host kernel's generator.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        // SAFETY: the pointer and length are those of a slice that we may write.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        if count < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        } else {
            done += count as usize;
        }
    }
    Ok(())
}
