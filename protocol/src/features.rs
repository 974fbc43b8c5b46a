// SPDX-License-Identifier: Apache-2.0

//! What host and guest together can do of the OCI runtime-spec, as its "Features" structure.
//! `containerd-shim-husk-v2 -info` and `husk-agent oci features` print the same; the host
//! refuses what is false here, or the guest does.

use serde_json::{Value, json};

/// The newest version of the runtime-spec that is followed.
pub const OCI_VERSION: &str = "1.2.1";

/// Options of mounts. Some have a form with `r` in front, for the mounts below, too.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// All that Linux 6.12 has.
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// The structure, as JSON.
pub fn features() -> Value {
    let enabled = |enabled: bool| json!({ "enabled": enabled });
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": CAPABILITIES,
            "cgroup": {
                "v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false,
            },
            "seccomp": {
                "enabled": true,
                // No SCMP_ACT_NOTIFY: its listener would be on the host, the processes are not.
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "archs": ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
                "knownFlags": [
                    "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                ],
                "supportedFlags": [
                    "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    "SECCOMP_FILTER_FLAG_TSYNC",
                ],
            },
            "apparmor": enabled(false),
            "selinux": enabled(false),
            "intelRdt": enabled(false),
            "mountExtensions": { "idmap": enabled(false) },
            "netDevices": enabled(false),
        },
        "annotations": { "io.husk.version": env!("CARGO_PKG_VERSION") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Capability, Features, LinuxSeccompOperator};

    #[test]
    fn it_is_the_structure_of_the_specification() {
        let json = features();
        let parsed: Features = serde_json::from_value(json.clone()).expect("the structure");
        let linux = parsed.linux().as_ref().expect("linux");
        // Every name that was written is one that the specification has.
        let again = serde_json::to_value(&parsed).expect("JSON");
        for name in ["hooks", "mountOptions", "ociVersionMin", "ociVersionMax", "annotations"] {
            assert_eq!(again[name], json[name], "{name}");
        }
        for (name, value) in json["linux"].as_object().expect("an object") {
            for (field, value) in value.as_object().into_iter().flatten() {
                assert_eq!(&again["linux"][name][field], value, "{name}.{field}");
            }
        }
        for name in linux.capabilities().iter().flatten() {
            serde_json::from_value::<Capability>(name.clone().into()).expect(name);
        }
        let seccomp = linux.seccomp().as_ref().expect("seccomp");
        for name in seccomp.operators().iter().flatten() {
            serde_json::from_value::<LinuxSeccompOperator>(name.clone().into()).expect(name);
        }
    }

    #[test]
    fn names_are_sorted_and_there_once() {
        assert!(MOUNT_OPTIONS.is_sorted_by(|a, b| a < b));
        assert!(CAPABILITIES.is_sorted_by(|a, b| a < b));
    }
}
