// SPDX-License-Identifier: Apache-2.0

//! A further process in a container: the stage enters the namespaces of the container's
//! first process and makes a process in the container's cgroup, which takes on its identity
//! and runs its program at once.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::Process;

use super::channel::{Channel, Message};
use super::namespaces::enter;
use super::process::{self, Identity, Stdio};
use super::program::text;
use super::schedule;
use super::seccomp::Filter;
use super::stage::{self, Failure, Stage};

/// What a further process is made of.
pub struct Join<'a> {
    /// The container's.
    pub id: &'a str,
    /// The container's first process: its pid, and a descriptor that refers to it.
    pub init: i32,
    pub pidfd: &'a OwnedFd,
    /// The namespaces to enter, as CLONE_NEW flags; those of that process.
    pub namespaces: i32,
    pub cgroup: &'a Path,
    pub process: &'a Process,
    pub filter: Option<&'a Filter>,
    pub stdio: Stdio<'a>,
    pub keyring: bool,
    pub preserved: u32,
}

impl Join<'_> {
    /// Starts the stage that makes the process.
    pub fn start(&self) -> io::Result<Stage> {
        let mut keep: Vec<i32> = (3..3 + self.preserved as i32).collect();
        keep.push(self.pidfd.as_raw_fd());
        if let Stdio::Given(fds) = self.stdio {
            keep.extend(fds.iter().map(|fd| fd.as_raw_fd()));
        }
        stage::start(&keep, |channel| self.stage(channel))
    }

    fn stage(&self, channel: &Channel) -> Result<(), Failure> {
        process::set_oom_score(self.process)?;
        let affinity = self.process.exec_cpu_affinity().as_ref();
        schedule::set_affinity(affinity.and_then(|a| a.initial().as_deref()))?;
        let cgroup = directory(self.cgroup)?;
        let inits = self.cgroup_of_init().and_then(|path| directory(&path));
        // The cgroup namespace comes last: from inside, the cgroup could not be entered.
        enter(self.pidfd, self.namespaces & !libc::CLONE_NEWCGROUP)?;
        let terminal = match self.stdio {
            Stdio::Terminal(rows, cols) => {
                Some(process::open_terminal(self.process.user().uid(), rows, cols)?)
            }
            _ => None,
        };
        let (master, slave) = terminal.map_or((None, None), |(m, s)| (Some(m), Some(s)));
        let init = || self.init(slave.as_ref());
        let made = match stage::clone(0, cgroup.as_fd(), init, channel) {
            // The container has delegated controllers to children of its cgroup, which
            // therefore cannot hold processes; the first process shows the way.
            Err(Errno::EBUSY) => stage::clone(0, inits?.as_fd(), init, channel),
            result => result,
        };
        let (pid, pidfd) =
            made.map_err(|e| format!("cannot make a process in the container: {}", text(e)))?;
        let fds = [Some(&pidfd), master.as_ref()].into_iter().flatten();
        let fds: Vec<_> = fds.map(AsFd::as_fd).collect();
        channel.tell(&Message::Made(pid), &fds);
        Ok(())
    }

    fn cgroup_of_init(&self) -> Result<PathBuf, String> {
        let file = format!("/proc/{}/cgroup", self.init);
        let text =
            std::fs::read_to_string(&file).map_err(|e| format!("cannot read {file}: {e}"))?;
        let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let own = own.ok_or("the container's first process has no cgroup")?;
        Ok(crate::cgroup::mount_point().map_err(|e| e.message)?.join(own))
    }

    /// In the new process.
    fn init(&self, terminal: Option<&OwnedFd>) -> Result<Infallible, Failure> {
        if self.namespaces & libc::CLONE_NEWCGROUP != 0 {
            enter(self.pidfd, libc::CLONE_NEWCGROUP)?;
        }
        process::make_session(self.keyring.then_some(self.id))?;
        match (self.stdio, terminal) {
            (Stdio::Given(fds), _) => process::take_stdio(fds)?,
            (_, Some(slave)) => process::take_terminal(slave)?,
            _ => {}
        }
        let mapped = self.namespaces & libc::CLONE_NEWUSER != 0;
        if mapped {
            process::set_ids(0, 0)?;
        }
        let affinity = self.process.exec_cpu_affinity().as_ref();
        schedule::set_affinity(affinity.and_then(|a| a.cpu_affinity_final().as_deref()))?;
        let identity = Identity {
            process: self.process,
            filter: self.filter,
            mapped,
            preserved: self.preserved,
        };
        let program = identity.assume()?;
        Err(identity.execute(&program))
    }
}

fn directory(path: &Path) -> Result<OwnedFd, String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|e| format!("cannot open {path:?}: {}", text(e)))
}
