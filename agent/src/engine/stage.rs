// SPDX-License-Identifier: Apache-2.0

//! The stage: a fork of the caller, with all its memory and none of its descriptors, that
//! enters namespaces, makes the one process it is for as a child of the caller, and ends.
//! It never executes anything, so nothing has to be described to it or read by it again.
//! The caller must have one thread, or the fork may meet a lock that nobody will release.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::channel::{Channel, Message, pair};
use super::program::{default_signals, text};

/// linux/sched.h. The C library's bindings have it in a type that is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A stage that was started.
pub struct Stage {
    /// Refers to it for as long as it is kept, whoever reaps it.
    pub pidfd: OwnedFd,
    pub pid: i32,
    /// Where it and the process that it makes report.
    pub channel: OwnedFd,
}

/// Why no process, or no program, came of it.
#[derive(Debug, PartialEq)]
pub enum Failure {
    /// The program cannot be executed.
    NoProgram(String),
    Other(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        Self::Other(why.to_owned())
    }
}

/// Forks and runs `body` in the child, which keeps the standard streams, the channel and
/// the descriptors in `keep`, and ends when the body returns.
pub fn start(
    keep: &[RawFd],
    body: impl FnOnce(&Channel) -> Result<(), Failure>,
) -> io::Result<Stage> {
    let (ours, channel) = pair()?;
    // SAFETY: without CLONE_VM this is a fork, and there is one thread. The system call,
    // because the C library would run handlers that are of no use here.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    match pid {
        ..0 => Err(io::Error::last_os_error()),
        0 => {
            let status = in_child(&channel, || {
                become_stage(keep, &channel)?;
                body(&channel)
            });
            exit(status)
        }
        pid => {
            let pid = pid as i32;
            Ok(Stage { pidfd: pidfd(pid)?, pid, channel: ours })
        }
    }
}

/// Runs what a child is for and tells why it failed. Returns the exit status.
pub fn in_child(channel: &Channel, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    // A panic that unwinds must not go on as a second caller.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Err(_) => 101,
        Ok(Ok(())) => 0,
        Ok(Err(failure)) => {
            let message = match failure {
                Failure::NoProgram(why) => Message::NoProgram(why),
                Failure::Other(why) => Message::Failed(why),
            };
            channel.tell(&message, &[]);
            1
        }
    }
}

/// Ends this process without running anything that its parent had planned for its own end.
pub fn exit(status: i32) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(status) }
}

/// Clones this process into new namespaces and a cgroup, as a child of this one's parent.
/// Returns its pid here, with a descriptor that refers to it, and never there, where `body`
/// runs.
pub fn clone(
    namespaces: i32,
    cgroup: BorrowedFd,
    body: impl FnOnce() -> Result<Infallible, Failure>,
    channel: &Channel,
) -> Result<(i32, OwnedFd), Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = namespaces | libc::CLONE_PARENT | libc::CLONE_PIDFD;
    args.flags = flags as u64 | CLONE_INTO_CGROUP;
    args.pidfd = &raw mut pidfd as u64;
    args.cgroup = cgroup.as_raw_fd() as u64;
    let size = std::mem::size_of_val(&args);
    // SAFETY: reads clone_args and writes pidfd. Without CLONE_VM and a stack of its own it is
    // a fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) };
    match pid {
        ..0 => Err(Errno::last()),
        0 => {
            in_child(channel, || body().map(|never| match never {}));
            exit(127)
        }
        // SAFETY: the kernel has just made the descriptor for us.
        pid => Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

fn become_stage(keep: &[RawFd], channel: &Channel) -> Result<(), Failure> {
    // The caller's handlers would write to descriptors that are about to be others.
    default_signals();
    // Nothing in the container may look into this copy of the caller on its way in.
    // SAFETY: this prctl() takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, "become undumpable")?;
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd > 2).collect();
    keep.push(std::os::fd::AsFd::as_fd(channel).as_raw_fd());
    keep.sort_unstable();
    let mut next = 3;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if next < fd {
            // SAFETY: close_range() takes no pointers; what it closes is the caller's copy,
            // whose owners' drops never run in this process.
            unsafe { libc::syscall(libc::SYS_close_range, next, fd - 1, 0) };
        }
        next = fd.saturating_add(1);
    }
    Ok(())
}

/// Turns the result of a system call into what could not be done.
pub fn check(result: i32, what: &str) -> Result<(), String> {
    if result < 0 { Err(format!("cannot {what}: {}", text(Errno::last()))) } else { Ok(()) }
}

/// Refers to a process, so that it cannot be mistaken for a later one of the same pid.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open() takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to the process that a pidfd refers to. That it has ended is no failure.
pub fn kill(pidfd: BorrowedFd, signal: i32) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0) };
    match io::Error::last_os_error() {
        error if sent < 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}
