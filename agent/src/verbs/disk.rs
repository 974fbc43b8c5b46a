// SPDX-License-Identifier: Apache-2.0

//! RemoveDisk: the last container that used it is gone.

use husk_protocol::agent::RemoveDisk;
use husk_protocol::agent::response::Result as Outcome;

use crate::agent::Agent;
use crate::error::Result;
use crate::verbs::done;

pub async fn remove(agent: &Agent, request: &RemoveDisk) -> Result<Outcome> {
    agent.pci.remove(request.slot).await?;
    Ok(done())
}
