// SPDX-License-Identifier: Apache-2.0

//! Exec: a further process in a running container, made and started in one go. While it is
//! being started it holds back the Exit of the container's first process.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use husk_protocol::agent::Exec as Request;
use oci_spec::runtime::Process as OciProcess;

use crate::agent::Agent;
use crate::container::{Container, Exec, Process};
use crate::engine::{self, Join, spec};
use crate::error::{Doing, Error, Result};
use crate::outbox::Reply;
use crate::stdio::{ChildStdio, Connected};
use crate::verbs::process;

pub async fn exec(agent: &Rc<Agent>, request: Request, reply: Reply) {
    let begun = agent.container(&request.container).and_then(|container| {
        let join = begin(&container, &request)?;
        Ok((container, join))
    });
    let (container, (join, init)) = match begun {
        Ok(begun) => begun,
        Err(error) => return reply.send(Err(error)),
    };
    let made = make(agent, &container, &request, join, init).await;
    match made {
        Ok(pid) => {
            reply.send(Ok(process(pid)));
            container.announce(&request.exec);
        }
        Err(error) => {
            container.state.borrow_mut().execs.remove(&request.exec);
            reply.send(Err(error));
            container.settle();
        }
    }
    container.changed.notify_waiters();
}

/// Checks the request and takes the exec's id.
fn begin(container: &Container, request: &Request) -> Result<(Join, OwnedFd)> {
    let mut process: OciProcess = serde_json::from_slice(&request.process)
        .map_err(|error| Error::invalid(format!("cannot read the process: {error}")))?;
    spec::fit_process(&mut process, request.stdio.terminal)?;
    let mut state = container.state.borrow_mut();
    if request.exec.is_empty() {
        return Err(Error::invalid("an exec needs an id"));
    }
    if state.execs.contains_key(&request.exec) {
        return Err(Error::exists(format!("exec {} exists", request.exec)));
    }
    state.expect_running(&container.id)?;
    if state.paused {
        return Err(Error::precondition(format!("container {} is paused", container.id)));
    }
    let linux = container.spec.linux().as_ref();
    let init = state.init.as_ref().ok_or_else(Error::finished)?;
    let pidfd = init.pidfd.try_clone().doing("refer to the container's first process")?;
    let join = Join {
        namespaces: spec::namespaces(&container.spec),
        init: init.pid,
        cgroup: container.cgroup.path().to_owned(),
        process,
        seccomp: linux.and_then(|linux| linux.seccomp().clone()),
        rows: request.stdio.rows,
        cols: request.stdio.cols,
    };
    state.execs.insert(request.exec.clone(), Exec::Starting);
    Ok((join, pidfd))
}

async fn make(
    agent: &Agent,
    container: &Rc<Container>,
    request: &Request,
    join: Join,
    init: OwnedFd,
) -> Result<i32> {
    let connected = Connected::dial(&agent.host, &request.stdio).await?;
    let uid = spec::mapped_uid(&container.spec, join.process.user().uid());
    let (stdio, connected, streams) = if request.stdio.terminal {
        (ChildStdio::null()?, Some(connected), None)
    } else {
        let (stdio, streams) = connected.pipes(uid)?;
        (stdio, None, Some(streams))
    };
    let since = agent.reaper.now();
    let made = engine::join(&agent.reaper, join, stdio, init).await?;
    let pidfd = engine::pidfd(made.pid);
    made.pending.executed().await?;
    let streams = match (&made.terminal, connected, streams) {
        (Some(terminal), Some(connected), _) => connected.terminal(terminal)?,
        (None, _, Some(streams)) => streams,
        _ => return Err(Error::internal("the engine made no terminal")),
    };
    let process = Process::new(made.pid, pidfd?, made.terminal, streams);
    container.state.borrow_mut().execs.insert(request.exec.clone(), Exec::Started(process));
    let (watcher, exec) = (container.clone(), request.exec.clone());
    agent.reaper.watch(made.pid, since, move |status| watcher.ended(&exec, status));
    Ok(made.pid)
}
