// SPDX-License-Identifier: Apache-2.0

//! A tree of files with all that files have. What one side of a share makes the other side
//! checks: content, owners, modes, times, links, kinds and attributes.

use std::io;
use std::os::unix::fs::{FileExt, chown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use sha2::{Digest, Sha256};

/// A name, its kind, mode, owner and size.
type Facts = (&'static str, FileType, u32, (u32, u32), u64);

const FILES: [Facts; 9] = [
    ("plain", FileType::RegularFile, 0o640, (0, 0), 3_000_000),
    ("owned", FileType::RegularFile, 0o4751, (1000, 2000), 10),
    ("group", FileType::RegularFile, 0o2711, (4_000_000_000, 65534), 0),
    ("sparse", FileType::RegularFile, 0o600, (5, 6), 50 << 20),
    ("dir", FileType::Directory, 0o1777, (7, 8), 0),
    ("dir/sub", FileType::Directory, 0o2750, (9, 10), 0),
    ("dir/sub/file", FileType::RegularFile, 0o000, (11, 12), 4097),
    ("fifo", FileType::Fifo, 0o622, (13, 14), 0),
    ("socket", FileType::Socket, 0o777, (15, 16), 0),
];

const LINK_TARGET: &str = "../dir/sub/\u{e4}/nowhere";

fn time(number: usize) -> Timespec {
    Timespec { tv_sec: 1_000_000_000 + number as i64, tv_nsec: 123_456_789 + number as i64 }
}

/// The content of a file of this length. Of the sparse one only a part is data.
fn content(name: &str, len: u64) -> (u64, Vec<u8>) {
    let (at, len) = if name == "sparse" { (20 << 20, 10_000) } else { (0, len as usize) };
    (at, (0..len).map(|place| ((place * 31 + name.len()) % 253) as u8).collect())
}

/// Makes the tree in an empty directory.
pub fn make(directory: &Path) -> io::Result<()> {
    for (name, kind, ..) in FILES {
        let path = directory.join(name);
        match kind {
            FileType::Directory => rustix::fs::mkdirat(CWD, &path, Mode::RWXU)?,
            _ => rustix::fs::mknodat(CWD, &path, kind, Mode::RUSR | Mode::WUSR, 0)?,
        }
    }
    for (name, kind, _, _, len) in FILES {
        if kind == FileType::RegularFile {
            let file = std::fs::OpenOptions::new().write(true).open(directory.join(name))?;
            let (at, data) = content(name, len);
            file.write_all_at(&data, at)?;
            file.set_len(len)?;
        }
    }
    rustix::fs::setxattr(directory.join("plain"), "user.husk", b"value", XattrFlags::empty())?;
    rustix::fs::setxattr(directory.join("dir"), "user.husk", b"", XattrFlags::empty())?;
    std::fs::hard_link(directory.join("plain"), directory.join("dir/hard"))?;
    symlink(LINK_TARGET, directory.join("link"))?;
    std::os::unix::fs::lchown(directory.join("link"), Some(17), Some(18))?;
    // From the leaves up, for owners and times of a directory go last.
    for (number, (name, _, mode, (uid, gid), _)) in FILES.into_iter().enumerate().rev() {
        let path = directory.join(name);
        chown(&path, Some(uid), Some(gid))?;
        rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        let times = Timestamps { last_access: time(number), last_modification: time(number) };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
    }
    Ok(())
}

/// Checks a tree that the other side has made; returns what differs, a line each, and a
/// digest of the contents.
pub fn check(directory: &Path) -> io::Result<(Vec<String>, String)> {
    let mut wrong = Vec::new();
    let mut same = |what: String, found: String, wanted: String| {
        if found != wanted {
            wrong.push(format!("{what}: {found}, not {wanted}"));
        }
    };
    let mut digest = Sha256::new();
    for (number, (name, kind, mode, owner, len)) in FILES.into_iter().enumerate() {
        let path = directory.join(name);
        let stat = rustix::fs::lstat(&path)?;
        let found_kind = FileType::from_raw_mode(stat.st_mode);
        same(format!("kind of {name}"), format!("{found_kind:?}"), format!("{kind:?}"));
        let found_mode = stat.st_mode & 0o7777;
        same(format!("mode of {name}"), format!("{found_mode:o}"), format!("{mode:o}"));
        let found_owner = (stat.st_uid, stat.st_gid);
        same(format!("owner of {name}"), format!("{found_owner:?}"), format!("{owner:?}"));
        let found_time = (stat.st_mtime, stat.st_mtime_nsec as i64);
        let wanted = (time(number).tv_sec, time(number).tv_nsec);
        same(format!("mtime of {name}"), format!("{found_time:?}"), format!("{wanted:?}"));
        if kind == FileType::RegularFile {
            same(format!("size of {name}"), stat.st_size.to_string(), len.to_string());
            let found = std::fs::read(&path)?;
            let (at, data) = content(name, len);
            let mut wanted = vec![0; len as usize];
            wanted[at as usize..at as usize + data.len()].copy_from_slice(&data);
            let is_right = found == wanted;
            same(format!("content of {name}"), is_right.to_string(), true.to_string());
            digest.update(&found);
        }
    }
    let blocks = rustix::fs::lstat(directory.join("sparse"))?.st_blocks * 512;
    same("the sparse file is sparse".into(), (blocks < 1 << 20).to_string(), true.to_string());
    let (plain, hard) = (directory.join("plain"), directory.join("dir/hard"));
    let (plain_stat, hard_stat) = (rustix::fs::lstat(&plain)?, rustix::fs::lstat(&hard)?);
    same("inode of the link".into(), hard_stat.st_ino.to_string(), plain_stat.st_ino.to_string());
    same("links".into(), plain_stat.st_nlink.to_string(), 2.to_string());
    let target = std::fs::read_link(directory.join("link"))?;
    same("target".into(), target.display().to_string(), LINK_TARGET.to_owned());
    let link = rustix::fs::lstat(directory.join("link"))?;
    same("owner of link".into(), format!("{:?}", (link.st_uid, link.st_gid)), "(17, 18)".into());
    let mut value = [0; 10];
    let len = rustix::fs::getxattr(&plain, "user.husk", &mut value[..])?;
    let found = String::from_utf8_lossy(&value[..len]).into_owned();
    same("attribute of plain".into(), found, "value".to_owned());
    let len = rustix::fs::getxattr_query(directory.join("dir"), "user.husk")?;
    same("length of the attribute of dir".into(), len.to_string(), 0.to_string());
    Ok((wrong, format!("{:x}", digest.finalize())))
}
