// SPDX-License-Identifier: Apache-2.0

//! Update: a container may use more or less, and the VM follows. It grows before the container
//! may use more, and shrinks after it may use less, or, of huge pages, is gone.

use std::sync::Arc;

use husk_sandbox::{Error, Limits, Sandbox};

use crate::container::Container;
use crate::log;
use crate::pod::Pod;
use crate::service::quick;

/// Gives a container other limits. `resources` is an OCI LinuxResources, JSON.
pub async fn update(
    pod: &Arc<Pod>,
    container: &Container,
    resources: Vec<u8>,
) -> Result<(), Error> {
    let sandbox = pod.sandbox()?;
    let change = Limits::of_resources(&resources)?;
    let _turn = pod.resizing.lock().await;
    let before = container.inner().limits;
    let after = before.map(|limits| limits.updated(change));
    container.inner().limits = after;
    let updated = async {
        sandbox.grow_for(&pod.limits()).await?;
        quick(sandbox.update(&container.id, resources)).await
    };
    let updated = updated.await;
    if updated.is_err() {
        container.inner().limits = before;
    }
    // A change of something else is no reason to look at what ended containers have left.
    if before != after {
        shrink(pod, &sandbox).await;
    }
    updated
}

/// Has the VM be large enough for its containers, one that is being created among them.
pub async fn make_room(pod: &Pod, sandbox: &Sandbox) -> Result<(), Error> {
    let _turn = pod.resizing.lock().await;
    sandbox.grow_for(&pod.limits()).await
}

/// Has the guest give up the huge pages of a container that is gone, beside all else: one that
/// is resized meanwhile may take its time.
pub fn after_end(pod: &Arc<Pod>, container: &Container) {
    let had = container.inner().limits.and_then(|limits| limits.huge_pages);
    if let (Some(1..), Ok(sandbox)) = (had, pod.sandbox()) {
        let pod = pod.clone();
        tokio::spawn(async move {
            let _turn = pod.resizing.lock().await;
            if let Err(error) = sandbox.release_huge_pages_for(&pod.limits()).await
                && !sandbox.has_ended()
            {
                log::warn(&error.message);
            }
        });
    }
}

/// Takes back what no container may use any more. A guest that does not give it back keeps it.
async fn shrink(pod: &Arc<Pod>, sandbox: &Sandbox) {
    match sandbox.shrink_for(&pod.limits()).await {
        Ok(reached) => drop(tokio::spawn(async move {
            if let Err(error) = reached.await {
                log::warn(&error.message);
            }
        })),
        Err(error) => log::warn(&error.message),
    }
}
