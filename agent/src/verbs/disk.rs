// SPDX-License-Identifier: Apache-2.0

//! RemoveDisk: the last container that used it is gone.

use husk_protocol::agent::RemoveDisk;
use husk_protocol::agent::response::Result as Outcome;

use crate::error::Result;
use crate::pci;
use crate::verbs::done;

pub fn remove(request: &RemoveDisk) -> Result<Outcome> {
    pci::remove(request.slot)?;
    Ok(done())
}
