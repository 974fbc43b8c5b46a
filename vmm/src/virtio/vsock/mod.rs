// SPDX-License-Identifier: Apache-2.0

//! The socket device (virtio 1.3, 5.10), stream sockets only. Each connection of the guest
//! is joined to a unix stream socket on the host; no vhost.

mod connection;
mod device;
mod dialer;
mod hybrid;
mod packet;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

pub use dialer::Dialer;
pub use hybrid::HostPaths;

use super::worker::Worker;
use super::{Activation, TYPE_VSOCK, VirtioDevice};
use device::Device;

/// The guest's context id. Every VM has its own device, so all may use the same.
pub const GUEST_CID: u64 = 3;

/// The context id of the host.
pub const HOST_CID: u64 = 2;

/// VIRTIO_VSOCK_F_STREAM.
const F_STREAM: u64 = 1 << 0;

/// Receive, transmit, event. Linux fills the whole receive queue with buffers of 4 KiB, so
/// its size is guest memory: half a MiB.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// Where connections of the guest to host ports go.
pub trait HostSide: Send + Sync {
    /// Gives the device's end of a stream for a guest that connects to `port`; an error
    /// refuses it. Called on the device's thread: must not block.
    fn connect(&self, port: u32) -> io::Result<UnixStream>;
}

/// The device.
pub struct Vsock {
    host: Arc<dyn HostSide>,
    listener: Option<Arc<UnixListener>>,
    dialer: Dialer,
    config: [u8; 8],
    worker: Option<Worker>,
}

impl Vsock {
    /// `host` serves connections that the guest opens. On `listener`, if given, clients
    /// write `CONNECT <port>\n` to reach a port of the guest and read `OK <host port>\n`.
    pub fn new(host: Arc<dyn HostSide>, listener: Option<UnixListener>) -> io::Result<Vsock> {
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(Vsock {
            host,
            listener: listener.map(Arc::new),
            dialer: Dialer::new()?,
            config: GUEST_CID.to_le_bytes(),
            worker: None,
        })
    }

    /// A handle that opens connections to ports of the guest.
    pub fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device_type(&self) -> u16 {
        TYPE_VSOCK
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { ram, queues, fault, .. } = activation;
        let (host, listener) = (Arc::clone(&self.host), self.listener.clone());
        let device = Device::new(ram, queues, host, self.dialer.clone(), listener)?;
        self.worker = Some(Worker::spawn(self.name(), device, fault)?);
        Ok(())
    }

    fn reset(&mut self) {
        // Drops the device with its connections, once its thread has ended.
        self.worker = None;
        self.dialer.take();
    }
}
