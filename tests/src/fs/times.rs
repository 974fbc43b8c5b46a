// SPDX-License-Identifier: Apache-2.0

//! Times: those that are set, and those that other calls move on.

use std::io::Write;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::calls::*;
use super::process::{ALICE, BOB, as_user};
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("are_set_to_the_nanosecond", are_set_to_the_nanosecond),
    ("now_and_omit", now_and_omit),
    ("before_1970_and_far_off", before_1970_and_far_off),
    ("of_a_symbolic_link", of_a_symbolic_link),
    ("of_directories_and_special_files", of_directories_and_special_files),
    ("set_by_users", set_by_users),
    ("a_change_moves_them_on", a_change_moves_them_on),
    ("directories_change_with_their_entries", directories_change_with_their_entries),
    ("set_on_an_open_file_that_is_written", set_on_an_open_file_that_is_written),
    ("a_rename_keeps_mtime", a_rename_keeps_mtime),
];

fn set(name: &str, atime: Timespec, mtime: Timespec) -> rustix::io::Result<()> {
    let times = Timestamps { last_access: atime, last_modification: mtime };
    rustix::fs::utimensat(CWD, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
const OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };

fn are_set_to_the_nanosecond() -> Outcome {
    create("file")?;
    set("file", timespec(1_000_000_000, 123_456_789), timespec(1_500_000_000, 987_654_321))?;
    let found = stat("file")?;
    same("atime", atime(&found), 1_000_000_000_123_456_789)?;
    same("mtime", mtime(&found), 1_500_000_000_987_654_321)?;
    let file = open("file", OFlags::RDONLY)?;
    let (last_access, last_modification) = (timespec(5, 6), timespec(7, 8));
    rustix::fs::futimens(&file, &Timestamps { last_access, last_modification })?;
    let found = rustix::fs::fstat(&file)?;
    same("times", (atime(&found), mtime(&found)), (5_000_000_006, 7_000_000_008))?;
    refused(set("file", timespec(0, 1_000_000_000), OMIT), Errno::INVAL)?;
    refused(set("none", NOW, NOW), Errno::NOENT)
}

fn now_and_omit() -> Outcome {
    create("file")?;
    let then = timespec(1000, 1);
    set("file", then, then)?;
    let before = stat("file")?;
    set("file", OMIT, OMIT)?;
    same("mtime", mtime(&stat("file")?), mtime(&before))?;
    set("file", OMIT, NOW)?;
    let found = stat("file")?;
    same("atime", atime(&found), 1_000_000_000_001)?;
    holds("mtime is now", mtime(&found) >= ctime(&before))?;
    set("file", NOW, then)?;
    let found = stat("file")?;
    same("mtime", mtime(&found), 1_000_000_000_001)?;
    holds("atime is now", atime(&found) >= ctime(&before))
}

fn before_1970_and_far_off() -> Outcome {
    create("file")?;
    for (seconds, nanoseconds) in [(-1, 0), (-1_000_000, 999_999_999), (0, 0), (4_294_967_296, 1)] {
        let time = timespec(seconds, nanoseconds);
        set("file", time, time)?;
        let wanted = Nanoseconds::from(seconds) * 1_000_000_000 + Nanoseconds::from(nanoseconds);
        let found = stat("file")?;
        same("times", (atime(&found), mtime(&found)), (wanted, wanted))?;
    }
    Ok(())
}

fn of_a_symbolic_link() -> Outcome {
    create("file")?;
    symlink("file", "link")?;
    set("file", timespec(1, 0), timespec(2, 0))?;
    set("link", timespec(3, 0), timespec(4, 0))?;
    same("mtime of the link", stat("link")?.st_mtime, 4)?;
    same("mtime of its target", stat("file")?.st_mtime, 2)?;
    let times = Timestamps { last_access: timespec(5, 0), last_modification: timespec(6, 0) };
    rustix::fs::utimensat(CWD, "link", &times, AtFlags::empty())?;
    same("mtime of its target", stat("file")?.st_mtime, 6)?;
    same("mtime of the link", stat("link")?.st_mtime, 4)
}

fn of_directories_and_special_files() -> Outcome {
    mkdir("dir", 0o755)?;
    mknod("fifo", rustix::fs::FileType::Fifo, 0o644, 0)?;
    mknod("socket", rustix::fs::FileType::Socket, 0o644, 0)?;
    for name in ["dir", "fifo", "socket"] {
        set(name, timespec(10, 11), timespec(12, 13))?;
        same(name, mtime(&stat(name)?), 12_000_000_013)?;
    }
    Ok(())
}

fn set_by_users() -> Outcome {
    create("file")?;
    chown("file", Some(ALICE.id), Some(ALICE.id))?;
    chmod("file", 0o446)?;
    as_user(ALICE, || Ok(set("file", timespec(1, 0), timespec(2, 0))?))?;
    as_user(BOB, || {
        // Whoever may write may set them to now, and to nothing else.
        set("file", NOW, NOW)?;
        refused(set("file", timespec(1, 0), timespec(2, 0)), Errno::PERM)?;
        refused(set("file", OMIT, NOW), Errno::PERM)
    })?;
    chmod("file", 0o444)?;
    as_user(BOB, || refused(set("file", NOW, NOW), Errno::ACCESS))
}

/// Calls `change` until `time` of `name` has moved on; clocks of file systems tick slowly.
fn moves(
    what: &str,
    name: &str,
    time: fn(&Stat) -> Nanoseconds,
    mut change: impl FnMut() -> Outcome,
) -> Outcome {
    let before = time(&stat(name)?);
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        change()?;
        if time(&stat(name)?) > before {
            return Ok(());
        }
        holds(what, Instant::now() < end)?;
    }
}

fn a_change_moves_them_on() -> Outcome {
    let mut file = create("file")?;
    moves("a write moves mtime", "file", mtime, || Ok(file.write_all(b"x")?))?;
    moves("a write moves ctime", "file", ctime, || Ok(file.write_all(b"x")?))?;
    moves("a truncation moves mtime", "file", mtime, || Ok(file.set_len(1)?))?;
    moves("O_TRUNC moves mtime", "file", mtime, || {
        Ok(open("file", OFlags::WRONLY | OFlags::TRUNC).map(drop)?)
    })?;
    let before = mtime(&stat("file")?);
    moves("chmod moves ctime", "file", ctime, || Ok(chmod("file", 0o640)?))?;
    moves("chown moves ctime", "file", ctime, || Ok(chown("file", Some(1), None)?))?;
    moves("a link moves ctime", "file", ctime, || {
        link("file", "link")?;
        Ok(unlink("link")?)
    })?;
    same("mtime after those", mtime(&stat("file")?), before)
}

fn directories_change_with_their_entries() -> Outcome {
    mkdir("dir", 0o755)?;
    mkdir("other", 0o755)?;
    let file = |make: fn() -> Outcome| moves("mtime of the directory", "dir", mtime, make);
    file(|| {
        create("dir/file")?;
        Ok(unlink("dir/file")?)
    })?;
    file(|| {
        mkdir("dir/sub", 0o755)?;
        Ok(rmdir("dir/sub")?)
    })?;
    file(|| {
        symlink("x", "dir/link")?;
        Ok(unlink("dir/link")?)
    })?;
    create("dir/file")?;
    file(|| {
        rename("dir/file", "other/file")?;
        Ok(rename("other/file", "dir/file")?)
    })?;
    file(|| {
        link("dir/file", "dir/hard")?;
        Ok(unlink("dir/hard")?)
    })?;
    let before = mtime(&stat("dir")?);
    std::fs::write("dir/file", "content")?;
    chmod("dir/file", 0o600)?;
    same("mtime after a write to a file", mtime(&stat("dir")?), before)
}

fn set_on_an_open_file_that_is_written() -> Outcome {
    let mut file = create("file")?;
    file.write_all(b"content")?;
    set("file", timespec(100, 0), timespec(200, 0))?;
    file.sync_all()?;
    drop(file);
    same("mtime", stat("file")?.st_mtime, 200)
}

fn a_rename_keeps_mtime() -> Outcome {
    create("file")?;
    set("file", timespec(100, 1), timespec(200, 2))?;
    rename("file", "other")?;
    link("other", "third")?;
    same("mtime", mtime(&stat("third")?), 200_000_000_002)
}
