// SPDX-License-Identifier: Apache-2.0

//! Create: cgroup, streams and first process of a container, which then waits for Start.
//! Until the answer is given, everything made is undone when a step fails.

use std::path::Path;
use std::rc::Rc;

use husk_protocol::agent::Create;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::agent::{Agent, check_id};
use crate::container::{Container, Phase, Process};
use crate::disks;
use crate::engine::seccomp::Filter;
use crate::engine::{self, Stdio, namespaces, spec, users};
use crate::error::{Error, Result};
use crate::outbox::Reply;
use crate::resources;
use crate::stdio::Connected;
use crate::verbs::{delete, huge_pages, process};

pub async fn create(agent: &Rc<Agent>, request: Create, reply: Reply) {
    // Before the id is taken: others may want it meanwhile.
    if let Err(error) = agent.pci.discover(request.disks.iter().map(|disk| disk.slot)).await {
        return reply.send(Err(error));
    }
    let container = match claim(agent, &request) {
        Ok(container) => container,
        Err(error) => return reply.send(Err(error)),
    };
    match make(agent, &container, &request).await {
        Ok(pid) => {
            reply.send(Ok(process(pid)));
            container.announce("");
            tokio::task::spawn_local(container.watch_oom());
        }
        Err(error) => {
            if let Err(left) = delete::clear(agent, &container).await {
                agent.outbox.warn(format!("after a failed create: {left}"));
            }
            reply.send(Err(error));
        }
    }
}

/// Checks the request and takes the id.
fn claim(agent: &Agent, request: &Create) -> Result<Rc<Container>> {
    let id = request.container.as_str();
    check_id(id)?;
    if agent.containers.borrow().contains_key(id) {
        return Err(Error::exists(format!("container {id} exists")));
    }
    let mut spec: Spec = spec::read(&request.spec, "/process")
        .map_err(|error| Error::invalid(format!("cannot read the spec: {error}")))?;
    fit(&mut spec);
    disks::fit(&mut spec, &request.disks)?;
    spec::check(&spec, true).map_err(Error::invalid)?;
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = seccomp.map(Filter::compile).transpose().map_err(Error::invalid)?;
    let container = Rc::new(Container::new(id, spec, filter, agent.outbox.clone()));
    agent.containers.borrow_mut().insert(id.to_owned(), container.clone());
    Ok(container)
}

/// Takes out what does not concern a container of a pod.
fn fit(spec: &mut Spec) {
    // Without a UTS namespace of its own the container has the pod's name.
    if !namespaces::has(spec, LinuxNamespaceType::Uts) {
        spec.set_hostname(None).set_domainname(None);
    }
}

async fn make(agent: &Agent, container: &Rc<Container>, request: &Create) -> Result<i32> {
    container.cgroup.create()?;
    let linux = container.spec.linux().as_ref();
    if let Some(limits) = linux.and_then(|linux| linux.resources().as_ref()) {
        resources::apply(&container.cgroup, limits)?;
    }
    huge_pages::mount_all(&request.huge_pages)?;

    let connected = Connected::dial(&agent.host, &request.stdio).await?;
    not_deleted(container)?;
    let (fds, connected, streams) = if request.stdio.terminal {
        (None, Some(connected), None)
    } else {
        let (fds, streams) = connected.pipes(users::host_uid(&container.spec))?;
        (Some(fds), None, Some(streams))
    };
    let stdio = match &fds {
        Some(fds) => Stdio::Given(fds),
        None => Stdio::Terminal(request.stdio.rows, request.stdio.cols),
    };
    let since = agent.reaper.now();
    let create = engine::Create {
        id: &container.id,
        spec: &container.spec,
        bundle: Path::new("/"),
        cgroup: container.cgroup.path(),
        filter: container.filter.as_ref(),
        stdio,
        gate: None,
        runtime_hooks: false,
        pivot: true,
        keyring: true,
        preserved: 0,
    };
    let on_stage = |pidfd| container.state.borrow_mut().stage = Some(pidfd);
    let made = engine::wait::create(&create, on_stage).await;
    drop(fds);
    container.state.borrow_mut().stage = None;
    let (made, pending) = made?;
    not_deleted(container)?;

    let streams = match (&made.terminal, connected, streams) {
        (Some(terminal), Some(connected), _) => connected.terminal(terminal)?,
        (None, _, Some(streams)) => streams,
        _ => return Err(Error::internal("the engine made no terminal")),
    };
    {
        let mut state = container.state.borrow_mut();
        state.init = Some(Process::new(made.pid, made.pidfd, made.terminal, streams));
        state.pending = Some(pending);
        state.phase = Phase::Created;
    }
    let watcher = container.clone();
    agent.reaper.watch(made.pid, since, move |status| watcher.ended("", status));
    Ok(made.pid)
}

/// A Delete that comes while Create is at work ends it at the next step.
fn not_deleted(container: &Container) -> Result<()> {
    if container.state.borrow().deleting {
        return Err(Error::unavailable(format!("container {} is being deleted", container.id)));
    }
    Ok(())
}
