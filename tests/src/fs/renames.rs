// SPDX-License-Identifier: Apache-2.0

//! Renames: over files and directories, open or not, exchanged, and refused.

use std::io::Write;

use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use super::calls::*;
use super::process::{ALICE, as_user, start};
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("a_file_moves", a_file_moves),
    ("over_an_open_file", over_an_open_file),
    ("over_itself", over_itself),
    ("a_directory_moves", a_directory_moves),
    ("over_a_directory", over_a_directory),
    ("an_open_directory_moves", an_open_directory_moves),
    ("is_refused", is_refused),
    ("no_replace", no_replace),
    ("exchange", exchange),
    ("exchange_of_unlike_kinds", exchange_of_unlike_kinds),
    ("symbolic_links_and_special_files", symbolic_links_and_special_files),
    ("is_atomic_for_readers", is_atomic_for_readers),
    ("of_anothers_directory", of_anothers_directory),
];

fn a_file_moves() -> Outcome {
    fill("old", b"content")?;
    mkdir("dir", 0o755)?;
    let before = stat("old")?;
    rename("old", "dir/new")?;
    let after = stat("dir/new")?;
    same("inode", after.st_ino, before.st_ino)?;
    same("mtime", mtime(&after), mtime(&before))?;
    holds("the old name is gone", !exists("old"))?;
    same("content", std::fs::read("dir/new")?, b"content".to_vec())
}

fn over_an_open_file() -> Outcome {
    fill("target", b"old content")?;
    fill("source", b"new")?;
    let mut old = open("target", OFlags::RDWR)?;
    let new = open("source", OFlags::RDONLY)?;
    rename("source", "target")?;
    same("links of the file replaced", rustix::fs::fstat(&old)?.st_nlink, 0)?;
    old.write_all(b"OLD")?;
    std::io::Seek::rewind(&mut old)?;
    same("content replaced", std::io::read_to_string(&old)?, "OLD content".to_owned())?;
    same("content", std::fs::read("target")?, b"new".to_vec())?;
    same("content by descriptor", std::io::read_to_string(&new)?, "new".to_owned())?;
    same("names", list(".")?, vec!["target".to_owned()])
}

fn over_itself() -> Outcome {
    fill("a", b"content")?;
    link("a", "b")?;
    rename("a", "a")?;
    // Two names of one file: nothing happens.
    rename("a", "b")?;
    same("names", list(".")?, vec!["a".to_owned(), "b".to_owned()])
}

fn a_directory_moves() -> Outcome {
    std::fs::create_dir_all("a/b/c")?;
    mkdir("other", 0o755)?;
    fill("a/b/c/file", b"content")?;
    let inode = stat("a/b")?.st_ino;
    rename("a/b", "other/d")?;
    same("inode", stat("other/d")?.st_ino, inode)?;
    same("content", std::fs::read("other/d/c/file")?, b"content".to_vec())?;
    same("inode of ..", stat("other/d/..")?.st_ino, stat("other")?.st_ino)?;
    holds("the old name is gone", !exists("a/b"))
}

fn over_a_directory() -> Outcome {
    mkdir("empty", 0o755)?;
    mkdir("full", 0o755)?;
    create("full/file")?;
    refused(rename("empty", "full"), Errno::NOTEMPTY)?;
    let held = open("empty", OFlags::RDONLY | OFlags::DIRECTORY)?;
    rename("full", "empty")?;
    same("names", list("empty")?, vec!["file".to_owned()])?;
    same("links of the directory replaced", rustix::fs::fstat(&held)?.st_nlink, 0)
}

fn an_open_directory_moves() -> Outcome {
    mkdir("dir", 0o755)?;
    mkdir("to", 0o755)?;
    let dir = open("dir", OFlags::RDONLY | OFlags::DIRECTORY)?;
    rename("dir", "to/moved")?;
    let flags = OFlags::CREATE | OFlags::WRONLY;
    rustix::fs::openat(&dir, "made", flags, rustix::fs::Mode::RUSR)?;
    same("names", list("to/moved")?, vec!["made".to_owned()])?;
    let up = rustix::fs::statat(&dir, "..", rustix::fs::AtFlags::empty())?;
    same("inode of ..", up.st_ino, stat("to")?.st_ino)
}

fn is_refused() -> Outcome {
    create("file")?;
    std::fs::create_dir_all("dir/sub")?;
    refused(rename("none", "other"), Errno::NOENT)?;
    refused(rename("file", "none/other"), Errno::NOENT)?;
    refused(rename("file", "dir"), Errno::ISDIR)?;
    refused(rename("dir", "file"), Errno::NOTDIR)?;
    refused(rename("dir", "dir/sub/dir"), Errno::INVAL)?;
    refused(rename("dir/sub", "dir"), Errno::NOTEMPTY)?;
    refused(rename("file", "file/other"), Errno::NOTDIR)?;
    refused(rename_with("file", "dir", RenameFlags::from_bits_retain(1 << 20)), Errno::INVAL)
}

fn no_replace() -> Outcome {
    fill("a", b"a")?;
    fill("b", b"b")?;
    refused(rename_with("a", "b", RenameFlags::NOREPLACE), Errno::EXIST)?;
    refused(rename_with("a", "a", RenameFlags::NOREPLACE), Errno::EXIST)?;
    rename_with("a", "c", RenameFlags::NOREPLACE)?;
    same("content", std::fs::read("b")?, b"b".to_vec())?;
    same("content", std::fs::read("c")?, b"a".to_vec())
}

fn exchange() -> Outcome {
    fill("a", b"was a")?;
    mkdir("dir", 0o755)?;
    fill("dir/b", b"was b")?;
    let (a, b) = (stat("a")?.st_ino, stat("dir/b")?.st_ino);
    rename_with("a", "dir/b", RenameFlags::EXCHANGE)?;
    same("inodes", (stat("a")?.st_ino, stat("dir/b")?.st_ino), (b, a))?;
    same("content", std::fs::read("a")?, b"was b".to_vec())?;
    refused(rename_with("a", "none", RenameFlags::EXCHANGE), Errno::NOENT)?;
    let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
    refused(rename_with("a", "dir/b", both), Errno::INVAL)
}

fn exchange_of_unlike_kinds() -> Outcome {
    fill("file", b"content")?;
    mkdir("dir", 0o755)?;
    create("dir/in")?;
    rename_with("file", "dir", RenameFlags::EXCHANGE)?;
    same("content", std::fs::read("dir")?, b"content".to_vec())?;
    same("names", list("file")?, vec!["in".to_owned()])?;
    symlink("x", "link")?;
    rename_with("link", "file", RenameFlags::EXCHANGE)?;
    same("target", readlink("file")?, "x".to_owned())?;
    same("names", list("link")?, vec!["in".to_owned()])
}

fn symbolic_links_and_special_files() -> Outcome {
    fill("file", b"content")?;
    symlink("file", "link")?;
    rename("link", "moved")?;
    same("target", readlink("moved")?, "file".to_owned())?;
    fill("other", b"other")?;
    // The link is replaced, not what it leads to.
    rename("other", "moved")?;
    same("content", std::fs::read("file")?, b"content".to_vec())?;
    mknod("fifo", rustix::fs::FileType::Fifo, 0o644, 0)?;
    rename("fifo", "moved")?;
    same("kind", kind(&stat("moved")?), rustix::fs::FileType::Fifo)
}

/// A name that is replaced again and again is never missing, and never half.
fn is_atomic_for_readers() -> Outcome {
    fill("name", &[0; 4096])?;
    let writer = start(|| {
        for round in 1..=200u8 {
            fill("new", &[round; 4096])?;
            rename("new", "name")?;
        }
        Ok(())
    })?;
    loop {
        let content = std::fs::read("name")?;
        same("size", content.len(), 4096)?;
        holds("all bytes of one version", content.iter().all(|&byte| byte == content[0]))?;
        if content[0] == 200 {
            return writer.end();
        }
        if let Ok(Some(_)) = rustix::process::waitid(
            rustix::process::WaitId::Pid(writer.pid()),
            rustix::process::WaitIdOptions::EXITED
                | rustix::process::WaitIdOptions::NOHANG
                | rustix::process::WaitIdOptions::NOWAIT,
        ) {
            writer.end()?;
            return same("last version", std::fs::read("name")?[0], 200);
        }
    }
}

/// Moving a directory to another parent changes its "..", so it has to be writable.
fn of_anothers_directory() -> Outcome {
    mkdir("from", 0o777)?;
    mkdir("to", 0o777)?;
    chmod("from", 0o777)?;
    chmod("to", 0o777)?;
    mkdir("from/roots", 0o755)?;
    as_user(ALICE, || {
        refused(rename("from/roots", "to/mine"), Errno::ACCESS)?;
        Ok(rename("from/roots", "from/renamed")?)
    })
}
