// SPDX-License-Identifier: Apache-2.0

//! Makes container processes: the OCI runtime of this program. The caller describes a
//! container (`Create`) or a further process in one (`Join`); a fork of the caller, the
//! stage (`stage`), prepares what takes the caller's rights and makes the process, which
//! builds its root (`rootfs`) and takes on its identity (`process`). They report over a
//! socket (`channel`); `Progress` makes sense of the reports for whoever waits, the agent
//! (`wait`) or the command line (`crate::oci`).

pub mod channel;
pub mod create;
pub mod hooks;
pub mod join;
pub mod namespaces;
pub mod process;
pub mod seccomp;
pub mod spec;
pub mod stage;
pub mod sysctl;
pub mod users;
pub mod wait;

mod capabilities;
mod device_rules;
#[cfg(test)]
mod forked;
mod program;
mod rootfs;
mod schedule;

use std::os::fd::OwnedFd;

pub use create::Create;
pub use join::Join;
pub use process::Stdio;
#[cfg(test)]
pub use rootfs::mount_options;
pub use stage::Failure;

use channel::{Message, Received};

/// What is known of a process that is being made.
#[derive(Default)]
pub struct Progress {
    pub pid: Option<i32>,
    /// Refers to the process, also after it has ended.
    pub pidfd: Option<OwnedFd>,
    /// The master side, if it has a terminal.
    pub terminal: Option<OwnedFd>,
    failure: Option<Failure>,
}

/// What follows from a report.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// More reports come.
    More,
    /// The hooks of the runtime are due; then the process is told to go on.
    Hooks,
    /// The process waits to be started.
    Ready,
    /// No more reports: it runs its program, or it is gone.
    Over,
}

impl Progress {
    pub fn take(&mut self, received: Option<Received>) -> Step {
        let Some((message, fds)) = received else { return Step::Over };
        let mut fds = fds.into_iter();
        match message {
            Message::Made(pid) => {
                self.pid = Some(pid);
                self.pidfd = fds.next();
                self.terminal = fds.next();
                Step::More
            }
            Message::Hooks => Step::Hooks,
            Message::Ready => {
                self.terminal = fds.next();
                Step::Ready
            }
            Message::NoProgram(why) => self.fail(Failure::NoProgram(why)),
            Message::Failed(why) => self.fail(Failure::Other(why)),
        }
    }

    /// The first failure is the cause of those that follow.
    fn fail(&mut self, failure: Failure) -> Step {
        self.failure.get_or_insert(failure);
        Step::More
    }

    /// Why nothing came of it, once all reports are there.
    pub fn failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }
}
