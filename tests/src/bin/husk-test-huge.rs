// SPDX-License-Identifier: Apache-2.0

//! Huge pages for the suites, in a container: maps MIB of FILE, which it makes, or of no file
//! with `-`, writes WORD at the beginning of each page of 2 MiB, and says how many there were.

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::io::Result;
use std::process::ExitCode;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

const PAGE: usize = 2 << 20;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let parsed = match &words[..] {
        [file, mib, word] => mib.parse().ok().map(|mib: usize| (file, mib << 20, word)),
        _ => None,
    };
    let Some((file, len, word)) = parsed.filter(|(_, _, word)| word.len() <= PAGE) else {
        eprintln!("usage: husk-test-huge FILE|- MIB WORD");
        return ExitCode::from(2);
    };
    match map(file, len) {
        Ok(memory) => {
            for page in 0..len / PAGE {
                // SAFETY: so many pages are mapped, and WORD is no longer than one.
                unsafe {
                    let place = memory.cast::<u8>().add(page * PAGE);
                    place.copy_from_nonoverlapping(word.as_ptr(), word.len());
                }
            }
            println!("{} pages", len / PAGE);
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn map(file: &str, len: usize) -> Result<*mut c_void> {
    let (none, both) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
    if file == "-" {
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB;
        // SAFETY: the kernel picks the place, so nothing of ours is there.
        return Ok(unsafe { mmap_anonymous(none, len, both, flags) }?);
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file)?;
    // SAFETY: as above.
    Ok(unsafe { mmap(none, len, both, MapFlags::SHARED, file, 0) }?)
}
