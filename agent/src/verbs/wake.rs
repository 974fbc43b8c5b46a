// SPDX-License-Identifier: Apache-2.0

//! Wake: the kernel tells those who watch shared files what it has not seen itself, for the
//! host has changed them. It does so for changes that are made here; these are such that the
//! server of the share takes them for none (`WAKE_NAME`). A file that has come is renamed
//! into its place (IN_MOVED_TO), one with new contents is touched (IN_MODIFY), and so is a
//! directory (IN_ATTRIB). Of files that are deleted it is made to see that (IN_DELETE_SELF).
//! A child does all that, for the server may have to wait for a disk.

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::{Changed, Wake};
use husk_protocol::{GONE_NAME, SHARE_PATH, WAKE_NAME, WAKE_SECOND};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fstat, mkdirat, openat,
    renameat, statat, utimensat,
};
use rustix::io::Errno;

use crate::engine::wait;
use crate::error::Result;
use crate::verbs::done;

/// Most files that are found to be deleted at a time.
const MAX_GONE: usize = 4096;

pub async fn wake(request: &Wake) -> Result<Outcome> {
    wait::apart(|| {
        // One that fails, such as a volume that is going, does not keep the others from it.
        let failed: Vec<String> = request.changed.iter().filter_map(|c| tell(c).err()).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    })
    .await?;
    Ok(done())
}

fn tell(changed: &Changed) -> std::result::Result<(), String> {
    let path = Path::new(SHARE_PATH).join(&changed.path);
    let told = tell_at(&path, changed);
    told.map_err(|errno| format!("cannot tell of a change of {}: {errno}", path.display()))
}

fn tell_at(path: &Path, changed: &Changed) -> rustix::io::Result<()> {
    let at = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let at = std::os::fd::AsFd::as_fd(&at);
    let kind = FileType::from_raw_mode(fstat(at)?.st_mode);
    if kind == FileType::Directory {
        for name in &changed.modified {
            ignore_gone(touch(at, name))?;
        }
        for name in &changed.replaced {
            ignore_gone(replace(at, name))?;
        }
    }
    if changed.itself || kind != FileType::Directory {
        touch(CWD, path.as_os_str().as_bytes())?;
    }
    if kind == FileType::Directory {
        forget(at, changed);
    }
    Ok(())
}

/// Has the kernel let go of what the host has deleted. Those who watch a file are told of its
/// end when it is known to have no links and the last name of it goes.
fn forget(at: BorrowedFd, changed: &Changed) {
    // Another file may have its name.
    if changed.itself || !changed.replaced.is_empty() {
        let look = || statat(at, GONE_NAME, AtFlags::SYMLINK_NOFOLLOW);
        (0..MAX_GONE).take_while(|_| look().is_ok()).for_each(drop);
    }
    for name in &changed.removed {
        // Whatever is to be made new is looked up anew, and what was below is dropped. Then it
        // fails, for the directory is read-only.
        let _ = mkdirat(at, name, Mode::empty());
    }
}

/// What comes may go again at once; and nobody waits for that.
fn ignore_gone(done: rustix::io::Result<()>) -> rustix::io::Result<()> {
    if done == Err(Errno::NOENT) { Ok(()) } else { done }
}

fn replace(at: BorrowedFd, name: &[u8]) -> rustix::io::Result<()> {
    let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        // What is mounted in a directory that another takes the place of is unmounted.
        FileType::Directory => touch(at, name),
        _ => renameat(at, WAKE_NAME, at, name),
    }
}

fn touch(at: BorrowedFd, name: &[u8]) -> rustix::io::Result<()> {
    let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let wake = Timespec { tv_sec: WAKE_SECOND, tv_nsec: 0 };
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    // Both times together are an attribute, one is a sign of new contents.
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let last_access = if is_dir { wake } else { omit };
    let times = Timestamps { last_access, last_modification: wake };
    utimensat(at, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
