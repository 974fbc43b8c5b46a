// SPDX-License-Identifier: Apache-2.0

//! Pids: all processes of a container.

use std::collections::HashMap;

use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::{Pid, PidList, Pids};

use crate::agent::Agent;
use crate::container::Exec;
use crate::error::Result;

pub fn pids(agent: &Agent, request: &Pids) -> Result<Outcome> {
    let container = agent.container(&request.container)?;
    let state = container.state.borrow();
    let execs: HashMap<u32, &String> = state
        .execs
        .iter()
        .filter_map(|(id, exec)| match exec {
            Exec::Started(process) if process.ended.is_none() => Some((process.pid as u32, id)),
            _ => None,
        })
        .collect();
    let pids = container.cgroup.pids()?.into_iter().map(|pid| Pid {
        pid,
        exec: execs.get(&pid).map(|id| id.to_string()).unwrap_or_default(),
        ..Default::default()
    });
    Ok(Outcome::Pids(PidList { pids: pids.collect(), ..Default::default() }))
}
