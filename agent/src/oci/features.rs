// SPDX-License-Identifier: Apache-2.0

//! Features: what this runtime can do, in the form of the specification (features.md).

use serde_json::json;

use super::{Result, SPEC_VERSION};
use crate::engine;

pub fn show() -> Result<()> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        "mountOptions": engine::mount_options().collect::<Vec<_>>(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": {
                "v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false,
            },
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    });
    println!("{features:#}");
    Ok(())
}
