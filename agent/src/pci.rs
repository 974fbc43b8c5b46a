// SPDX-License-Identifier: Apache-2.0

//! Devices by their place on the PCI bus, which is how the host knows them. While the kernel
//! looks for one or lets go of one it may take long, so a child has it do so, one at a time.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use tokio::sync::Mutex;

use crate::engine::wait;
use crate::error::{Doing, Error, Result};

const PCI: &str = "/sys/bus/pci";

/// The guest's PCI bus.
#[derive(Default)]
pub struct Pci {
    /// Held while devices come or go.
    changing: Mutex<()>,
}

impl Pci {
    /// Has the kernel look for devices if it has not noticed those in these slots.
    pub async fn discover(&self, mut slots: impl Iterator<Item = u32>) -> Result<()> {
        let _changing = self.changing.lock().await;
        if slots.all(is_there) {
            return Ok(());
        }
        let rescan = || fs::write(format!("{PCI}/rescan"), "1").map_err(|error| error.to_string());
        wait::apart(rescan).await.doing("look for new PCI devices")
    }

    /// Lets go of a device that the VMM is about to take away.
    pub async fn remove(&self, slot: u32) -> Result<()> {
        let _changing = self.changing.lock().await;
        let remove = || match fs::write(format!("{}/remove", directory(slot)), "1") {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        };
        wait::apart(remove).await.doing(format!("remove the device in slot {slot}"))
    }
}

/// Whether the kernel has noticed a device in the slot.
pub fn is_there(slot: u32) -> bool {
    Path::new(&directory(slot)).exists()
}

/// The directory in sysfs of what the virtio device in a slot is to the kernel, such as
/// `net/eth0` for the class `net`.
pub fn find(slot: u32, class: &str) -> Result<String> {
    let directory = directory(slot);
    let nothing = || {
        let what = match is_there(slot) {
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

fn directory(slot: u32) -> String {
    format!("{PCI}/devices/0000:00:{slot:02x}.0")
}

/// The first entry of a directory that fits.
fn entry(directory: &str, fits: impl Fn(&str) -> bool) -> Option<String> {
    let names = fs::read_dir(directory).ok()?.flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).find(|name| fits(name))
}
