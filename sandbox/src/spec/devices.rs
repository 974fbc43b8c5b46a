// SPDX-License-Identifier: Apache-2.0

//! linux.devices: which of the host's device nodes mean the same in the guest.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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

/// Character devices that every Linux has by these numbers and that belong to no hardware
/// (the kernel's admin-guide/devices.txt), as far as the guest kernel is built with them.
const PSEUDO: [(i64, i64); 11] = [
    (1, 3),    // null
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

    fn numbers(&self) -> (i64, i64) {
        (self.major.unwrap_or(0), self.minor.unwrap_or(0))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Device { kind, path, .. }, (major, minor)) = (self, self.numbers());
        write!(f, "{path} ({kind} {major}:{minor})")
    }
}
