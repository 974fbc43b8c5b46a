// SPDX-License-Identifier: Apache-2.0

//! What containerd writes to `start`'s stdin, and the answer that it then expects.
//!
//! Up to 2.2 it is the runtime's options or nothing, and the only answer that all of them
//! understand is the plain address. From 2.3 on it is BootstrapParams, answered by a
//! BootstrapResult. Both parse as each other, so the names inside decide.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::options;

/// Most that is read of stdin, in bytes.
const MAX_INPUT: u64 = 10 << 20;

/// Version of the task service that a BootstrapResult announces.
const TASK_VERSION: i32 = 3;

/// How `start` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    PlainAddress,
    BootstrapResult,
}

/// What stdin says.
#[derive(Debug, PartialEq, Eq)]
pub struct Input {
    pub answer: Answer,
    /// The file of husk's settings, where the runtime's options name one.
    pub config_file: Option<PathBuf>,
}

/// Reads stdin.
pub fn read_stdin(namespace: &str, id: &str) -> Input {
    let stdin = std::io::stdin();
    let mut input = Vec::new();
    if !stdin.is_terminal() {
        // What cannot be read is no BootstrapParams.
        let _ = stdin.lock().take(MAX_INPUT).read_to_end(&mut input);
    }
    parse(&input, namespace, id)
}

fn parse(input: &[u8], namespace: &str, id: &str) -> Input {
    match BootstrapParams::parse_from_bytes(input) {
        Ok(params) if params.instance_id == id && params.namespace == namespace => Input {
            answer: Answer::BootstrapResult,
            config_file: params
                .extensions
                .iter()
                .find_map(|extension| options::config_path(extension.value.as_ref()?)),
        },
        _ => Input {
            answer: Answer::PlainAddress,
            config_file: Any::parse_from_bytes(input)
                .ok()
                .and_then(|options| options::config_path(&options)),
        },
    }
}

impl Answer {
    /// The bytes for stdout.
    pub fn bytes(self, address: &str) -> Vec<u8> {
        match self {
            Answer::PlainAddress => address.as_bytes().to_vec(),
            Answer::BootstrapResult => {
                let result = BootstrapResult {
                    version: TASK_VERSION,
                    address: address.into(),
                    protocol: "ttrpc".into(),
                    ..Default::default()
                };
                // Strings and a number always serialize.
                result.write_to_bytes().unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use protobuf::MessageField;

    fn some_options() -> Any {
        Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"\x12\x0e/etc/husk.toml".to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn options_nothing_and_garbage_want_the_plain_address() {
        let options = some_options().write_to_bytes().expect("bytes");
        let named = Some(PathBuf::from("/etc/husk.toml"));
        let inputs = [(&b""[..], None), (&options, named), (b"garbage", None), (&[0xff; 64], None)];
        for (input, config_file) in inputs {
            let parsed = parse(input, "default", "c1");
            assert_eq!(parsed, Input { answer: Answer::PlainAddress, config_file });
            assert_eq!(parsed.answer.bytes("unix:///s"), b"unix:///s");
        }
    }

    #[test]
    fn bootstrap_params_want_a_result() {
        let options = Extension { value: MessageField::some(some_options()), ..Default::default() };
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            extensions: vec![Extension::default(), options],
            ..Default::default()
        };
        let input = params.write_to_bytes().expect("bytes");
        assert_eq!(parse(&input, "default", "c2").answer, Answer::PlainAddress);
        let parsed = parse(&input, "default", "c1");
        assert_eq!(parsed.config_file, Some("/etc/husk.toml".into()));
        let answer = parsed.answer.bytes("unix:///s");
        let result = BootstrapResult::parse_from_bytes(&answer).expect("result");
        assert_eq!((result.version, result.address.as_str()), (3, "unix:///s"));
        assert_eq!(result.protocol, "ttrpc");
    }
}
