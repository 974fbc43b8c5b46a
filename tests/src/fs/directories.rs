// SPDX-License-Identifier: Apache-2.0

//! Directories: listing small and large ones, while they change, positions in them, and
//! being told of changes (inotify).

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::mem::MaybeUninit;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};

use super::calls::*;
use super::{Case, Outcome, setting};

pub const CASES: &[Case] = &[
    ("entries_have_their_kinds_and_inodes", entries_have_their_kinds_and_inodes),
    ("changes_show_at_once", changes_show_at_once),
    ("an_open_directory_is_read_again", an_open_directory_is_read_again),
    ("positions_are_returned_to", positions_are_returned_to),
    ("a_large_directory", a_large_directory),
    ("entries_removed_while_listing", entries_removed_while_listing),
    ("entries_added_while_listing", entries_added_while_listing),
    ("own_changes_are_told", own_changes_are_told),
    ("changes_of_contents_are_told", changes_of_contents_are_told),
];

struct Entry {
    name: String,
    inode: u64,
    kind: FileType,
    /// Where the next one is.
    next: u64,
}

/// Entries from the position of `dir` on, without "." and "..", at most `count`.
fn entries(dir: &std::fs::File, count: usize) -> Outcome<Vec<Entry>> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = RawDir::new(dir, &mut buffer);
    let mut found = Vec::new();
    while found.len() < count
        && let Some(entry) = reader.next()
    {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            let (inode, kind) = (entry.ino(), entry.file_type());
            found.push(Entry { name, inode, kind, next: entry.next_entry_cookie() });
        }
    }
    Ok(found)
}

fn entries_have_their_kinds_and_inodes() -> Outcome {
    create("file")?;
    mkdir("dir", 0o755)?;
    symlink("x", "symlink")?;
    mknod("fifo", FileType::Fifo, 0o644, 0)?;
    mknod("socket", FileType::Socket, 0o644, 0)?;
    let dir = open(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let found = entries(&dir, usize::MAX)?;
    same("entries", found.len(), 5)?;
    for entry in found {
        let stat = stat(&entry.name)?;
        same(&entry.name, entry.kind, kind(&stat))?;
        // Of a directory in an overlay they differ.
        if entry.kind != FileType::Directory {
            same(&entry.name, entry.inode, stat.st_ino)?;
        }
    }
    Ok(())
}

fn changes_show_at_once() -> Outcome {
    for round in 0..20 {
        let name = format!("name{round}");
        create(&name)?;
        same("names", list(".")?, vec![name.clone()])?;
        let other = format!("other{round}");
        rename(&name, &other)?;
        same("names", list(".")?, vec![other.clone()])?;
        unlink(&other)?;
        same("names", list(".")?, Vec::new())?;
        holds("it does not exist", !exists(&other))?;
    }
    Ok(())
}

fn an_open_directory_is_read_again() -> Outcome {
    create("a")?;
    let dir = open(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    same("entries", entries(&dir, usize::MAX)?.len(), 1)?;
    create("b")?;
    rustix::fs::seek(&dir, SeekFrom::Start(0))?;
    same("entries", entries(&dir, usize::MAX)?.len(), 2)?;
    unlink("a")?;
    rustix::fs::seek(&dir, SeekFrom::Start(0))?;
    let names: Vec<_> = entries(&dir, usize::MAX)?.into_iter().map(|entry| entry.name).collect();
    same("names", names, vec!["b".to_owned()])
}

fn positions_are_returned_to() -> Outcome {
    for number in 0..300 {
        create(&format!("file{number}"))?;
    }
    let dir = open(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let all = entries(&dir, usize::MAX)?;
    same("entries", all.len(), 300)?;
    for at in [0, 1, 100, 255, 256, 298] {
        rustix::fs::seek(&dir, SeekFrom::Start(all[at].next))?;
        let rest = entries(&dir, usize::MAX)?;
        let names =
            |entries: &[Entry]| entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>();
        same("names from there on", names(&rest), names(&all[at + 1..]))?;
    }
    rustix::fs::seek(&dir, SeekFrom::Start(all[299].next))?;
    same("entries at the end", entries(&dir, usize::MAX)?.len(), 0)
}

fn a_large_directory() -> Outcome {
    let count = setting().entries;
    mkdir("large", 0o755)?;
    for number in 0..count {
        mknod(&format!("large/{number:06}"), FileType::RegularFile, 0o644, 0)?;
    }
    let names = list("large")?;
    same("entries", names.len(), count)?;
    holds(
        "each name once",
        names.iter().enumerate().all(|(at, name)| *name == format!("{at:06}")),
    )?;
    for number in (0..count).step_by(count / 100 + 1) {
        stat(&format!("large/{number:06}"))?;
    }
    for number in 0..count {
        unlink(&format!("large/{number:06}"))?;
    }
    rmdir("large")?;
    Ok(())
}

/// How many names a directory lists; fails if one comes twice.
pub fn count(directory: &str) -> std::io::Result<usize> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        if names.contains(&name) {
            return Err(std::io::Error::other(format!("{} comes twice", name.display())));
        }
        names.insert(name);
    }
    Ok(names.len())
}

/// What stays is listed exactly once, whatever goes meanwhile.
fn entries_removed_while_listing() -> Outcome {
    let count = setting().entries.min(10_000);
    for number in 0..count {
        mknod(&format!("{number}"), FileType::RegularFile, 0o644, 0)?;
    }
    let dir = open(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut found = Vec::new();
    loop {
        let mut buffer = [MaybeUninit::uninit(); 2048];
        let mut part = Vec::new();
        let mut reader = RawDir::new(&dir, &mut buffer);
        while let Some(entry) = reader.next() {
            part.push(entry?.file_name().to_string_lossy().into_owned());
            if reader.is_buffer_empty() {
                break;
            }
        }
        if part.is_empty() {
            break;
        }
        for name in part.into_iter().filter(|name| name != "." && name != "..") {
            if name.parse::<usize>()? % 2 == 0 {
                unlink(&name)?;
            }
            found.push(name);
        }
    }
    let distinct: BTreeSet<_> = found.iter().collect();
    same("names listed twice", found.len() - distinct.len(), 0)?;
    same("names listed", distinct.len(), count)?;
    same("names left", list(".")?.len(), count / 2)
}

fn entries_added_while_listing() -> Outcome {
    let count = setting().entries.min(1000);
    for number in 0..count {
        create(&format!("old{number}"))?;
    }
    let dir = open(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names: Vec<_> = entries(&dir, 10)?.into_iter().map(|entry| entry.name).collect();
    for number in 0..count {
        create(&format!("new{number}"))?;
    }
    names.extend(entries(&dir, usize::MAX)?.into_iter().map(|entry| entry.name));
    let distinct: BTreeSet<_> = names.iter().collect();
    same("names listed twice", names.len() - distinct.len(), 0)?;
    let old = names.iter().filter(|name| name.starts_with("old")).count();
    // Of what the first reader's buffer held, ten were taken.
    holds("old names are there", (count.saturating_sub(200)..=count).contains(&old))
}

/// Events that have come, as mask and name.
fn events(inotify: &impl std::os::fd::AsFd) -> Outcome<Vec<(ReadFlags, String)>> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let mut found = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map(CStr::to_string_lossy).unwrap_or_default();
                found.push((event.events(), name.into_owned()));
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(found),
            Err(error) => return Err(error.into()),
        }
    }
}

fn own_changes_are_told() -> Outcome {
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let wanted = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::ATTRIB;
    inotify::add_watch(&inotify, ".", wanted)?;
    create("file")?;
    chmod("file", 0o600)?;
    rename("file", "moved")?;
    unlink("moved")?;
    mkdir("dir", 0o755)?;
    let told = events(&inotify)?;
    let told: Vec<_> = told.iter().map(|(events, name)| (*events, name.as_str())).collect();
    let found = |events: ReadFlags, name: &str| told.contains(&(events, name));
    holds("creation", found(ReadFlags::CREATE, "file"))?;
    holds("chmod", found(ReadFlags::ATTRIB, "file"))?;
    holds("the move", found(ReadFlags::MOVED_FROM, "file") && found(ReadFlags::MOVED_TO, "moved"))?;
    holds("removal", found(ReadFlags::DELETE, "moved"))?;
    holds("the directory", found(ReadFlags::CREATE | ReadFlags::ISDIR, "dir"))
}

fn changes_of_contents_are_told() -> Outcome {
    fill("file", b"content")?;
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let wanted = WatchFlags::OPEN | WatchFlags::ACCESS | WatchFlags::MODIFY | WatchFlags::CLOSE;
    inotify::add_watch(&inotify, "file", wanted)?;
    std::fs::read("file")?;
    std::fs::write("file", "other")?;
    let told = events(&inotify)?;
    for wanted in [
        ReadFlags::OPEN,
        ReadFlags::ACCESS,
        ReadFlags::MODIFY,
        ReadFlags::CLOSE_NOWRITE,
        ReadFlags::CLOSE_WRITE,
    ] {
        holds(&format!("{wanted:?} told"), told.iter().any(|(events, _)| *events == wanted))?;
    }
    Ok(())
}
