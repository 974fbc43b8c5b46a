// SPDX-License-Identifier: Apache-2.0

//! Devices by their place on the PCI bus, which is how the host knows them.

use std::fs;
use std::path::Path;

use crate::error::{Doing, Error, Result};

const PCI: &str = "/sys/bus/pci";

/// The directory in sysfs of what the virtio device in a slot is to the kernel, such as
/// `net/eth0` for the class `net`. The kernel may not have noticed the device yet.
pub fn find(slot: u32, class: &str) -> Result<String> {
    let directory = directory(slot);
    if !Path::new(&directory).exists() {
        fs::write(format!("{PCI}/rescan"), "1").doing("look for new PCI devices")?;
    }
    let nothing = || {
        let what = match Path::new(&directory).exists() {
            true => "the PCI device there is none that this guest can use as such",
            false => "there is no PCI device",
        };
        Error::not_found(format!("no {class} device in slot {slot}: {what}"))
    };
    let virtio = entry(&directory, |name| name.starts_with("virtio")).ok_or_else(nothing)?;
    let of_class = format!("{directory}/{virtio}/{class}");
    let name = entry(&of_class, |_| true).ok_or_else(nothing)?;
    Ok(format!("{of_class}/{name}"))
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
