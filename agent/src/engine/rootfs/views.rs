// SPDX-License-Identifier: Apache-2.0

//! A root that is moved, not pivoted to, leaves the old mounts in its namespace. A proc or
//! sysfs among them would let the container make one of its own in a user namespace, with
//! all that is masked in the one it was given. So they are let go of, or else covered.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::paths::{Why, location};
use super::{mount, restrict};

/// Hides every proc and sysfs outside `root`.
pub fn hide(root: BorrowedFd) -> Result<(), String> {
    let root = location(root).why(|| "find out where the root is")?;
    let table = fs::read("/proc/self/mountinfo").map_err(|e| format!("read the mounts: {e}"))?;
    for place in kernel_views(&table) {
        if !place.starts_with(&root) {
            hide_one(&place).why(|| format!("hide {}", place.display()))?;
        }
    }
    Ok(())
}

fn hide_one(place: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let at = match openat(CWD, place, flags, Mode::empty()) {
        // Went with another, or is out of reach below one.
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    match mount::set_propagation(&at, true, libc::MS_SLAVE) {
        Err(Errno::INVAL) => return Ok(()),
        result => result?,
    }
    match unmount(place, UnmountFlags::DETACH) {
        // Another user namespace's.
        Err(Errno::INVAL | Errno::PERM) => mount::attach(restrict::empty_directory()?, at.as_fd()),
        result => result,
    }
}

/// The mount points of proc and sysfs (proc(5), mountinfo).
fn kernel_views(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let place = fields.nth(4)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        matches!(kind, b"proc" | b"sysfs").then(|| unescape(place))
    })
}

/// Spaces and their like are three octal digits there.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_and_sysfs_are_found() {
        let table = b"21 1 0:5 / / rw shared:1 - ext4 /dev/vda rw\n\
            22 21 0:6 / /proc rw,nosuid - proc proc rw\n\
            23 21 0:7 / /a\\040b\\134c rw shared:2 master:1 - sysfs proc rw\n\
            24 21 0:8 / /proc/x rw - tmpfs proc rw\n";
        let found: Vec<_> = kernel_views(table).collect();
        assert_eq!(found, [Path::new("/proc"), Path::new("/a b\\c")]);
    }
}
