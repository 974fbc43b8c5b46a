// SPDX-License-Identifier: Apache-2.0

//! Block devices of the host that containers use: each is a disk that is plugged into the
//! running VM, once for all containers of the pod that use it alike, and taken away again with
//! the last of them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use husk_protocol::agent::request::Verb;
use husk_protocol::agent::{self as guest, RemoveDisk};
use husk_vmm::config::{self, Plug};
use tokio::sync::Mutex;

use crate::agent::{Agent, done};
use crate::error::{Error, IoContext};
use crate::spec::BlockDevice;
use crate::vm::Vm;

/// The disks of a pod.
#[derive(Debug)]
pub struct Disks {
    vm: Vm,
    agent: Agent,
    /// One change at a time.
    plugged: Mutex<Vec<Plugged>>,
}

#[derive(Debug)]
struct Plugged {
    device: BlockDevice,
    slot: u8,
    users: usize,
}

/// A container's use of a disk. The last one's drop takes the disk away, a moment later; so
/// it has to be dropped within a runtime, and after the container is gone.
#[derive(Debug)]
pub struct Disk {
    disks: Arc<Disks>,
    device: BlockDevice,
    slot: u8,
}

impl Disks {
    pub fn new(vm: Vm, agent: Agent) -> Disks {
        Disks { vm, agent, plugged: Mutex::default() }
    }

    /// Gives the VM what it does not have yet of these. Runs to its end even when the caller
    /// goes away.
    pub async fn add(self: &Arc<Self>, devices: Vec<BlockDevice>) -> Result<Vec<Disk>, Error> {
        let disks = self.clone();
        let work = tokio::spawn(async move {
            let mut added = Vec::new();
            for device in devices {
                added.push(disks.add_one(device).await?);
            }
            Ok(added)
        });
        work.await.context(|| "cannot give the VM its disks".to_owned())?
    }

    async fn add_one(self: &Arc<Self>, device: BlockDevice) -> Result<Disk, Error> {
        let mut plugged = self.plugged.lock().await;
        let known = plugged.iter_mut().find(|plugged| plugged.device == device);
        let slot = match known {
            Some(known) => {
                known.users += 1;
                known.slot
            }
            None => {
                let opened = tokio::task::spawn_blocking(move || open(device)).await;
                let file = opened.context(|| "cannot open a block device".to_owned())??;
                let BlockDevice { major, minor, read_only } = device;
                let disk = config::Disk { file: 0, read_only, serial: String::new() };
                let slot = self.vm.plug(Plug::Disk(disk), vec![file.into()]).await;
                let slot = slot.map_err(|error| {
                    error.context(format!("cannot give the VM the block device {major}:{minor}"))
                })?;
                plugged.push(Plugged { device, slot, users: 1 });
                slot
            }
        };
        Ok(Disk { disks: self.clone(), device, slot })
    }

    /// One container less uses it.
    async fn leave(&self, slot: u8) -> Result<(), Error> {
        let mut all = self.plugged.lock().await;
        let Some(index) = all.iter().position(|plugged| plugged.slot == slot) else {
            return Ok(());
        };
        all[index].users -= 1;
        if all[index].users == 0 {
            let verb = RemoveDisk { slot: slot.into(), ..Default::default() };
            done(self.agent.call(Verb::RemoveDisk(verb)).await?)?;
            self.vm.unplug(slot).await?;
            all.remove(index);
        }
        Ok(())
    }
}

impl Disk {
    /// What the guest is told of it.
    pub fn for_guest(&self) -> guest::Disk {
        let BlockDevice { major, minor, .. } = self.device;
        guest::Disk { slot: self.slot.into(), major, minor, ..Default::default() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let (disks, slot) = (self.disks.clone(), self.slot);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // What cannot be taken away stays with the VM, until that ends.
            runtime.spawn(async move { disks.leave(slot).await });
        }
    }
}

/// Opens a device by its numbers, by the name that the kernel gives it.
fn open(device: BlockDevice) -> Result<File, Error> {
    let BlockDevice { major, minor, read_only } = device;
    let what = || format!("cannot open the block device {major}:{minor} of the host");
    let uevent = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = fs::read_to_string(&uevent)
        .map_err(|error| Error::invalid(format!("{}: {uevent}: {error}", what())))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| Error::internal(format!("{}: {uevent} has no name", what())))?;
    let path = Path::new("/dev").join(name);
    let file = OpenOptions::new().read(true).write(!read_only).open(&path);
    let file = file.context(|| format!("{}: {}", what(), path.display()))?;
    let found = file.metadata().context(what)?;
    if !found.file_type().is_block_device()
        || found.rdev() != nix::sys::stat::makedev(major.into(), minor.into())
    {
        return Err(Error::internal(format!("{}: {} is another", what(), path.display())));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let device = BlockDevice { major: 4000, minor: 17, read_only: true };
        let error = open(device).expect_err("no such device");
        assert!(error.message.contains("4000:17"), "{error}");
        assert_eq!(error.code, crate::Code::InvalidArgument);
    }
}
