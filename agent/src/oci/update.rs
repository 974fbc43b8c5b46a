// SPDX-License-Identifier: Apache-2.0

//! Update: new limits for a container. Device rules do not change.

use std::path::Path;

use lexopt::prelude::*;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value as Json, json};

use super::state::Status;
use super::{Result, Runtime, number, path, string, take_id, text};
use crate::resources;

pub fn update(runtime: &Runtime, mut args: lexopt::Parser) -> Result<()> {
    let (mut id, mut file) = (None, None);
    let mut limits = json!({});
    while let Some(arg) = args.next().map_err(text)? {
        let (section, key, value) = match arg {
            Long("resources") | Short('r') => {
                file = Some(path(&mut args)?);
                continue;
            }
            Long("memory") => ("memory", "limit", bytes(&string(&mut args)?)?),
            Long("memory-swap") => ("memory", "swap", bytes(&string(&mut args)?)?),
            Long("memory-reservation") => ("memory", "reservation", bytes(&string(&mut args)?)?),
            Long("cpu-period") => ("cpu", "period", number::<u64>(&mut args)?.into()),
            Long("cpu-quota") => ("cpu", "quota", number::<i64>(&mut args)?.into()),
            Long("cpu-burst") => ("cpu", "burst", number::<u64>(&mut args)?.into()),
            Long("cpu-share") => ("cpu", "shares", number::<u64>(&mut args)?.into()),
            Long("cpu-idle") => ("cpu", "idle", number::<i64>(&mut args)?.into()),
            Long("cpuset-cpus") => ("cpu", "cpus", string(&mut args)?.into()),
            Long("cpuset-mems") => ("cpu", "mems", string(&mut args)?.into()),
            Long("pids-limit") => ("pids", "limit", number::<i64>(&mut args)?.into()),
            Long("blkio-weight") => ("blockIO", "weight", number::<u16>(&mut args)?.into()),
            other => {
                take_id(&mut id, other)?;
                continue;
            }
        };
        limits[section][key] = value;
    }
    let container = runtime.container(&super::needed(id)?)?;
    if matches!(container.status(), Status::Creating | Status::Stopped) {
        return Err(format!("container not running: it is {}", container.status()));
    }
    let limits: LinuxResources = match file {
        Some(file) => serde_json::from_slice(&read(&file)?),
        None => serde_json::from_value(limits),
    }
    .map_err(|e| format!("cannot make sense of the resources: {e}"))?;
    resources::apply(&container.cgroup(), &limits).map_err(text)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let file = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    std::fs::read(file).map_err(|e| format!("cannot read {file:?}: {e}"))
}

/// A number of bytes, which may be followed by a unit: k, m, g or t, powers of 1024.
fn bytes(text: &str) -> Result<Json> {
    let wrong = || format!("{text:?} is no number of bytes");
    let lower = text.to_lowercase();
    let digits = lower.trim_end_matches('b').trim_end_matches('i');
    let unit = digits.chars().last().and_then(|unit| "kmgt".find(unit));
    let (digits, power) = match unit {
        Some(at) => (&digits[..digits.len() - 1], at as u32 + 1),
        None => (digits, 0),
    };
    let number: i64 = digits.parse().map_err(|_| wrong())?;
    Ok(number.checked_mul(1 << (10 * power)).ok_or_else(wrong)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_may_have_units() {
        for (text, number) in [("0", 0), ("-1", -1), ("12", 12), ("3k", 3072), ("2MiB", 2 << 20)] {
            assert_eq!(bytes(text), Ok(number.into()), "{text}");
        }
        for bad in ["", "k", "x", "1x", "9999999999t", "1 m"] {
            assert!(bytes(bad).is_err(), "{bad:?}");
        }
    }
}
