// SPDX-License-Identifier: Apache-2.0

//! Update: new limits for a container. Device rules do not change.

use husk_protocol::agent::Update;
use husk_protocol::agent::response::Result as Outcome;
use oci_spec::runtime::LinuxResources;

use crate::agent::Agent;
use crate::container::Phase;
use crate::error::{Error, Result};
use crate::resources;
use crate::verbs::done;

pub fn update(agent: &Agent, request: &Update) -> Result<Outcome> {
    let container = agent.container(&request.container)?;
    let limits: LinuxResources = serde_json::from_slice(&request.resources)
        .map_err(|error| Error::invalid(format!("cannot read the resources: {error}")))?;
    if matches!(container.state.borrow().phase, Phase::Creating | Phase::Stopped) {
        return Err(Error::precondition(format!("container {} does not run", container.id)));
    }
    resources::apply(&container.cgroup, &limits)?;
    Ok(done())
}
