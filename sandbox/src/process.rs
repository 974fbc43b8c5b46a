// SPDX-License-Identifier: Apache-2.0

//! Processes by descriptor: a pidfd cannot mean another process that got the same number.
//! For the VMM while we run, and for what a crash left, found again by number and start
//! time.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A process on this host, nameable across restarts of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Field 22 of /proc/<pid>/stat: clock ticks after boot.
    pub start: u64,
}

impl ProcessId {
    /// The running process with this number.
    pub fn of(pid: u32) -> io::Result<ProcessId> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may contain anything; fields count from behind it.
        let start = stat
            .rsplit_once(')')
            .and_then(|(_, fields)| fields.split_whitespace().nth(19)?.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(ProcessId { pid, start })
    }

    /// A descriptor of this very process, unless it has ended.
    pub fn open(self) -> Option<Pidfd> {
        let pidfd = Pidfd::open(self.pid).ok()?;
        // Checked after the open: if the number had been given to another process by then,
        // its start time differs.
        (ProcessId::of(self.pid).ok()? == self).then_some(pidfd)
    }
}

/// A descriptor of a process.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    pub fn open(pid: u32) -> io::Result<Pidfd> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        Ok(Pidfd(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }))
    }

    /// Sends a signal; success if the process has ended already.
    pub fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        // SAFETY: a null siginfo is what kill(2) would fill in.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match done {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Blocks until the process has ended, for `limit` at most; whether it has.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: poll is one pollfd that outlives the call.
        unsafe { libc::poll(&mut poll, 1, millis) > 0 }
    }
}

impl From<Pidfd> for OwnedFd {
    fn from(pidfd: Pidfd) -> OwnedFd {
        pidfd.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_found_again_killed_and_waited_for() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let id = ProcessId::of(child.id()).expect("running");
        let pidfd = id.open().expect("the same process");
        assert!(!pidfd.wait(Duration::ZERO));
        assert!(ProcessId { start: id.start + 1, ..id }.open().is_none());
        pidfd.signal(libc::SIGKILL).expect("signal");
        assert!(pidfd.wait(Duration::from_secs(10)));
        child.wait().expect("reaped");
        pidfd.signal(libc::SIGKILL).expect("gone is success");
        assert!(id.open().is_none());
    }
}
