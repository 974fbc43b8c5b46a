// SPDX-License-Identifier: Apache-2.0

//! Flags of open, files without a name, programs.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::calls::*;
use super::process::{ALICE, as_user};
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("create_and_exclusive", create_and_exclusive),
    ("create_with_a_mode_that_forbids", create_with_a_mode_that_forbids),
    ("access_modes", access_modes),
    ("truncate", truncate),
    ("directory_and_nofollow", directory_and_nofollow),
    ("path_only", path_only),
    ("append", append),
    ("append_set_later", append_set_later),
    ("synchronous", synchronous),
    ("noatime", noatime),
    ("without_a_name", without_a_name),
    ("without_a_name_for_good", without_a_name_for_good),
    ("without_a_name_by_a_user", without_a_name_by_a_user),
    ("a_program_runs", a_program_runs),
    ("a_running_program_is_busy", a_running_program_is_busy),
    ("a_script_runs", a_script_runs),
    ("many_open_files", many_open_files),
];

fn create_and_exclusive() -> Outcome {
    let flags = OFlags::CREATE | OFlags::RDWR;
    open("file", flags)?.write_all(b"content")?;
    let mut again = open("file", flags)?;
    let mut content = String::new();
    again.read_to_string(&mut content)?;
    same("content", content, "content".to_owned())?;
    refused(open("file", flags | OFlags::EXCL), Errno::EXIST)?;
    refused(open("none", OFlags::RDWR), Errno::NOENT)?;
    refused(open("none/file", flags), Errno::NOENT)?;
    refused(open("file/none", flags), Errno::NOTDIR)?;
    refused(open("dir/", flags), Errno::ISDIR)
}

fn create_with_a_mode_that_forbids() -> Outcome {
    mkdir("dir", 0o777)?;
    chmod("dir", 0o777)?;
    as_user(ALICE, || {
        // The mode is for the next open; this descriptor may do as asked.
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let mut file = open_mode("dir/file", flags, 0o000)?;
        file.write_all(b"content")?;
        refused(open("dir/file", OFlags::RDONLY), Errno::ACCESS)?;
        same("size", stat("dir/file")?.st_size, 7)
    })
}

fn access_modes() -> Outcome {
    fill("file", b"content")?;
    let reader = open("file", OFlags::RDONLY)?;
    refused(rustix::io::write(&reader, b"x"), Errno::BADF)?;
    refused(rustix::fs::ftruncate(&reader, 0), Errno::INVAL)?;
    let writer = open("file", OFlags::WRONLY)?;
    refused(rustix::io::read(&writer, &mut [0; 1]), Errno::BADF)?;
    mkdir("dir", 0o755)?;
    refused(open("dir", OFlags::WRONLY), Errno::ISDIR)?;
    refused(open("dir", OFlags::RDWR), Errno::ISDIR)?;
    let dir = open("dir", OFlags::RDONLY)?;
    refused(rustix::io::read(&dir, &mut [0; 1]), Errno::ISDIR)
}

fn truncate() -> Outcome {
    fill("file", b"content")?;
    let held = open("file", OFlags::RDONLY)?;
    open("file", OFlags::WRONLY | OFlags::TRUNC)?;
    same("size", stat("file")?.st_size, 0)?;
    same("size by descriptor", rustix::fs::fstat(&held)?.st_size, 0)?;
    std::fs::write("file", "more")?;
    open("file", OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
    same("content", std::fs::read("file")?, vec![])
}

fn directory_and_nofollow() -> Outcome {
    create("file")?;
    mkdir("dir", 0o755)?;
    symlink("dir", "link")?;
    refused(open("file", OFlags::DIRECTORY), Errno::NOTDIR)?;
    open("dir", OFlags::DIRECTORY)?;
    open("link", OFlags::DIRECTORY)?;
    refused(open("link", OFlags::DIRECTORY | OFlags::NOFOLLOW), Errno::NOTDIR)?;
    refused(open("link", OFlags::NOFOLLOW), Errno::LOOP)?;
    open("file", OFlags::NOFOLLOW)?;
    Ok(())
}

fn path_only() -> Outcome {
    fill("file", b"content")?;
    chmod("file", 0)?;
    mknod("fifo", FileType::Fifo, 0o644, 0)?;
    symlink("file", "link")?;
    as_user(ALICE, || {
        let file = open("file", OFlags::PATH)?;
        same("size", rustix::fs::fstat(&file)?.st_size, 7)?;
        refused(rustix::io::read(&file, &mut [0; 1]), Errno::BADF)
    })?;
    open("fifo", OFlags::PATH)?;
    let link = open("link", OFlags::PATH | OFlags::NOFOLLOW)?;
    same("kind", kind(&rustix::fs::fstat(&link)?), FileType::Symlink)?;
    let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
    same("target", target.to_string_lossy().into_owned(), "file".to_owned())
}

fn append() -> Outcome {
    fill("file", b"12345")?;
    let flags = OFlags::WRONLY | OFlags::APPEND;
    let (mut a, mut b) = (open("file", flags)?, open("file", flags)?);
    for _ in 0..3 {
        a.write_all(b"a")?;
        b.write_all(b"b")?;
    }
    std::io::Seek::rewind(&mut a)?;
    a.write_all(b"!")?;
    same("content", std::fs::read_to_string("file")?, "12345ababab!".to_owned())
}

fn append_set_later() -> Outcome {
    fill("file", b"12345")?;
    let mut file = open("file", OFlags::WRONLY)?;
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
    file.write_all(b"a")?;
    std::fs::OpenOptions::new().append(true).open("file")?.write_all(b"b")?;
    file.write_all(b"c")?;
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    std::io::Seek::rewind(&mut file)?;
    file.write_all(b"0")?;
    same("content", std::fs::read_to_string("file")?, "02345abc".to_owned())
}

fn synchronous() -> Outcome {
    for (name, flag) in [("sync", OFlags::SYNC), ("dsync", OFlags::DSYNC)] {
        let mut file = open(name, OFlags::CREATE | OFlags::RDWR | flag)?;
        file.write_all(b"content")?;
        holds("the flag is kept", rustix::fs::fcntl_getfl(&file)?.contains(flag))?;
        file.sync_data()?;
        file.sync_all()?;
        same("content", std::fs::read(name)?, b"content".to_vec())?;
    }
    let dir = open(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    dir.sync_all()?;
    Ok(rustix::fs::syncfs(&dir)?)
}

fn noatime() -> Outcome {
    fill("file", b"content")?;
    open("file", OFlags::RDONLY | OFlags::NOATIME)?;
    as_user(ALICE, || refused(open("file", OFlags::RDONLY | OFlags::NOATIME), Errno::PERM))
}

fn without_a_name() -> Outcome {
    let mut file = open_mode(".", OFlags::TMPFILE | OFlags::RDWR, 0o640)?;
    file.write_all(b"content")?;
    let stat_open = rustix::fs::fstat(&file)?;
    same("links and mode", (stat_open.st_nlink, stat_open.st_mode & 0o777), (0, 0o640))?;
    same("names", list(".")?, Vec::new())?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, &path, CWD, "named", AtFlags::SYMLINK_FOLLOW)?;
    same("content", std::fs::read("named")?, b"content".to_vec())?;
    same("links", stat("named")?.st_nlink, 1)?;
    create("file")?;
    refused(open("file", OFlags::TMPFILE | OFlags::RDWR), Errno::NOTDIR)?;
    refused(open("none", OFlags::TMPFILE | OFlags::RDWR), Errno::NOENT)
}

fn without_a_name_for_good() -> Outcome {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL;
    let file = open_mode(".", flags, 0o600)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    refused(rustix::fs::linkat(CWD, &path, CWD, "named", AtFlags::SYMLINK_FOLLOW), Errno::NOENT)
}

fn without_a_name_by_a_user() -> Outcome {
    mkdir("dir", 0o777)?;
    chmod("dir", 0o777)?;
    as_user(ALICE, || {
        rustix::process::umask(Mode::from_raw_mode(0o027));
        let file = open_mode("dir", OFlags::TMPFILE | OFlags::WRONLY, 0o666)?;
        let found = rustix::fs::fstat(&file)?;
        same("owner", (found.st_uid, found.st_gid), (ALICE.id, ALICE.id))?;
        same("mode", found.st_mode & 0o777, 0o640)?;
        refused(open_mode(".", OFlags::TMPFILE | OFlags::WRONLY, 0o600), Errno::ACCESS)
    })
}

/// A copy of this program, to be run as `program`.
fn copy_program() -> Outcome {
    std::fs::copy(std::env::current_exe()?, "program")?;
    Ok(chmod("program", 0o755)?)
}

fn a_program_runs() -> Outcome {
    copy_program()?;
    let output = Command::new("./program").arg("echo").arg("hello").output()?;
    same("output", String::from_utf8_lossy(&output.stdout).into_owned(), "hello\n".to_owned())?;
    chmod("program", 0o644)?;
    match Command::new("./program").output() {
        Err(error) => same("error", error.raw_os_error(), Some(libc::EACCES)),
        Ok(_) => differs("ran without permission to execute".to_owned()),
    }
}

fn a_running_program_is_busy() -> Outcome {
    copy_program()?;
    let mut running = Command::new("./program")
        .arg("echo-after-stdin")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let tries = (open("program", OFlags::WRONLY), open("program", OFlags::RDONLY));
    // A running program's file may be replaced all the same.
    fill("new", b"replacement")?;
    rename("new", "program")?;
    drop(running.stdin.take());
    let output = running.wait_with_output()?;
    same("output", String::from_utf8_lossy(&output.stdout).into_owned(), "done\n".to_owned())?;
    refused(tries.0, Errno::TXTBSY)?;
    tries.1?;
    fill("written", b"#!/bin/sh\n")?;
    chmod("written", 0o755)?;
    let _writer = open("written", OFlags::WRONLY)?;
    match Command::new("./written").output() {
        Err(error) => same("error", error.raw_os_error(), Some(libc::ETXTBSY)),
        Ok(_) => differs("ran while it was open for writing".to_owned()),
    }
}

fn a_script_runs() -> Outcome {
    copy_program()?;
    let own = std::env::current_dir()?.join("program");
    fill("script", format!("#!{} echo\n", own.display()).as_bytes())?;
    chmod("script", 0o755)?;
    let output = Command::new("./script").arg("x").output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    same("output", said, "./script x\n".to_owned())
}

fn many_open_files() -> Outcome {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let count = limit.unwrap_or(u64::MAX).min(350) as usize - 50;
    let mut files = Vec::new();
    for number in 0..count {
        let mut file = create(&number.to_string())?;
        file.write_all(&number.to_le_bytes())?;
        files.push(file);
    }
    for (number, mut file) in files.into_iter().enumerate() {
        let mut bytes = [0; 8];
        std::io::Seek::rewind(&mut file)?;
        file.read_exact(&mut bytes)?;
        same("content", usize::from_le_bytes(bytes), number)?;
    }
    Ok(())
}
