// SPDX-License-Identifier: Apache-2.0

//! Options that containerd passes on from its configuration or from `ctr run
//! --runtime-config-path`: runtimeoptions.v1.Options names the file of husk's settings.

use std::path::PathBuf;

use husk_sandbox::{Error, config};
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, rt};

const OPTIONS: &str = "runtimeoptions.v1.Options";

/// The tag of its string config_path, field 2.
const CONFIG_PATH: u32 = 2 << 3 | 2;

/// The file of husk's settings. One that is named has to be there. Options of another
/// runtime are no reason to refuse a container.
pub fn config_file(options: Option<&Any>) -> Result<PathBuf, Error> {
    existing(options.and_then(config_path))
}

/// The same for a file that options have named.
pub fn existing(path: Option<PathBuf>) -> Result<PathBuf, Error> {
    let Some(path) = path else { return Ok(config::PATH.into()) };
    if !path.is_file() {
        return Err(Error::invalid(format!(
            "the runtime's configuration file {} does not exist; look at \
             --runtime-config-path of ctr, or at ConfigPath in containerd's configuration",
            path.display()
        )));
    }
    Ok(path)
}

/// The file that options name, if they do.
pub fn config_path(options: &Any) -> Option<PathBuf> {
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
    path.filter(|path| !path.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(type_url: &str, value: &[u8]) -> Result<PathBuf, Error> {
        let any = Any { type_url: type_url.into(), value: value.into(), ..Default::default() };
        config_file(Some(&any))
    }

    #[test]
    fn a_configuration_file_has_to_be_there() {
        let missing = b"\x0a\x01t\x12\x0f/nonexistent/c1\x1a\x04body";
        let error = file_of(OPTIONS, missing).expect_err("there is none");
        assert!(error.message.contains("/nonexistent/c1"), "{error}");
        assert_eq!(error.code, husk_sandbox::Code::InvalidArgument);
        let file = file_of(OPTIONS, b"\x12\x0b/etc/passwd").expect("it is there");
        assert_eq!(file, PathBuf::from("/etc/passwd"));
    }

    #[test]
    fn other_options_mean_the_usual_file() {
        for (type_url, value) in [
            ("", &b""[..]),
            (OPTIONS, b""),
            (OPTIONS, b"\x12\x00"),
            (OPTIONS, b"\x12\xff garbage"),
            ("containerd.runc.v1.Options", b"\x12\x01x"),
        ] {
            assert_eq!(file_of(type_url, value).expect(type_url), PathBuf::from(config::PATH));
        }
        assert_eq!(config_file(None).expect("none"), PathBuf::from(config::PATH));
    }
}
