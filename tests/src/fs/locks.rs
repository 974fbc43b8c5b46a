// SPDX-License-Identifier: Apache-2.0

//! Locks on files: of processes (fcntl), of open files (OFD, flock), held against others,
//! waited for, upgraded, and gone with their holder.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::Location;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::calls::*;
use super::process::{Baton, Child, start};
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("flock_excludes_others", flock_excludes_others),
    ("flock_waits", flock_waits),
    ("flock_is_of_the_open_file", flock_is_of_the_open_file),
    ("record_locks_exclude_other_processes", record_locks_exclude_other_processes),
    ("record_locks_wait", record_locks_wait),
    ("record_locks_tell_their_holder", record_locks_tell_their_holder),
    ("record_locks_go_with_any_close", record_locks_go_with_any_close),
    ("record_locks_go_with_their_process", record_locks_go_with_their_process),
    ("record_locks_see_a_deadlock", record_locks_see_a_deadlock),
    ("open_file_locks", open_file_locks),
    ("locks_need_the_right_mode", locks_need_the_right_mode),
    ("a_lock_counts_a_shared_number_up", a_lock_counts_a_shared_number_up),
    ("leases", leases),
];

const FREE: i32 = libc::F_UNLCK;
const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;

/// Calls fcntl for a lock on `len` bytes from `start` on; returns the lock that it tells of.
fn lock(
    file: &File,
    command: i32,
    kind: i32,
    start: i64,
    len: i64,
) -> rustix::io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the structure outlives the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) };
    if done < 0 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(lock)
}

fn set(file: &File, kind: i32, start: i64, len: i64) -> rustix::io::Result<()> {
    lock(file, libc::F_SETLK, kind, start, len).map(drop)
}

/// A process that holds what `take` takes until it is told to let go.
struct Holder {
    child: Child,
    release: Baton,
}

impl Holder {
    fn new(take: impl FnOnce(&File) -> Outcome) -> Outcome<Holder> {
        let (held, release) = (Baton::new()?, Baton::new()?);
        let child = start(|| {
            let file = open("file", OFlags::RDWR)?;
            take(&file)?;
            held.pass()?;
            release.take()
        })?;
        held.take()?;
        Ok(Holder { child, release })
    }

    #[track_caller]
    fn end(self) -> Outcome {
        let place = Location::caller();
        self.release.pass()?;
        self.child.end().map_err(|failure| match failure {
            super::Failure::Differs(text) => super::Failure::Differs(format!("{text} ({place})")),
            skipped => skipped,
        })
    }
}

fn flock_excludes_others() -> Outcome {
    let file = create("file")?;
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    let shared = FlockOperation::NonBlockingLockShared;
    let holder = Holder::new(|file| Ok(flock(file, exclusive)?))?;
    refused(flock(&file, exclusive), Errno::AGAIN)?;
    refused(flock(&file, shared), Errno::AGAIN)?;
    holder.end()?;
    flock(&file, exclusive)?;
    flock(&file, FlockOperation::Unlock)?;
    let holder = Holder::new(|file| Ok(flock(file, shared)?))?;
    flock(&file, shared)?;
    refused(flock(&file, exclusive), Errno::AGAIN)?;
    holder.end()?;
    Ok(flock(&file, exclusive)?)
}

fn flock_waits() -> Outcome {
    let file = create("file")?;
    flock(&file, FlockOperation::LockExclusive)?;
    let about_to = Baton::new()?;
    let waiter = start(|| {
        let file = open("file", OFlags::RDWR)?;
        about_to.pass()?;
        flock(&file, FlockOperation::LockExclusive)?;
        same("content once it is free", std::fs::read("file")?, b"done".to_vec())
    })?;
    about_to.take()?;
    std::fs::write("file", "done")?;
    flock(&file, FlockOperation::Unlock)?;
    waiter.end()
}

fn flock_is_of_the_open_file() -> Outcome {
    let file = create("file")?;
    let again = open("file", OFlags::RDONLY)?;
    let copy = file.try_clone()?;
    flock(&file, FlockOperation::LockExclusive)?;
    refused(flock(&again, FlockOperation::NonBlockingLockShared), Errno::AGAIN)?;
    drop(file);
    refused(flock(&again, FlockOperation::NonBlockingLockShared), Errno::AGAIN)?;
    drop(copy);
    Ok(flock(&again, FlockOperation::NonBlockingLockShared)?)
}

fn record_locks_exclude_other_processes() -> Outcome {
    let file = create("file")?;
    file.set_len(100)?;
    let holder = Holder::new(|file| {
        set(file, WRITE, 0, 10)?;
        Ok(set(file, READ, 20, 10)?)
    })?;
    refused(set(&file, READ, 0, 1), Errno::AGAIN)?;
    refused(set(&file, WRITE, 5, 10), Errno::AGAIN)?;
    set(&file, WRITE, 10, 10)?;
    set(&file, READ, 20, 10)?;
    refused(set(&file, WRITE, 29, 1), Errno::AGAIN)?;
    // To the end of the file, wherever it is.
    set(&file, WRITE, 30, 0)?;
    holder.end()?;
    set(&file, WRITE, 0, 0)?;
    // A lock of one's own is no hindrance.
    set(&file, READ, 0, 5)?;
    set(&file, FREE, 0, 0)?;
    let holder = Holder::new(|file| Ok(set(file, WRITE, 0, 0)?))?;
    holder.end()
}

fn record_locks_wait() -> Outcome {
    let file = create("file")?;
    set(&file, WRITE, 0, 10)?;
    let about_to = Baton::new()?;
    let waiter = start(|| {
        let file = open("file", OFlags::RDWR)?;
        about_to.pass()?;
        lock(&file, libc::F_SETLKW, WRITE, 5, 1)?;
        same("content once it is free", std::fs::read("file")?, b"done".to_vec())
    })?;
    about_to.take()?;
    // By the locking descriptor: closing another one would let go.
    std::os::unix::fs::FileExt::write_all_at(&file, b"done", 0)?;
    set(&file, FREE, 0, 10)?;
    waiter.end()
}

fn record_locks_tell_their_holder() -> Outcome {
    let file = create("file")?;
    let holder = Holder::new(|file| Ok(set(file, WRITE, 3, 4)?))?;
    let found = lock(&file, libc::F_GETLK, READ, 0, 0)?;
    same("lock", (found.l_type, found.l_start, found.l_len), (WRITE as i16, 3, 4))?;
    same("holder", found.l_pid, holder.child.pid().as_raw_nonzero().get())?;
    let found = lock(&file, libc::F_GETLK, READ, 7, 0)?;
    same("kind", i32::from(found.l_type), FREE)?;
    holder.end()
}

fn record_locks_go_with_any_close() -> Outcome {
    let file = create("file")?;
    set(&file, WRITE, 0, 0)?;
    drop(open("file", OFlags::RDONLY)?);
    Holder::new(|file| Ok(set(file, WRITE, 0, 0)?))?.end()
}

fn record_locks_go_with_their_process() -> Outcome {
    let file = create("file")?;
    start(|| {
        let file = open("file", OFlags::RDWR)?;
        set(&file, WRITE, 0, 0)?;
        std::mem::forget(file);
        Ok(())
    })?
    .end()?;
    set(&file, WRITE, 0, 0)?;
    // They are not inherited.
    start(|| refused(set(&file, READ, 0, 1), Errno::AGAIN))?.end()
}

fn record_locks_see_a_deadlock() -> Outcome {
    let file = create("file")?;
    set(&file, WRITE, 0, 1)?;
    let held = Baton::new()?;
    let other = start(|| {
        let file = open("file", OFlags::RDWR)?;
        set(&file, WRITE, 1, 1)?;
        held.pass()?;
        // Waits for us, unless it is this one that is told of the deadlock.
        match lock(&file, libc::F_SETLKW, WRITE, 0, 1) {
            Ok(_) | Err(Errno::DEADLK) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })?;
    held.take()?;
    let found = lock(&file, libc::F_SETLKW, WRITE, 1, 1);
    set(&file, FREE, 0, 0)?;
    other.end()?;
    match found {
        Ok(_) | Err(Errno::DEADLK) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn open_file_locks() -> Outcome {
    let (a, b) = (create("file")?, open("file", OFlags::RDWR)?);
    let set = |file: &File, kind| lock(file, libc::F_OFD_SETLK, kind, 0, 10).map(drop);
    set(&a, WRITE)?;
    // Of one process, and yet against each other.
    refused(set(&b, READ), Errno::AGAIN)?;
    let found = lock(&b, libc::F_OFD_GETLK, READ, 0, 10)?;
    same("holder", found.l_pid, -1)?;
    drop(open("file", OFlags::RDONLY)?);
    refused(set(&b, READ), Errno::AGAIN)?;
    // Children have them too.
    let copy = a.try_clone()?;
    drop(a);
    refused(set(&b, READ), Errno::AGAIN)?;
    drop(copy);
    Ok(set(&b, WRITE)?)
}

fn locks_need_the_right_mode() -> Outcome {
    create("file")?;
    refused(set(&open("file", OFlags::RDONLY)?, WRITE, 0, 0), Errno::BADF)?;
    refused(set(&open("file", OFlags::WRONLY)?, READ, 0, 0), Errno::BADF)
}

fn a_lock_counts_a_shared_number_up() -> Outcome {
    fill("number", b"0")?;
    create("file")?;
    let count = || {
        start(|| {
            let file = open("file", OFlags::RDWR)?;
            for _ in 0..30 {
                lock(&file, libc::F_SETLKW, WRITE, 0, 0)?;
                let number: u32 = std::fs::read_to_string("number")?.trim().parse()?;
                std::fs::write("number", format!("{}", number + 1))?;
                set(&file, FREE, 0, 0)?;
            }
            Ok(())
        })
    };
    for child in [count()?, count()?, count()?] {
        child.end()?;
    }
    same("number", std::fs::read_to_string("number")?, "90".to_owned())
}

fn leases() -> Outcome {
    let file = create("file")?;
    // SAFETY: no memory is involved.
    let call = |command: i32, value: i32| unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
    same("a lease taken", call(libc::F_SETLEASE, WRITE), 0)?;
    same("lease", call(libc::F_GETLEASE, 0), WRITE)?;
    same("a lease given up", call(libc::F_SETLEASE, FREE), 0)
}
