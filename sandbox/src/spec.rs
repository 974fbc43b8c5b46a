// SPDX-License-Identifier: Apache-2.0

//! The container's config.json, made fit for the guest.
//!
//! Only what names the host is changed: the root file system and bind sources become paths
//! in the share, namespace paths go, the cgroup gets the guest's path, devices, hooks and
//! security labels of the host go. Everything else is kept as it is, known to us or not,
//! for the guest enforces it. docs/architecture.md has a table of it.

mod devices;
mod mounts;
mod namespaces;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cgroup;
use crate::error::Error;
use crate::hooks::{Hooks, HostHooks};
use crate::network::Network;
use crate::size::{HUGE_PAGE, Limits};
pub use devices::BlockDevice;
use devices::Device;
use mounts::{Mount, SHARED_MEMORY};
use namespaces::Namespace;

pub use mounts::BindSource;
pub use namespaces::Member;

/// The oomScoreAdj in the guest of a container that holds a pod together: as the agent it is
/// none that the OOM killer takes. It frees nothing, and its end would be the pod's.
const NEVER_KILLED: i64 = -1000;

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
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    hooks: Hooks,
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
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<Namespace>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    devices: Vec<Device>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    cgroups_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Resources>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// How OCI calls the huge pages that the guest has.
const PAGE_SIZE: &str = "2MB";

/// An OCI LinuxResources, kept whole.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Resources(Map<String, Value>);

impl Limits {
    /// Those of an OCI LinuxResources, JSON.
    pub fn of_resources(json: &[u8]) -> Result<Limits, Error> {
        let resources: Resources = serde_json::from_slice(json)
            .map_err(|error| Error::invalid(format!("cannot read the resources: {error}")))?;
        resources.check_huge_pages()?;
        Ok(resources.limits())
    }
}

impl Resources {
    fn limits(&self) -> Limits {
        let number = |group, name| self.0.get(group)?.get(name);
        Limits {
            cpu_quota: number("cpu", "quota").and_then(Value::as_i64),
            cpu_period: number("cpu", "period").and_then(Value::as_u64),
            memory: number("memory", "limit").and_then(Value::as_i64),
            huge_pages: self
                .huge_page_limits()
                .rev()
                .find(|limit| limit.0 == PAGE_SIZE)
                .map(|(_, bytes)| bytes),
        }
    }

    /// Page sizes and bytes, as far as they can be read.
    fn huge_page_limits(&self) -> impl DoubleEndedIterator<Item = (&str, u64)> {
        let list = self.0.get("hugepageLimits").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|entry| {
            Some((entry.get("pageSize")?.as_str()?, entry.get("limit")?.as_u64()?))
        })
    }

    /// Refuses limits of huge pages that the guest does not have. None of a size is a limit
    /// that holds for any.
    fn check_huge_pages(&self) -> Result<(), Error> {
        for (size, bytes) in self.huge_page_limits().filter(|(_, bytes)| *bytes > 0) {
            let why = match size {
                PAGE_SIZE if bytes.is_multiple_of(HUGE_PAGE) => continue,
                PAGE_SIZE => "is no multiple of the page's size",
                _ => "cannot be had: a VM has huge pages of 2MB only; use those",
            };
            return Err(Error::invalid(format!(
                "the limit of {bytes} bytes in huge pages of {size} in linux.resources {why}"
            )));
        }
        Ok(())
    }

    fn device_rules(&self) -> &[Value] {
        self.0.get("devices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether a rule allows everything with every device, as for privileged containers.
    fn allow_any_device(&self) -> bool {
        let any = |rule: &Value, name| rule.get(name).is_none_or(|n| n.as_i64() == Some(-1));
        self.device_rules().iter().any(|rule| {
            rule["allow"] == true
                && rule.get("type").is_none_or(|kind| kind == "a" || kind == "")
                && any(rule, "major")
                && any(rule, "minor")
        })
    }
}

/// A spec for the guest, with the bind sources that it refers to in their order.
#[derive(Debug)]
pub struct GuestSpec {
    /// config.json.
    pub json: Vec<u8>,
    pub binds: Vec<BindSource>,
    /// What has to be plugged into the VM. The numbers in `json` are the host's.
    pub disks: Vec<BlockDevice>,
    /// Paths of devices that the guest does not have.
    pub dropped_devices: Vec<String>,
}

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

    /// What the containers of the pod may use: of a Kubernetes sandbox what containerd's
    /// annotations sum up, and the kubelet's limit of huge pages, of which neither has to be in
    /// the containers' own limits; of any other container its own limits.
    pub fn limits(&self) -> Limits {
        if self.annotation("io.kubernetes.cri.container-type") == Some("sandbox") {
            return Limits {
                cpu_quota: self.number("io.kubernetes.cri.sandbox-cpu-quota"),
                cpu_period: self.number("io.kubernetes.cri.sandbox-cpu-period"),
                memory: self.number("io.kubernetes.cri.sandbox-memory"),
                huge_pages: cgroup::huge_pages_of_pod(self.cgroups_path()),
            };
        }
        let resources = self.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        resources.map(Resources::limits).unwrap_or_default()
    }

    fn number<N: std::str::FromStr>(&self, annotation: &str) -> Option<N> {
        self.annotation(annotation)?.parse().ok()
    }

    /// What the container itself may use; `None` for one that is there to hold a pod together.
    pub fn own_limits(&self) -> Option<Limits> {
        (!self.holds_a_pod()).then(|| self.limits())
    }

    fn holds_a_pod(&self) -> bool {
        self.pod().is_some_and(|pod| pod.begins)
    }

    /// Annotations whose names start with `prefix`.
    pub fn annotations_of<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let of_text =
            |(name, value): (&'a String, &'a Value)| Some((name.as_str(), value.as_str()?));
        self.annotations
            .iter()
            .filter_map(of_text)
            .filter(move |(name, _)| name.starts_with(prefix))
    }

    /// Numbers of processes of the host whose namespaces the container is to be in, except
    /// that of the network.
    pub fn namespace_pids(&self) -> Vec<u32> {
        let namespaces = self.linux.iter().flat_map(|linux| &linux.namespaces);
        namespaces.filter_map(|namespace| namespace.pid()).collect()
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name)?.as_str()
    }

    /// The network namespace that the container is to be in.
    pub fn network(&self) -> Network {
        let namespaces = self.linux.iter().flat_map(|linux| &linux.namespaces);
        match namespaces.into_iter().find(|namespace| namespace.kind == "network") {
            None => Network::Host,
            Some(namespace) if namespace.path.is_empty() => Network::New,
            Some(namespace) => Network::At(namespace.path.clone().into()),
        }
    }

    /// `linux.cgroupsPath`; empty if there is none.
    pub fn cgroups_path(&self) -> &str {
        self.linux.as_ref().map_or("", |linux| &linux.cgroups_path)
    }

    /// `process.oomScoreAdj`: how readily the host's OOM killer takes the pod.
    pub fn oom_score_adj(&self) -> Option<i64> {
        self.process.as_ref()?.get("oomScoreAdj")?.as_i64()
    }

    /// Has the container use the guest's network, which is that of the pod's namespace, also
    /// if the spec wants a new one: for a pod's own container that is the new one. Not with a
    /// user namespace, which has to own the network for /sys to be mounted.
    pub fn use_guest_network(&mut self) {
        let Some(linux) = &mut self.linux else { return };
        if !linux.namespaces.iter().any(|namespace| namespace.kind == "user") {
            linux.namespaces.retain(|namespace| namespace.kind != "network");
        }
    }

    /// Gives a container what its pod has for all of them, where whoever made the spec has not:
    /// the guest's shared memory, and files of the host by where they are to be seen.
    pub fn join_pod<'a>(&mut self, files: impl IntoIterator<Item = (&'a str, PathBuf)>) {
        self.mounts.retain(|mount| !mount.is_private_memory());
        let root = self.root.as_ref().and_then(|root| root.rest.get("readonly"));
        let access = if root == Some(&Value::Bool(true)) { "ro" } else { "rw" };
        for (destination, source) in files {
            self.bind_if_free(destination, &source, &["bind", access]);
        }
        let guarded = ["rbind", "nosuid", "nodev", "noexec"];
        self.bind_if_free(SHARED_MEMORY, Path::new(SHARED_MEMORY), &guarded);
    }

    /// Adds a bind mount, unless something is mounted there.
    fn bind_if_free(&mut self, destination: &str, source: &Path, options: &[&str]) {
        if !self.mounts.iter().any(|mount| mount.is_on(destination)) {
            self.mounts.push(Mount::bind(destination, source, options));
        }
    }

    /// The hooks that run on the host.
    pub fn host_hooks(&self, id: &str, bundle: &Path) -> HostHooks {
        self.hooks.on_host(id, bundle, &self.annotations)
    }

    /// Refuses what no VM can make true, so that none has to be started to find out.
    pub fn check(&self) -> Result<(), Error> {
        self.hooks.check()?;
        for mount in &self.mounts {
            mount.check()?;
            if let Some((node, None)) = self.bound_disk(mount) {
                return Err(Error::invalid(format!(
                    "the mount on {node} binds a block device of the host that no rule of \
                     linux.resources.devices allows; give it to the container as a volume in \
                     block mode (volumeDevices), or make it privileged where privileged \
                     containers may use any device (containerd 1.7 and later with \
                     privileged_without_host_devices_all_devices_allowed = true)"
                )));
            }
        }
        self.linux.as_ref().map_or(Ok(()), Linux::check)
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

    /// The block device that a mount binds, if it does and the container may use it.
    fn bound_disk(&self, mount: &Mount) -> Option<(Device, Option<BlockDevice>)> {
        let (node, read_only) = mount.block_device()?;
        let resources = self.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let disk = match resources {
            Some(resources) if resources.allow_any_device() => node.any_disk(),
            Some(resources) => node.disk(resources.device_rules()),
            None => None,
        };
        let disk = disk.map(|disk| BlockDevice { read_only: disk.read_only || read_only, ..disk });
        Some((node, disk))
    }

    /// Takes out what binds a block device: the guest has no such node, so it becomes one of
    /// the container's devices, and a disk.
    fn take_bound_disks(&mut self) -> Vec<(Device, BlockDevice)> {
        let mut found = Vec::new();
        let mounts = std::mem::take(&mut self.mounts);
        let kept = mounts.into_iter().filter(|mount| match self.bound_disk(mount) {
            Some((node, Some(disk))) => {
                found.push((node, disk));
                false
            }
            _ => true,
        });
        let kept = kept.collect();
        self.mounts = kept;
        found
    }

    /// The spec for the guest. `share` is the container's directory in the share as the
    /// guest sees it: `rootfs` and `mounts/<n>` are below it. `in_guest` has the numbers in the
    /// guest of processes that the host knows by others.
    pub fn for_guest(
        mut self,
        container: &str,
        share: &str,
        terminal: bool,
        in_guest: &HashMap<u32, u32>,
    ) -> GuestSpec {
        let pod = self.pod().map(|pod| pod.id.to_owned());
        let holds_a_pod = self.holds_a_pod();
        if let Some(root) = &mut self.root {
            root.path = format!("{share}/rootfs");
        }
        let bound_disks = self.take_bound_disks();
        let mut binds = Vec::new();
        for mount in &mut self.mounts {
            if pod.as_ref().is_some_and(|pod| mount.is_shared_memory_of(pod)) {
                // Files through the share have no memory in common with the host's.
                mount.source = Some(SHARED_MEMORY.into());
            } else if let Some(bind) = mount.bind_source() {
                mount.source = Some(format!("{share}/mounts/{}", binds.len()));
                binds.push(bind);
            } else if mount.source.is_none() {
                // Optional in OCI, not for the guest's engine.
                mount.source = mount.kind.clone();
            }
        }
        // They are the host's files, run in the container's namespaces. startContainer hooks
        // are the container's own; the others run on the host.
        for hook in &mut self.hooks.create_container {
            if hook.args.is_empty() {
                hook.args.push(hook.path.display().to_string());
            }
            let path = format!("{share}/mounts/{}", binds.len()).into();
            let source = std::mem::replace(&mut hook.path, path);
            binds.push(BindSource { source, recursive: false, read_only: true, follows: false });
        }
        self.hooks = Hooks {
            create_container: self.hooks.create_container,
            start_container: self.hooks.start_container,
            ..Hooks::default()
        };
        let (mut disks, dropped_devices) = self
            .linux
            .as_mut()
            .map(|linux| linux.for_guest(container, in_guest))
            .unwrap_or_default();
        if let Some(linux) = &mut self.linux {
            for (node, disk) in bound_disks {
                linux.devices.push(node);
                devices::add(&mut disks, disk);
            }
        }
        if let Some(process) = &mut self.process {
            process_for_guest(process, terminal);
            if holds_a_pod {
                process.insert("oomScoreAdj".into(), NEVER_KILLED.into());
            }
        }
        self.rest.remove("vm");
        // A structure of strings and maps with string keys always has a JSON form.
        let json = serde_json::to_vec(&self).unwrap_or_default();
        GuestSpec { json, binds, disks, dropped_devices }
    }
}

impl Linux {
    fn check(&self) -> Result<(), Error> {
        if let Some(seccomp) = self.rest.get("seccomp") {
            check_seccomp(seccomp)?;
        }
        for (name, remedy) in [
            ("intelRdt", "it is of the host's caches, which the guest does not see"),
            ("netDevices", "give the pod a network namespace that has the device"),
        ] {
            let given = self.rest.get(name).and_then(Value::as_object);
            if given.is_some_and(|given| !given.is_empty()) {
                return Err(Error::invalid(format!(
                    "husk does not support linux.{name} of config.json: {remedy}"
                )));
            }
        }
        self.resources.as_ref().map_or(Ok(()), Resources::check_huge_pages)?;
        let any = self.allows_any_device();
        let can_be = |device: &Device| device.is_in_guest() || self.disk(device).is_some();
        match self.devices.iter().find(|device| !any && !can_be(device)) {
            None => Ok(()),
            Some(device) => Err(Error::invalid(format!(
                "the container cannot have the device {device} of the host: the guest has a \
                 kernel of its own, and only block devices that a rule of \
                 linux.resources.devices allows are passed to it"
            ))),
        }
    }

    fn allows_any_device(&self) -> bool {
        self.resources.as_ref().is_some_and(Resources::allow_any_device)
    }

    /// The host's block device that it is, if one that a rule for its very numbers allows.
    fn disk(&self, device: &Device) -> Option<BlockDevice> {
        device.disk(self.resources.as_ref().map(Resources::device_rules).unwrap_or_default())
    }

    /// Whether a container that may use any device has been given some by name. containerd
    /// gives it the host's whole /dev unless told not to, and husk not all disks of the host.
    /// Only the whole has /dev/null, which nobody asks for, since every container has it.
    fn names_its_devices(&self) -> bool {
        self.allows_any_device() && !self.devices.iter().any(Device::is_null)
    }

    /// The disks that the container is to have, and the devices that the guest does not have
    /// and that were taken out.
    fn for_guest(
        &mut self,
        container: &str,
        in_guest: &HashMap<u32, u32>,
    ) -> (Vec<BlockDevice>, Vec<String>) {
        namespaces::fit(&mut self.namespaces, in_guest);
        // Absolute: the guest has no systemd, and the engine insists with user namespaces.
        self.cgroups_path = format!("/husk/{container}");
        self.rest.remove("mountLabel");
        let mut disks: Vec<BlockDevice> = Vec::new();
        let mut dropped = Vec::new();
        let named = self.names_its_devices();
        for device in std::mem::take(&mut self.devices) {
            let disk = if named { device.any_disk() } else { self.disk(&device) };
            match disk {
                Some(disk) => devices::add(&mut disks, disk),
                None if device.is_in_guest() => {}
                None => {
                    dropped.push(device.path);
                    continue;
                }
            }
            self.devices.push(device);
        }
        (disks, dropped)
    }
}

/// The listener of such a filter is a socket of the host, and gets a descriptor of a process
/// that is in the guest.
fn check_seccomp(seccomp: &Value) -> Result<(), Error> {
    let text =
        |value: &Value, name| value.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let rules = seccomp.get("syscalls").and_then(Value::as_array);
    let notifies = text(seccomp, "defaultAction") == "SCMP_ACT_NOTIFY"
        || rules.into_iter().flatten().any(|rule| text(rule, "action") == "SCMP_ACT_NOTIFY");
    let what = match text(seccomp, "listenerPath") {
        path if !path.is_empty() => format!("the listenerPath {path}"),
        _ if notifies => "the action SCMP_ACT_NOTIFY".to_owned(),
        _ => return Ok(()),
    };
    Err(Error::invalid(format!(
        "husk does not support {what} in linux.seccomp of config.json: system calls of the guest \
         cannot be handled on the host; use a profile without it"
    )))
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
