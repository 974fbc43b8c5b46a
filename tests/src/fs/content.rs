// SPDX-License-Identifier: Apache-2.0

//! Contents: reads and writes at offsets, truncation, O_DIRECT, copies within the kernel.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::calls::*;
use super::mapping::Memory;
use super::process::{Baton, start};
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("reads_and_writes_at_offsets", reads_and_writes_at_offsets),
    ("large_writes", large_writes),
    ("vectored_writes", vectored_writes),
    ("truncation_and_growth", truncation_and_growth),
    ("what_is_cut_off_does_not_come_back", what_is_cut_off_does_not_come_back),
    ("truncation_is_refused", truncation_is_refused),
    ("two_descriptors_see_one_file", two_descriptors_see_one_file),
    ("two_processes_see_one_file", two_processes_see_one_file),
    ("two_processes_append", two_processes_append),
    ("direct", direct),
    ("direct_and_cached", direct_and_cached),
    ("direct_set_later", direct_set_later),
    ("copy_file_range", copy_file_range),
    ("sendfile_and_splice", sendfile_and_splice),
    ("syncs", syncs),
    ("size_limit", size_limit),
];

/// Bytes that tell their place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at >> 12) as u8 ^ seed).collect()
}

fn reads_and_writes_at_offsets() -> Outcome {
    let file = create("file")?;
    let mut wanted = vec![0; 40_000];
    for (at, len) in [(0, 1), (4095, 2), (4096, 4096), (12_345, 10_001), (39_999, 1), (100, 0)] {
        let data = pattern(len, at as u8);
        file.write_all_at(&data, at as u64)?;
        wanted[at..at + len].copy_from_slice(&data);
    }
    holds("the content", std::fs::read("file")? == wanted)?;
    let mut part = [0; 5000];
    file.read_exact_at(&mut part, 4000)?;
    holds("a part of the content", part[..] == wanted[4000..9000])?;
    same("a read across the end", file.read_at(&mut part, 39_998)?, 2)?;
    same("a read at the end", file.read_at(&mut part, 40_000)?, 0)?;
    same("a read behind the end", file.read_at(&mut part, 1 << 40)?, 0)
}

fn large_writes() -> Outcome {
    let mut file = create("file")?;
    let data = pattern(9_999_999, 1);
    // Larger than any request.
    same("length of one write", rustix::io::write(&file, &data)?, data.len())?;
    std::io::Seek::rewind(&mut file)?;
    let mut found = vec![0; data.len() + 10];
    let mut len = 0;
    loop {
        match file.read(&mut found[len..])? {
            0 => break,
            more => len += more,
        }
    }
    holds("the content", found[..len] == data[..])
}

fn vectored_writes() -> Outcome {
    let mut file = create("file")?;
    let parts: Vec<_> = (0..100).map(|number| pattern(number * 37, number as u8)).collect();
    let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let all = parts.concat();
    same("length", file.write_vectored(&slices)?, all.len())?;
    holds("the content", std::fs::read("file")? == all)
}

fn truncation_and_growth() -> Outcome {
    let data = pattern(20_000, 2);
    fill("file", &data)?;
    let file = open("file", OFlags::RDWR)?;
    file.set_len(5000)?;
    holds("the content", std::fs::read("file")? == data[..5000])?;
    file.set_len(9000)?;
    let wanted = [&data[..5000], &[0; 4000]].concat();
    holds("zeros follow", std::fs::read("file")? == wanted)?;
    file.write_all_at(b"x", 10_000)?;
    same("size", stat("file")?.st_size, 10_001)?;
    // By name too.
    let name = std::ffi::CString::new("file")?;
    // SAFETY: the name is a C string.
    same("truncate", unsafe { libc::truncate(name.as_ptr(), 3) }, 0)?;
    holds("the content", std::fs::read("file")? == data[..3])
}

fn what_is_cut_off_does_not_come_back() -> Outcome {
    let file = create("file")?;
    for cut in [1, 100, 4095, 4096, 5000] {
        file.write_all_at(&[0xff; 8192], 0)?;
        file.set_len(cut)?;
        file.set_len(8192)?;
        let content = std::fs::read("file")?;
        holds("zeros behind the cut", content[cut as usize..].iter().all(|&byte| byte == 0))?;
        file.set_len(cut)?;
        file.write_all_at(b"x", 8191)?;
        let content = std::fs::read("file")?;
        holds("zeros up to a write", content[cut as usize..8191].iter().all(|&byte| byte == 0))?;
    }
    Ok(())
}

fn truncation_is_refused() -> Outcome {
    create("file")?;
    mkdir("dir", 0o755)?;
    let name = std::ffi::CString::new("dir")?;
    // SAFETY: the name is a C string.
    same("truncate of a directory", unsafe { libc::truncate(name.as_ptr(), 0) }, -1)?;
    same("its error", std::io::Error::last_os_error().raw_os_error(), Some(libc::EISDIR))?;
    // SAFETY: no memory is involved.
    same("a negative length", unsafe { libc::truncate(c"file".as_ptr(), -1) }, -1)?;
    refused(rustix::fs::ftruncate(&open("file", OFlags::RDONLY)?, 0), Errno::INVAL)
}

fn two_descriptors_see_one_file() -> Outcome {
    let (writer, reader) = (create("file")?, open("file", OFlags::RDONLY)?);
    for round in 0..20u8 {
        let data = pattern(5000, round);
        writer.write_all_at(&data, u64::from(round) * 1000)?;
        let mut found = vec![0; 5000];
        reader.read_exact_at(&mut found, u64::from(round) * 1000)?;
        holds("what was written", found == data)?;
    }
    Ok(())
}

fn two_processes_see_one_file() -> Outcome {
    let file = create("file")?;
    let (ping, pong) = (Baton::new()?, Baton::new()?);
    let other = start(|| {
        let file = open("file", OFlags::RDWR)?;
        for round in 0..50u8 {
            ping.take()?;
            let mut found = [0; 100];
            file.read_exact_at(&mut found, 50)?;
            holds("what the other wrote", found == [round; 100])?;
            file.write_all_at(&[!round; 100], 50)?;
            pong.pass()?;
        }
        Ok(())
    })?;
    for round in 0..50u8 {
        file.write_all_at(&[round; 100], 50)?;
        ping.pass()?;
        pong.take()?;
        let mut found = [0; 100];
        file.read_exact_at(&mut found, 50)?;
        holds("what the other answered", found == [!round; 100])?;
    }
    other.end()
}

fn two_processes_append() -> Outcome {
    create("log")?;
    let write = |byte: u8| {
        start(move || {
            let mut file = open("log", OFlags::WRONLY | OFlags::APPEND)?;
            for _ in 0..300 {
                file.write_all(&[byte; 61])?;
            }
            Ok(())
        })
    };
    let (a, b) = (write(b'a')?, write(b'b')?);
    a.end()?;
    b.end()?;
    let content = std::fs::read("log")?;
    same("size", content.len(), 600 * 61)?;
    let whole = |record: &[u8]| record.iter().all(|&byte| byte == record[0]);
    holds("no record is torn or lost", content.chunks(61).all(whole))
}

/// Opens with O_DIRECT, which some file systems refuse.
fn open_direct(name: &str) -> Outcome<File> {
    match open(name, OFlags::RDWR | OFlags::DIRECT) {
        Err(Errno::INVAL) => skip("this file system has no O_DIRECT"),
        result => Ok(result?),
    }
}

fn direct() -> Outcome {
    create("file")?;
    let file = open_direct("file")?;
    let mut memory = Memory::new(64 << 10)?;
    let data = pattern(64 << 10, 3);
    memory.bytes().copy_from_slice(&data);
    file.write_all_at(memory.bytes(), 4096)?;
    memory.bytes().fill(0);
    file.read_exact_at(memory.bytes(), 4096)?;
    holds("the content", memory.bytes() == &data[..])?;
    let read = file.read_at(memory.bytes(), 64 << 10)?;
    same("a read across the end", read, 4096)?;
    same("a read at the end", file.read_at(memory.bytes(), 68 << 10)?, 0)?;
    same("size", stat("file")?.st_size, 68 << 10)
}

fn direct_and_cached() -> Outcome {
    let cached = create("file")?;
    let direct = open_direct("file")?;
    let mut memory = Memory::new(4096)?;
    for round in 0..20u8 {
        cached.write_all_at(&[round; 8192], 0)?;
        direct.read_exact_at(memory.bytes(), 4096)?;
        holds("a direct read sees a cached write", memory.bytes() == [round; 4096])?;
        memory.bytes().fill(!round);
        direct.write_all_at(memory.bytes(), 0)?;
        let mut found = [0; 8192];
        cached.read_exact_at(&mut found, 0)?;
        let wanted = [[!round; 4096], [round; 4096]].concat();
        holds("a cached read sees a direct write", found[..] == wanted[..])?;
    }
    Ok(())
}

fn direct_set_later() -> Outcome {
    let file = create("file")?;
    open_direct("file")?;
    file.write_all_at(&[7; 8192], 0)?;
    rustix::fs::fcntl_setfl(&file, OFlags::DIRECT)?;
    let mut memory = Memory::new(8192)?;
    file.read_exact_at(memory.bytes(), 0)?;
    holds("the content", memory.bytes() == [7; 8192])?;
    memory.bytes().fill(8);
    file.write_all_at(&memory.bytes()[..4096], 4096)?;
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    file.write_all_at(b"odd", 5)?;
    let wanted = [&[7; 5][..], b"odd", &[7; 4088], &[8; 4096]].concat();
    holds("the content", std::fs::read("file")? == wanted)
}

fn copy_file_range() -> Outcome {
    let data = pattern(300_000, 4);
    fill("from", &data)?;
    let (from, to) = (open("from", OFlags::RDONLY)?, create("to")?);
    let mut copied = 0;
    while copied < data.len() {
        let left = data.len() - copied;
        match rustix::fs::copy_file_range(&from, None, &to, None, left)? {
            0 => return differs(format!("{copied} bytes copied of {}", data.len())),
            more => copied += more,
        }
    }
    holds("the copy", std::fs::read("to")? == data)?;
    let (mut at, mut to_at) = (1000, 5);
    let count = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut to_at), 70_000)?;
    same("offsets", (at, to_at), (1000 + count as u64, 5 + count as u64))?;
    holds("the part", std::fs::read("to")?[5..5 + count] == data[1000..1000 + count])?;
    let mut end = 300_000;
    let copied = rustix::fs::copy_file_range(&from, Some(&mut end), &to, None, 10)?;
    same("bytes behind the end", copied, 0)?;
    refused(rustix::fs::copy_file_range(&to, Some(&mut 0), &from, Some(&mut 0), 10), Errno::BADF)?;
    let both = open("to", OFlags::RDWR)?;
    let overlapping =
        rustix::fs::copy_file_range(&both, Some(&mut 0), &both, Some(&mut 5000), 10_000);
    refused(overlapping, Errno::INVAL)
}

fn sendfile_and_splice() -> Outcome {
    let data = pattern(50_000, 5);
    fill("from", &data)?;
    let (from, to) = (open("from", OFlags::RDONLY)?, create("to")?);
    let mut at = 10;
    while at < 50_000 {
        let left = 50_000 - at as usize;
        holds("sendfile goes on", rustix::fs::sendfile(&to, &from, Some(&mut at), left)? > 0)?;
    }
    holds("the copy by sendfile", std::fs::read("to")? == data[10..])?;
    let (reader, writer) = rustix::pipe::pipe()?;
    let flags = rustix::pipe::SpliceFlags::empty();
    let (mut at, mut to_at) = (0, 0);
    while at < 50_000 {
        let moved = rustix::pipe::splice(&from, Some(&mut at), &writer, None, 30_000, flags)?;
        let mut left = moved;
        while left > 0 {
            left -= rustix::pipe::splice(&reader, None, &to, Some(&mut to_at), left, flags)?;
        }
    }
    holds("the copy by splice", std::fs::read("to")?[..50_000] == data)
}

fn syncs() -> Outcome {
    let file = create("file")?;
    file.write_all_at(&[1; 100_000], 0)?;
    file.sync_data()?;
    file.sync_all()?;
    // Of a descriptor that cannot write, and of a directory.
    open("file", OFlags::RDONLY)?.sync_all()?;
    open(".", OFlags::RDONLY)?.sync_all()?;
    // SAFETY: the descriptor is open; no memory is involved.
    let done = unsafe { libc::sync_file_range(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, 7) };
    same("sync_file_range", done, 0)
}

/// RLIMIT_FSIZE: a part is written, then nothing, and the program is told by a signal.
fn size_limit() -> Outcome {
    let file = create("file")?;
    let limit = libc::rlimit { rlim_cur: 10_000, rlim_max: 10_000 };
    // SAFETY: the structure outlives the call; ignoring a signal runs no handler.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
    }
    same("a write across the limit", rustix::io::write(&file, &[1; 20_000])?, 10_000)?;
    refused(rustix::io::write(&file, b"x"), Errno::FBIG)?;
    refused(rustix::fs::ftruncate(&file, 10_001), Errno::FBIG)?;
    same("size", stat("file")?.st_size, 10_000)
}
