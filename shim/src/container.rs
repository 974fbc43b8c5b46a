// SPDX-License-Identifier: Apache-2.0

//! One container: its first process and its execs, what belongs to it on the host, and the
//! events that its life makes. One lock, held only between two waits, makes the order of
//! events the order of what happened.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task as message;
use containerd_shim_protos::types::mount::Mount;
use containerd_shim_protos::types::task::Status;
use husk_sandbox::mount::Mounted;
use husk_sandbox::{Code, Disk, Error, HostHooks, Limits, Poststop, SharedContainer};
use protobuf::MessageField;
use tokio::sync::watch;

use crate::events::{Event, Events};
use crate::io::Stdio;
use crate::phases::Phases;
use crate::process::{Exit, Input, Process, State};
use crate::reply::timestamp;
use crate::stand_in::StandIn;

/// Between two events about the OOM killer; a guest could have it strike all the time.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// How long the first process's exit waits for those of the execs that ended with it.
pub const EXECS_END_LIMIT: Duration = Duration::from_secs(5);

/// A container of the pod.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub bundle: PathBuf,
    /// The process of the host that stands for all of its processes: husk-vmm for the pod's
    /// first container, and a number of their own for the others.
    pub pid: u32,
    _stand_in: Option<StandIn>,
    pub hooks: HostHooks,
    /// Its root file system, as containerd wants it mounted.
    pub mounts: Vec<Mount>,
    pub phases: Phases,
    /// Held by the thread that mounts for it.
    pub mounting: Arc<tokio::sync::Mutex<()>>,
    events: Events,
    inner: Mutex<Inner>,
}

/// What changes.
#[derive(Debug)]
pub struct Inner {
    pub init: Process,
    pub execs: HashMap<String, Exec>,
    pub paused: bool,
    /// What it may use; `None` if it does not count for the size of the VM.
    pub limits: Option<Limits>,
    /// A delete is at work.
    pub deleting: bool,
    /// What is shared with the guest, and mounted for it on the host.
    pub shared: Option<SharedContainer>,
    /// Block devices of the host that the VM has for it.
    pub disks: Vec<Disk>,
    pub rootfs: Option<Mounted>,
    /// Hooks that have to run when it is gone, since others have.
    pub poststop: Option<Poststop>,
    /// The first process's exit, while execs have not reported theirs.
    held_exit: Option<Exit>,
    last_oom: Option<Instant>,
}

/// A further process.
#[derive(Debug)]
pub struct Exec {
    pub process: Process,
    /// OCI Process for the guest, JSON.
    pub spec: Vec<u8>,
}

/// What is to be done after an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterExit {
    Nothing,
    /// The first process is gone and execs have not reported their ends: see that they end.
    EndExecs,
}

impl Container {
    pub fn new(
        request: &CreateTaskRequest,
        pid: u32,
        stand_in: Option<StandIn>,
        hooks: HostHooks,
        events: Events,
    ) -> Container {
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        Container {
            id: request.id.clone(),
            bundle: request.bundle.clone().into(),
            pid,
            _stand_in: stand_in,
            hooks,
            mounts: request.rootfs.clone(),
            phases: Phases::default(),
            mounting: Arc::default(),
            events,
            inner: Mutex::new(Inner {
                init: Process::new(State::Creating(None), stdio),
                execs: HashMap::new(),
                paused: false,
                limits: None,
                deleting: false,
                shared: None,
                disks: Vec::new(),
                rootfs: None,
                poststop: None,
                held_exit: None,
                last_oom: None,
            }),
        }
    }

    /// The lock. Never held across a wait.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a transition of a process and publishes what it makes known.
    pub fn apply(&self, exec: &str, input: Input) -> Result<(), Error> {
        let mut inner = self.inner();
        let applied = self.apply_locked(&mut inner, exec, input);
        // An answer to a start may have been all that an exit known before was held for.
        self.release_exit_after_execs(&mut inner);
        applied
    }

    /// The guest reports an exit. The first process's waits for those of the execs.
    pub fn exited(&self, exec: &str, exit: Exit) -> AfterExit {
        let mut inner = self.inner();
        if exec.is_empty() && inner.init.state() == State::Running && inner.execs_live() {
            inner.held_exit.get_or_insert(exit);
            return AfterExit::EndExecs;
        }
        // An exit is accepted in every state; one of an exec that is not there is old.
        let _ = self.apply_locked(&mut inner, exec, Input::Exited(exit));
        self.release_exit_after_execs(&mut inner);
        AfterExit::Nothing
    }

    /// No exec will report any more, or it has taken too long: the first process's exit is
    /// made known.
    pub fn release_exit(&self) {
        self.release_held_exit(&mut self.inner());
    }

    /// The VM is gone: everything that had not ended has now, execs first.
    pub fn lost(&self, exit: Exit) {
        let mut inner = self.inner();
        let execs: Vec<String> = inner.execs.keys().cloned().collect();
        for exec in execs {
            if inner.execs.get(&exec).is_some_and(|exec| exec.is_live()) {
                let _ = self.apply_locked(&mut inner, &exec, Input::Exited(exit));
            }
        }
        self.release_held_exit(&mut inner);
        let _ = self.apply_locked(&mut inner, "", Input::Exited(exit));
    }

    /// The guest's OOM killer has struck.
    pub fn oom(&self) {
        let mut inner = self.inner();
        if inner.last_oom.is_some_and(|last| last.elapsed() < OOM_INTERVAL) {
            return;
        }
        inner.last_oom = Some(Instant::now());
        self.events.publish(Event::Oom(message::TaskOOM {
            container_id: self.id.clone(),
            ..Default::default()
        }));
    }

    /// Pauses or resumes, once the guest has.
    pub fn set_paused(&self, paused: bool) {
        let mut inner = self.inner();
        inner.paused = paused;
        let container_id = self.id.clone();
        self.events.publish(match paused {
            true => Event::Paused(message::TaskPaused { container_id, ..Default::default() }),
            false => Event::Resumed(message::TaskResumed { container_id, ..Default::default() }),
        });
    }

    pub fn publish(&self, event: Event) {
        self.events.publish(event);
    }

    fn apply_locked(&self, inner: &mut Inner, exec: &str, input: Input) -> Result<(), Error> {
        let process = inner.process(exec)?;
        let published = process.apply(input)?;
        let stdio = process.stdio.clone();
        if published.created {
            self.events.publish(self.created(stdio));
        }
        if published.started {
            self.events.publish(self.started(exec));
        }
        if let Some(exit) = published.exited {
            let id = if exec.is_empty() { &self.id } else { exec };
            self.events.publish(Event::Exit(message::TaskExit {
                container_id: self.id.clone(),
                id: id.into(),
                pid: self.pid,
                exit_status: exit.status,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..Default::default()
            }));
            if exec.is_empty() {
                self.phases.reach("exit");
            }
            process.tell_waiters(exit);
        }
        Ok(())
    }

    fn release_exit_after_execs(&self, inner: &mut Inner) {
        if !inner.execs_live() {
            self.release_held_exit(inner);
        }
    }

    fn release_held_exit(&self, inner: &mut Inner) {
        if let Some(exit) = inner.held_exit.take() {
            let _ = self.apply_locked(inner, "", Input::Exited(exit));
        }
    }

    fn created(&self, stdio: Stdio) -> Event {
        Event::Create(message::TaskCreate {
            container_id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            rootfs: self.mounts.clone(),
            io: MessageField::some(message::TaskIO {
                stdin: stdio.stdin,
                stdout: stdio.stdout,
                stderr: stdio.stderr,
                terminal: stdio.terminal,
                ..Default::default()
            }),
            pid: self.pid,
            ..Default::default()
        })
    }

    fn started(&self, exec: &str) -> Event {
        let (container_id, pid) = (self.id.clone(), self.pid);
        if exec.is_empty() {
            Event::Start(message::TaskStart { container_id, pid, ..Default::default() })
        } else {
            Event::ExecStarted(message::TaskExecStarted {
                container_id,
                exec_id: exec.into(),
                pid,
                ..Default::default()
            })
        }
    }
}

impl Inner {
    /// The first process, for an empty name, or an exec.
    pub fn process(&mut self, exec: &str) -> Result<&mut Process, Error> {
        if exec.is_empty() {
            return Ok(&mut self.init);
        }
        self.execs
            .get_mut(exec)
            .map(|exec| &mut exec.process)
            .ok_or_else(|| Error::new(Code::NotFound, format!("there is no exec {exec}")))
    }

    /// What containerd calls the state of a process.
    pub fn status(&mut self, exec: &str) -> Result<Status, Error> {
        let paused = self.paused;
        let status = self.process(exec)?.state().status();
        Ok(if paused && status == Status::RUNNING { Status::PAUSED } else { status })
    }

    /// Resolves when the process has ended.
    pub fn watch_exit(&mut self, exec: &str) -> Result<watch::Receiver<Option<Exit>>, Error> {
        Ok(self.process(exec)?.watch_exit())
    }

    fn execs_live(&self) -> bool {
        self.execs.values().any(Exec::is_live)
    }
}

impl Exec {
    /// The guest has it, or may have it any moment, or its end is not told yet.
    fn is_live(&self) -> bool {
        matches!(self.process.state(), State::Starting(_) | State::Running)
    }
}

#[cfg(test)]
mod tests;
