// SPDX-License-Identifier: Apache-2.0

//! Waiting for the engine, for a program that has nothing else to do.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Result, text};
use crate::engine::stage::{self, Stage};
use crate::engine::{Failure, Progress, Step, channel};

/// Waits for the next report.
pub fn next(asker: BorrowedFd, progress: &mut Progress) -> Result<Step> {
    loop {
        let received = match channel::receive(asker) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // The other end was closed with something unread in it.
            Err(e) if e.kind() == ErrorKind::ConnectionReset => None,
            received => received.map_err(|e| format!("cannot hear from the engine: {e}"))?,
        };
        return Ok(progress.take(received));
    }
}

/// Why a process did not come to be, in words that callers of runc know.
pub fn why(failure: Option<Failure>) -> String {
    let why = match failure {
        Some(Failure::NoProgram(why) | Failure::Other(why)) => why,
        None => "the engine was killed".to_owned(),
    };
    format!("unable to start container process: {why}")
}

/// Reaps a process of a container that was killed, or failed. Those that are not this
/// program's children are reaped by others.
pub fn reap(pid: i32) {
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
}

/// Ends and reaps a stage whose work is done, or is not to be done any more.
pub fn end(stage: Stage) -> Result<()> {
    stage::kill(stage.pidfd.as_fd(), libc::SIGKILL).map_err(text)?;
    reap(stage.pid);
    Ok(())
}

/// Descriptors from 3 on that the program is to get: those asked for, after those that were
/// passed to this process as sockets to listen at (sd_listen_fds(3)). Called before anything
/// is opened, for then all that is open was passed.
pub fn preserved(listen: u32, asked: u32) -> Result<u32> {
    let all = listen.saturating_add(asked);
    for fd in 3..3u32.saturating_add(all) {
        // SAFETY: F_GETFD takes no pointers.
        if unsafe { libc::fcntl(fd as i32, libc::F_GETFD) } < 0 {
            return Err(format!("descriptor {fd} is to be preserved, but it is not open"));
        }
    }
    Ok(all)
}

/// Gives the standard streams to the user of the program, which may want to open them again
/// by /proc/self/fd. Those that cannot be given are left as they are.
pub fn own_stdio(uid: u32) {
    let null = nix::sys::stat::stat("/dev/null").map(|stat| stat.st_rdev);
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let Ok(stat) = nix::sys::stat::fstat(fd) else { continue };
        let device = stat.st_mode & libc::S_IFMT == libc::S_IFCHR;
        if stat.st_uid != uid && !(device && Ok(stat.st_rdev) == null) {
            let _ = nix::unistd::fchown(fd, Some(nix::unistd::Uid::from_raw(uid)), None);
        }
    }
}

/// The master side of a terminal that was asked for.
pub fn terminal(progress: &mut Progress) -> Result<OwnedFd> {
    progress.terminal.take().ok_or_else(|| "the engine made no terminal".to_owned())
}
