// SPDX-License-Identifier: Apache-2.0

//! Packets in descriptor chains (virtio 1.3, 5.10.6): the header, and where the payload lies
//! in guest RAM. Header and payload may be spread over descriptors in any way: Linux puts
//! them in one, in two, or in one for each page.

use std::io;

use crate::memory::{GuestMemory, GuestRam, VolatileSlice};
use crate::virtio::queue::Chain;

/// Length of a header, in bytes.
pub const HEADER_LEN: usize = 44;

/// VIRTIO_VSOCK_TYPE_STREAM.
pub const TYPE_STREAM: u16 = 1;

/// Operations (5.10.6).
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of SHUTDOWN (5.10.6.5): the sender will receive no more, will send no more.
pub const SHUTDOWN_RCV: u32 = 1;
pub const SHUTDOWN_SEND: u32 = 2;
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Payload, in bytes.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// The sender's buffer for this connection, in bytes.
    pub buf_alloc: u32,
    /// Bytes that have left that buffer since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Header {
        fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        Header {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// A packet that the guest sent.
pub struct Sent<'a> {
    pub header: Header,
    /// The payload, or less of it if the chain is shorter than the header says.
    pub payload: Buffers<'a>,
}

impl<'a> Sent<'a> {
    /// `None` if the chain is too short for a header: there is nobody to answer.
    pub fn read(ram: &'a GuestRam, chain: Chain<'_>) -> io::Result<Option<Sent<'a>>> {
        let mut payload = Buffers::collect(ram, chain, false)?;
        let Some(head) = payload.split_off_front(HEADER_LEN) else { return Ok(None) };
        let mut bytes = [0; HEADER_LEN];
        head.copy_to(&mut bytes);
        let header = Header::decode(&bytes);
        payload.truncate(header.len as usize);
        Ok(Some(Sent { header, payload }))
    }
}

/// Room for a packet to the guest.
pub struct Room<'a> {
    /// Index of the chain's first descriptor.
    pub head: u16,
    header: Buffers<'a>,
    pub payload: Buffers<'a>,
}

impl<'a> Room<'a> {
    pub fn new(ram: &'a GuestRam, chain: Chain<'_>) -> io::Result<Room<'a>> {
        let head = chain.head_index();
        let mut payload = Buffers::collect(ram, chain, true)?;
        let header = payload.split_off_front(HEADER_LEN).ok_or_else(|| {
            io::Error::other("the driver offered a receive buffer too short for a header")
        })?;
        Ok(Room { head, header, payload })
    }

    /// Writes the header of a packet whose payload is already there; returns the length of
    /// the whole packet.
    pub fn finish(&self, header: &Header) -> u32 {
        self.header.copy_from(&header.encode());
        HEADER_LEN as u32 + header.len
    }
}

/// Pieces of guest RAM that follow each other in a chain.
#[derive(Default)]
pub struct Buffers<'a> {
    slices: Vec<VolatileSlice<'a>>,
    len: usize,
}

impl<'a> Buffers<'a> {
    /// All descriptors of a chain, which must be device-writable as `writable` says.
    fn collect(ram: &'a GuestRam, chain: Chain<'_>, writable: bool) -> io::Result<Buffers<'a>> {
        let mut buffers = Buffers::default();
        for descriptor in chain {
            if descriptor.is_write_only() != writable {
                return Err(io::Error::other("the driver mixed up read and write descriptors"));
            }
            let slice = ram
                .get_slice(descriptor.addr(), descriptor.len() as usize)
                .map_err(|_| io::Error::other("the driver named a buffer outside guest RAM"))?;
            buffers.len += slice.len();
            buffers.slices.push(slice);
        }
        Ok(buffers)
    }

    /// Those of a payload that lies in one piece.
    #[cfg(test)]
    pub fn of(bytes: &'a mut [u8]) -> Buffers<'a> {
        Buffers { len: bytes.len(), slices: vec![VolatileSlice::from(bytes)] }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn slices(&self) -> &[VolatileSlice<'a>] {
        &self.slices
    }

    /// Takes the first `len` bytes away; `None`, and nothing is taken, if there are fewer.
    pub fn split_off_front(&mut self, len: usize) -> Option<Buffers<'a>> {
        if self.len < len {
            return None;
        }
        let mut front = Buffers { slices: Vec::with_capacity(1), len };
        let mut missing = len;
        while missing > 0 {
            let first = self.slices[0].len();
            if first > missing {
                front.slices.push(self.slices[0].subslice(0, missing).ok()?);
                self.slices[0] = self.slices[0].offset(missing).ok()?;
                break;
            }
            front.slices.push(self.slices.remove(0));
            missing -= first;
        }
        self.len -= len;
        Some(front)
    }

    /// Keeps at most the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len
            && let Some(front) = self.split_off_front(len)
        {
            *self = front;
        }
    }

    /// Copies to `bytes` as much as fits; returns how much.
    pub fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.copy_to(&mut bytes[done..]);
        }
        done
    }

    /// Copies from `bytes` as much as fits.
    pub fn copy_from(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for slice in &self.slices {
            let count = rest.len().min(slice.len());
            slice.copy_from(&rest[..count]);
            rest = &rest[count..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_encoding() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0x01020304,
            dst_port: 0x05060708,
            len: 9,
            kind: 1,
            op: op::RW,
            flags: 10,
            buf_alloc: 11,
            fwd_cnt: 12,
        };
        assert_eq!(Header::decode(&header.encode()), header);
        assert_eq!(header.encode()[16..24], [4, 3, 2, 1, 8, 7, 6, 5]);
    }

    #[test]
    fn buffers_split_at_any_byte() {
        let mut bytes = [[0u8; 3], [1; 3], [2; 3]];
        let [a, b, c] = &mut bytes;
        let slices = [&mut a[..], &mut b[..], &mut c[..]].map(VolatileSlice::from).to_vec();
        let mut rest = Buffers { slices, len: 9 };
        assert!(rest.split_off_front(10).is_none());
        let front = rest.split_off_front(4).expect("long enough");
        rest.truncate(4);
        let mut seen = [9; 10];
        assert_eq!(front.copy_to(&mut seen), 4);
        assert_eq!(rest.copy_to(&mut seen[4..]), 4);
        assert_eq!(seen, [0, 0, 0, 1, 1, 1, 2, 2, 9, 9]);
    }
}
