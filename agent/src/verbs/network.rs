// SPDX-License-Identifier: Apache-2.0

//! SetNetwork: the guest's network becomes the one that the host names.

use husk_protocol::agent::SetNetwork;
use husk_protocol::agent::response::Result as Outcome;

use crate::agent::Agent;
use crate::error::Result;
use crate::network;
use crate::verbs::done;

pub async fn set_network(agent: &Agent, request: SetNetwork) -> Result<Outcome> {
    let mut current = agent.network.lock().await;
    for slot in network::gone(&current, &request) {
        agent.pci.remove(slot).await?;
    }
    agent.pci.discover(request.interfaces.iter().map(|interface| interface.slot)).await?;
    network::apply(&current, &request)?;
    *current = request;
    Ok(done())
}
