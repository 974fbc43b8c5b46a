// SPDX-License-Identifier: Apache-2.0

//! Which pod a container belongs to, and whose namespaces it shares.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Spec;

/// Annotations that name a container's type and its sandbox: containerd's, then CRI-O's.
const CRI: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

/// An OCI namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// A container's place in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// The pod.
    pub id: &'a str,
    /// It is the pod's first container, which stands for it.
    pub begins: bool,
}

impl Namespace {
    /// The process of the host whose namespace it is to be, where the path says so.
    pub fn pid(&self) -> Option<u32> {
        if !matches!(self.kind.as_str(), "ipc" | "uts" | "pid") {
            return None;
        }
        let (pid, kind) = self.path.strip_prefix("/proc/")?.split_once("/ns/")?;
        pid.parse().ok().filter(|_| kind == self.kind)
    }
}

/// What the namespaces are in the guest.
pub fn fit(namespaces: &mut Vec<Namespace>, in_guest: &HashMap<u32, u32>) {
    // A path names a namespace of the host. One of a process of the pod means what that
    // process is in. Of others the pod's are used, which are the guest's own, where pods
    // share them; the rest is made new.
    namespaces.retain_mut(|namespace| {
        if namespace.path.is_empty() {
            return true;
        }
        let found = namespace.pid().and_then(|pid| in_guest.get(&pid));
        namespace.path = match found {
            Some(pid) => format!("/proc/{pid}/ns/{}", namespace.kind),
            None => String::new(),
        };
        found.is_some() || !matches!(namespace.kind.as_str(), "network" | "ipc" | "uts" | "pid")
    });
}

impl Spec {
    /// The pod that the container is one of or begins, by its annotations.
    pub fn pod(&self) -> Option<Member<'_>> {
        CRI.iter().find_map(|(kind, sandbox)| {
            let id = self.annotation(sandbox).filter(|id| !id.is_empty())?;
            let begins = match self.annotation(kind)? {
                "sandbox" => true,
                "container" => false,
                _ => return None,
            };
            Some(Member { id, begins })
        })
    }
}
