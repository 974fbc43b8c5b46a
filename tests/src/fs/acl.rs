// SPDX-License-Identifier: Apache-2.0

//! POSIX access control lists, as the extended attributes that they are set by.

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::calls::*;
use super::process::{ALICE, BOB, User, as_user};
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("grant_and_deny", grant_and_deny),
    ("mask_and_mode", mask_and_mode),
    ("a_minimal_list_is_a_mode", a_minimal_list_is_a_mode),
    ("defaults_are_inherited", defaults_are_inherited),
    ("defaults_replace_the_umask", defaults_replace_the_umask),
    ("are_the_owners_to_set", are_the_owners_to_set),
    ("nonsense_is_refused", nonsense_is_refused),
    ("by_another_group_drop_set_group_id", by_another_group_drop_set_group_id),
];

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NOBODY: u32 = u32::MAX;

/// A list of (kind, permissions, ID) in the format of the attribute.
fn encode(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (kind, permissions, id) in entries {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn set(name: &str, attribute: &str, entries: &[(u16, u16, u32)]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(name, attribute, &encode(entries), XattrFlags::empty())
}

fn get(name: &str, attribute: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 1000];
    let len = rustix::fs::lgetxattr(name, attribute, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// Sets a list, or skips the case where there are none.
fn try_set(name: &str, attribute: &str, entries: &[(u16, u16, u32)]) -> Outcome {
    match set(name, attribute, entries) {
        Err(Errno::OPNOTSUPP) if !super::setting().husk => {
            skip("this file system has no access control lists")
        }
        result => Ok(result?),
    }
}

/// For ALICE reading and writing, for the group 3000 reading, for others nothing.
const LIST: [(u16, u16, u32); 6] = [
    (OWNER, 6, NOBODY),
    (USER, 6, ALICE.id),
    (OWNING_GROUP, 0, NOBODY),
    (GROUP, 4, 3000),
    (MASK, 6, NOBODY),
    (OTHER, 0, NOBODY),
];

fn grant_and_deny() -> Outcome {
    fill("file", b"content")?;
    try_set("file", ACCESS, &LIST)?;
    same("list", get("file", ACCESS)?, encode(&LIST))?;
    same("mode", mode("file")?, 0o660)?;
    as_user(ALICE, || Ok(open("file", OFlags::RDWR).map(drop)?))?;
    as_user(BOB, || refused(open("file", OFlags::RDONLY), Errno::ACCESS))?;
    as_user(User { groups: &[3000], ..BOB }, || {
        open("file", OFlags::RDONLY)?;
        refused(open("file", OFlags::WRONLY), Errno::ACCESS)
    })?;
    rustix::fs::lremovexattr("file", ACCESS)?;
    refused(get("file", ACCESS), Errno::NODATA)?;
    // What was the mask is the group's now, as the mode says.
    as_user(ALICE, || refused(open("file", OFlags::RDONLY), Errno::ACCESS))
}

fn mask_and_mode() -> Outcome {
    create("file")?;
    try_set("file", ACCESS, &LIST)?;
    // The group's bits of a mode are the mask.
    chmod("file", 0o640)?;
    as_user(ALICE, || {
        open("file", OFlags::RDONLY)?;
        refused(open("file", OFlags::WRONLY), Errno::ACCESS)
    })?;
    let mut wanted = LIST;
    wanted[4].1 = 4;
    same("list", get("file", ACCESS)?, encode(&wanted))?;
    wanted[4].1 = 2;
    set("file", ACCESS, &wanted)?;
    same("mode", mode("file")?, 0o620)
}

fn a_minimal_list_is_a_mode() -> Outcome {
    create("file")?;
    let minimal = [(OWNER, 6, NOBODY), (OWNING_GROUP, 4, NOBODY), (OTHER, 2, NOBODY)];
    try_set("file", ACCESS, &minimal)?;
    same("mode", mode("file")?, 0o642)?;
    refused(get("file", ACCESS), Errno::NODATA)
}

const INHERITED: [(u16, u16, u32); 5] = [
    (OWNER, 7, NOBODY),
    (USER, 7, ALICE.id),
    (OWNING_GROUP, 5, NOBODY),
    (MASK, 7, NOBODY),
    (OTHER, 0, NOBODY),
];

fn defaults_are_inherited() -> Outcome {
    mkdir("dir", 0o755)?;
    try_set("dir", DEFAULT, &INHERITED)?;
    mkdir("dir/sub", 0o777)?;
    same("default list of a directory", get("dir/sub", DEFAULT)?, encode(&INHERITED))?;
    same("list of a directory", get("dir/sub", ACCESS)?, encode(&INHERITED))?;
    open_mode("dir/sub/file", OFlags::CREATE | OFlags::RDWR, 0o640)?;
    // Of the inherited permissions those that the mode has too.
    let mut wanted = INHERITED;
    (wanted[0].1, wanted[3].1) = (6, 4);
    same("list of a file", get("dir/sub/file", ACCESS)?, encode(&wanted))?;
    refused(get("dir/sub/file", DEFAULT), Errno::NODATA)?;
    chmod("dir", 0o711)?;
    as_user(ALICE, || Ok(create("dir/sub/mine").map(drop)?))?;
    same("owner", owner("dir/sub/mine")?, (ALICE.id, ALICE.id))?;
    rustix::fs::lremovexattr("dir/sub", DEFAULT)?;
    create("dir/sub/other")?;
    refused(get("dir/sub/other", ACCESS), Errno::NODATA)
}

fn defaults_replace_the_umask() -> Outcome {
    mkdir("dir", 0o755)?;
    try_set("dir", DEFAULT, &INHERITED)?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    open_mode("dir/file", OFlags::CREATE | OFlags::RDWR, 0o666)?;
    same("mode of a file", mode("dir/file")?, 0o660)?;
    mkdir("dir/sub", 0o777)?;
    same("mode of a directory", mode("dir/sub")?, 0o770)?;
    mknod("dir/fifo", rustix::fs::FileType::Fifo, 0o666, 0)?;
    same("mode of a FIFO", mode("dir/fifo")?, 0o660)?;
    open_mode("file", OFlags::CREATE | OFlags::RDWR, 0o666)?;
    same("mode of a file elsewhere", mode("file")?, 0o600)
}

fn are_the_owners_to_set() -> Outcome {
    create("file")?;
    chown("file", Some(BOB.id), None)?;
    chmod("file", 0o666)?;
    try_set("file", ACCESS, &LIST)?;
    as_user(ALICE, || refused(set("file", ACCESS, &LIST), Errno::PERM))?;
    as_user(BOB, || Ok(set("file", ACCESS, &LIST)?))?;
    refused(set("file", DEFAULT, &INHERITED), Errno::ACCESS)
}

fn nonsense_is_refused() -> Outcome {
    create("file")?;
    try_set("file", ACCESS, &LIST)?;
    // Without a mask; twice the same; unknown kind.
    let without = [(OWNER, 6, NOBODY), (USER, 6, 1), (OWNING_GROUP, 0, NOBODY), (OTHER, 0, NOBODY)];
    let twice = [(OWNER, 6, NOBODY), (OWNER, 6, NOBODY), (OWNING_GROUP, 0, NOBODY)];
    for list in [&without[..], &twice[..], &[(0x40, 7, NOBODY)]] {
        refused(set("file", ACCESS, list), Errno::INVAL)?;
    }
    let cut = rustix::fs::lsetxattr("file", ACCESS, &encode(&LIST)[..7], XattrFlags::empty());
    refused(cut, Errno::INVAL)?;
    same("list", get("file", ACCESS)?, encode(&LIST))
}

fn by_another_group_drop_set_group_id() -> Outcome {
    create("file")?;
    chown("file", Some(ALICE.id), Some(2000))?;
    chmod("file", 0o2755)?;
    try_set("file", ACCESS, &LIST)?;
    same("mode, set by root", mode("file")?, 0o2660)?;
    as_user(ALICE, || Ok(set("file", ACCESS, &LIST)?))?;
    same("mode, set by one outside the group", mode("file")?, 0o660)
}
