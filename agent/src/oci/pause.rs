// SPDX-License-Identifier: Apache-2.0

//! Pause and resume: a container's processes stop, and continue.

use super::state::{Container, Status};
use super::{LIMIT, Result, wait};

pub fn pause(container: &Container) -> Result<()> {
    if !matches!(container.status(), Status::Running | Status::Created) {
        return Err(format!("container not running: it is {}", container.status()));
    }
    let cgroup = container.cgroup();
    wait(cgroup.freeze(true, LIMIT)).inspect_err(|_| {
        // Not half paused: what did stop goes on.
        let _ = cgroup.write("cgroup.freeze", "0");
    })
}

pub fn resume(container: &Container) -> Result<()> {
    if container.status() != Status::Paused {
        return Err(format!("container not paused: it is {}", container.status()));
    }
    wait(container.cgroup().freeze(false, LIMIT))
}
