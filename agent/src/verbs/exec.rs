// SPDX-License-Identifier: Apache-2.0

//! Exec: a further process in a running container, made and started in one go. While it is
//! being started it holds back the Exit of the container's first process.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use husk_protocol::agent::Exec as Request;
use oci_spec::runtime::Process as OciProcess;

use crate::agent::Agent;
use crate::container::{Container, Exec, Process};
use crate::engine::{self, Join, Stdio, namespaces, spec, users};
use crate::error::{Doing, Error, Result};
use crate::outbox::Reply;
use crate::stdio::Connected;
use crate::verbs::process;

pub async fn exec(agent: &Rc<Agent>, request: Request, reply: Reply) {
    let begun = agent.container(&request.container).and_then(|container| {
        let begun = begin(&container, &request)?;
        Ok((container, begun))
    });
    let (container, begun) = match begun {
        Ok(begun) => begun,
        Err(error) => return reply.send(Err(error)),
    };
    let made = make(agent, &container, &request, begun).await;
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

/// What is to run, and the container's first process.
struct Begun {
    process: OciProcess,
    init: i32,
    pidfd: OwnedFd,
}

/// Checks the request and takes the exec's id.
fn begin(container: &Container, request: &Request) -> Result<Begun> {
    let process: OciProcess = spec::read(&request.process, "")
        .map_err(|error| Error::invalid(format!("cannot read the process: {error}")))?;
    spec::check_process(&process).map_err(Error::invalid)?;
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
    let init = state.init.as_ref().ok_or_else(Error::finished)?;
    let pidfd = init.pidfd.try_clone().doing("refer to the container's first process")?;
    let begun = Begun { process, init: init.pid, pidfd };
    state.execs.insert(request.exec.clone(), Exec::Starting);
    Ok(begun)
}

async fn make(
    agent: &Agent,
    container: &Rc<Container>,
    request: &Request,
    begun: Begun,
) -> Result<i32> {
    let connected = Connected::dial(&agent.host, &request.stdio).await?;
    let uid = users::mapped_uid(&container.spec, begun.process.user().uid());
    let (fds, connected, streams) = if request.stdio.terminal {
        (None, Some(connected), None)
    } else {
        let (fds, streams) = connected.pipes(uid)?;
        (Some(fds), None, Some(streams))
    };
    let stdio = match &fds {
        Some(fds) => Stdio::Given(fds),
        None => Stdio::Terminal(request.stdio.rows, request.stdio.cols),
    };
    let since = agent.reaper.now();
    let join = Join {
        id: &container.id,
        init: begun.init,
        pidfd: &begun.pidfd,
        namespaces: namespaces::flags(&container.spec),
        cgroup: container.cgroup.path(),
        process: &begun.process,
        filter: container.filter.as_ref(),
        stdio,
        keyring: true,
        preserved: 0,
    };
    let made = engine::wait::join(&join).await?;
    drop(fds);
    let streams = match (&made.terminal, connected, streams) {
        (Some(terminal), Some(connected), _) => connected.terminal(terminal)?,
        (None, _, Some(streams)) => streams,
        _ => return Err(Error::internal("the engine made no terminal")),
    };
    let process = Process::new(made.pid, made.pidfd, made.terminal, streams);
    container.state.borrow_mut().execs.insert(request.exec.clone(), Exec::Started(process));
    let (watcher, exec) = (container.clone(), request.exec.clone());
    agent.reaper.watch(made.pid, since, move |status| watcher.ended(&exec, status));
    Ok(made.pid)
}
