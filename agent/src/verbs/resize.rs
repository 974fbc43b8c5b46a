// SPDX-License-Identifier: Apache-2.0

//! Resize: the size of a process's terminal.

use husk_protocol::agent::Resize;
use husk_protocol::agent::response::Result as Outcome;

use crate::agent::Agent;
use crate::error::{Error, Result};
use crate::stdio::set_size;
use crate::verbs::done;

pub fn resize(agent: &Agent, request: &Resize) -> Result<Outcome> {
    let container = agent.container(&request.container)?;
    container.with_process(&request.exec, |process| match &process.terminal {
        _ if process.ended.is_some() => Err(Error::finished()),
        Some(terminal) => set_size(terminal, request.rows, request.cols),
        None => Err(Error::precondition("the process has no terminal")),
    })?;
    Ok(done())
}
