// SPDX-License-Identifier: Apache-2.0

//! Spec: an example of a config.json, for a bundle whose root file system is in `rootfs`.

use std::fs::File;
use std::io::Write;

use husk_protocol::features::OCI_VERSION;
use lexopt::prelude::*;
use serde_json::{Value as Json, json};

use super::{Result, path, text};

pub fn write(mut args: lexopt::Parser) -> Result<()> {
    let mut bundle = std::path::PathBuf::from(".");
    while let Some(arg) = args.next().map_err(text)? {
        match arg {
            Long("bundle") | Short('b') => bundle = path(&mut args)?,
            other => return Err(text(other.unexpected())),
        }
    }
    let file = bundle.join("config.json");
    let created = File::create_new(&file);
    let written = created.and_then(|mut created| writeln!(created, "{:#}", example()));
    written.map_err(|e| format!("cannot write {file:?}: {e}"))
}

fn example() -> Json {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let mount = |destination: &str, kind: &str, options: &str| {
        let options: Vec<_> = options.split(',').collect();
        json!({"destination": destination, "type": kind, "source": kind, "options": options})
    };
    let guarded = "nosuid,noexec,nodev";
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "husk",
        "mounts": [
            mount("/proc", "proc", guarded),
            mount("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
            mount(
                "/dev/pts",
                "devpts",
                "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
            ),
            mount("/dev/shm", "tmpfs", &format!("{guarded},mode=1777,size=65536k")),
            mount("/dev/mqueue", "mqueue", guarded),
            mount("/sys", "sysfs", &format!("{guarded},ro")),
            mount("/sys/fs/cgroup", "cgroup", &format!("{guarded},relatime,ro")),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces.map(|kind| json!({"type": kind})),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
                "/sys/firmware",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use crate::engine;

    #[test]
    fn the_example_is_one() {
        let spec = serde_json::from_value(super::example()).expect("a config.json");
        assert_eq!(engine::spec::check(&spec, false), Ok(()));
    }
}
