// SPDX-License-Identifier: Apache-2.0

//! The URIs that containerd names logs by: `scheme:///path?key=value`.

use husk_sandbox::Error;

/// A URI with a scheme that is not just a path.
#[derive(Debug, PartialEq, Eq)]
pub struct Uri {
    pub scheme: String,
    pub path: String,
    /// Decoded, in the order in which they were given.
    pub query: Vec<(String, String)>,
}

impl Uri {
    /// Reads a URI; `None` for plain paths, `fifo://` and the empty string.
    pub fn parse(text: &str) -> Result<Option<Uri>, Error> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(None) };
        if scheme.contains('/') || scheme == "fifo" {
            return Ok(None);
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let bad = || Error::invalid(format!("{text} is not a valid URI"));
        let path = decode(path, false).ok_or_else(bad)?;
        if !path.starts_with('/') {
            return Err(Error::invalid(format!("{text} does not name an absolute path")));
        }
        let query = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Some((decode(key, true)?, decode(value, true)?))
            })
            .collect::<Option<_>>()
            .ok_or_else(bad)?;
        Ok(Some(Uri { scheme: scheme.to_owned(), path, query }))
    }
}

/// Undoes percent-encoding, and `+` for a space where `plus`.
fn decode(text: &str, plus: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?].map(char::from);
                let [high, low] = [digits[0].to_digit(16)?, digits[1].to_digit(16)?];
                (high * 16 + low) as u8
            }
            b'+' if plus => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_not_uris() {
        for path in ["", "/run/fifo", "fifo:///run/fifo", "relative", "/odd/a://b"] {
            assert_eq!(Uri::parse(path).expect(path), None, "{path}");
        }
    }

    #[test]
    fn parts_are_decoded() {
        let uri = Uri::parse("binary:///usr/bin/log%20it?a=b%26+c&flag&x=").expect("valid");
        assert_eq!(
            uri,
            Some(Uri {
                scheme: "binary".into(),
                path: "/usr/bin/log it".into(),
                query: vec![
                    ("a".into(), "b& c".into()),
                    ("flag".into(), String::new()),
                    ("x".into(), String::new())
                ],
            })
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["file://relative", "file:///a%2", "file:///a%zz", "file:///a%00", "binary:///a?%f"]
        {
            assert!(Uri::parse(bad).is_err(), "{bad}");
        }
    }
}
