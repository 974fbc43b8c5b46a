// SPDX-License-Identifier: Apache-2.0

//! linux.devices: which of the host's device nodes mean the same in the guest, and which are
//! disks that the VM is to have.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A device node that the container is to have.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Device {
    /// c or u, b, or p for a FIFO.
    #[serde(rename = "type")]
    kind: String,
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    major: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minor: Option<i64>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A block device of the host that a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDevice {
    pub major: u32,
    pub minor: u32,
    pub read_only: bool,
}

/// /dev/null.
const NULL: (i64, i64) = (1, 3);

/// Character devices that every Linux has by these numbers and that belong to no hardware
/// (the kernel's admin-guide/devices.txt), as far as the guest kernel is built with them.
const PSEUDO: [(i64, i64); 11] = [
    NULL,
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (1, 11),   // kmsg
    (5, 0),    // tty
    (5, 2),    // ptmx
    (10, 200), // net/tun
    (10, 229), // fuse
    (10, 237), // loop-control
];

/// Block devices loop0, loop1 and so on; the minor number is the device's.
const LOOP_MAJOR: i64 = 7;

impl Device {
    /// Whether the node works in the guest as it does on the host.
    pub fn is_in_guest(&self) -> bool {
        let (major, minor) = self.numbers();
        match self.kind.as_str() {
            "c" | "u" => PSEUDO.contains(&(major, minor)),
            "b" => major == LOOP_MAJOR,
            // A FIFO; or a mistake, which the guest's engine names.
            _ => true,
        }
    }

    /// What every container has, asked for or not.
    pub fn is_null(&self) -> bool {
        self.kind == "c" && self.numbers() == NULL
    }

    /// The host's block device that it is, if it is one that a rule for its very numbers
    /// allows.
    pub fn disk(&self, rules: &[Value]) -> Option<BlockDevice> {
        let (major, minor) = self.numbers();
        let about_it = |rule: &&Value| {
            rule["allow"] == true
                && rule["type"] == "b"
                && rule["major"] == major
                && rule["minor"] == minor
        };
        let allowed = |rule: &Value, access: char| {
            rule.get("access").and_then(Value::as_str).is_some_and(|text| text.contains(access))
        };
        if !rules.iter().any(|rule| about_it(&rule) && allowed(rule, 'r')) {
            return None;
        }
        let read_only = !rules.iter().any(|rule| about_it(&rule) && allowed(rule, 'w'));
        self.any_disk().map(|disk| BlockDevice { read_only, ..disk })
    }

    /// The same without a look at the rules.
    pub fn any_disk(&self) -> Option<BlockDevice> {
        let (major, minor) = self.numbers();
        let (major, minor) = (major.try_into().ok()?, minor.try_into().ok()?);
        (self.kind == "b").then_some(BlockDevice { major, minor, read_only: false })
    }

    /// A node at `path` like that of a block device of the host.
    pub fn like(path: &str, metadata: &Metadata) -> Device {
        let number = metadata.rdev();
        let rest = json!({
            "fileMode": metadata.mode() & 0o777, "uid": metadata.uid(), "gid": metadata.gid(),
        });
        Device {
            kind: "b".into(),
            path: path.into(),
            major: i64::try_from(major(number)).ok(),
            minor: i64::try_from(minor(number)).ok(),
            rest: rest.as_object().cloned().unwrap_or_default(),
        }
    }

    fn numbers(&self) -> (i64, i64) {
        (self.major.unwrap_or(0), self.minor.unwrap_or(0))
    }
}

/// Adds a disk to a list. One device may have several names; what one may write to, all may.
pub fn add(disks: &mut Vec<BlockDevice>, disk: BlockDevice) {
    let same = |known: &&mut BlockDevice| (known.major, known.minor) == (disk.major, disk.minor);
    match disks.iter_mut().find(same) {
        Some(known) => known.read_only &= disk.read_only,
        None => disks.push(disk),
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Device { kind, path, .. }, (major, minor)) = (self, self.numbers());
        write!(f, "{path} ({kind} {major}:{minor})")
    }
}
