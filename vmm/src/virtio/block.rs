// SPDX-License-Identifier: Apache-2.0

//! Block device (virtio 1.3, 5.2) on a raw file or a block device of the host. Formats are
//! never guessed: the bytes of the file are the bytes of the disk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::queue::{Chain, VirtQueue};
use super::worker::{Poll, Serve, Worker};
use super::{Activation, TYPE_BLOCK, VirtioDevice};
use crate::memory::GuestRam;

const QUEUE_SIZE: u16 = 128;
const SECTOR: u64 = 512;
/// Data is copied in pieces of this many bytes, whatever a request asks for.
const PIECE: usize = 64 << 10;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;

/// Request types (5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
/// Status byte (5.2.6).
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// Bytes of the request header: type, reserved, sector.
const HEADER: usize = 16;

pub struct Block {
    disk: Arc<Disk>,
    config: [u8; 16],
    worker: Option<Worker>,
}

struct Disk {
    file: File,
    read_only: bool,
    serial: [u8; crate::config::MAX_SERIAL],
    /// In bytes, a multiple of SECTOR.
    size: u64,
}

impl Block {
    /// A disk on `file`, whose size is fixed from now on; `serial` is cut to 20 bytes.
    pub fn new(mut file: File, read_only: bool, serial: &str) -> io::Result<Block> {
        // Seeking tells the size of block devices too.
        let size = file.seek(SeekFrom::End(0))? / SECTOR * SECTOR;
        let mut id = [0; crate::config::MAX_SERIAL];
        let len = serial.len().min(id.len());
        id[..len].copy_from_slice(&serial.as_bytes()[..len]);
        let mut config = [0; 16];
        config[..8].copy_from_slice(&(size / SECTOR).to_le_bytes());
        // seg_max: header and status take two of the descriptors.
        config[12..].copy_from_slice(&u32::from(QUEUE_SIZE - 2).to_le_bytes());
        Ok(Block {
            disk: Arc::new(Disk { file, read_only, serial: id, size }),
            config,
            worker: None,
        })
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &'static str {
        "block"
    }

    fn device_type(&self) -> u16 {
        TYPE_BLOCK
    }

    fn features(&self) -> u64 {
        F_SEG_MAX | F_FLUSH | if self.disk.read_only { F_RO } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let server =
            Server { disk: self.disk.clone(), queues: activation.queues, piece: vec![0; PIECE] };
        self.worker = Some(Worker::spawn("block", server, activation.fault)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

struct Server {
    disk: Arc<Disk>,
    queues: Vec<VirtQueue>,
    piece: Vec<u8>,
}

impl Serve for Server {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn kicked(&mut self, _queue: usize, _poll: &Poll) -> io::Result<()> {
        let ram = self.queues[0].ram().clone();
        let (disk, piece) = (&self.disk, &mut self.piece);
        self.queues[0].serve(|chain| disk.request(&ram, chain, piece))
    }
}

impl Disk {
    /// Does one request; returns the bytes written to the guest, status byte included.
    /// Only a chain without room for header and status is an error of the ring.
    fn request(&self, ram: &GuestRam, chain: Chain<'_>, piece: &mut [u8]) -> io::Result<u32> {
        let mut reader = chain.clone().reader(ram).map_err(io::Error::other)?;
        let mut data = chain.writer(ram).map_err(io::Error::other)?;
        let room = data.available_bytes().checked_sub(1);
        let (Some(room), true) = (room, reader.available_bytes() >= HEADER) else {
            return Err(io::Error::other("a request has no header or no status byte"));
        };
        let mut status = data.split_at(room).map_err(io::Error::other)?;
        let kind: u32 = reader.read_obj()?;
        let _reserved: u32 = reader.read_obj()?;
        let sector: u64 = reader.read_obj()?;

        let code = match kind {
            IN => self.copy(sector, room, piece, |piece, at| {
                self.file.read_exact_at(piece, at)?;
                data.write_all(piece)
            }),
            OUT if self.read_only => IOERR,
            OUT => self.copy(sector, reader.available_bytes(), piece, |piece, at| {
                reader.read_exact(piece)?;
                self.file.write_all_at(piece, at)
            }),
            FLUSH => self.file.sync_data().map_or(IOERR, |()| OK),
            GET_ID => data.write_all(&self.serial).map_or(IOERR, |()| OK),
            _ => UNSUPP,
        };
        let written = data.bytes_written() as u32 + 1;
        status.write_all(&[code])?;
        Ok(written)
    }

    /// Moves `len` bytes at `sector` piece by piece.
    fn copy(
        &self,
        sector: u64,
        len: usize,
        piece: &mut [u8],
        mut step: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    ) -> u8 {
        let start = sector.checked_mul(SECTOR);
        let end = start.and_then(|start| start.checked_add(len as u64));
        let (Some(start), Some(end)) = (start, end) else { return IOERR };
        if end > self.size || !(len as u64).is_multiple_of(SECTOR) {
            return IOERR;
        }
        let mut at = start;
        while at < end {
            let count = piece.len().min((end - at) as usize);
            if step(&mut piece[..count], at).is_err() {
                return IOERR;
            }
            at += count as u64;
        }
        OK
    }
}
