// SPDX-License-Identifier: Apache-2.0

//! Start: lets the first process of a container run its program. It succeeds when the
//! program runs; when it cannot, the answer names the program and no Exit follows.

use std::rc::Rc;

use husk_protocol::agent::Start;

use crate::agent::Agent;
use crate::container::{Container, Phase};
use crate::engine::wait::Pending;
use crate::error::{Error, Result};
use crate::outbox::Reply;
use crate::verbs::process;

pub async fn start(agent: &Rc<Agent>, request: Start, reply: Reply) {
    let begun = agent.container(&request.container).and_then(|container| {
        let (pid, pending) = begin(&container)?;
        Ok((container, pid, pending))
    });
    let (container, pid, pending) = match begun {
        Ok(begun) => begun,
        Err(error) => return reply.send(Err(error)),
    };
    match pending.start().await {
        Ok(()) => {
            {
                let mut state = container.state.borrow_mut();
                if state.phase == Phase::Starting {
                    state.phase = Phase::Running;
                }
            }
            reply.send(Ok(process(pid)));
            container.announce("");
        }
        Err(error) => {
            if let Err(left) = container.cgroup.kill() {
                agent.outbox.warn(format!("after a failed start: {left}"));
            }
            // This answer is the last that the host hears of the process.
            if let Some(init) = &mut container.state.borrow_mut().init {
                init.told = true;
            }
            reply.send(Err(error));
        }
    }
    container.changed.notify_waiters();
}

fn begin(container: &Container) -> Result<(i32, Pending)> {
    let mut state = container.state.borrow_mut();
    let id = &container.id;
    match (state.phase, state.deleting) {
        (Phase::Created, false) => {}
        (Phase::Created, true) => {
            return Err(Error::precondition(format!("container {id} is being deleted")));
        }
        (Phase::Creating, _) => {
            return Err(Error::precondition(format!("container {id} is still being created")));
        }
        (Phase::Starting | Phase::Running, _) => {
            return Err(Error::precondition(format!("container {id} has been started")));
        }
        (Phase::Stopped, _) => {
            return Err(Error::precondition(format!("container {id} has stopped")));
        }
    }
    let pending = state.pending.take();
    match (&mut state.init, pending) {
        (Some(init), Some(pending)) => {
            // From now on its end waits for the answer to Start.
            init.announced = false;
            let pid = init.pid;
            state.phase = Phase::Starting;
            Ok((pid, pending))
        }
        _ => Err(Error::internal(format!("container {id} has no process to start"))),
    }
}
