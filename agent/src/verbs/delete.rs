// SPDX-License-Identifier: Apache-2.0

//! Delete: kills what is left of a container or an exec and removes every trace. It may be
//! asked for at any time and more than once.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use husk_protocol::agent::Delete;
use husk_protocol::agent::response::Result as Outcome;

use crate::agent::Agent;
use crate::container::{Container, Exec, Phase};
use crate::engine::stage;
use crate::error::{Doing, Error, Result};
use crate::verbs::done;

/// A killed process ends when it leaves the kernel; this long may that take.
const LIMIT: Duration = Duration::from_secs(10);

pub async fn delete(agent: &Agent, request: &Delete) -> Result<Outcome> {
    let Ok(container) = agent.container(&request.container) else { return Ok(done()) };
    if request.exec.is_empty() {
        delete_container(agent, &container).await?;
    } else {
        delete_exec(&container, &request.exec).await?;
    }
    Ok(done())
}

async fn delete_container(agent: &Agent, container: &Rc<Container>) -> Result<()> {
    let first = !std::mem::replace(&mut container.state.borrow_mut().deleting, true);
    container.changed.notify_waiters();
    let creating = container.state.borrow().phase == Phase::Creating;
    if creating {
        // Create sees `deleting`, undoes what it did and takes the container away.
        let killed = match &container.state.borrow().stage {
            Some(stage) => stage::kill(stage.as_fd(), libc::SIGKILL),
            None => Ok(()),
        };
        killed.doing("kill the container's engine")?;
        container.cgroup.kill()?;
    }
    if creating || !first {
        return within(container, |state| state.gone).await;
    }
    let cleared = clear(agent, container).await;
    if cleared.is_err() {
        // It may be tried again.
        container.state.borrow_mut().deleting = false;
    }
    cleared
}

/// Kills what runs and removes what there is. Goes on past failures and names them all;
/// the container's id is free again if there were none.
pub async fn clear(agent: &Agent, container: &Rc<Container>) -> Result<()> {
    container.state.borrow_mut().deleting = true;
    let mut failures = Vec::new();
    let mut note = |result: Result<()>| failures.extend(result.err().map(|e| e.message));
    note(container.cgroup.kill());
    // A frozen cgroup lets its processes be killed, so it need not be thawed.
    note(within(container, |state| state.all_ended()).await);
    note(container.cgroup.remove(LIMIT).await);
    {
        let mut state = container.state.borrow_mut();
        // Delivers what is in the pipes, then closes.
        for exec in state.execs.values_mut() {
            if let Exec::Started(process) = exec {
                process.streams = None;
            }
        }
        if let Some(init) = &mut state.init {
            init.streams = None;
        }
    }
    if !failures.is_empty() {
        let failures = failures.join("; ");
        return Err(Error::internal(format!("container {}: {failures}", container.id)));
    }
    agent.containers.borrow_mut().remove(&container.id);
    container.state.borrow_mut().gone = true;
    container.changed.notify_waiters();
    Ok(())
}

async fn delete_exec(container: &Container, exec: &str) -> Result<()> {
    // One that is being started is waited for: its id is not free before.
    within(container, |state| !matches!(state.execs.get(exec), Some(Exec::Starting))).await?;
    let left = container.with_process(exec, |process| {
        if process.ended.is_none() {
            // SAFETY: kill() takes no pointers; the process has not been reaped.
            unsafe { libc::kill(process.pid, libc::SIGKILL) };
        }
        Ok(())
    });
    if left.is_err() {
        return Ok(());
    }
    let ended = |state: &crate::container::State| match state.execs.get(exec) {
        Some(Exec::Started(process)) => process.ended.is_some() && process.told,
        _ => true,
    };
    within(container, ended).await?;
    container.state.borrow_mut().execs.remove(exec);
    Ok(())
}

async fn within(
    container: &Container,
    done: impl Fn(&crate::container::State) -> bool,
) -> Result<()> {
    tokio::time::timeout(LIMIT, container.until(done)).await.map_err(|_| {
        let seconds = LIMIT.as_secs();
        Error::unavailable(format!(
            "processes of container {} have not ended {seconds} s after they were killed",
            container.id
        ))
    })
}
