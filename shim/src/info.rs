// SPDX-License-Identifier: Apache-2.0

//! `-info`: what this runtime is and can do, for containerd 2.0 and later. It reads and
//! needs nothing.

use std::io::Write;

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use husk_protocol::features::features;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

/// The OCI structure of features, as containerd names types.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints a RuntimeInfo.
pub fn print() -> Result<(), String> {
    let features = Any {
        type_url: FEATURES.into(),
        value: features().to_string().into_bytes(),
        ..Default::default()
    };
    let info = RuntimeInfo {
        name: "io.containerd.husk.v2".into(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        }),
        features: MessageField::some(features),
        ..Default::default()
    };
    let bytes = info.write_to_bytes().map_err(|error| format!("cannot encode it: {error}"))?;
    std::io::stdout().write_all(&bytes).map_err(|error| format!("cannot write to stdout: {error}"))
}
