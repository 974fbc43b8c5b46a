// SPDX-License-Identifier: Apache-2.0

//! The console's log file. The guest decides what is written, so size and rate have caps;
//! what it said last is kept, for that is what explains how it ended.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// Largest size of the file, in bytes. When it is full the newer half is kept.
pub const MAX_SIZE: u64 = 1 << 20;
/// Bytes a second that are written in the long run, and at once after a silence. A boot
/// with all messages is about 40 KiB.
pub const RATE: u64 = 64 << 10;
pub const BURST: u64 = 512 << 10;

pub struct Log {
    file: File,
    size: u64,
    /// Bytes that may be written now, as of `refilled`.
    tokens: u64,
    refilled: Instant,
    dropped: u64,
}

impl Log {
    /// Appends to `file`, which is opened for reading and writing.
    pub fn new(file: File) -> io::Result<Log> {
        let size = file.metadata()?.len();
        Ok(Log { file, size, tokens: BURST, refilled: Instant::now(), dropped: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size + bytes.len() as u64 > MAX_SIZE {
            self.keep_newer_half()?;
        }
        self.file.write_all_at(bytes, self.size)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn keep_newer_half(&mut self) -> io::Result<()> {
        let keep = (MAX_SIZE / 2).min(self.size);
        let mut tail = vec![0; keep as usize];
        self.file.read_exact_at(&mut tail, self.size - keep)?;
        self.file.set_len(0)?;
        self.file.write_all_at(&tail, 0)?;
        self.size = keep;
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        let earned = now.duration_since(self.refilled).as_micros() as u64 * RATE / 1_000_000;
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(BURST);
            self.refilled = now;
        }
    }
}

impl Write for Log {
    /// Takes everything; what the rate does not allow is dropped and counted.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.refill(Instant::now());
        let allowed = bytes.len().min(self.tokens as usize);
        if allowed > 0 && self.dropped > 0 {
            let note = format!("\n[husk-vmm: dropped {} bytes of console output]\n", self.dropped);
            self.append(note.as_bytes())?;
            self.dropped = 0;
        }
        self.tokens -= allowed as u64;
        self.dropped += (bytes.len() - allowed) as u64;
        self.append(&bytes[..allowed])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempfile::TempFile;

    fn log() -> Log {
        Log::new(TempFile::new().expect("temporary file").into_file()).expect("log")
    }

    fn contents(log: &Log) -> Vec<u8> {
        let mut bytes = vec![0; log.size as usize];
        log.file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    #[test]
    fn the_file_stays_below_its_cap_and_ends_with_the_newest_output() {
        let mut log = log();
        for line in 0..100_000u32 {
            log.tokens = BURST;
            log.write_all(format!("line {line}\n").as_bytes()).expect("write");
            assert!(log.size <= MAX_SIZE);
        }
        assert!(contents(&log).ends_with(b"line 99999\n"));
        assert_eq!(log.file.metadata().expect("metadata").len(), log.size);
    }

    #[test]
    fn a_flood_is_dropped_and_the_drop_is_said() {
        let mut log = log();
        log.tokens = 4;
        log.refilled = Instant::now() + std::time::Duration::from_secs(3600);
        log.write_all(b"abcdefgh").expect("write");
        assert_eq!((contents(&log), log.dropped), (b"abcd".to_vec(), 4));
        log.tokens = 100;
        log.write_all(b"z").expect("write");
        let text = String::from_utf8(contents(&log)).expect("text");
        assert!(text.contains("dropped 4 bytes") && text.ends_with('z'), "{text}");
    }
}
