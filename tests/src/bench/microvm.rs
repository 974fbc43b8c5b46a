// SPDX-License-Identifier: Apache-2.0

//! The guest kernel and image in a VM by itself, under husk-vmm and under QEMU's microvm
//! machine. Our kernel finds devices by conf1 PCI only, which microvm has not, so its agent
//! finds no way to a host there, and under husk-vmm it is given none either: it gives up and
//! switches off. From exec to exit is the one span that both have.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use super::{Instants, Runs, now_ns, readable, repeat};

pub const END: &str = "end";

/// Memory and vCPUs of both.
const MEMORY: &str = "256M";

/// The command line that a pod's VM has.
const CMDLINE: &str = "console=hvc0 quiet panic=-1 tsc=reliable no_timer_check swiotlb=noforce";

/// Where the programs and the images are: the folder of husk-vmm.
fn dist() -> Result<std::path::PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|directory| directory.join("husk-vmm").exists())
        .ok_or_else(|| "husk-vmm is not on PATH".to_owned())
}

/// husk-vmm alone, without devices but its console.
pub fn husk_vmm() -> Result<Command, String> {
    let dist = dist()?;
    let mut command = Command::new(dist.join("husk-vmm"));
    command.args(["--cpus", "1", "--memory", MEMORY, "--cmdline", CMDLINE]);
    command.arg("--kernel").arg(dist.join("vmlinux"));
    command.arg("--initramfs").arg(dist.join("guest.img"));
    Ok(command)
}

/// QEMU with the same and as little else as it can have.
pub fn qemu() -> Result<Command, String> {
    let dist = dist()?;
    let machine = "microvm,acpi=on,pcie=off,usb=off,rtc=off,pit=off,pic=off,isa-serial=off";
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", machine, "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", MEMORY]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-append", CMDLINE]);
    command.arg("-kernel").arg(dist.join("vmlinux"));
    command.arg("-initrd").arg(dist.join("guest.img"));
    Ok(command)
}

/// Runs a VM `rounds` times after one that warms the machine up.
pub fn lives(vm: impl Fn() -> Result<Command, String>, rounds: u32) -> Result<Runs, String> {
    repeat(rounds, |_| life(vm()?))
}

/// None if the VM hung.
fn life(mut command: Command) -> Result<Option<Instants>, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = now_ns();
    let mut child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
    // Its end is the end of its output, of which there is none before.
    let in_time = child.stdout.as_ref().is_none_or(|stdout| readable(stdout.as_fd()));
    if !in_time {
        // It is there until we have waited for it.
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(|error| format!("{command:?}: {error}"))?;
    let ended = now_ns();
    match output.status {
        _ if !in_time => Ok(None),
        status if status.success() => {
            Ok(Some([(END.to_owned(), ended - began)].into_iter().collect()))
        }
        status => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!("{command:?}: {status}: {said}"))
        }
    }
}
