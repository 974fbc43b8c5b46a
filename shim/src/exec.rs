// SPDX-License-Identifier: Apache-2.0

//! Starting processes: a container's first one, and execs.

use std::sync::Arc;

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::events::task as message;
use husk_sandbox::{Code, Error, Exec as GuestExec, GuestProcess, Sandbox};

use crate::container::{Container, Exec};
use crate::create::pod_network;
use crate::events::Event;
use crate::io::{Io, Owner, Stdio};
use crate::log;
use crate::pod::Pod;
use crate::process::{Input, Process, State};

/// Longest exec id, in bytes; containerd's own limit for identifiers.
const MAX_EXEC_ID: usize = 76;

/// Registers an exec; the guest hears of it when it is started.
pub fn add(container: &Container, request: ExecProcessRequest) -> Result<(), Error> {
    let id = request.exec_id.clone();
    if id.is_empty() || id.len() > MAX_EXEC_ID {
        return Err(Error::invalid(format!("{id:?} is not a valid exec id")));
    }
    let spec = GuestProcess::parse(&request.spec.value, request.terminal)?;
    let stdio = Stdio {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    let mut inner = container.inner();
    if inner.execs.contains_key(&id) {
        return Err(Error::new(Code::AlreadyExists, format!("exec {id} exists already")));
    }
    if let State::Stopped(_) = inner.init.state() {
        return Err(Error::precondition(format!("container {} has stopped", container.id)));
    }
    let mut process = Process::new(State::Created, stdio);
    process.size = spec.console_size;
    inner.execs.insert(id.clone(), Exec { process, spec: spec.json });
    // Published under the lock, so that no start of it comes before.
    container.publish(Event::ExecAdded(message::TaskExecAdded {
        container_id: container.id.clone(),
        exec_id: id,
        ..Default::default()
    }));
    Ok(())
}

/// Starts the first process, for an empty `exec`, or an exec.
pub async fn start(pod: &Pod, container: &Arc<Container>, exec: &str) -> Result<(), Error> {
    let sandbox = pod.sandbox()?;
    let started = if exec.is_empty() {
        container.phases.reach("start_received");
        start_init(pod, &sandbox, container).await
    } else {
        start_exec(pod, &sandbox, container, exec).await
    };
    match started {
        Ok(guest_pid) => {
            let size = {
                let mut inner = container.inner();
                let process = inner.process(exec)?;
                process.guest_pid = Some(guest_pid);
                process.size.take()
            };
            container.apply(exec, Input::Started)?;
            if exec.is_empty() {
                container.phases.reach("started");
                for error in container.hooks.after_start(container.pid).await {
                    log::warn(&format!("container {}: {error}", container.id));
                }
            }
            if let Some(size) = size {
                // A size that came while the guest was starting it; it may have ended since.
                let _ = sandbox.resize(&container.id, exec, size).await;
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn start_init(
    pod: &Pod,
    sandbox: &Sandbox,
    container: &Arc<Container>,
) -> Result<u32, Error> {
    container.apply("", Input::Start)?;
    let started = Starting { container, exec: "", armed: true };
    let size = {
        let mut inner = container.inner();
        if let Some(io) = &mut inner.init.io {
            io.open_stdin()?;
        }
        inner.init.size.take()
    };
    if let Some(size) = size {
        // The terminal is there since the create; what is wrong with it, the start tells.
        let _ = sandbox.resize(&container.id, "", size).await;
    }
    if let Some(network) = pod_network(pod, sandbox, container) {
        // Some clients set it up between create and start.
        network.update().await?;
    }
    let guest_pid = sandbox.start(&container.id).await?;
    started.disarm();
    Ok(guest_pid)
}

async fn start_exec(
    pod: &Pod,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    exec: &str,
) -> Result<u32, Error> {
    let (stdio, spec) = {
        let mut inner = container.inner();
        // Before the state of the container: an unknown exec is not found in any case.
        inner.process(exec)?;
        match inner.init.state() {
            State::Running if !inner.paused => {}
            State::Running => {
                return Err(Error::precondition(format!("container {} is paused", container.id)));
            }
            _ => {
                return Err(Error::precondition(format!(
                    "container {} is not running",
                    container.id
                )));
            }
        }
        let registered = inner.execs.get(exec).ok_or_else(|| Error::not_found("no such exec"))?;
        (registered.process.stdio.clone(), registered.spec.clone())
    };
    container.apply(exec, Input::Start)?;
    let started = Starting { container, exec, armed: true };
    let owner = Owner { container: &container.id, namespace: &pod.namespace };
    let (mut io, mut terminal) = Io::open(&stdio, owner, || sandbox.expect_stream()).await?;
    {
        let mut inner = container.inner();
        let process = inner.process(exec)?;
        if process.stdin_closed {
            io.close_stdin();
        }
        io.open_stdin()?;
        process.io = Some(io);
        terminal.size = process.size.take();
    }
    let request = GuestExec { container: &container.id, exec, process: spec, stdio: terminal };
    let guest_pid = sandbox.exec(request).await?;
    started.disarm();
    Ok(guest_pid)
}

/// A start under way. Unless it is disarmed the process was not started: the guest said no,
/// or the caller went away, who will delete it.
struct Starting<'a> {
    container: &'a Container,
    exec: &'a str,
    armed: bool,
}

impl Starting<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if !self.exec.is_empty() {
            let io = self.container.inner().process(self.exec).ok().and_then(|p| p.io.take());
            drop(io);
        }
        // It is in Starting, which this function has put it in.
        let _ = self.container.apply(self.exec, Input::NotStarted);
    }
}
