// SPDX-License-Identifier: Apache-2.0

//! A container's first process, from the stage to its program: namespaces, users, root file
//! system, hooks, identity; then it waits to be started.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::{Hooks, Process, Spec};

use super::channel::{Channel, Message};
use super::hooks::State;
use super::namespaces::{self, Namespaces};
use super::process::{self, Identity, Stdio};
use super::program::text;
use super::rootfs::{self, Sources};
use super::seccomp::Filter;
use super::stage::{self, Failure, Stage};
use super::{device_rules, hooks, sysctl};

/// What a container is made of.
pub struct Create<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    /// Relative paths of the spec begin here.
    pub bundle: &'a Path,
    /// Its cgroup (v2), which exists and has its limits.
    pub cgroup: &'a Path,
    pub filter: Option<&'a Filter>,
    pub stdio: Stdio<'a>,
    /// Where the first process waits for its start; without it, on the channel.
    pub gate: Option<&'a UnixListener>,
    /// Whether this caller runs the hooks of the runtime when it is told that they are due.
    pub runtime_hooks: bool,
    /// Take the root by pivot_root(2), or else by chroot(2).
    pub pivot: bool,
    pub keyring: bool,
    /// Descriptors from 3 on that the program gets.
    pub preserved: u32,
}

impl Create<'_> {
    /// Starts the stage that makes the process.
    pub fn start(&self) -> std::io::Result<Stage> {
        let mut keep: Vec<i32> = (3..3 + self.preserved as i32).collect();
        if let Stdio::Given(fds) = self.stdio {
            keep.extend(fds.iter().map(|fd| fd.as_raw_fd()));
        }
        keep.extend(self.gate.map(|gate| gate.as_raw_fd()));
        stage::start(&keep, |channel| self.stage(channel))
    }

    /// In the stage: what takes the rights of the runtime and its view of the files.
    fn stage(&self, channel: &Channel) -> Result<(), Failure> {
        let process = self.process()?;
        process::set_oom_score(process)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = |path: &Path| {
            open(path, flags, Mode::empty())
                .map_err(|e| format!("cannot open {path:?}: {}", text(e)))
        };
        let proc = directory(Path::new("/proc"))?;
        let sysctls = sysctl::directory()?;
        let cgroup = directory(self.cgroup)?;
        if let Some(linux) = self.spec.linux()
            && let Some(rules) = linux.resources().as_ref().and_then(|r| r.devices().as_ref())
        {
            device_rules::apply(cgroup.as_fd(), rules)?;
        }
        let sources = Sources::open(self.spec, self.bundle)?;
        let namespaces = Namespaces::of(self.spec)?;
        namespaces.join()?;
        if let Some(linux) = self.spec.linux()
            && namespaces.new & libc::CLONE_NEWTIME != 0
        {
            namespaces::make_time(linux, &proc)?;
        }
        let (mapped, map) = std::io::pipe().map_err(|e| format!("cannot make a pipe: {e}"))?;
        let init = || {
            // The stage's end of the pipe would keep it open here.
            // SAFETY: closes this process's copy, which nothing here uses.
            unsafe { libc::close(map.as_raw_fd()) };
            self.init(channel, &namespaces, sources, &sysctls, File::from(OwnedFd::from(mapped)))
        };
        let (pid, pidfd) = stage::clone(namespaces.to_clone(), cgroup.as_fd(), init, channel)
            .map_err(|e| format!("cannot make the container's first process: {}", text(e)))?;
        if let Some(linux) = self.spec.linux()
            && namespaces.new & libc::CLONE_NEWUSER != 0
        {
            namespaces::map_users(linux, pid, &proc)?;
        }
        channel.tell(&Message::Made(pid), &[pidfd.as_fd()]);
        let _ = File::from(OwnedFd::from(map)).write_all(b"m");
        Ok(())
    }

    /// In the container's first process.
    fn init(
        &self,
        channel: &Channel,
        namespaces: &Namespaces,
        sources: Sources,
        sysctls: &OwnedFd,
        mut mapped: File,
    ) -> Result<Infallible, Failure> {
        let process = self.process()?;
        // Also orders what this process tells after what the stage has told.
        if mapped.read_exact(&mut [0]).is_err() {
            stage::exit(1);
        }
        drop(mapped);
        let user = namespaces.private(libc::CLONE_NEWUSER);
        if user {
            process::set_ids(0, 0)?;
        }
        process::make_session(self.keyring.then_some(self.id))?;
        namespaces.cgroup()?;
        if namespaces.new & libc::CLONE_NEWNET != 0 {
            crate::boot::loopback_up().map_err(|e| e.message)?;
        }
        let root = rootfs::build(self.spec, self.bundle, sources, self.cgroup)?;
        self.hooks_before_the_root_changes(channel)?;
        root.enter(self.spec, self.pivot)?;
        let terminal = match self.stdio {
            Stdio::Inherited => None,
            Stdio::Given(fds) => process::take_stdio(fds).map(|()| None)?,
            Stdio::Terminal(rows, cols) => {
                let (master, slave) = process::open_terminal(process.user().uid(), rows, cols)?;
                if namespaces.private(libc::CLONE_NEWNS) {
                    rootfs::bind_console(slave.as_fd())?;
                }
                process::take_terminal(&slave)?;
                Some(master)
            }
        };
        self.set_names()?;
        sysctl::apply(self.spec, sysctls)?;
        rootfs::restrict(self.spec)?;
        process::set_personality(self.spec)?;
        let identity =
            Identity { process, filter: self.filter, mapped: user, preserved: self.preserved };
        let program = identity.assume()?;
        channel.tell(&Message::Ready, terminal.as_ref().map(AsFd::as_fd).as_slice());
        drop(terminal);
        let channel = match self.gate {
            None if channel.wait() => None,
            None => stage::exit(1),
            Some(gate) => {
                let (starter, _) = gate.accept().map_err(|e| format!("cannot be started: {e}"))?;
                Some(Channel::from(OwnedFd::from(starter)))
            }
        };
        let hooks = self.hooks().and_then(|hooks| hooks.start_container().as_ref());
        let why = match hooks::run("startContainer", hooks, &self.state("created", 1)) {
            Ok(()) => identity.execute(&program),
            Err(why) => why.into(),
        };
        // The one who starts it wants to know, who need not be the one who made it.
        if let Some(starter) = channel {
            stage::in_child(&starter, || Err(why));
            stage::exit(127)
        }
        Err(why)
    }

    fn hooks_before_the_root_changes(&self, channel: &Channel) -> Result<(), Failure> {
        if self.runtime_hooks {
            channel.tell(&Message::Hooks, &[]);
            if !channel.wait() {
                stage::exit(1);
            }
        }
        let hooks = self.hooks().and_then(|hooks| hooks.create_container().as_ref());
        Ok(hooks::run("createContainer", hooks, &self.state("creating", 1))?)
    }

    fn set_names(&self) -> Result<(), String> {
        if let Some(name) = self.spec.hostname().as_deref().filter(|name| !name.is_empty()) {
            nix::unistd::sethostname(name)
                .map_err(|e| format!("cannot set the hostname {name:?}: {}", text(e)))?;
        }
        if let Some(name) = self.spec.domainname().as_deref().filter(|name| !name.is_empty()) {
            // SAFETY: reads name.len() bytes of name.
            let set = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
            stage::check(set, &format!("set the domainname {name:?}"))?;
        }
        Ok(())
    }

    fn process(&self) -> Result<&Process, Failure> {
        self.spec.process().as_ref().ok_or_else(|| "the spec has no process".into())
    }

    fn hooks(&self) -> Option<&Hooks> {
        self.spec.hooks().as_ref()
    }

    fn state(&self, status: &'static str, pid: i32) -> State<'_> {
        State { id: self.id, status, pid, bundle: self.bundle, spec: self.spec }
    }
}
