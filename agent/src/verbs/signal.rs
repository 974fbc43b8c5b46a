// SPDX-License-Identifier: Apache-2.0

//! Signal: to one process, or to all of a container.

use husk_protocol::agent;
use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::signal::Scope;

use crate::agent::Agent;
use crate::error::{Doing, Error, Result};
use crate::verbs::done;

/// The highest real-time signal.
const MAX_SIGNAL: u32 = 64;

pub fn signal(agent: &Agent, request: &agent::Signal) -> Result<Outcome> {
    let number = request.signal;
    if number == 0 || number > MAX_SIGNAL {
        return Err(Error::invalid(format!("{number} is no signal")));
    }
    let container = agent.container(&request.container)?;
    match request.scope.enum_value() {
        Ok(Scope::ALL) => container.cgroup.signal(number as i32)?,
        Ok(Scope::PROCESS) => container.with_process(&request.exec, |process| {
            if process.ended.is_some() {
                return Err(Error::finished());
            }
            // It has not been reaped, so the pid is its own.
            // SAFETY: kill() takes no pointers.
            if unsafe { libc::kill(process.pid, number as i32) } < 0 {
                return Err(std::io::Error::last_os_error())
                    .doing(format!("send signal {number} to process {}", process.pid));
            }
            Ok(())
        })?,
        Err(scope) => return Err(Error::invalid(format!("{scope} is no scope of a signal"))),
    }
    Ok(done())
}
