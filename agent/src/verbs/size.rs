// SPDX-License-Identifier: Apache-2.0

//! SetSize: CPUs that the host has added come up, and others go down; memory that it has added
//! is looked for. A child does it, for it takes as long as the kernel takes.

use std::fs;
use std::path::{Path, PathBuf};

use husk_protocol::agent::SetSize;
use husk_protocol::agent::response::Result as Outcome;

use crate::agent::Agent;
use crate::engine::wait;
use crate::error::{Doing, Error, Result};
use crate::pci;
use crate::verbs::done;

const CPUS: &str = "/sys/devices/system/cpu";

/// How the kernel uses added memory. What it keeps for itself there can hardly be taken away
/// again, so most is to be for programs; but not all, for the more memory, the more it needs.
const ONLINE_POLICY: &str = "/sys/module/memory_hotplug/parameters/online_policy";

pub async fn set_size(agent: &Agent, request: &SetSize) -> Result<Outcome> {
    let _resizing = agent.resizing.lock().await;
    let (cpus, slot) = (Path::new(CPUS), request.memory_slot);
    check_cpus(cpus, request.cpus)?;
    wait::apart(|| set_cpus(cpus, request.cpus)).await?;
    if slot > 0 && !pci::is_there(slot) {
        fs::write(ONLINE_POLICY, "auto-movable").doing("choose what added memory is for")?;
        agent.pci.discover(std::iter::once(slot)).await?;
        if !pci::is_there(slot) {
            return Err(Error::not_found(format!("there is no PCI device in slot {slot}")));
        }
    }
    Ok(done())
}

fn switch(cpus: &Path, cpu: u32) -> PathBuf {
    cpus.join(format!("cpu{cpu}/online"))
}

/// Whether there can be so many. The first has no switch, for it is always up.
fn check_cpus(cpus: &Path, count: u32) -> Result<()> {
    match (1..count).find(|cpu| !switch(cpus, *cpu).exists()) {
        None => Ok(()),
        Some(known) => Err(Error::precondition(format!(
            "the guest knows of {known} CPUs only, and cannot have {count}"
        ))),
    }
}

/// Brings CPUs up to the number of `count`, and the others down.
fn set_cpus(cpus: &Path, count: u32) -> std::result::Result<(), String> {
    for cpu in 1.. {
        let path = switch(cpus, cpu);
        if !path.exists() {
            break;
        }
        let (value, what) = if cpu < count { ("1", "up") } else { ("0", "down") };
        let is =
            fs::read_to_string(&path).map_err(|error| format!("cannot read {path:?}: {error}"))?;
        if is.trim() != value {
            fs::write(&path, value)
                .map_err(|error| format!("cannot bring CPU {cpu} {what}: {error}"))?;
        }
    }
    Ok(())
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
        check_cpus(cpus.path(), 4).expect("as many as there are");
        let error = check_cpus(cpus.path(), 5).expect_err("too many");
        assert!(error.message.contains("4 CPUs only"), "{}", error.message);
    }
}
