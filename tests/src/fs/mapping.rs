// SPDX-License-Identifier: Apache-2.0

//! Files in memory: shared and private mappings, and what reads and writes see of them.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

use super::calls::*;
use super::content::pattern;
use super::process::{Baton, Ended, run, start};
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("shared_writes_reach_the_file", shared_writes_reach_the_file),
    ("file_writes_show_in_a_mapping", file_writes_show_in_a_mapping),
    ("private_writes_stay_private", private_writes_stay_private),
    ("processes_share_a_mapping", processes_share_a_mapping),
    ("what_follows_the_end_is_zero", what_follows_the_end_is_zero),
    ("behind_the_end_is_a_bus_error", behind_the_end_is_a_bus_error),
    ("a_mapping_outlives_file_and_name", a_mapping_outlives_file_and_name),
    ("protection_follows_the_open_mode", protection_follows_the_open_mode),
    ("a_sparse_file_is_filled", a_sparse_file_is_filled),
    ("a_truncated_mapping_reads_zeros_again", a_truncated_mapping_reads_zeros_again),
    ("a_mapping_moves_mtime", a_mapping_moves_mtime),
];

/// Mapped memory.
pub struct Memory {
    address: *mut std::ffi::c_void,
    len: usize,
}

const BOTH: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

impl Memory {
    /// Anonymous, so aligned to a page.
    pub fn new(len: usize) -> rustix::io::Result<Memory> {
        // SAFETY: the kernel picks the place, so nothing of ours is there.
        let address = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, BOTH, MapFlags::PRIVATE)?
        };
        Ok(Memory { address, len })
    }

    pub fn of(
        file: impl AsFd,
        len: usize,
        protection: ProtFlags,
        flags: MapFlags,
    ) -> rustix::io::Result<Memory> {
        // SAFETY: the kernel picks the place, so nothing of ours is there.
        let address =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, file, 0)? };
        Ok(Memory { address, len })
    }

    fn shared(file: impl AsFd, len: usize) -> rustix::io::Result<Memory> {
        Memory::of(file, len, BOTH, MapFlags::SHARED)
    }

    /// Looks anew at each call: others write there too.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as this lives, and borrowed from it.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast(), self.len) }
    }

    fn sync(&self) -> rustix::io::Result<()> {
        // SAFETY: the range is mapped.
        unsafe { rustix::mm::msync(self.address, self.len, MsyncFlags::SYNC) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by us, and no slice of it outlives this.
        let _ = unsafe { rustix::mm::munmap(self.address, self.len) };
    }
}

fn shared_writes_reach_the_file() -> Outcome {
    let file = create("file")?;
    file.set_len(100_000)?;
    let mut memory = Memory::shared(&file, 100_000)?;
    let data = pattern(50_000, 1);
    memory.bytes()[10_000..60_000].copy_from_slice(&data);
    let mut found = vec![0; 50_000];
    // A read sees the mapping at once, without msync.
    file.read_exact_at(&mut found, 10_000)?;
    holds("the content", found == data)?;
    memory.sync()?;
    drop(memory);
    drop(file);
    holds("the content later", std::fs::read("file")?[10_000..60_000] == data)
}

fn file_writes_show_in_a_mapping() -> Outcome {
    fill("file", &[1; 20_000])?;
    let file = open("file", OFlags::RDWR)?;
    let mut shared = Memory::shared(&file, 20_000)?;
    same("before", shared.bytes()[5000], 1)?;
    let data = pattern(8000, 2);
    file.write_all_at(&data, 5000)?;
    holds("the content", shared.bytes()[5000..13_000] == data)?;
    shared.bytes()[5000] = 99;
    // The rest of that page is the file's, not what was there before.
    let mut found = [0; 3];
    file.read_exact_at(&mut found, 4999)?;
    same("around the change", found, [1, 99, data[1]])
}

fn private_writes_stay_private() -> Outcome {
    fill("file", &[1; 8192])?;
    let file = open("file", OFlags::RDONLY)?;
    let mut private = Memory::of(&file, 8192, BOTH, MapFlags::PRIVATE)?;
    private.bytes()[0] = 2;
    same("in memory", (private.bytes()[0], private.bytes()[1]), (2, 1))?;
    drop(private);
    same("content", std::fs::read("file")?, vec![1; 8192])
}

fn processes_share_a_mapping() -> Outcome {
    create("file")?.set_len(8192)?;
    let (ping, pong) = (Baton::new()?, Baton::new()?);
    let map = || -> Outcome<Memory> { Ok(Memory::shared(open("file", OFlags::RDWR)?, 8192)?) };
    let other = start(|| {
        let mut memory = map()?;
        for round in 1..50u8 {
            ping.take()?;
            same("what the other wrote", memory.bytes()[4096], round)?;
            memory.bytes()[0] = round;
            pong.pass()?;
        }
        Ok(())
    })?;
    let mut memory = map()?;
    for round in 1..50u8 {
        memory.bytes()[4096] = round;
        ping.pass()?;
        pong.take()?;
        same("what the other answered", memory.bytes()[0], round)?;
    }
    other.end()
}

fn what_follows_the_end_is_zero() -> Outcome {
    fill("file", &[1; 5000])?;
    let file = open("file", OFlags::RDWR)?;
    let mut memory = Memory::shared(&file, 8192)?;
    holds("zeros follow", memory.bytes()[5000..].iter().all(|&byte| byte == 0))?;
    // Such bytes are never the file's.
    memory.bytes()[6000] = 9;
    memory.sync()?;
    same("size", stat("file")?.st_size, 5000)?;
    same("length of the content", std::fs::read("file")?.len(), 5000)
}

fn behind_the_end_is_a_bus_error() -> Outcome {
    fill("file", &[1; 100])?;
    let file = open("file", OFlags::RDWR)?;
    let ended = run(|| {
        let mut memory = Memory::shared(&file, 16_384)?;
        std::hint::black_box(memory.bytes()[8192]);
        Ok(())
    })?;
    match ended {
        Ended::Failed(text) => same("end", text, format!("ended by signal {}", libc::SIGBUS)),
        _ => differs("a read behind the end was allowed".to_owned()),
    }
}

fn a_mapping_outlives_file_and_name() -> Outcome {
    let file = create("file")?;
    file.set_len(8192)?;
    let mut memory = Memory::shared(&file, 8192)?;
    unlink("file")?;
    memory.bytes()[100] = 5;
    let mut found = [0];
    file.read_exact_at(&mut found, 100)?;
    same("content", found, [5])?;
    drop(file);
    memory.bytes()[5000] = 6;
    memory.sync()?;
    same("content", (memory.bytes()[100], memory.bytes()[5000]), (5, 6))
}

fn protection_follows_the_open_mode() -> Outcome {
    fill("file", &[1; 4096])?;
    let reader = open("file", OFlags::RDONLY)?;
    refused(Memory::shared(&reader, 4096).map(drop), Errno::ACCESS)?;
    Memory::of(&reader, 4096, ProtFlags::READ, MapFlags::SHARED)?;
    let writer = open("file", OFlags::WRONLY)?;
    let mapped = Memory::of(&writer, 4096, ProtFlags::READ, MapFlags::PRIVATE);
    refused(mapped.map(drop), Errno::ACCESS)
}

fn a_sparse_file_is_filled() -> Outcome {
    let file = create("file")?;
    file.set_len(1 << 20)?;
    let mut memory = Memory::shared(&file, 1 << 20)?;
    for at in (0..1 << 20).step_by(40_000) {
        memory.bytes()[at] = 1;
    }
    memory.sync()?;
    let content = std::fs::read("file")?;
    let ones = content.iter().enumerate().filter(|(_, byte)| **byte == 1);
    holds("each byte is where it was put", ones.map(|(at, _)| at).eq((0..1 << 20).step_by(40_000)))
}

fn a_truncated_mapping_reads_zeros_again() -> Outcome {
    let file = create("file")?;
    file.write_all_at(&[1; 8192], 0)?;
    let mut memory = Memory::shared(&file, 8192)?;
    same("before", memory.bytes()[5000], 1)?;
    file.set_len(4096)?;
    file.set_len(8192)?;
    same("after", (memory.bytes()[4095], memory.bytes()[5000]), (1, 0))
}

fn a_mapping_moves_mtime() -> Outcome {
    let file = create("file")?;
    file.set_len(4096)?;
    let old =
        rustix::fs::Timestamps { last_access: timespec(1, 0), last_modification: timespec(1, 0) };
    rustix::fs::futimens(&file, &old)?;
    let mut memory = Memory::shared(&file, 4096)?;
    memory.bytes()[0] = 1;
    memory.sync()?;
    drop(memory);
    drop(file);
    holds("mtime has moved on", stat("file")?.st_mtime > 1)
}
