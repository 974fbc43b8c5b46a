// SPDX-License-Identifier: Apache-2.0

//! Where a file has data and holes, space taken and given back, large offsets, statfs.

use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::calls::*;
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("holes_take_no_space", holes_take_no_space),
    ("data_and_holes_are_found", data_and_holes_are_found),
    ("space_is_reserved", space_is_reserved),
    ("holes_are_punched", holes_are_punched),
    ("ranges_are_zeroed", ranges_are_zeroed),
    ("large_offsets", large_offsets),
    ("statfs_tells_of_the_file_system", statfs_tells_of_the_file_system),
    ("blocks_grow_with_data", blocks_grow_with_data),
];

const KIB: u64 = 1024;

fn holes_take_no_space() -> Outcome {
    let file = create("file")?;
    file.set_len(100 << 20)?;
    file.write_all_at(b"end", 50 << 20)?;
    file.sync_all()?;
    let found = stat("file")?;
    same("size", found.st_size, 100 << 20)?;
    holds("few blocks", found.st_blocks * 512 < 1 << 20)?;
    let mut part = [1; 100];
    file.read_exact_at(&mut part, 30 << 20)?;
    holds("a hole reads as zeros", part == [0; 100])
}

fn data_and_holes_are_found() -> Outcome {
    let file = create("file")?;
    file.write_all_at(&[1; 65536], 256 * KIB)?;
    file.write_all_at(&[1; 65536], 768 * KIB)?;
    file.set_len(2048 * KIB)?;
    file.sync_all()?;
    let data = |at| rustix::fs::seek(&file, SeekFrom::Data(at));
    let hole = |at| rustix::fs::seek(&file, SeekFrom::Hole(at));
    same("data", data(0)?, 256 * KIB)?;
    same("data", data(300 * KIB)?, 300 * KIB)?;
    same("data", data(320 * KIB)?, 768 * KIB)?;
    refused(data(900 * KIB), Errno::NXIO)?;
    same("hole", hole(0)?, 0)?;
    same("hole", hole(256 * KIB)?, 320 * KIB)?;
    same("hole", hole(800 * KIB)?, 832 * KIB)?;
    refused(hole(4096 * KIB), Errno::NXIO)?;
    file.set_len(832 * KIB)?;
    same("the hole at the end", hole(800 * KIB)?, 832 * KIB)?;
    same("the end", rustix::fs::seek(&file, SeekFrom::End(-1))?, 832 * KIB - 1)
}

/// Calls fallocate, which file systems may lack.
fn fallocate(file: &std::fs::File, mode: FallocateFlags, at: u64, len: u64) -> Outcome {
    match rustix::fs::fallocate(file, mode, at, len) {
        Err(Errno::OPNOTSUPP) => skip("this file system cannot do that"),
        result => Ok(result?),
    }
}

fn space_is_reserved() -> Outcome {
    let file = create("file")?;
    file.write_all_at(b"content", 0)?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20)?;
    same("size kept", stat("file")?.st_size, 7)?;
    holds("blocks taken", stat("file")?.st_blocks * 512 >= 1 << 20)?;
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20)?;
    same("size", stat("file")?.st_size, 1 << 20)?;
    let mut start = [1; 10];
    file.read_exact_at(&mut start, 0)?;
    same("content", &start, b"content\0\0\0")?;
    refused(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 0), Errno::INVAL)?;
    let reader = open("file", OFlags::RDONLY)?;
    refused(rustix::fs::fallocate(&reader, FallocateFlags::empty(), 0, 10), Errno::BADF)
}

fn holes_are_punched() -> Outcome {
    let file = create("file")?;
    file.write_all_at(&[7; 512 << 10], 0)?;
    file.sync_all()?;
    let before = stat("file")?.st_blocks;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 64 * KIB, 256 * KIB)?;
    fallocate(&file, punch, 400 * KIB + 1, 10)?;
    holds("space is given back", stat("file")?.st_blocks < before)?;
    let mut wanted = vec![7; 512 << 10];
    wanted[64 << 10..320 << 10].fill(0);
    wanted[(400 << 10) + 1..(400 << 10) + 11].fill(0);
    // Though the pages may be cached.
    holds("the content", std::fs::read("file")? == wanted)?;
    same("the hole", rustix::fs::seek(&file, SeekFrom::Hole(0))?, 64 * KIB)?;
    same("size", stat("file")?.st_size, 512 << 10)
}

fn ranges_are_zeroed() -> Outcome {
    let file = create("file")?;
    file.write_all_at(&[7; 128 << 10], 0)?;
    fallocate(&file, FallocateFlags::ZERO_RANGE, 5000, 50_000)?;
    let mut wanted = vec![7; 128 << 10];
    wanted[5000..55_000].fill(0);
    holds("the content", std::fs::read("file")? == wanted)?;
    fallocate(&file, FallocateFlags::ZERO_RANGE, 100_000, 100_000)?;
    same("size", stat("file")?.st_size, 200_000)
}

fn large_offsets() -> Outcome {
    let file = create("file")?;
    for at in [(1 << 31) - 3, (1 << 32) - 3, (1 << 42) + 5] {
        file.write_all_at(b"across", at)?;
        let mut found = [0; 6];
        file.read_exact_at(&mut found, at)?;
        same("content", &found, b"across")?;
        same("size", stat("file")?.st_size, at as i64 + 6)?;
    }
    same("data", rustix::fs::seek(&file, SeekFrom::Data(1 << 41))?, 1 << 42)?;
    refused(rustix::fs::ftruncate(&file, 1 << 63), Errno::INVAL)?;
    file.set_len(0)?;
    same("size", stat("file")?.st_size, 0)
}

fn statfs_tells_of_the_file_system() -> Outcome {
    let file = create("file")?;
    let (by_name, by_file) = (rustix::fs::statvfs(".")?, rustix::fs::fstatvfs(&file)?);
    let facts = |found: &rustix::fs::StatVfs| (found.f_frsize, found.f_blocks, found.f_namemax);
    same("facts", facts(&by_name), facts(&by_file))?;
    holds("there are blocks", by_name.f_blocks > 0 && by_name.f_frsize > 0)?;
    holds("not more free than there are", by_name.f_bfree <= by_name.f_blocks)?;
    holds("not more available than free", by_name.f_bavail <= by_name.f_bfree)?;
    same("longest name", by_name.f_namemax, 255)
}

fn blocks_grow_with_data() -> Outcome {
    let file = create("file")?;
    same("blocks of an empty file", stat("file")?.st_blocks, 0)?;
    file.write_all_at(&[1; 1 << 20], 0)?;
    file.sync_all()?;
    let blocks = stat("file")?.st_blocks * 512;
    holds("blocks of 1 MiB", (1 << 20..2 << 20).contains(&blocks))?;
    file.set_len(0)?;
    file.sync_all()?;
    same("blocks after truncation", stat("file")?.st_blocks, 0)
}
