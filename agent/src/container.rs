// SPDX-License-Identifier: Apache-2.0

//! A container as the agent knows it: the phase of its life, its processes, and the order
//! in which their ends are told.
//!
//! The agent has one thread. A container's state is borrowed between two awaits and never
//! across one, so there is no lock, and slow work of one request stops no other request.
//! What ended is told in one place, `settle`: after the answer that announced the process,
//! execs before the container's first process, each once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use husk_protocol::agent::event::Kind;
use husk_protocol::agent::{Exit, Oom};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use tokio::sync::Notify;

use crate::cgroup::Cgroup;
use crate::engine::seccomp::Filter;
use crate::engine::wait::Pending;
use crate::error::{Error, Result};
use crate::outbox::Outbox;
use crate::reaper::ExitStatus;
use crate::stdio::Streams;

/// The phases, in order. Only `Stopped` can be skipped to, from any.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Phase {
    /// Create is at work; there may be no process yet.
    Creating,
    /// The first process waits for Start.
    Created,
    /// Start is at work.
    Starting,
    Running,
    /// The first process has ended.
    Stopped,
}

pub struct Container {
    pub id: String,
    pub spec: Spec,
    pub cgroup: Cgroup,
    /// Of all its processes.
    pub filter: Option<Filter>,
    pub state: RefCell<State>,
    /// Told of every change of the state.
    pub changed: Notify,
    outbox: Outbox,
    /// OOM kills that were told, and those that an Exit was told to be of.
    oom_told: Cell<u64>,
    oom_blamed: Cell<u64>,
}

pub struct State {
    pub phase: Phase,
    pub paused: bool,
    /// Delete is at work; nothing new may begin.
    pub deleting: bool,
    /// Delete, or a failed Create, has removed everything.
    pub gone: bool,
    /// Refers to the engine's stage while it creates the container.
    pub stage: Option<OwnedFd>,
    pub init: Option<Process>,
    /// What Start needs; taken by it.
    pub pending: Option<Pending>,
    pub execs: HashMap<String, Exec>,
}

pub enum Exec {
    /// Being started.
    Starting,
    /// Started; it may have ended since. The id is free again after Delete.
    Started(Process),
}

pub struct Process {
    pub pid: i32,
    /// Refers to this process even after its pid was given to another.
    pub pidfd: OwnedFd,
    pub terminal: Option<Rc<OwnedFd>>,
    pub streams: Option<Streams>,
    /// The host has been told of it, so it may be told of its end.
    pub announced: bool,
    pub ended: Option<ExitStatus>,
    /// The host has been told of its end.
    pub told: bool,
}

impl Process {
    pub fn new(pid: i32, pidfd: OwnedFd, terminal: Option<OwnedFd>, streams: Streams) -> Self {
        Self {
            pid,
            pidfd,
            terminal: terminal.map(Rc::new),
            streams: Some(streams),
            announced: false,
            ended: None,
            told: false,
        }
    }

    fn to_tell(&self) -> Option<ExitStatus> {
        self.ended.filter(|_| self.announced && !self.told)
    }
}

impl Container {
    pub fn new(id: &str, spec: Spec, filter: Option<Filter>, outbox: Outbox) -> Self {
        Self {
            id: id.to_owned(),
            spec,
            cgroup: Cgroup::of(id),
            filter,
            state: RefCell::new(State {
                phase: Phase::Creating,
                paused: false,
                deleting: false,
                gone: false,
                stage: None,
                init: None,
                pending: None,
                execs: HashMap::new(),
            }),
            changed: Notify::new(),
            outbox,
            oom_told: Cell::new(0),
            oom_blamed: Cell::new(0),
        }
    }

    /// Waits until `state` satisfies `done`.
    pub async fn until(&self, done: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if done(&self.state.borrow()) {
                return;
            }
            changed.await;
        }
    }

    /// Calls `f` with the process that a request names: an exec, or the first process.
    pub fn with_process<T>(&self, exec: &str, f: impl FnOnce(&Process) -> Result<T>) -> Result<T> {
        let state = self.state.borrow();
        if exec.is_empty() {
            return match &state.init {
                Some(process) => f(process),
                None => Err(Error::precondition("the container is still being created")),
            };
        }
        match state.execs.get(exec) {
            Some(Exec::Started(process)) => f(process),
            Some(Exec::Starting) => Err(Error::precondition(format!("exec {exec} is starting"))),
            None => Err(Error::not_found(format!("container {} has no exec {exec}", self.id))),
        }
    }

    /// The host has been told of a process: its end may follow.
    pub fn announce(&self, exec: &str) {
        if let Some(process) = self.state.borrow_mut().process(exec) {
            process.announced = true;
        }
        self.settle();
    }

    /// The reaper's word that a process has ended.
    pub fn ended(&self, exec: &str, status: ExitStatus) {
        {
            let mut state = self.state.borrow_mut();
            if let Some(process) = state.process(exec) {
                process.ended = Some(status);
                // What it left behind in the background does not keep a terminal.
                if process.terminal.take().is_some() {
                    process.streams = None;
                }
            }
            if exec.is_empty() {
                state.phase = Phase::Stopped;
            }
        }
        // With its own PID namespace the kernel has killed the rest already.
        if exec.is_empty()
            && !self.has_own(LinuxNamespaceType::Pid)
            && let Err(error) = self.cgroup.kill()
        {
            self.outbox.warn(format!("container {}: {error}", self.id));
        }
        self.settle();
        self.changed.notify_waiters();
    }

    /// Tells every end that may be told by now.
    pub fn settle(&self) {
        let mut told = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            let mut execs_alive = false;
            for (id, exec) in &mut state.execs {
                match exec {
                    Exec::Started(process) => match process.to_tell() {
                        Some(status) => {
                            process.told = true;
                            told.push((id.clone(), process.pid, status));
                        }
                        None => execs_alive |= !process.told,
                    },
                    Exec::Starting => execs_alive = true,
                }
            }
            if let Some(init) = state.init.as_mut().filter(|_| !execs_alive)
                && let Some(status) = init.to_tell()
            {
                init.told = true;
                told.push((String::new(), init.pid, status));
            }
        }
        for (exec, pid, status) in told {
            let oom = self.tell_oom() > self.oom_blamed.get() && status.killed;
            if oom {
                self.oom_blamed.set(self.oom_blamed.get() + 1);
            }
            self.outbox.event(Kind::Exit(Exit {
                container: self.id.clone(),
                exec,
                pid: pid as u32,
                status: status.code,
                oom,
                ..Default::default()
            }));
        }
    }

    /// Tells of OOM kills that were not told yet, and returns how many there were in all.
    fn tell_oom(&self) -> u64 {
        let kills = self.cgroup.counter("memory.events", "oom_kill");
        if kills > self.oom_told.replace(kills) {
            let container = self.id.clone();
            self.outbox.event(Kind::Oom(Oom { container, ..Default::default() }));
        }
        kills
    }

    /// Tells of OOM kills as they happen, for processes that are not the agent's to reap.
    pub async fn watch_oom(self: Rc<Self>) {
        // A kernel without the memory controller kills nobody for the container's sake.
        let Ok(watch) = self.cgroup.watch("memory.events") else { return };
        while watch.read().is_ok() {
            self.tell_oom();
            tokio::select! {
                changed = watch.changed() => if changed.is_err() { return },
                () = self.until(|state| state.deleting || state.gone) => return,
            }
        }
    }

    /// Whether the container has a namespace of that type to itself.
    pub fn has_own(&self, kind: LinuxNamespaceType) -> bool {
        let namespaces = self.spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
        namespaces.is_some_and(|all| all.iter().any(|n| n.typ() == kind && n.path().is_none()))
    }
}

impl State {
    pub fn process(&mut self, exec: &str) -> Option<&mut Process> {
        if exec.is_empty() {
            return self.init.as_mut();
        }
        match self.execs.get_mut(exec) {
            Some(Exec::Started(process)) => Some(process),
            _ => None,
        }
    }

    /// Whether no process that the agent started for the container is left.
    pub fn all_ended(&self) -> bool {
        self.init.as_ref().is_none_or(|init| init.ended.is_some())
            && self.execs.values().all(|exec| match exec {
                Exec::Started(process) => process.ended.is_some(),
                Exec::Starting => false,
            })
    }

    /// Refuses what needs a running container.
    pub fn expect_running(&self, id: &str) -> Result<()> {
        let why = match self.phase {
            Phase::Running if self.deleting => "is being deleted",
            Phase::Running => return Ok(()),
            Phase::Creating => "is still being created",
            Phase::Created | Phase::Starting => "has not been started",
            Phase::Stopped => "has stopped",
        };
        Err(Error::precondition(format!("container {id} {why}")))
    }
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::Frame;
    use husk_protocol::read_frame;

    use super::*;
    use crate::outbox::queue;
    use crate::stdio::Connected;

    const CLEAN: ExitStatus = ExitStatus { code: 0, killed: false };
    const KILLED: ExitStatus = ExitStatus { code: 137, killed: true };

    fn process(pid: i32) -> Process {
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").expect("null"));
        let (_, streams) = Connected::none().pipes(0).expect("streams");
        Process::new(pid, fd, None, streams)
    }

    /// What the host is told when `story` happens to a container with an exec.
    async fn told(story: impl FnOnce(&Container)) -> Vec<(String, u32)> {
        let (outbox, outgoing) = queue();
        let container = Container::new("c", Spec::default(), None, outbox);
        {
            let mut state = container.state.borrow_mut();
            state.phase = Phase::Running;
            state.init = Some(process(1));
            state.execs.insert("e".into(), Exec::Started(process(2)));
        }
        story(&container);
        drop(container);
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
        assert!(outgoing.run(&mut ours).await.is_none());
        drop(ours);
        let mut exits = Vec::new();
        while let Some(Frame { body: Some(body), .. }) =
            read_frame(&mut theirs).await.expect("frame")
        {
            if let husk_protocol::agent::frame::Body::Event(event) = body {
                exits.push((event.exit().exec.clone(), event.exit().status));
            }
        }
        exits
    }

    fn exits(all: &[(&str, u32)]) -> Vec<(String, u32)> {
        all.iter().map(|(exec, status)| (exec.to_string(), *status)).collect()
    }

    #[tokio::test]
    async fn execs_are_told_before_the_first_process() {
        let story = |c: &Container| {
            c.announce("");
            c.announce("e");
            c.ended("", KILLED);
            c.ended("e", KILLED);
        };
        assert_eq!(told(story).await, exits(&[("e", 137), ("", 137)]));
    }

    #[tokio::test]
    async fn an_end_waits_for_the_answer_that_announces_the_process() {
        let story = |c: &Container| {
            c.announce("");
            c.ended("e", CLEAN);
            c.ended("", CLEAN);
            assert!(!c.state.borrow().init.as_ref().is_some_and(|init| init.told));
            c.announce("e");
        };
        assert_eq!(told(story).await, exits(&[("e", 0), ("", 0)]));
    }

    #[tokio::test]
    async fn an_exec_being_started_holds_the_end_back() {
        let story = |c: &Container| {
            c.state.borrow_mut().execs.insert("e".into(), Exec::Starting);
            c.announce("");
            c.ended("", CLEAN);
            assert!(!c.state.borrow().init.as_ref().is_some_and(|init| init.told));
            c.state.borrow_mut().execs.remove("e");
            c.settle();
            c.settle();
        };
        assert_eq!(told(story).await, exits(&[("", 0)]));
    }
}
