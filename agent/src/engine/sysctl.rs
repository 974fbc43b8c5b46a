// SPDX-License-Identifier: Apache-2.0

//! Kernel parameters of a container (runtime-spec 1.2, config-linux.md "Sysctl"). Only those
//! of namespaces can be a container's: its own, or the runtime's where `shared` allows it.

use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::namespaces::{has, write_at};
use super::program::text;

/// Kernel parameters of the IPC namespace, beside fs.mqueue.*.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Refuses parameters that are not the container's. `shared` says that the namespaces of the
/// runtime are the pod's, whose parameters its containers may set.
pub fn check(spec: &Spec, shared: bool) -> Result<(), String> {
    for (key, _) in all(spec) {
        let Some(kind) = family(key) else {
            return Err(format!("sysctl {key:?} is not in a separate kernel namespace"));
        };
        let pods = shared && kind != LinuxNamespaceType::Uts;
        if !has(spec, kind) && !pods {
            return Err(format!("sysctl {key:?} is not allowed without a {kind} namespace"));
        }
        if kind == LinuxNamespaceType::Uts && spec.hostname().is_some() && key.ends_with("hostname")
        {
            return Err(format!("sysctl {key:?} conflicts with the hostname that is given"));
        }
    }
    Ok(())
}

/// /proc/sys as the runtime sees it: what it shows depends on who looks, not on whose it is.
pub fn directory() -> Result<OwnedFd, String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/proc/sys", flags, Mode::empty())
        .map_err(|e| format!("cannot open /proc/sys: {}", text(e)))
}

/// In the new process: sets the parameters.
pub fn apply(spec: &Spec, directory: &OwnedFd) -> Result<(), String> {
    for (key, value) in all(spec) {
        write_at(directory, path(key), value)
            .map_err(|why| format!("cannot set the sysctl {key} to {value:?}: {why}"))?;
    }
    Ok(())
}

fn all(spec: &Spec) -> impl Iterator<Item = (&String, &String)> {
    spec.linux().iter().filter_map(|linux| linux.sysctl().as_ref()).flatten()
}

/// Names of interfaces may hold dots; then the parts are separated by slashes.
fn path(key: &str) -> String {
    if key.contains('/') { key.to_owned() } else { key.replace('.', "/") }
}

/// The namespace that a parameter belongs to.
fn family(key: &str) -> Option<LinuxNamespaceType> {
    let path = path(key);
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return None;
    }
    if path.starts_with("net/") {
        return Some(LinuxNamespaceType::Network);
    }
    if matches!(path.as_str(), "kernel/domainname" | "kernel/hostname") {
        return Some(LinuxNamespaceType::Uts);
    }
    let ipc = IPC.iter().any(|key| key.replace('.', "/") == path);
    (ipc || path.starts_with("fs/mqueue/")).then_some(LinuxNamespaceType::Ipc)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(key: &str, namespaces: &str, shared: bool) -> Result<(), String> {
        let spec: Spec = serde_json::from_str(&format!(
            r#"{{"ociVersion":"1.1.0","hostname":"h",
                "linux":{{"sysctl":{{"{key}":"1"}},"namespaces":[{namespaces}]}}}}"#
        ))
        .expect("json");
        check(&spec, shared)
    }

    #[test]
    fn parameters_belong_to_namespaces() {
        assert_eq!(family("net.ipv4.ip_forward"), Some(LinuxNamespaceType::Network));
        assert_eq!(family("net/ipv4/conf/eth0.1/forwarding"), Some(LinuxNamespaceType::Network));
        assert_eq!(family("kernel.shmmax"), Some(LinuxNamespaceType::Ipc));
        assert_eq!(family("kernel.domainname"), Some(LinuxNamespaceType::Uts));
        for other in ["kernel.panic", "net.../../kernel.panic", "net/../kernel/panic", "net."] {
            assert_eq!(family(other), None, "{other}");
        }
    }

    #[test]
    fn only_a_containers_own_may_be_set_unless_the_runtimes_are_the_pods() {
        let (net, uts) = (r#"{"type":"network"}"#, r#"{"type":"uts"}"#);
        assert_eq!(checked("net.a", net, false), Ok(()));
        assert_eq!(checked("net.a", "", true), Ok(()));
        assert!(checked("net.a", "", false).is_err());
        assert!(checked("kernel.panic", net, true).is_err());
        assert_eq!(checked("kernel.domainname", uts, false), Ok(()));
        assert!(checked("kernel.domainname", "", true).is_err());
        assert!(checked("kernel.hostname", uts, true).is_err());
    }
}
