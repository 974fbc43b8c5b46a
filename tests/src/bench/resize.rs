// SPDX-License-Identifier: Apache-2.0

//! A running VM that grows: what an update of its container's memory limit takes from the
//! request to the answer, asked of the shim itself. When it answers, the guest has the memory.

use std::path::Path;

use super::{Instants, Runs, now_ns};
use crate::containerd::shim::Shim;

/// MiB that each update adds.
pub const STEP: u64 = 256;

/// The first update, for which a device is plugged, and the others.
pub const FIRST: &str = "the first";
pub const FURTHER: &str = "a further one";

/// Raises the limit of a container that has none, `rounds` times after the first.
pub fn grow(directory: &Path, container: &str, rounds: u32) -> Result<Runs, String> {
    let shim = Shim::of(directory, container)?;
    let mut runs = Runs::default();
    for round in 0..=u64::from(rounds) {
        let limit = (STEP * (round + 1)) << 20;
        let resources = serde_json::json!({"memory": {"limit": limit}});
        let begun = now_ns();
        shim.update(&resources).map_err(|error| format!("update: {error}"))?;
        let took = now_ns() - begun;
        let name = if round == 0 { FIRST } else { FURTHER };
        runs.instants.push(Instants::from([(name.to_owned(), took)]));
    }
    Ok(runs)
}
