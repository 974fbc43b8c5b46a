// SPDX-License-Identifier: Apache-2.0

//! Settings of a node: /etc/husk/config.toml and, after it, the files of
//! /etc/husk/config.toml.d that end in .toml, in the order of their names; a key that is
//! set again has the last value. Neither has to exist. A key that husk does not know is an
//! error. They are read when a pod starts, so a change takes effect with the next pod.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use husk_vmm::config::{MAX_VCPUS, MIN_MEMORY_MIB};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::assets::Assets;
use crate::error::Error;
use crate::network::{Bandwidth, NetworkSettings};
use crate::size::{Growth, Size};
use crate::spec::Spec;

/// Where a node's settings are, unless containerd's configuration names another file.
pub const PATH: &str = "/etc/husk/config.toml";

/// Longest addition to the guest kernel's command line, in bytes: x86 takes 2048 in all.
const MAX_KERNEL_ARGS: usize = 1024;

/// vCPUs that a VM can get beside those that it begins with. The guest's kernel prepares for
/// each of them when it boots.
const MORE_VCPUS: usize = 8;

/// Annotations of a pod that change its VM, if the node allows them.
mod annotation {
    /// Number of vCPUs, in place of what the pod's limits ask for.
    pub const VCPUS: &str = "io.husk.vcpus";
    /// Memory of the VM in MiB, all included, in place of what the pod's limits ask for.
    pub const MEMORY_MIB: &str = "io.husk.memory-mib";
    /// Added to the guest kernel's command line after the node's own additions.
    pub const KERNEL_ARGS: &str = "io.husk.kernel-args";

    /// Most bits/s to and from the pod, by each of its interfaces.
    pub const INGRESS_BANDWIDTH: &str = "io.husk.ingress-bandwidth";
    pub const EGRESS_BANDWIDTH: &str = "io.husk.egress-bandwidth";

    pub const ALL: [&str; 5] =
        [VCPUS, MEMORY_MIB, KERNEL_ARGS, INGRESS_BANDWIDTH, EGRESS_BANDWIDTH];
    pub const PREFIX: &str = "io.husk.";
}

/// All settings, with their defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub vm: VmSettings,
    pub annotations: Annotations,
}

/// What every VM gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmSettings {
    /// vCPUs of a pod without a CPU limit, 1..32.
    pub vcpus: u8,
    /// MiB beside the pod's memory limits: guest kernel, agent, and containers without limit.
    pub memory_mib: u64,
    /// Added to the guest kernel's command line.
    pub kernel_args: String,
    /// Whether the host's kernel does the work of network devices where it has vhost-net.
    pub vhost_net: bool,
    /// Paths of husk-vmm, of the guest kernel and of the guest image; looked for beside the
    /// shim, in ../share/husk and on PATH without.
    pub vmm: Option<PathBuf>,
    pub kernel: Option<PathBuf>,
    pub image: Option<PathBuf>,
}

/// What a pod may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Annotations {
    /// Names of the annotations that pods may use.
    pub allowed: Vec<String>,
}

/// A pod's VM, as settings, annotations and limits make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSettings {
    /// At boot.
    pub size: Size,
    pub growth: Growth,
    pub kernel_args: String,
    pub network: NetworkSettings,
    pub assets: Assets,
}

impl Default for VmSettings {
    fn default() -> VmSettings {
        VmSettings {
            vcpus: 1,
            memory_mib: 256,
            kernel_args: String::new(),
            vhost_net: true,
            vmm: None,
            kernel: None,
            image: None,
        }
    }
}

impl Default for Annotations {
    fn default() -> Annotations {
        Annotations {
            allowed: vec![annotation::VCPUS.to_owned(), annotation::MEMORY_MIB.to_owned()],
        }
    }
}

impl Config {
    /// Reads `path` and its drop-ins. Fails with FAILED_PRECONDITION, naming file and key.
    pub fn load(path: &Path) -> Result<Config, Error> {
        let mut merged = Table::new();
        for file in files(path)? {
            let refuse = |what: String| {
                Error::precondition(format!("cannot use {}: {what}", file.display()))
            };
            let text = match fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(refuse(error.to_string())),
            };
            let table: Table = text.parse().map_err(|error| refuse(one_line(&error)))?;
            check_keys(&table).map_err(refuse)?;
            // By itself first, so that what is wrong in it is blamed on it.
            let config: Config = toml::from_str(&text).map_err(|error| refuse(one_line(&error)))?;
            config.check().map_err(refuse)?;
            merge(&mut merged, table);
        }
        merged.try_into().map_err(|error| {
            Error::precondition(format!("cannot use {}: {}", path.display(), one_line(&error)))
        })
    }

    /// The VM for a pod whose first container has this spec, on a host with `host_cpus`
    /// CPUs and `host_memory_mib` of memory.
    pub fn for_pod(
        &self,
        spec: &Spec,
        host_cpus: usize,
        host_memory_mib: u64,
    ) -> Result<PodSettings, Error> {
        let least = Size { vcpus: self.vm.vcpus, memory_mib: self.vm.memory_mib };
        let limits = spec.limits();
        let mut size = Size::of(&limits, least, host_cpus, host_memory_mib);
        // What an annotation says stays.
        let (mut vcpus_stay, mut memory_stays) = (false, false);
        let mut kernel_args = self.vm.kernel_args.clone();
        let mut network =
            NetworkSettings { vhost: self.vm.vhost_net, bandwidth: Bandwidth::default() };
        let bandwidth = &mut network.bandwidth;
        for (name, value) in spec.annotations_of(annotation::PREFIX) {
            let refuse = |what: &str| {
                Error::invalid(format!("the pod's annotation {name}={value:?} {what}"))
            };
            if !annotation::ALL.contains(&name) {
                let nearest = nearest(name, annotation::ALL);
                return Err(refuse(&format!("is not one that husk knows; {nearest} is")));
            }
            if !self.annotations.allowed.iter().any(|allowed| allowed == name) {
                return Err(refuse(
                    "is not allowed on this node; annotations.allowed in husk's configuration \
                     lists those that are",
                ));
            }
            match name {
                annotation::VCPUS => {
                    size.vcpus = vcpus(value).map_err(|what| refuse(&what))?;
                    vcpus_stay = true;
                }
                annotation::MEMORY_MIB => {
                    size.memory_mib =
                        memory(value, host_memory_mib).map_err(|what| refuse(&what))?;
                    memory_stays = true;
                }
                annotation::INGRESS_BANDWIDTH => {
                    bandwidth.ingress = Some(Bandwidth::rate(value).map_err(|what| refuse(&what))?);
                }
                annotation::EGRESS_BANDWIDTH => {
                    bandwidth.egress = Some(Bandwidth::rate(value).map_err(|what| refuse(&what))?);
                }
                _ => {
                    check_kernel_args(value).map_err(|what| refuse(&what))?;
                    kernel_args = format!("{kernel_args} {value}");
                }
            }
        }
        let most_vcpus = host_cpus.min(MAX_VCPUS.into()).min(usize::from(size.vcpus) + MORE_VCPUS);
        let most_memory_mib = if memory_stays { size.memory_mib } else { host_memory_mib };
        let growth = Growth {
            base: least,
            least: Size { vcpus: if vcpus_stay { size.vcpus } else { 1 }, ..size },
            most: Size {
                vcpus: if vcpus_stay { size.vcpus } else { size.vcpus.max(most_vcpus as u8) },
                memory_mib: most_memory_mib,
            },
            huge_pages: match spec.own_limits() {
                Some(_) => 0,
                None => limits.huge_pages.unwrap_or(0),
            },
        };
        growth.check_huge_pages(&[limits])?;
        let most = Size { memory_mib: most_memory_mib.max(size.memory_mib), ..growth.most };
        let growth = Growth { most, ..growth };
        let kernel_args = kernel_args.trim().to_owned();
        Ok(PodSettings { size, growth, kernel_args, network, assets: self.assets()? })
    }

    /// The files that VMs are started from.
    pub fn assets(&self) -> Result<Assets, Error> {
        let VmSettings { vmm, kernel, image, .. } = &self.vm;
        Assets::find(vmm.as_deref(), kernel.as_deref(), image.as_deref())
    }

    fn check(&self) -> Result<(), String> {
        let VmSettings { vcpus, memory_mib, kernel_args, .. } = &self.vm;
        if !(1..=MAX_VCPUS).contains(vcpus) {
            return Err(format!("vm.vcpus is {vcpus}; 1 to {MAX_VCPUS} are possible"));
        }
        if *memory_mib < MIN_MEMORY_MIB {
            return Err(format!("vm.memory_mib is {memory_mib}; {MIN_MEMORY_MIB} is the least"));
        }
        check_kernel_args(kernel_args).map_err(|what| format!("vm.kernel_args {what}"))?;
        for (key, path) in
            [("vmm", &self.vm.vmm), ("kernel", &self.vm.kernel), ("image", &self.vm.image)]
        {
            if let Some(path) = path.as_deref().filter(|path| !path.is_absolute()) {
                return Err(format!("vm.{key} is {}; a path from / is needed", path.display()));
            }
        }
        for name in &self.annotations.allowed {
            if !annotation::ALL.contains(&name.as_str()) {
                let nearest = nearest(name, annotation::ALL);
                return Err(format!("annotations.allowed has {name:?}; {nearest} is known"));
            }
        }
        Ok(())
    }
}

/// The main file and its drop-ins, in order.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let listed = match fs::read_dir(&directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let mut drop_ins = listed.map_err(|error| {
        Error::precondition(format!("cannot list {}: {error}", Path::new(&directory).display()))
    })?;
    drop_ins.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    drop_ins.sort();
    drop_ins.insert(0, path.to_owned());
    Ok(drop_ins)
}

/// Refuses keys that [`Config`] does not have.
fn check_keys(table: &Table) -> Result<(), String> {
    // Options without a value are null, so every known key is in it.
    let known = serde_json::to_value(Config::default()).unwrap_or_default();
    let known_of = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
    };
    let unknown = |key: &str, prefix: &str, known: &[String]| {
        let nearest = nearest(key, known.iter().map(String::as_str));
        Err(format!("it has an unknown key {prefix}{key}; {prefix}{nearest} is known"))
    };
    for (section, value) in table {
        let sections = known_of(&known);
        if !sections.contains(section) {
            return unknown(section, "", &sections);
        }
        let keys = known_of(&known[section]);
        for (key, _) in value.as_table().into_iter().flatten() {
            if !keys.contains(key) {
                return unknown(key, &format!("{section}."), &keys);
            }
        }
    }
    Ok(())
}

fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> &'a str {
    known.into_iter().min_by_key(|known| strsim::levenshtein(name, known)).unwrap_or_default()
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// The message and where, without the excerpt of the file.
fn one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let place = text.lines().next().and_then(|line| line.strip_prefix("TOML parse error at "));
    match place {
        Some(place) => format!("{place}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

fn vcpus(value: &str) -> Result<u8, String> {
    let number = value.parse().ok().filter(|number| (1..=MAX_VCPUS).contains(number));
    number.ok_or_else(|| format!("is no number of vCPUs from 1 to {MAX_VCPUS}"))
}

fn memory(value: &str, host_memory_mib: u64) -> Result<u64, String> {
    let range = MIN_MEMORY_MIB..=host_memory_mib;
    value.parse().ok().filter(|mib| range.contains(mib)).ok_or_else(|| {
        format!(
            "is no number of MiB from {MIN_MEMORY_MIB} to {host_memory_mib}, what this host has"
        )
    })
}

fn check_kernel_args(arguments: &str) -> Result<(), String> {
    if arguments.len() > MAX_KERNEL_ARGS {
        return Err(format!("is longer than {MAX_KERNEL_ARGS} bytes"));
    }
    if !arguments.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return Err("has characters other than printable ASCII".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
