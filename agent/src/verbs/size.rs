// SPDX-License-Identifier: Apache-2.0

//! SetSize: CPUs that the host has added come up, and others go down; memory that it has added
//! is looked for. Both block for as long as the kernel takes.

use std::fs;
use std::path::{Path, PathBuf};

use husk_protocol::agent::SetSize;
use husk_protocol::agent::response::Result as Outcome;

use crate::error::{Doing, Error, Result};
use crate::verbs::done;

const CPUS: &str = "/sys/devices/system/cpu";
const PCI: &str = "/sys/bus/pci";

/// How the kernel uses added memory. What it keeps for itself there can hardly be taken away
/// again, so most is to be for programs; but not all, for the more memory, the more it needs.
const ONLINE_POLICY: &str = "/sys/module/memory_hotplug/parameters/online_policy";

pub fn set_size(request: &SetSize) -> Result<Outcome> {
    set_cpus(Path::new(CPUS), request.cpus)?;
    if request.memory_slot > 0 {
        find_memory(request.memory_slot)?;
    }
    Ok(done())
}

/// Brings CPUs up to the number of `count`, and the others down. The first is always up.
fn set_cpus(cpus: &Path, count: u32) -> Result<()> {
    let switch = |cpu: u32| -> PathBuf { cpus.join(format!("cpu{cpu}/online")) };
    for cpu in 1.. {
        let (path, wanted) = (switch(cpu), cpu < count);
        if !path.exists() {
            return match wanted {
                true => Err(Error::precondition(format!(
                    "the guest knows of {cpu} CPUs only, and cannot have {count}"
                ))),
                false => Ok(()),
            };
        }
        let value = if wanted { "1" } else { "0" };
        let is = fs::read_to_string(&path).doing(format!("read {path:?}"))?;
        if is.trim() != value {
            let what = if wanted { "up" } else { "down" };
            fs::write(&path, value).doing(format!("bring CPU {cpu} {what}"))?;
        }
    }
    Ok(())
}

fn find_memory(slot: u32) -> Result<()> {
    let device = format!("{PCI}/devices/0000:00:{slot:02x}.0");
    if Path::new(&device).exists() {
        return Ok(());
    }
    fs::write(ONLINE_POLICY, "auto-movable").doing("choose what added memory is for")?;
    fs::write(format!("{PCI}/rescan"), "1").doing("look for new PCI devices")?;
    match Path::new(&device).exists() {
        true => Ok(()),
        false => Err(Error::not_found(format!("there is no PCI device in slot {slot}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_cpus_are_up_as_are_asked_for() {
        let cpus = tempfile::tempdir().expect("directory");
        fs::create_dir(cpus.path().join("cpu0")).expect("cpu0");
        for (cpu, online) in [(1, "1\n"), (2, "0\n"), (3, "0\n")] {
            let cpu = cpus.path().join(format!("cpu{cpu}"));
            fs::create_dir(&cpu).expect("cpu");
            fs::write(cpu.join("online"), online).expect("online");
        }
        let up = || {
            [1, 2, 3].map(|cpu| {
                let path = cpus.path().join(format!("cpu{cpu}/online"));
                fs::read_to_string(path).expect("online").trim().to_owned()
            })
        };
        for (count, want) in [(3, ["1", "1", "0"]), (1, ["0", "0", "0"]), (4, ["1", "1", "1"])] {
            set_cpus(cpus.path(), count).expect("set");
            assert_eq!(up(), want, "{count}");
        }
        let error = set_cpus(cpus.path(), 5).expect_err("too many");
        assert!(error.message.contains("4 CPUs only"), "{}", error.message);
    }
}
