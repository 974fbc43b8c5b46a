// SPDX-License-Identifier: Apache-2.0

//! A pod's configuration in the Container Runtime Interface, for pods without a pause image:
//! the container that holds the pod's namespaces, and the files that containerd would
//! otherwise have written for the pod's containers.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use husk_sandbox::{Error, IoContext, Spec};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

mod messages {
    include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));
}
pub use messages::pod::PodSandboxConfig;
use messages::pod::{DNSConfig, NamespaceMode};

const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// The agent, whose program it is in the guest, and where the holder finds it.
const AGENT: &str = "/proc/1/exe";
const PROGRAM: &str = "/husk-agent";

/// Files of a pod that all of its containers see, and where.
const FILES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];

/// The configuration that a request carries. Without one a pod is made of defaults.
pub fn read(options: Option<&Any>) -> Result<PodSandboxConfig, Error> {
    let Some(options) = options else { return Ok(PodSandboxConfig::default()) };
    if options.type_url.rsplit('/').next() != Some(TYPE) {
        return Err(Error::invalid(format!(
            "the sandbox's options are {:?}; husk knows {TYPE}",
            options.type_url
        )));
    }
    PodSandboxConfig::parse_from_bytes(&options.value)
        .map_err(|error| Error::invalid(format!("cannot read the {TYPE}: {error}")))
}

/// The spec of the container that holds the pod's namespaces: what containerd makes of the
/// same configuration for a pause container, but with the agent for its program.
pub fn holder(id: &str, config: &PodSandboxConfig, netns: &str) -> Result<Spec, Error> {
    let options = config.linux.security_context.namespace_options.get_or_default();
    let is_node = |mode: protobuf::EnumOrUnknown<NamespaceMode>| mode == NamespaceMode::NODE.into();
    if options.userns_options.as_ref().is_some_and(|user| !is_node(user.mode)) {
        return Err(Error::invalid(
            "the pod is to have a user namespace, which husk does not give a pod without a pause \
             container; leave hostUsers unset, or use a runtime handler without a sandboxer",
        ));
    }
    let mut sysctl = config.linux.sysctls.clone();
    let mut namespaces = vec![json!({ "type": "mount" })];
    if !is_node(options.pid) {
        namespaces.push(json!({ "type": "pid" }));
    }
    if !is_node(options.ipc) {
        namespaces.push(json!({ "type": "ipc" }));
    }
    if !is_node(options.network) {
        namespaces.push(json!({ "type": "uts" }));
        namespaces.push(json!({ "type": "network", "path": netns }));
        // As containerd sets them for a pause container.
        for (name, value) in [
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
        ] {
            sysctl.entry(name.into()).or_insert_with(|| value.into());
        }
    }
    let spec = json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs", "readonly": true },
        "hostname": config.hostname,
        "process": {
            // As a pause image has it, and without capabilities: containers may see it.
            "user": { "uid": 65535, "gid": 65535 },
            "args": [PROGRAM, "hold"],
            "cwd": "/",
            "noNewPrivileges": true,
            "oomScoreAdj": -998,
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "noexec", "mode=755", "size=64k"],
            },
            {
                "destination": PROGRAM,
                "type": "bind",
                "source": AGENT,
                "options": ["bind", "ro", "nosuid", "nodev"],
            },
        ],
        "linux": {
            "namespaces": namespaces,
            "sysctl": sysctl,
            "cgroupsPath": cgroups_path(&config.linux.cgroup_parent, id),
        },
        "annotations": annotations(id, config),
    });
    Spec::parse(spec.to_string().as_bytes())
}

/// In systemd's notation below a slice, as containerd writes it.
fn cgroups_path(parent: &str, id: &str) -> String {
    match parent.rsplit('/').next() {
        None | Some("") => String::new(),
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        Some(_) => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

/// The pod's own, with those that say what it is and what it may use.
fn annotations(id: &str, config: &PodSandboxConfig) -> Value {
    let mut annotations = config.annotations.clone();
    let mut add = |name: &str, value: String| {
        annotations.insert(format!("io.kubernetes.cri.{name}"), value);
    };
    add("container-type", "sandbox".into());
    add("sandbox-id", id.into());
    if let Some(resources) = config.linux.resources.as_ref() {
        add("sandbox-cpu-period", resources.cpu_period.to_string());
        add("sandbox-cpu-quota", resources.cpu_quota.to_string());
        add("sandbox-memory", resources.memory_limit_in_bytes.to_string());
    }
    json!(annotations)
}

/// Files of a pod in a directory of the host, which is to be removed with all that is in it.
#[derive(Debug, Clone)]
pub struct PodFiles(PathBuf);

impl PodFiles {
    /// Writes them as the configuration says; what it does not say is the host's.
    pub fn write(directory: &Path, config: &PodSandboxConfig) -> Result<PodFiles, Error> {
        for (name, path) in FILES {
            let text = match name {
                "hostname" if !config.hostname.is_empty() => format!("{}\n", config.hostname),
                "resolv.conf" if config.dns_config.is_some() => resolv_conf(&config.dns_config),
                _ => match fs::read_to_string(path) {
                    Ok(text) => text,
                    Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
                    Err(error) => {
                        return Err(Error::internal(format!("cannot read {path}: {error}")));
                    }
                },
            };
            let file = directory.join(name);
            fs::write(&file, text).context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(PodFiles(directory.into()))
    }

    /// Where each is to be seen, and its file on the host.
    pub fn places(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        FILES.iter().map(|(name, place)| (*place, self.0.join(name)))
    }
}

/// resolv.conf(5).
fn resolv_conf(dns: &DNSConfig) -> String {
    let list = |keyword: &str, words: &[String]| match words {
        [] => String::new(),
        words => format!("{keyword} {}\n", words.join(" ")),
    };
    let servers: String =
        dns.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    list("search", &dns.searches) + &servers + &list("options", &dns.options)
}

#[cfg(test)]
mod tests;
