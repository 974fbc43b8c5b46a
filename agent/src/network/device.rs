// SPDX-License-Identifier: Apache-2.0

//! Network devices by their place on the PCI bus, which is how the host knows them.

use std::fs;
use std::path::Path;

use crate::error::{Doing, Error, Result};

const PCI: &str = "/sys/bus/pci";

/// A network device as the kernel has it.
pub struct Device {
    pub name: String,
    pub index: u32,
}

/// The network device in a slot, which the kernel may not have noticed yet.
pub fn find(slot: u32) -> Result<Device> {
    let directory = directory(slot);
    if !Path::new(&directory).exists() {
        fs::write(format!("{PCI}/rescan"), "1").doing("look for new PCI devices")?;
    }
    let nothing = || {
        let what = match Path::new(&directory).exists() {
            true => "the PCI device there is not a network device that this guest can use",
            false => "there is no PCI device",
        };
        Error::not_found(format!("no network device in slot {slot}: {what}"))
    };
    let virtio = entry(&directory, |name| name.starts_with("virtio")).ok_or_else(nothing)?;
    let net = format!("{directory}/{virtio}/net");
    let name = entry(&net, |_| true).ok_or_else(nothing)?;
    let path = format!("{net}/{name}/ifindex");
    let index = fs::read_to_string(&path).doing(format!("read {path}"))?;
    let index = index.trim().parse().doing(format!("read {path}"))?;
    Ok(Device { name, index })
}

/// Lets go of a device that the VMM is about to take away.
pub fn remove(slot: u32) -> Result<()> {
    match fs::write(format!("{}/remove", directory(slot)), "1") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing(format!("remove the device in slot {slot}"))
        }
        _ => Ok(()),
    }
}

fn directory(slot: u32) -> String {
    format!("{PCI}/devices/0000:00:{slot:02x}.0")
}

/// The first entry of a directory that fits.
fn entry(directory: &str, fits: impl Fn(&str) -> bool) -> Option<String> {
    let names = fs::read_dir(directory).ok()?.flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).find(|name| fits(name))
}
