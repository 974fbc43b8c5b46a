// SPDX-License-Identifier: Apache-2.0

//! Kill: a signal for one process or for all of a container. A kill for good always works:
//! if the guest does not take it, its VM goes.

use std::sync::Arc;

use containerd_shim_protos::api::KillRequest;
use husk_sandbox::{Code, Error, Signal};

use crate::container::Container;
use crate::log;
use crate::pod::Pod;
use crate::process::State;
use crate::service::quick;

pub async fn kill(
    pod: &Pod,
    container: &Arc<Container>,
    request: &KillRequest,
) -> Result<(), Error> {
    match container.inner().process(&request.exec_id)?.state() {
        State::Stopped(_) => return Err(Error::not_found("process already finished")),
        State::Created if !request.exec_id.is_empty() => {
            return Err(Error::precondition(format!("exec {} is not running", request.exec_id)));
        }
        _ => {}
    }
    let sandbox = pod.sandbox()?;
    let signal = Signal {
        container: &request.id,
        exec: &request.exec_id,
        signal: request.signal,
        all: request.all,
    };
    let done = quick(sandbox.signal(signal)).await;
    let for_good = request.signal == libc::SIGKILL as u32 && request.exec_id.is_empty();
    match done {
        // Ended since we looked: by the VM's end, or by itself.
        Err(_) if container.inner().process(&request.exec_id)?.state().exit().is_some() => {
            Err(Error::not_found("process already finished"))
        }
        Err(error) if error.code == Code::Unavailable && for_good && container.id == pod.id => {
            log::error(&format!("container {}: {error}; killing the VM", container.id));
            sandbox.kill("the guest agent did not take a SIGKILL");
            Ok(())
        }
        done => done,
    }
}
