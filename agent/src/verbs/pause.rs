// SPDX-License-Identifier: Apache-2.0

//! Pause and Resume: a container's processes stop, and continue.

use std::time::Duration;

use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::{Pause, Resume};

use crate::agent::Agent;
use crate::error::Result;
use crate::verbs::done;

/// A process in the kernel stops when it leaves it; this long may that take.
const LIMIT: Duration = Duration::from_secs(10);

pub async fn pause(agent: &Agent, request: &Pause) -> Result<Outcome> {
    let container = agent.container(&request.container)?;
    {
        let mut state = container.state.borrow_mut();
        state.expect_running(&container.id)?;
        // At once, so that no exec begins in between.
        state.paused = true;
    }
    let frozen = container.cgroup.freeze(true, LIMIT).await;
    if frozen.is_err() {
        // Not half paused: what did stop goes on.
        let _ = container.cgroup.write("cgroup.freeze", "0");
        container.state.borrow_mut().paused = false;
    }
    frozen.map(|()| done())
}

pub async fn resume(agent: &Agent, request: &Resume) -> Result<Outcome> {
    let container = agent.container(&request.container)?;
    container.state.borrow().expect_running(&container.id)?;
    container.cgroup.freeze(false, LIMIT).await?;
    container.state.borrow_mut().paused = false;
    Ok(done())
}
