// SPDX-License-Identifier: Apache-2.0

//! Start: the program of a created container. Succeeds when it runs.

use std::os::fd::AsFd;

use super::state::{Container, Status};
use super::{Result, reports};
use crate::engine::{Progress, Step, hooks};

pub fn start(container: &Container) -> Result<()> {
    match container.status() {
        Status::Created => {}
        Status::Running => return Err("cannot start an already running container".to_owned()),
        Status::Stopped => return Err("cannot start a container that has stopped".to_owned()),
        other => return Err(format!("cannot start a container in the {other} state")),
    }
    let starter = container.go()?;
    let mut progress = Progress::default();
    while reports::next(starter.as_fd(), &mut progress)? != Step::Over {}
    if let Some(failure) = progress.failure() {
        return Err(reports::why(Some(failure)));
    }
    let poststart = container.record.spec.hooks().as_ref().and_then(|h| h.poststart().as_ref());
    hooks::run("poststart", poststart, &container.told(Status::Running)).map_err(|why| {
        // The specification has the container stopped then.
        match container.cgroup().kill() {
            Ok(()) => why,
            Err(error) => format!("{why}; {error}"),
        }
    })
}
