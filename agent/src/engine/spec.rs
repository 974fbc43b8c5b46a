// SPDX-License-Identifier: Apache-2.0

//! What the engine demands of a config.json, checked before anything is made.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxNamespaceType, Process, Spec};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::namespaces::has;
use super::sysctl;

/// The highest user or group, as for runc.
const MAX_ID: u32 = i32::MAX as u32;

/// Reads a config.json, or a part of it, in which `process` points to the process. Without
/// the capabilities that only others know: a profile may be for a newer kernel.
pub fn read<T: DeserializeOwned>(json: &[u8], process: &str) -> serde_json::Result<T> {
    let mut value: Value = serde_json::from_slice(json)?;
    let sets = value.pointer_mut(&format!("{process}/capabilities")).and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        set.retain(|name| !name.is_string() || Capability::deserialize(name).is_ok());
    }
    T::deserialize(value)
}

/// Refuses what cannot be. `shared` says that the runtime's namespaces are the pod's.
pub fn check(spec: &Spec, shared: bool) -> Result<(), String> {
    if !spec.version().starts_with("1.") {
        return Err(format!("ociVersion {:?} is not 1.x", spec.version()));
    }
    if spec.root().is_none() {
        return Err("the spec has no root".to_owned());
    }
    check_process(spec.process().as_ref().ok_or("the spec has no process")?)?;
    let linux = spec.linux().as_ref().ok_or("the spec has no linux section")?;
    let mut kinds = HashSet::new();
    for namespace in linux.namespaces().iter().flatten() {
        if !kinds.insert(namespace.typ()) {
            return Err(format!("duplicated namespace {:?}", namespace.typ().to_string()));
        }
    }
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    for (name, value) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if named(value) && !has(spec, LinuxNamespaceType::Uts) {
            return Err(format!("unable to set {name} without a private UTS namespace"));
        }
    }
    let listed = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|p| !p.is_empty());
    if (listed(linux.masked_paths()) || listed(linux.readonly_paths()))
        && !has(spec, LinuxNamespaceType::Mount)
    {
        return Err("unable to restrict sys entries without a private MNT namespace".to_owned());
    }
    let mapped = |maps: &Option<Vec<_>>| maps.as_ref().is_some_and(|maps| !maps.is_empty());
    let user = has(spec, LinuxNamespaceType::User);
    if !user && (mapped(linux.uid_mappings()) || mapped(linux.gid_mappings())) {
        return Err("user namespace mappings specified, but no user namespace".to_owned());
    }
    let joined = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    let new_user =
        joined.into_iter().any(|n| n.typ() == LinuxNamespaceType::User && n.path().is_none());
    if new_user && !(mapped(linux.uid_mappings()) && mapped(linux.gid_mappings())) {
        return Err("a user namespace needs uidMappings and gidMappings".to_owned());
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())
        && !has(spec, LinuxNamespaceType::Time)
    {
        return Err("time offsets specified, but no time namespace".to_owned());
    }
    for (name, there) in [
        ("intelRdt", linux.intel_rdt().is_some()),
        ("memoryPolicy", linux.memory_policy().is_some()),
        ("netDevices", linux.net_devices().as_ref().is_some_and(|all| !all.is_empty())),
    ] {
        if there {
            return Err(format!("linux.{name} is not supported"));
        }
    }
    sysctl::check(spec, shared)
}

/// Refuses a process that cannot be; that of a container, or of an exec.
pub fn check_process(process: &Process) -> Result<(), String> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err("process.args is empty".to_owned());
    }
    if !process.cwd().is_absolute() {
        return Err(format!("process.cwd {:?} is not absolute", process.cwd()));
    }
    // The highest means "as it is" to the kernel, which would be the agent's root.
    let user = process.user();
    let ids = [user.uid(), user.gid()];
    if ids.iter().chain(user.additional_gids().iter().flatten()).any(|id| *id > MAX_ID) {
        return Err(format!("process.user: uids and gids must be in range 0-{MAX_ID}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(outer: &str, process: &str, linux: &str) -> Result<(), String> {
        // By way of a Value, in which the last of two equal keys wins.
        let spec: serde_json::Value = serde_json::from_str(&format!(
            r#"{{"ociVersion":"1.1.0","root":{{"path":"/r"}}{outer},
                "process":{{"user":{{"uid":0,"gid":0}},"cwd":"/","args":["sh"]{process}}},
                "linux":{{{linux}}}}}"#
        ))
        .expect("json");
        check(&serde_json::from_value(spec).expect("spec"), true)
    }

    #[test]
    fn capabilities_that_nobody_knows_are_left_out() {
        let process = r#"{"user":{"uid":0,"gid":0},"cwd":"/",
            "capabilities":{"bounding":["CAP_KILL","CAP_OF_LATER"],"effective":null}}"#;
        let read: Process = read(process.as_bytes(), "").expect("a process");
        let known = read.capabilities().as_ref().and_then(|sets| sets.bounding().clone());
        assert_eq!(known, Some([Capability::Kill].into()));
        let spec = format!(r#"{{"ociVersion":"1.2.0","process":{process}}}"#);
        let spec: Spec = super::read(spec.as_bytes(), "/process").expect("a spec");
        assert_eq!(spec.process().as_ref(), Some(&read));
        let number = r#"{"user":{"uid":0,"gid":0},"cwd":"/","capabilities":{"bounding":[7]}}"#;
        assert!(super::read::<Process>(number.as_bytes(), "").is_err());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(checked("", "", ""), Ok(()));
        for (outer, process, linux, why) in [
            ("", r#","args":[]"#, "", "process.args"),
            ("", r#","cwd":"here""#, "", "not absolute"),
            ("", r#","user":{"uid":4294967295,"gid":0}"#, "", "in range"),
            ("", r#","user":{"uid":0,"gid":0,"additionalGids":[2147483648]}"#, "", "in range"),
            ("", "", r#""namespaces":[{"type":"pid"},{"type":"pid"}]"#, "duplicated"),
            (r#","hostname":"h""#, "", "", "UTS"),
            ("", "", r#""maskedPaths":["/proc/kcore"]"#, "MNT"),
            ("", "", r#""namespaces":[{"type":"user"}]"#, "uidMappings"),
            ("", "", r#""uidMappings":[{"containerID":0,"hostID":1,"size":1}]"#, "no user"),
            ("", "", r#""timeOffsets":{"monotonic":{"secs":1}}"#, "time"),
            ("", "", r#""intelRdt":{"closID":"x"}"#, "intelRdt"),
            ("", "", r#""sysctl":{"kernel.panic":"1"}"#, "kernel.panic"),
        ] {
            let error = checked(outer, process, linux).expect_err(why);
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
