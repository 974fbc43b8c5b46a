// SPDX-License-Identifier: Apache-2.0

//! Names: links, symbolic links, directories, special files, and what may not be named so.

use std::io::{Read, Write};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::calls::*;
use super::process::{ALICE, as_user};
use super::{Case, Outcome, setting};

pub const CASES: &[Case] = &[
    ("hard_links_are_one_file", hard_links_are_one_file),
    ("links_to_other_kinds", links_to_other_kinds),
    ("links_are_refused", links_are_refused),
    ("an_open_file_gets_a_name_back", an_open_file_gets_a_name_back),
    ("symbolic_links_are_read_and_followed", symbolic_links_are_read_and_followed),
    ("symbolic_links_that_loop", symbolic_links_that_loop),
    ("symbolic_links_of_any_length", symbolic_links_of_any_length),
    ("directories_are_made_and_removed", directories_are_made_and_removed),
    ("rmdir_is_refused", rmdir_is_refused),
    ("a_removed_directory_stays_open", a_removed_directory_stays_open),
    ("unlink_is_refused", unlink_is_refused),
    ("an_unlinked_file_stays_open", an_unlinked_file_stays_open),
    ("an_unlinked_file_is_opened_again", an_unlinked_file_is_opened_again),
    ("a_name_is_used_again", a_name_is_used_again),
    ("special_files", special_files),
    ("device_nodes", device_nodes),
    ("long_names", long_names),
    ("deep_paths", deep_paths),
    ("odd_names", odd_names),
];

fn hard_links_are_one_file() -> Outcome {
    fill("a", b"content")?;
    link("a", "b")?;
    mkdir("dir", 0o755)?;
    link("b", "dir/c")?;
    let (a, c) = (stat("a")?, stat("dir/c")?);
    same("inode", a.st_ino, c.st_ino)?;
    same("links", (a.st_nlink, c.st_nlink), (3, 3))?;
    std::fs::write("dir/c", "other")?;
    same("content", std::fs::read("a")?, b"other".to_vec())?;
    chmod("b", 0o604)?;
    same("mode", mode("a")?, 0o604)?;
    unlink("a")?;
    same("links", stat("b")?.st_nlink, 2)?;
    let file = open("b", OFlags::RDONLY)?;
    unlink("b")?;
    unlink("dir/c")?;
    same("links of the open file", rustix::fs::fstat(&file)?.st_nlink, 0)
}

fn links_to_other_kinds() -> Outcome {
    mknod("fifo", FileType::Fifo, 0o644, 0)?;
    mknod("socket", FileType::Socket, 0o644, 0)?;
    symlink("nowhere", "symlink")?;
    for name in ["fifo", "socket", "symlink"] {
        let other = format!("{name}-2");
        link(name, &other)?;
        same("inode", stat(name)?.st_ino, stat(&other)?.st_ino)?;
        same("links", stat(name)?.st_nlink, 2)?;
    }
    Ok(())
}

fn links_are_refused() -> Outcome {
    create("file")?;
    mkdir("dir", 0o755)?;
    refused(link("file", "dir"), Errno::EXIST)?;
    refused(link("file", "file"), Errno::EXIST)?;
    refused(link("dir", "other"), Errno::PERM)?;
    refused(link("none", "other"), Errno::NOENT)?;
    refused(link("file", "none/other"), Errno::NOENT)?;
    refused(link("file", "file/other"), Errno::NOTDIR)
}

fn an_open_file_gets_a_name_back() -> Outcome {
    fill("first", b"content")?;
    let file = open("first", OFlags::RDONLY)?;
    rename("first", "second")?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    rustix::fs::linkat(CWD, &path, CWD, "third", AtFlags::SYMLINK_FOLLOW)?;
    same("content", std::fs::read("third")?, b"content".to_vec())?;
    same("links", stat("second")?.st_nlink, 2)
}

fn symbolic_links_are_read_and_followed() -> Outcome {
    mkdir("dir", 0o755)?;
    fill("dir/file", b"content")?;
    symlink("dir", "to-dir")?;
    symlink("to-dir/file", "to-file")?;
    symlink("nowhere", "dangling")?;
    same("target", readlink("to-file")?, "to-dir/file".to_owned())?;
    same("size", stat("to-file")?.st_size, 11)?;
    same("kind", kind(&stat("to-file")?), FileType::Symlink)?;
    same("content", std::fs::read("to-file")?, b"content".to_vec())?;
    same("names", list("to-dir")?, vec!["file".to_owned()])?;
    refused(open("dangling", OFlags::RDONLY), Errno::NOENT)?;
    refused(open("dangling", OFlags::CREATE | OFlags::EXCL | OFlags::RDWR), Errno::EXIST)?;
    open("dangling", OFlags::CREATE | OFlags::RDWR)?;
    holds("creating through a link makes its target", exists("nowhere"))?;
    refused(open("to-file", OFlags::NOFOLLOW | OFlags::RDONLY), Errno::LOOP)?;
    refused(symlink("x", "to-dir"), Errno::EXIST)?;
    refused(readlink("dir/file"), Errno::INVAL)?;
    unlink("to-dir")?;
    holds("the target stays", exists("dir/file"))
}

fn symbolic_links_that_loop() -> Outcome {
    symlink("b", "a")?;
    symlink("a", "b")?;
    symlink("self", "self")?;
    for name in ["a", "self", "a/x"] {
        refused(open(name, OFlags::RDONLY), Errno::LOOP)?;
    }
    Ok(())
}

fn symbolic_links_of_any_length() -> Outcome {
    // PATH_MAX counts the NUL; a file system's block may hold one less.
    for (number, len) in [1, 59, 60, 61, 1000, 4094].into_iter().enumerate() {
        let (name, target) = (number.to_string(), "t".repeat(len));
        symlink(&target, &name)?;
        same("target", readlink(&name)?, target)?;
        same("size", stat(&name)?.st_size, len as i64)?;
    }
    refused(symlink(&"t".repeat(4096), "long"), Errno::NAMETOOLONG)
}

fn directories_are_made_and_removed() -> Outcome {
    let links = stat(".")?.st_nlink;
    mkdir("dir", 0o700)?;
    mkdir("dir/sub", 0o700)?;
    same("kind", kind(&stat("dir")?), FileType::Directory)?;
    if links > 1 {
        same("links of a directory with one in it", stat("dir")?.st_nlink, 3)?;
    }
    refused(mkdir("dir", 0o700), Errno::EXIST)?;
    refused(mkdir("none/dir", 0o700), Errno::NOENT)?;
    create("file")?;
    refused(mkdir("file", 0o700), Errno::EXIST)?;
    refused(mkdir("file/dir", 0o700), Errno::NOTDIR)?;
    same("inode of ..", stat("dir/sub/..")?.st_ino, stat("dir")?.st_ino)?;
    rmdir("dir/sub")?;
    rmdir("dir")?;
    holds("the directory is gone", !exists("dir"))
}

fn rmdir_is_refused() -> Outcome {
    mkdir("dir", 0o755)?;
    create("dir/file")?;
    refused(rmdir("dir"), Errno::NOTEMPTY)?;
    refused(rmdir("dir/file"), Errno::NOTDIR)?;
    refused(rmdir("dir/."), Errno::INVAL)?;
    refused(rmdir("none"), Errno::NOENT)?;
    symlink("dir", "link")?;
    refused(rmdir("link"), Errno::NOTDIR)
}

fn a_removed_directory_stays_open() -> Outcome {
    mkdir("dir", 0o755)?;
    let dir = open("dir", OFlags::RDONLY | OFlags::DIRECTORY)?;
    rmdir("dir")?;
    same("links", rustix::fs::fstat(&dir)?.st_nlink, 0)?;
    let made = rustix::fs::openat(&dir, "file", OFlags::CREATE | OFlags::RDWR, Mode::RUSR);
    refused(made, Errno::NOENT)?;
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o700))?;
    same("entries", rustix::fs::Dir::read_from(&dir)?.filter(|e| e.is_ok()).count(), 0)
}

fn unlink_is_refused() -> Outcome {
    mkdir("dir", 0o755)?;
    refused(unlink("dir"), Errno::ISDIR)?;
    refused(unlink("none"), Errno::NOENT)?;
    create("file")?;
    refused(unlink("file/none"), Errno::NOTDIR)
}

fn an_unlinked_file_stays_open() -> Outcome {
    let mut file = create("file")?;
    file.write_all(b"before ")?;
    unlink("file")?;
    file.write_all(b"after")?;
    file.set_len(11)?;
    let stat = rustix::fs::fstat(&file)?;
    same("size and links", (stat.st_size, stat.st_nlink), (11, 0))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o640))?;
    rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(7)), None)?;
    let stat = rustix::fs::fstat(&file)?;
    same("mode and owner", (stat.st_mode & 0o777, stat.st_uid), (0o640, 7))?;
    file.sync_all()?;
    std::io::Seek::rewind(&mut file)?;
    same("content", std::io::read_to_string(&file)?, "before afte".to_owned())
}

fn an_unlinked_file_is_opened_again() -> Outcome {
    let mut file = create("file")?;
    file.write_all(b"content")?;
    unlink("file")?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let again = open(&path, OFlags::RDWR)?;
    same("content", std::io::read_to_string(&again)?, "content".to_owned())?;
    (&again).write_all(b" more")?;
    let mut all = String::new();
    std::io::Seek::rewind(&mut file)?;
    file.read_to_string(&mut all)?;
    same("content", all, "content more".to_owned())
}

fn a_name_is_used_again() -> Outcome {
    for round in 0..20u32 {
        let text = round.to_string();
        fill("name", text.as_bytes())?;
        same("content", std::fs::read_to_string("name")?, text)?;
        let old = open("name", OFlags::RDONLY)?;
        unlink("name")?;
        mkdir("name", 0o755)?;
        same("kind", kind(&stat("name")?), FileType::Directory)?;
        rmdir("name")?;
        symlink("target", "name")?;
        same("target", readlink("name")?, "target".to_owned())?;
        unlink("name")?;
        same("content", std::io::read_to_string(&old)?, round.to_string())?;
    }
    Ok(())
}

fn special_files() -> Outcome {
    for (name, kind_wanted) in
        [("fifo", FileType::Fifo), ("socket", FileType::Socket), ("file", FileType::RegularFile)]
    {
        mknod(name, kind_wanted, 0o640, 0)?;
        let found = stat(name)?;
        same(name, (kind(&found), found.st_mode & 0o777), (kind_wanted, 0o640))?;
        refused(mknod(name, kind_wanted, 0o640, 0), Errno::EXIST)?;
        chmod(name, 0o604)?;
        chown(name, Some(8), Some(9))?;
        let found = stat(name)?;
        same(name, (found.st_mode & 0o777, found.st_uid, found.st_gid), (0o604, 8, 9))?;
    }
    refused(open("socket", OFlags::RDONLY), Errno::NXIO)?;
    chmod(".", 0o777)?;
    as_user(ALICE, || refused(mknod("null", FileType::CharacterDevice, 0o666, 0x103), Errno::PERM))
}

/// husk makes none on the host, where they would be devices of the host.
fn device_nodes() -> Outcome {
    let made = mknod("null", FileType::CharacterDevice, 0o600, 0x103);
    if setting().husk {
        return refused(made, Errno::PERM);
    }
    made?;
    let found = stat("null")?;
    same("node", (kind(&found), found.st_rdev), (FileType::CharacterDevice, 0x103))
}

fn long_names() -> Outcome {
    let (longest, too_long) = ("n".repeat(255), "n".repeat(256));
    fill(&longest, b"x")?;
    same("names", list(".")?, vec![longest.clone()])?;
    rename(&longest, &"m".repeat(255))?;
    refused(create(&too_long), Errno::NAMETOOLONG)?;
    refused(stat(&too_long), Errno::NAMETOOLONG)?;
    refused(mkdir(&too_long, 0o755), Errno::NAMETOOLONG)?;
    refused(rename(&"m".repeat(255), &too_long), Errno::NAMETOOLONG)?;
    // As bytes, whatever they mean.
    create(&"\u{20ac}".repeat(85))?;
    refused(create(&"\u{20ac}".repeat(86)), Errno::NAMETOOLONG)
}

fn deep_paths() -> Outcome {
    // 20 levels of 200 bytes nearly fill PATH_MAX; another 30 go beyond.
    let component = "d".repeat(200);
    let path = vec![component.as_str(); 20].join("/");
    std::fs::create_dir_all(&path)?;
    fill(&format!("{path}/file"), b"deep")?;
    same("content", std::fs::read(format!("{path}/file"))?, b"deep".to_vec())?;
    let long = format!("{path}/{}/x", component);
    refused(stat(&long), Errno::NAMETOOLONG)?;
    let start = std::env::current_dir()?;
    std::env::set_current_dir(&path)?;
    for _ in 0..30 {
        mkdir("e", 0o755)?;
        std::env::set_current_dir("e")?;
    }
    fill("file", b"deeper")?;
    same("content", std::fs::read("file")?, b"deeper".to_vec())?;
    Ok(std::env::set_current_dir(start)?)
}

fn odd_names() -> Outcome {
    use std::os::unix::ffi::OsStringExt;
    let names: Vec<_> = [&b"\xff\xfe"[..], b" ", b"a\nb", b"...", b"-rf", b"\\", b"*", b"\x01"]
        .into_iter()
        .map(|bytes| std::ffi::OsString::from_vec(bytes.to_vec()))
        .collect();
    for name in &names {
        std::fs::write(name, name.as_encoded_bytes())?;
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(".")? {
        found.push(entry?.file_name());
    }
    found.sort();
    let mut wanted = names.clone();
    wanted.sort();
    same("names", found, wanted)?;
    for name in &names {
        same("content", std::fs::read(name)?, name.as_encoded_bytes().to_vec())?;
        std::fs::remove_file(name)?;
    }
    Ok(())
}
