// SPDX-License-Identifier: Apache-2.0

//! What containerd writes to `start`'s stdin, and the answer that it then expects.
//!
//! Up to 2.2 it is the runtime's options or nothing, and the only answer that all of them
//! understand is the plain address. From 2.3 on it is BootstrapParams, answered by a
//! BootstrapResult. Both parse as each other, so the names inside decide.

use std::io::{IsTerminal, Read};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;

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

/// Reads stdin and tells which answer is expected.
pub fn read_stdin(namespace: &str, id: &str) -> Answer {
    let stdin = std::io::stdin();
    let mut input = Vec::new();
    if !stdin.is_terminal() {
        // What cannot be read is no BootstrapParams.
        let _ = stdin.lock().take(MAX_INPUT).read_to_end(&mut input);
    }
    expected(&input, namespace, id)
}

/// The answer expected after this input.
pub fn expected(input: &[u8], namespace: &str, id: &str) -> Answer {
    match BootstrapParams::parse_from_bytes(input) {
        Ok(params) if params.instance_id == id && params.namespace == namespace => {
            Answer::BootstrapResult
        }
        _ => Answer::PlainAddress,
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
    use protobuf::well_known_types::any::Any;

    #[test]
    fn options_nothing_and_garbage_want_the_plain_address() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"\x12\x0e/etc/husk.toml".to_vec(),
            ..Default::default()
        };
        let options = options.write_to_bytes().expect("bytes");
        for input in [&b""[..], &options, b"garbage", &[0xff; 64]] {
            let answer = expected(input, "default", "c1");
            assert_eq!(answer, Answer::PlainAddress);
            assert_eq!(answer.bytes("unix:///s"), b"unix:///s");
        }
    }

    #[test]
    fn bootstrap_params_want_a_result() {
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            ..Default::default()
        };
        let input = params.write_to_bytes().expect("bytes");
        assert_eq!(expected(&input, "default", "c2"), Answer::PlainAddress);
        let answer = expected(&input, "default", "c1").bytes("unix:///s");
        let result = BootstrapResult::parse_from_bytes(&answer).expect("result");
        assert_eq!((result.version, result.address.as_str()), (3, "unix:///s"));
        assert_eq!(result.protocol, "ttrpc");
    }
}
