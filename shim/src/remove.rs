// SPDX-License-Identifier: Apache-2.0

//! Delete: takes away what is left of an exec, or of a container with all that the host
//! holds for it. The pod's own container takes the VM with it.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task as message;
use husk_sandbox::{Error, Sandbox, clock};
use protobuf::MessageField;

use crate::container::Container;
use crate::events::Event;
use crate::io::{self, Io};
use crate::log;
use crate::pod::Pod;
use crate::process::{Exit, LOST_STATUS, State};
use crate::reply::timestamp;
use crate::update;

/// How long the guest may take to clear away a container or an exec. It does so again, or
/// with its VM, later.
const GUEST_LIMIT: Duration = Duration::from_secs(5);

/// Deletes an exec; how it ended.
pub async fn exec(pod: &Pod, container: &Arc<Container>, exec: &str) -> Result<Exit, Error> {
    let (exit, io) = {
        let mut inner = container.inner();
        let process = inner.process(exec)?;
        let exit = match process.state() {
            State::Stopped(exit) => exit,
            // Never started: as runc has it, no status and no time.
            State::Created => Exit { status: 0, at: Duration::ZERO },
            _ => return Err(Error::precondition(format!("exec {exec} is still running"))),
        };
        (exit, process.io.take())
    };
    let guest_has_it = exit.at != Duration::ZERO;
    if let Some(io) = io {
        io::drain(vec![io]).await;
    }
    if guest_has_it && let Ok(sandbox) = pod.sandbox() {
        ask_guest(&sandbox, &container.id, exec).await;
    }
    container.inner().execs.remove(exec);
    Ok(exit)
}

/// Deletes a container that has stopped or was never started; how it ended. Runs to its
/// end even when the caller goes away.
pub async fn container(pod: &Arc<Pod>, container: &Arc<Container>) -> Result<Exit, Error> {
    claim(container)?;
    let (pod, container) = (pod.clone(), container.clone());
    let work = tokio::spawn(async move { clear(&pod, &container).await });
    work.await.map_err(|_| Error::internal("the delete was given up"))
}

/// Makes sure that there is one delete, of something that does not run.
fn claim(container: &Container) -> Result<(), Error> {
    let mut inner = container.inner();
    if inner.deleting {
        return Err(Error::not_found(format!("container {} is being deleted", container.id)));
    }
    match inner.init.state() {
        State::Stopped(_) | State::Created => {
            inner.deleting = true;
            Ok(())
        }
        _ => Err(Error::precondition(format!(
            "container {} is running; kill it first",
            container.id
        ))),
    }
}

async fn clear(pod: &Arc<Pod>, container: &Arc<Container>) -> Exit {
    container.phases.reach("delete_received");
    let own = container.id == pod.id;
    let ios = take_streams(container);
    let was_started = matches!(container.inner().init.state(), State::Stopped(_));
    if was_started {
        io::drain(ios).await;
    } else {
        // Nothing has come out of it, and nothing will.
        drop(ios);
    }
    let sandbox = if own { pod.take_sandbox() } else { pod.sandbox().ok() };
    let milestones = sandbox.as_ref().map(|sandbox| sandbox.milestones()).unwrap_or_default();
    if let Some(sandbox) = &sandbox {
        if own {
            // All that ran here has ended, and what it wrote is with the host already.
            sandbox.kill("the pod was deleted");
            sandbox.ended().await;
        } else {
            ask_guest(sandbox, &container.id, "").await;
        }
    }
    // The guest does not use them any more.
    drop(std::mem::take(&mut container.inner().disks));
    // One that was never started ends now; one that was has ended, and stays as it is.
    container.lost(Exit { status: LOST_STATUS, at: clock::realtime() });
    let exit = container
        .inner()
        .init
        .state()
        .exit()
        .unwrap_or(Exit { status: LOST_STATUS, at: clock::realtime() });
    unmount(container).await;
    poststop(sandbox.as_deref(), container).await;
    if let (Some(sandbox), true) = (&sandbox, own)
        && let Err(error) = sandbox.stop("the pod was deleted").await
    {
        log::error(&format!("pod {}: {error}", pod.id));
    }
    container.publish(Event::Delete(message::TaskDelete {
        container_id: container.id.clone(),
        pid: container.pid,
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at)),
        ..Default::default()
    }));
    pod.remove(&container.id);
    update::after_end(pod, container);
    container.phases.reach("deleted");
    container.phases.log(&container.id, milestones);
    exit
}

/// The streams of all its processes.
fn take_streams(container: &Container) -> Vec<Io> {
    let mut inner = container.inner();
    let init = inner.init.io.take();
    let execs = inner.execs.values_mut().filter_map(|exec| exec.process.io.take());
    let mut ios: Vec<Io> = execs.collect();
    ios.extend(init);
    ios
}

/// Has the guest clear away what is left of a container, or of an exec.
pub async fn ask_guest(sandbox: &Sandbox, container: &str, exec: &str) {
    match tokio::time::timeout(GUEST_LIMIT, sandbox.delete(container, exec)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if sandbox.has_ended() => log::debug(&error.message),
        Ok(Err(error)) => {
            log::warn(&format!("the guest cannot delete {container} {exec}: {error}"))
        }
        Err(_) => log::warn(&format!("the guest does not delete {container} {exec}")),
    }
}

/// Runs the hooks that are due now that the container is gone. One that fails is logged.
pub async fn poststop(sandbox: Option<&Sandbox>, container: &Container) {
    let Some(poststop) = container.inner().poststop.take() else { return };
    let mut errors = poststop.run().await;
    if let Some(sandbox) = sandbox {
        errors.extend(sandbox.record_poststop_ran(&container.id).err());
    }
    for error in errors {
        log::warn(&format!("container {}: {error}", container.id));
    }
}

/// Unmounts what the host mounted for it, on a thread of its own.
async fn unmount(container: &Arc<Container>) {
    let (shared, rootfs) = {
        let mut inner = container.inner();
        (inner.shared.take(), inner.rootfs.take())
    };
    let work = move || {
        let shared = shared.map_or(Ok(()), |shared| shared.remove());
        let rootfs = rootfs.map_or(Ok(()), |rootfs| rootfs.unmount());
        [shared, rootfs]
    };
    for done in tokio::task::spawn_blocking(work).await.into_iter().flatten() {
        if let Err(error) = done {
            log::error(&format!("container {}: {error}", container.id));
        }
    }
}
