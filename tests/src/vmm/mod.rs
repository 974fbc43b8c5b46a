// SPDX-License-Identifier: Apache-2.0

//! husk-vmm alone. Each file is one behaviour with both halves: what the test does on the
//! host, and what `husk-test-guest`, the guest's /init, does inside. The guest's half is
//! chosen by `case=NAME` on the kernel command line.

pub mod bad_input;
pub mod console;
pub mod disk;
pub mod ends;
pub mod machine;
pub mod net;
pub mod plug;
pub mod share;
pub mod supervised;
pub mod vhost;
pub mod vsock;

mod run;
pub use run::{Outcome, READY, Run, kernel, test_guest};

use std::io::{self, Read, Write};

/// The guest's half of a case; returns what is worth saying on the console.
pub type GuestHalf = fn() -> io::Result<String>;

pub const GUEST_CASES: &[(&str, GuestHalf)] = &[
    ("machine", machine::guest),
    ("disk", disk::guest),
    ("share", share::guest),
    ("unmount", share::unmount_guest),
    ("vsock", vsock::guest),
    ("console", console::guest),
    ("flood", console::flood),
    ("reset", ends::guest_resets),
    ("panic", ends::guest_panics),
    ("dial", supervised::guest),
    ("net", net::guest),
    ("plug", plug::guest),
];

/// Bytes that look random and are the same for the same seed (xorshift64*).
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed | 1)
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for piece in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
        Ok(buffer.len())
    }
}

/// SHA-256 of everything that `source` gives, in hexadecimal.
pub fn hash(mut source: impl Read) -> io::Result<String> {
    use sha2::{Digest, Sha256};
    let mut digest = Sha256::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = source.read(&mut piece)?;
        if count == 0 {
            return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        digest.update(&piece[..count]);
    }
}

/// Sends back everything that comes, until the peer stops.
pub fn echo(stream: impl Read + Write) -> io::Result<()> {
    let mut stream = stream;
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&piece[..count])?;
    }
}
