// SPDX-License-Identifier: Apache-2.0

//! The container's config.json, made fit for the guest.
//!
//! Only what names the host is changed: the root file system and bind sources become paths
//! in the share, namespace paths go, the cgroup gets the guest's path, hooks and security
//! labels of the host go. Everything else is kept as it is, known to us or not, for the
//! guest enforces it.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;

/// The parts of an OCI config that husk reads or changes; the rest travels along.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<Root>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<Mount>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    hostname: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linux: Option<Linux>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    hooks: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    annotations: Map<String, Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Root {
    path: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mount {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<Namespace>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    cgroups_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Resources>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    path: String,
}

/// An OCI LinuxResources, kept whole; the limits that size a VM can be asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Resources(Map<String, Value>);

impl Resources {
    /// Bytes; negative for no limit.
    pub fn memory_limit(&self) -> Option<i64> {
        self.0.get("memory")?.get("limit")?.as_i64()
    }

    /// Microseconds of CPU per period; negative for no limit.
    pub fn cpu_quota(&self) -> Option<i64> {
        self.0.get("cpu")?.get("quota")?.as_i64()
    }

    /// Microseconds.
    pub fn cpu_period(&self) -> Option<u64> {
        self.0.get("cpu")?.get("period")?.as_u64()
    }
}

/// A bind mount of the container whose source has to be shared with the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindSource {
    /// On the host.
    pub source: PathBuf,
    /// With the mounts below it.
    pub recursive: bool,
    /// The guest cannot write to it even if it escapes the container.
    pub read_only: bool,
}

/// A spec for the guest, with the bind sources that it refers to in their order.
#[derive(Debug)]
pub struct GuestSpec {
    /// config.json.
    pub json: Vec<u8>,
    pub binds: Vec<BindSource>,
    /// Names of hook lists that were there and do not run.
    pub dropped_hooks: Vec<String>,
}

/// Host trees whose bind means the kernel's own files: the guest's are used, not shared.
const KERNEL_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

impl Spec {
    /// Reads config.json.
    pub fn parse(json: &[u8]) -> Result<Spec, Error> {
        serde_json::from_slice(json).map_err(|error| {
            Error::invalid(format!("the container's config.json is not a valid OCI spec: {error}"))
        })
    }

    /// The container's host name; empty when it has none of its own.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    pub fn resources(&self) -> Resources {
        self.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name)?.as_str()
    }

    /// Rows and columns of the first process's terminal, where given.
    pub fn console_size(&self) -> Option<(u32, u32)> {
        process_console_size(self.process.as_ref()?)
    }

    /// Where the root file system is on the host: `root.path`, from the bundle if relative.
    pub fn rootfs(&self, bundle: &Path) -> Result<PathBuf, Error> {
        let root = self.root.as_ref().ok_or_else(|| {
            Error::invalid("the container's config.json has no root; give it root.path")
        })?;
        if root.path.is_empty() {
            return Err(Error::invalid("the container's config.json has an empty root.path"));
        }
        Ok(bundle.join(&root.path))
    }

    /// The spec for the guest. `share` is the container's directory in the share as the
    /// guest sees it: `rootfs` and `mounts/<n>` are below it.
    pub fn for_guest(mut self, container: &str, share: &str, terminal: bool) -> GuestSpec {
        if let Some(root) = &mut self.root {
            root.path = format!("{share}/rootfs");
        }
        let mut binds = Vec::new();
        for mount in &mut self.mounts {
            if let Some(bind) = mount.bind_source() {
                mount.source = Some(format!("{share}/mounts/{}", binds.len()));
                binds.push(bind);
            } else if mount.source.is_none() {
                // Optional in OCI, not for the guest's engine.
                mount.source = mount.kind.clone();
            }
        }
        if let Some(linux) = &mut self.linux {
            linux.for_guest(container);
        }
        if let Some(process) = &mut self.process {
            process_for_guest(process, terminal);
        }
        let dropped_hooks = self
            .hooks
            .iter()
            .filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty()))
            .map(|(name, _)| name.clone())
            .collect();
        self.hooks.clear();
        self.rest.remove("vm");
        // A structure of strings and maps with string keys always has a JSON form.
        let json = serde_json::to_vec(&self).unwrap_or_default();
        GuestSpec { json, binds, dropped_hooks }
    }
}

impl Mount {
    /// What has to be shared for this mount; nothing unless it binds a host file.
    fn bind_source(&self) -> Option<BindSource> {
        let has = |name: &str| self.options.iter().any(|option| option == name);
        let recursive = has("rbind");
        if self.kind.as_deref() != Some("bind") && !recursive && !has("bind") {
            return None;
        }
        let source = lexical(Path::new(self.source.as_deref()?));
        if KERNEL_TREES.iter().any(|tree| source.starts_with(tree)) {
            return None;
        }
        // `rw` after `ro` wins, as in mount(8).
        let read_only = self
            .options
            .iter()
            .rev()
            .find_map(|option| match option.as_str() {
                "ro" | "rro" => Some(true),
                "rw" => Some(false),
                _ => None,
            })
            .unwrap_or(false);
        Some(BindSource { source, recursive, read_only })
    }
}

/// The path without `.`, `..` and repeated slashes; symbolic links are not looked at.
fn lexical(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

impl Linux {
    fn for_guest(&mut self, container: &str) {
        // A path names a namespace of the host. What the pod shares there it shares in the
        // guest by using the guest's own: that is the pod's. The rest is made new.
        self.namespaces.retain(|namespace| {
            namespace.path.is_empty()
                || !matches!(namespace.kind.as_str(), "network" | "ipc" | "uts" | "pid")
        });
        for namespace in &mut self.namespaces {
            namespace.path.clear();
        }
        // Absolute: the guest has no systemd, and the engine insists with user namespaces.
        self.cgroups_path = format!("/husk/{container}");
        self.rest.remove("mountLabel");
    }
}

fn process_console_size(process: &Map<String, Value>) -> Option<(u32, u32)> {
    let size = process.get("consoleSize")?;
    let side = |name| size.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok()).map(u32::from);
    Some((side("height")?, side("width")?))
}

/// Takes the host's security labels out and sets whether there is a terminal: the guest
/// kernel has neither AppArmor nor SELinux, and the caller decides about the terminal.
fn process_for_guest(process: &mut Map<String, Value>, terminal: bool) {
    process.remove("apparmorProfile");
    process.remove("selinuxLabel");
    process.insert("terminal".into(), terminal.into());
}

/// An OCI Process for an exec, made fit for the guest; and its terminal's size.
#[derive(Debug)]
pub struct GuestProcess {
    pub json: Vec<u8>,
    pub console_size: Option<(u32, u32)>,
}

impl GuestProcess {
    /// Reads and changes the JSON of an OCI Process.
    pub fn parse(json: &[u8], terminal: bool) -> Result<GuestProcess, Error> {
        let mut process: Map<String, Value> = serde_json::from_slice(json).map_err(|error| {
            Error::invalid(format!("the process of the exec is not a valid OCI process: {error}"))
        })?;
        let console_size = process_console_size(&process);
        process_for_guest(&mut process, terminal);
        Ok(GuestProcess { json: serde_json::to_vec(&process).unwrap_or_default(), console_size })
    }
}

#[cfg(test)]
mod tests;
