// SPDX-License-Identifier: Apache-2.0

//! `-info`: what this runtime is, for containerd 2.0 and later.

use std::io::Write;

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message, MessageField};

/// Prints a RuntimeInfo. It claims no OCI features: containerd then checks none, and the
/// guest refuses what it cannot do.
pub fn print() -> Result<(), String> {
    let info = RuntimeInfo {
        name: "io.containerd.husk.v2".into(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let bytes = info.write_to_bytes().map_err(|error| format!("cannot encode it: {error}"))?;
    std::io::stdout().write_all(&bytes).map_err(|error| format!("cannot write to stdout: {error}"))
}
