// SPDX-License-Identifier: Apache-2.0

//! Pids: the processes of a container, for people. The first one goes by the number that
//! containerd was given for the task; the others have their numbers in the guest.

use std::sync::Arc;

use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::types::task::ProcessInfo;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use crate::container::Container;
use crate::pod::Pod;
use crate::service::quick;

/// Processes that are listed at most; a guest may have any number.
const MAX_LISTED: usize = 32 << 10;

/// Never empty: containerd takes a task without processes for one that is gone.
pub async fn list(pod: &Pod, container: &Arc<Container>) -> Vec<ProcessInfo> {
    let init = container.inner().init.guest_pid;
    let listed = match pod.sandbox() {
        Ok(sandbox) => quick(sandbox.pids(&container.id)).await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let mut processes = vec![ProcessInfo { pid: container.pid, ..Default::default() }];
    let others = listed.into_iter().filter(|process| Some(process.pid) != init);
    processes.extend(others.take(MAX_LISTED).map(|process| ProcessInfo {
        pid: process.pid,
        info: details(process.exec),
        ..Default::default()
    }));
    processes
}

fn details(exec_id: String) -> MessageField<Any> {
    if exec_id.is_empty() {
        return MessageField::none();
    }
    let details = ProcessDetails { exec_id, ..Default::default() };
    // A string always serializes.
    let value = details.write_to_bytes().unwrap_or_default();
    MessageField::some(Any {
        type_url: "containerd.runc.v1.ProcessDetails".into(),
        value,
        ..Default::default()
    })
}
