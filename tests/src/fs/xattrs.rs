// SPDX-License-Identifier: Apache-2.0

//! Extended attributes by namespace and kind of file.

use rustix::fs::{FileType, OFlags, XattrFlags};
use rustix::io::Errno;

use super::calls::*;
use super::process::{ALICE, BOB, CAP_SYS_ADMIN, as_user, has_capability};
use super::{Case, Outcome, setting};

pub const CASES: &[Case] = &[
    ("are_set_read_listed_and_removed", are_set_read_listed_and_removed),
    ("create_and_replace", create_and_replace),
    ("sizes", sizes),
    ("names_are_checked", names_are_checked),
    ("of_users", of_users),
    ("user_attributes_are_for_files_and_directories", user_attributes_are_for_some),
    ("file_capabilities", file_capabilities),
    ("file_capabilities_go_with_a_write", file_capabilities_go_with_a_write),
    ("trusted", trusted),
    ("security_labels", security_labels),
    ("of_symbolic_links_and_special_files", of_symbolic_links_and_special_files),
    ("survive_rename_and_link", survive_rename_and_link),
    ("move_ctime_on", move_ctime_on),
];

const ANY: XattrFlags = XattrFlags::empty();

fn set(file: &str, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(file, name, value, ANY)
}

fn get(file: &str, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 64 << 10];
    let len = rustix::fs::lgetxattr(file, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn names(file: &str) -> rustix::io::Result<Vec<String>> {
    let mut bytes = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(file, &mut bytes[..])?;
    let text = String::from_utf8_lossy(&bytes[..len]);
    // A host with SELinux has a label on each.
    let own = text.split_terminator('\0').filter(|name| *name != "security.selinux");
    let mut names: Vec<_> = own.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn are_set_read_listed_and_removed() -> Outcome {
    create("file")?;
    mkdir("dir", 0o755)?;
    for file in ["file", "dir"] {
        set(file, "user.a", b"one")?;
        set(file, "user.b", b"")?;
        set(file, "user.a", b"two")?;
        same("value", get(file, "user.a")?, b"two".to_vec())?;
        same("empty value", get(file, "user.b")?, vec![])?;
        same("names", names(file)?, vec!["user.a".to_owned(), "user.b".to_owned()])?;
        rustix::fs::lremovexattr(file, "user.a")?;
        refused(get(file, "user.a"), Errno::NODATA)?;
        refused(rustix::fs::lremovexattr(file, "user.a"), Errno::NODATA)?;
        same("names", names(file)?, vec!["user.b".to_owned()])?;
    }
    let open_file = open("file", OFlags::RDWR)?;
    unlink("file")?;
    rustix::fs::fsetxattr(&open_file, "user.c", b"by descriptor", ANY)?;
    let mut value = [0; 100];
    same("length", rustix::fs::fgetxattr(&open_file, "user.c", &mut value[..])?, 13)
}

fn create_and_replace() -> Outcome {
    create("file")?;
    let set = |value, flags| rustix::fs::lsetxattr("file", "user.a", value, flags);
    refused(set(b"1", XattrFlags::REPLACE), Errno::NODATA)?;
    set(b"2", XattrFlags::CREATE)?;
    refused(set(b"3", XattrFlags::CREATE), Errno::EXIST)?;
    set(b"4", XattrFlags::REPLACE)?;
    same("value", get("file", "user.a")?, b"4".to_vec())
}

fn sizes() -> Outcome {
    create("file")?;
    for len in [1, 100, 2000] {
        let value = vec![len as u8; len];
        set("file", "user.a", &value)?;
        same("value", get("file", "user.a")?, value)?;
    }
    same("length", rustix::fs::lgetxattr_query("file", "user.a")?, 2000)?;
    let mut short = [0; 100];
    refused(rustix::fs::lgetxattr("file", "user.a", &mut short[..]), Errno::RANGE)?;
    refused(rustix::fs::llistxattr("file", &mut short[..3]), Errno::RANGE)?;
    refused(set("file", "user.b", &vec![0; (64 << 10) + 1]), Errno::TOOBIG)
}

fn names_are_checked() -> Outcome {
    create("file")?;
    set("file", &format!("user.{}", "n".repeat(250)), b"x")?;
    refused(set("file", &format!("user.{}", "n".repeat(251)), b"x"), Errno::RANGE)?;
    refused(set("file", "nonsense.a", b"x"), Errno::OPNOTSUPP)?;
    refused(get("file", "nonsense.a"), Errno::OPNOTSUPP)
}

fn of_users() -> Outcome {
    create("file")?;
    chown("file", Some(ALICE.id), Some(ALICE.id))?;
    chmod("file", 0o644)?;
    as_user(ALICE, || Ok(set("file", "user.a", b"x")?))?;
    as_user(BOB, || {
        same("value", get("file", "user.a")?, b"x".to_vec())?;
        refused(set("file", "user.a", b"y"), Errno::ACCESS)?;
        refused(set("file", "security.capability", &CAPABILITY), Errno::PERM)
    })?;
    chmod("file", 0o600)?;
    as_user(BOB, || refused(get("file", "user.a"), Errno::ACCESS))?;
    // One who owns a sticky directory alone may mark it.
    mkdir("dir", 0o755)?;
    chmod("dir", 0o1777)?;
    as_user(BOB, || refused(set("dir", "user.a", b"x"), Errno::PERM))
}

fn user_attributes_are_for_some() -> Outcome {
    symlink("x", "symlink")?;
    mknod("fifo", FileType::Fifo, 0o644, 0)?;
    mknod("socket", FileType::Socket, 0o644, 0)?;
    for name in ["symlink", "fifo", "socket"] {
        refused(set(name, "user.a", b"x"), Errno::PERM)?;
        refused(get(name, "user.a"), Errno::NODATA)?;
        same("names", names(name)?, Vec::new())?;
    }
    Ok(())
}

/// CAP_NET_RAW, permitted and effective, in the second version of the format.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn file_capabilities() -> Outcome {
    create("file")?;
    set("file", "security.capability", &CAPABILITY)?;
    same("value", get("file", "security.capability")?, CAPABILITY.to_vec())?;
    same("names", names("file")?, vec!["security.capability".to_owned()])?;
    refused(set("file", "security.capability", b"nonsense"), Errno::INVAL)?;
    rustix::fs::lremovexattr("file", "security.capability")?;
    refused(get("file", "security.capability"), Errno::NODATA)
}

fn file_capabilities_go_with_a_write() -> Outcome {
    let file = create("file")?;
    set("file", "security.capability", &CAPABILITY)?;
    rustix::io::write(&file, b"x")?;
    refused(get("file", "security.capability"), Errno::NODATA)?;
    set("file", "security.capability", &CAPABILITY)?;
    chown("file", Some(5), None)?;
    refused(get("file", "security.capability"), Errno::NODATA)?;
    set("file", "security.capability", &CAPABILITY)?;
    file.set_len(0)?;
    refused(get("file", "security.capability"), Errno::NODATA)
}

/// The host's root may keep secrets in there, so husk refuses them to any guest.
fn trusted() -> Outcome {
    create("file")?;
    let done = set("file", "trusted.a", b"x");
    if !has_capability(CAP_SYS_ADMIN)? || setting().husk {
        refused(done, Errno::PERM)?;
        return refused(get("file", "trusted.a"), Errno::NODATA);
    }
    done?;
    same("value", get("file", "trusted.a")?, b"x".to_vec())?;
    as_user(ALICE, || same("names for a user", names("file")?, Vec::new()))
}

/// They mean something to the host, so husk refuses to set them.
fn security_labels() -> Outcome {
    create("file")?;
    let done = set("file", "security.husk-test", b"x");
    if !has_capability(CAP_SYS_ADMIN)? || setting().husk {
        return refused(done, Errno::PERM);
    }
    done?;
    same("value", get("file", "security.husk-test")?, b"x".to_vec())
}

/// What else may have attributes has those of privileged namespaces.
fn of_symbolic_links_and_special_files() -> Outcome {
    symlink("x", "symlink")?;
    mknod("fifo", FileType::Fifo, 0o644, 0)?;
    for name in ["symlink", "fifo"] {
        refused(get(name, "security.husk-test"), Errno::NODATA)?;
        if has_capability(CAP_SYS_ADMIN)? && !setting().husk {
            set(name, "trusted.a", b"x")?;
            same("value", get(name, "trusted.a")?, b"x".to_vec())?;
            same("names", names(name)?, vec!["trusted.a".to_owned()])?;
        }
    }
    Ok(())
}

fn survive_rename_and_link() -> Outcome {
    create("file")?;
    set("file", "user.a", b"x")?;
    rename("file", "moved")?;
    link("moved", "link")?;
    unlink("moved")?;
    same("value", get("link", "user.a")?, b"x".to_vec())
}

fn move_ctime_on() -> Outcome {
    create("file")?;
    let before = stat("file")?;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while ctime(&stat("file")?) == ctime(&before) {
        set("file", "user.a", b"x")?;
        holds("ctime moves on", std::time::Instant::now() < end)?;
    }
    same("mtime", mtime(&stat("file")?), mtime(&before))
}
