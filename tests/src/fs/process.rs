// SPDX-License-Identifier: Apache-2.0

//! Processes of a case: one for itself, and others that are another user or hold locks of
//! their own. The program has one thread, so it may fork.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::process::{Gid, Pid, Uid, WaitOptions};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{Failure, Outcome};

/// A case that takes longer hangs.
const LIMIT_SECONDS: u32 = 300;

pub enum Ended {
    Passed,
    Skipped(String),
    Failed(String),
}

/// A process that does one thing. It is waited for by [`Child::end`].
pub struct Child {
    pid: Pid,
    said: File,
}

/// Starts `body` in a process of its own.
pub fn start(body: impl FnOnce() -> Outcome) -> io::Result<Child> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    io::stdout().flush()?;
    // SAFETY: this process has one thread, so the child may do what it could.
    let pid = unsafe { libc::fork() };
    match Pid::from_raw(pid) {
        _ if pid < 0 => Err(io::Error::last_os_error()),
        Some(pid) => Ok(Child { pid, said: reader.into() }),
        None => {
            drop(reader);
            // SAFETY: no memory is involved.
            unsafe { libc::alarm(LIMIT_SECONDS) };
            let (code, text) = match body() {
                Ok(()) => (0, String::new()),
                Err(Failure::Differs(text)) => (1, text),
                Err(Failure::Skipped(text)) => (2, text),
            };
            let _ = File::from(writer).write_all(text.as_bytes());
            std::process::exit(code)
        }
    }
}

impl Child {
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end.
    pub fn wait(mut self) -> io::Result<Ended> {
        let mut text = String::new();
        self.said.read_to_string(&mut text)?;
        let status = rustix::process::waitpid(Some(self.pid), WaitOptions::empty())?;
        let status = status.map(|(_, status)| status);
        Ok(match status.and_then(|status| status.exit_status()) {
            Some(0) => Ended::Passed,
            Some(2) => Ended::Skipped(text),
            Some(_) => Ended::Failed(text),
            None => {
                let signal = status.and_then(|status| status.terminating_signal());
                Ended::Failed(format!("ended by signal {}", signal.unwrap_or(0)))
            }
        })
    }

    /// Waits for its end and takes its outcome for one's own.
    pub fn end(self) -> Outcome {
        match self.wait()? {
            Ended::Passed => Ok(()),
            Ended::Skipped(text) => Err(Failure::Skipped(text)),
            Ended::Failed(text) => Err(Failure::Differs(text)),
        }
    }
}

/// Runs `body` in a process of its own to its end.
pub fn run(body: impl FnOnce() -> Outcome) -> io::Result<Ended> {
    start(body)?.wait()
}

/// Somebody without privileges.
#[derive(Clone, Copy)]
pub struct User {
    pub id: u32,
    pub groups: &'static [u32],
}

pub const ALICE: User = User { id: 1001, groups: &[] };
pub const BOB: User = User { id: 1002, groups: &[] };

/// Runs `body` in a process of this user to its end.
pub fn as_user(user: User, body: impl FnOnce() -> Outcome) -> Outcome {
    start(|| {
        become_user(user)?;
        body()
    })?
    .end()
}

pub fn become_user(user: User) -> Outcome {
    let groups: Vec<_> = user.groups.iter().map(|&group| Gid::from_raw(group)).collect();
    set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(user.id), Gid::from_raw(user.id));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// One process waits until the other has come to a point.
pub struct Baton {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Baton {
    pub fn new() -> io::Result<Baton> {
        let (reader, writer) = rustix::pipe::pipe()?;
        Ok(Baton { reader, writer })
    }

    pub fn pass(&self) -> Outcome {
        rustix::io::write(&self.writer, b"x")?;
        Ok(())
    }

    pub fn take(&self) -> Outcome {
        rustix::io::read(&self.reader, &mut [0; 1])?;
        Ok(())
    }
}

/// Whether this process has a capability in effect (linux/capability.h).
pub fn has_capability(number: u32) -> Outcome<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = u64::from_str_radix(line.ok_or("no CapEff in /proc/self/status")?.trim(), 16)?;
    Ok(set & 1 << number != 0)
}

pub const CAP_SYS_ADMIN: u32 = 21;
pub const CAP_FSETID: u32 = 4;
