// SPDX-License-Identifier: Apache-2.0

//! Network devices by their slots.

use std::fs;

use crate::error::{Doing, Result};
use crate::pci;

/// A network device as the kernel has it.
pub struct Device {
    pub name: String,
    pub index: u32,
}

/// The network device in a slot.
pub fn find(slot: u32) -> Result<Device> {
    let directory = pci::find(slot, "net")?;
    let path = format!("{directory}/ifindex");
    let index = fs::read_to_string(&path).doing(format!("read {path}"))?;
    let index = index.trim().parse().doing(format!("read {path}"))?;
    let name = directory.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(Device { name, index })
}
