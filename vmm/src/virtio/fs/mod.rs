// SPDX-License-Identifier: Apache-2.0

//! The file system device (virtio 1.3, 5.11): a FUSE server in this process that serves one
//! directory of the host. `server` moves requests and replies between queues and
//! fuse-backend-rs, which speaks the protocol, but for `extension`; `tree` is the file system
//! behind it; `inodes` has what the guest holds on to.
//!
//! The file system is ours because fuse-backend-rs's own (0.14.0) trusts its client: a read
//! with flags that fcntl refuses closes the file and leaves its number usable, creating with
//! O_PATH follows symlinks out of the tree, looking up ".." leaves a directory that has been
//! moved, and a group that only the guest knows cannot create in its directories.

mod attr;
mod caller;
mod extension;
mod inodes;
mod server;
mod slow;
#[cfg(test)]
mod tests;
mod tree;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::worker::Worker;
use super::{Activation, TYPE_FS, VirtioDevice};
use crate::config::MAX_TAG;
use server::Device;
use tree::Anchor;
pub use tree::{GONE_NAME, WAKE_NAME, WAKE_SECOND};

/// The high-priority queue, for requests without reply, and one request queue. Linux sends as many pages with one request as
/// the queue has entries, less four.
const QUEUE_SIZES: [u16; 2] = [128, 256];

/// The device.
pub struct Fs {
    anchor: Arc<Anchor>,
    config: [u8; MAX_TAG + 4],
    worker: Option<Worker>,
}

impl Fs {
    /// Shares `directory` under `tag`, at most [`MAX_TAG`] bytes. Opens all that it will ever
    /// need outside the directory, which is /proc/self/fd.
    ///
    /// Each inode and each file that the guest holds costs a descriptor: the process should
    /// have raised its RLIMIT_NOFILE, of which the device uses three quarters. To give files
    /// the owner that the guest wants the process needs to run as root, with CAP_CHOWN,
    /// DAC_OVERRIDE, FOWNER, FSETID, SETUID, SETGID and SETFCAP, and with SETPCAP until the
    /// guest's driver has started; otherwise all files are its own.
    pub fn new(tag: &str, directory: OwnedFd) -> io::Result<Fs> {
        if tag.is_empty() || tag.len() > MAX_TAG {
            let message = format!("a tag has 1 to {MAX_TAG} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut config = [0; MAX_TAG + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[MAX_TAG..].copy_from_slice(&1u32.to_le_bytes());
        Ok(Fs { anchor: Arc::new(Anchor::new(directory)?), config, worker: None })
    }
}

impl VirtioDevice for Fs {
    fn name(&self) -> &'static str {
        "fs"
    }

    fn device_type(&self) -> u16 {
        TYPE_FS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { ram, queues, fault, .. } = activation;
        let device = Device::new(ram, queues, Arc::clone(&self.anchor))?;
        self.worker = Some(Worker::spawn(self.name(), device, fault)?);
        Ok(())
    }

    fn reset(&mut self) {
        // Drops all inodes and files with the server, once its thread has ended.
        self.worker = None;
    }
}
