// SPDX-License-Identifier: Apache-2.0

//! Delete: removes every trace of a container.

use lexopt::prelude::*;

use super::log::Log;
use super::state::{Container, Status, forget_remains};
use super::{LIMIT, Result, Runtime, needed, take_id, text, wait};
use crate::engine::hooks;

pub fn delete(runtime: &Runtime, mut args: lexopt::Parser) -> Result<()> {
    let (mut id, mut force) = (None, false);
    while let Some(arg) = args.next().map_err(text)? {
        match arg {
            Long("force") | Short('f') => force = true,
            other => take_id(&mut id, other)?,
        }
    }
    let id = needed(id)?;
    let Some(container) = Container::find(&runtime.root, &id)? else {
        forget_remains(&runtime.root, &id)?;
        return if force { Ok(()) } else { Err("container does not exist".to_owned()) };
    };
    match container.status() {
        Status::Stopped | Status::Created => {}
        _ if force => {}
        status => {
            return Err(format!("cannot delete container {id} that is not stopped: {status}"));
        }
    }
    destroy(&container, &runtime.log)
}

/// Kills what is left of a container and removes it. After a failure it may be tried again.
pub fn destroy(container: &Container, log: &Log) -> Result<()> {
    let cgroup = container.cgroup();
    cgroup.kill().map_err(text)?;
    wait(cgroup.remove(LIMIT))?;
    container.forget()?;
    // Without a process nothing was told to the hooks that are to be undone.
    if container.record.pid == 0 {
        return Ok(());
    }
    let poststop = container.record.spec.hooks().as_ref().and_then(|h| h.poststop().as_ref());
    for hook in poststop.into_iter().flatten() {
        let state = container.told(Status::Stopped);
        // The specification lets the other hooks run nevertheless.
        if let Err(why) = hooks::run("poststop", Some(&vec![hook.clone()]), &state) {
            log.warning(&why);
        }
    }
    Ok(())
}
