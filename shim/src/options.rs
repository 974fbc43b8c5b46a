// SPDX-License-Identifier: Apache-2.0

//! Options that containerd passes on from its configuration or from `ctr run
//! --runtime-config-path`: runtimeoptions.v1.Options names a file. husk has no settings yet,
//! so all that can be wrong is that the file is not there.

use std::path::Path;

use husk_sandbox::Error;
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, rt};

use crate::log;

const OPTIONS: &str = "runtimeoptions.v1.Options";

/// The tag of its string config_path, field 2.
const CONFIG_PATH: u32 = 2 << 3 | 2;

/// Refuses options that name a file which is not there. Options of another runtime are no
/// reason to refuse a container.
pub fn check(options: Option<&Any>) -> Result<(), Error> {
    let Some(path) = options.and_then(config_path) else { return Ok(()) };
    if !Path::new(&path).is_file() {
        return Err(Error::invalid(format!(
            "the runtime's configuration file {path} does not exist; look at \
             --runtime-config-path of ctr, or at ConfigPath in containerd's configuration"
        )));
    }
    log::warn(&format!("{path} is not read: this version of husk has no settings"));
    Ok(())
}

fn config_path(options: &Any) -> Option<String> {
    if options.type_url.rsplit('/').next() != Some(OPTIONS) {
        return None;
    }
    let mut input = CodedInputStream::from_bytes(&options.value);
    let mut path = None;
    while let Some(tag) = input.read_raw_tag_or_eof().ok()? {
        match tag {
            CONFIG_PATH => path = Some(input.read_string().ok()?),
            other => rt::skip_field_for_tag(other, &mut input).ok()?,
        }
    }
    path.filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(type_url: &str, value: &[u8]) -> Result<(), Error> {
        let any = Any { type_url: type_url.into(), value: value.into(), ..Default::default() };
        check(Some(&any))
    }

    #[test]
    fn a_configuration_file_has_to_be_there() {
        let missing = b"\x0a\x01t\x12\x0f/nonexistent/c1\x1a\x04body";
        let error = checked(OPTIONS, missing).expect_err("there is none");
        assert!(error.message.contains("/nonexistent/c1"), "{error}");
        assert_eq!(error.code, husk_sandbox::Code::InvalidArgument);
        checked(OPTIONS, b"\x12\x0b/etc/passwd").expect("it is there");
    }

    #[test]
    fn other_options_are_no_reason_to_refuse() {
        for (type_url, value) in [
            ("", &b""[..]),
            (OPTIONS, b""),
            (OPTIONS, b"\x12\x00"),
            (OPTIONS, b"\x12\xff garbage"),
            ("containerd.runc.v1.Options", b"\x12\x01x"),
        ] {
            checked(type_url, value).expect(type_url);
        }
        check(None).expect("none");
    }
}
