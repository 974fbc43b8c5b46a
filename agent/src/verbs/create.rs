// SPDX-License-Identifier: Apache-2.0

//! Create: cgroup, streams and first process of a container, which then waits for Start.
//! Until the answer is given, everything made is undone when a step fails.

use std::rc::Rc;

use husk_protocol::agent::Create;
use oci_spec::runtime::{LinuxResources, Spec};

use crate::agent::{Agent, check_id};
use crate::container::{Container, Phase, Process};
use crate::engine::{self, spec};
use crate::error::{Doing, Error, Result};
use crate::outbox::Reply;
use crate::resources;
use crate::stdio::{ChildStdio, Connected, set_size};
use crate::verbs::{delete, process};

pub async fn create(agent: &Rc<Agent>, request: Create, reply: Reply) {
    let (container, limits) = match claim(agent, &request) {
        Ok(claimed) => claimed,
        Err(error) => return reply.send(Err(error)),
    };
    match make(agent, &container, &request, limits).await {
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
fn claim(agent: &Agent, request: &Create) -> Result<(Rc<Container>, Option<LinuxResources>)> {
    let id = request.container.as_str();
    check_id(id)?;
    if agent.containers.borrow().contains_key(id) {
        return Err(Error::exists(format!("container {id} exists")));
    }
    let mut config: Spec = serde_json::from_slice(&request.spec)
        .map_err(|error| Error::invalid(format!("cannot read the spec: {error}")))?;
    let limits = spec::fit(&mut config, id, request.stdio.terminal)?;
    let container = Rc::new(Container::new(id, config, agent.outbox.clone()));
    agent.containers.borrow_mut().insert(id.to_owned(), container.clone());
    Ok((container, limits))
}

async fn make(
    agent: &Agent,
    container: &Rc<Container>,
    request: &Create,
    limits: Option<LinuxResources>,
) -> Result<i32> {
    let bundle = engine::bundle(&container.id);
    std::fs::create_dir(&bundle).doing(format!("create {bundle:?}"))?;
    let config = serde_json::to_vec(&container.spec).doing("write the spec")?;
    std::fs::write(bundle.join("config.json"), config).doing("write config.json")?;
    container.cgroup.create()?;
    if let Some(limits) = limits {
        resources::apply(&container.cgroup, &limits)?;
    }

    let connected = Connected::dial(&agent.host, &request.stdio).await?;
    not_deleted(container)?;
    let (stdio, connected, streams) = if request.stdio.terminal {
        (ChildStdio::null()?, Some(connected), None)
    } else {
        let (stdio, streams) = connected.pipes(spec::host_uid(&container.spec))?;
        (stdio, None, Some(streams))
    };
    let since = agent.reaper.now();
    let on_helper = |pid| container.state.borrow_mut().helper = Some(pid);
    let made = engine::create(&agent.reaper, &container.id, stdio, on_helper).await;
    container.state.borrow_mut().helper = None;
    let made = made?;
    not_deleted(container)?;

    let streams = match (&made.terminal, connected, streams) {
        (Some(terminal), Some(connected), _) => {
            let (rows, cols) = (request.stdio.rows, request.stdio.cols);
            if rows != 0 || cols != 0 {
                set_size(terminal, rows, cols)?;
            }
            connected.terminal(terminal)?
        }
        (None, _, Some(streams)) => streams,
        _ => return Err(Error::internal("the engine made no terminal")),
    };
    let pidfd = engine::pidfd(made.pid)?;
    {
        let mut state = container.state.borrow_mut();
        state.init = Some(Process::new(made.pid, pidfd, made.terminal, streams));
        state.pending = Some(made.pending);
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
