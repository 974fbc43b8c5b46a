// SPDX-License-Identifier: Apache-2.0

//! Disks that the host has plugged for a container: what its spec says of the host's block
//! device is made to be about the guest's.

use std::collections::HashMap;
use std::fs;

use husk_protocol::agent::Disk;
use oci_spec::runtime::{LinuxDeviceType, Spec};

use crate::error::{Doing, Error, Result};
use crate::pci;

type Numbers = (i64, i64);

/// Finds the disks, which are on the bus, and puts their numbers in the place of the host's.
pub fn fit(spec: &mut Spec, disks: &[Disk]) -> Result<()> {
    if disks.is_empty() {
        return Ok(());
    }
    let numbers = disks.iter().map(|disk| {
        let on_host = (disk.major.into(), disk.minor.into());
        Ok((on_host, find(disk.slot)?))
    });
    renumber(spec, &numbers.collect::<Result<_>>()?);
    Ok(())
}

/// The numbers of the disk in a slot.
fn find(slot: u32) -> Result<Numbers> {
    let path = format!("{}/dev", pci::find(slot, "block")?);
    let text = fs::read_to_string(&path).doing(format!("read {path}"))?;
    let numbers = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    numbers.ok_or_else(|| Error::internal(format!("{path} has no numbers: {text:?}")))
}

fn renumber(spec: &mut Spec, numbers: &HashMap<Numbers, Numbers>) {
    let Some(linux) = spec.linux_mut() else { return };
    for device in linux.devices_mut().iter_mut().flatten() {
        if device.typ() == LinuxDeviceType::B
            && let Some(&(major, minor)) = numbers.get(&(device.major(), device.minor()))
        {
            device.set_major(major).set_minor(minor);
        }
    }
    let Some(resources) = linux.resources_mut() else { return };
    for rule in resources.devices_mut().iter_mut().flatten() {
        if rule.typ() == Some(LinuxDeviceType::B)
            && let (Some(major), Some(minor)) = (rule.major(), rule.minor())
            && let Some(&(major, minor)) = numbers.get(&(major, minor))
        {
            rule.set_major(Some(major)).set_minor(Some(minor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_rules_get_the_guests_numbers() {
        let spec = |major: i64, minor: i64| {
            serde_json::json!({"ociVersion": "1.2.0", "linux": {
                "devices": [
                    {"path": "/dev/a", "type": "b", "major": major, "minor": minor},
                    {"path": "/dev/b", "type": "c", "major": 8, "minor": 0},
                    {"path": "/dev/c", "type": "b", "major": 7, "minor": 0},
                ],
                "resources": {"devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"},
                    {"allow": true, "type": "c", "major": 8, "minor": 0, "access": "r"},
                ]},
            }})
        };
        let read = |value| serde_json::from_value::<Spec>(value).expect("a spec");
        let mut changed = read(spec(8, 0));
        renumber(&mut changed, &HashMap::from([((8, 0), (254, 16))]));
        assert_eq!(changed, read(spec(254, 16)));
    }
}
