// SPDX-License-Identifier: Apache-2.0

//! /dev/kvm: opened by whoever may, checked before use, with a remedy for each way in which
//! it can be of no use.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

pub const DEVICE: &str = "/dev/kvm";

#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error(
        "{DEVICE} is missing; load kvm_intel or kvm_amd, turn virtualization on in the firmware, \
         or, in a virtual machine, have nested virtualization turned on"
    )]
    Missing,
    #[error(
        "{DEVICE} may not be opened ({0}); run as root or as a member of the group that owns it \
         (usually kvm), and pass the device into the container if this is one"
    )]
    NotPermitted(io::Error),
    #[error(
        "{DEVICE} is there but cannot virtualize: {0}; give this machine hardware \
         virtualization (nested, if it is itself virtual)"
    )]
    NotVirtualizing(String),
    #[error("{DEVICE} cannot be used: {0}")]
    Unusable(io::Error),
    #[error("the host's KVM lacks {0:?}; husk needs Linux 5.12 or newer")]
    Lacks(Cap),
}

/// Opens /dev/kvm.
pub fn open() -> Result<File, KvmError> {
    OpenOptions::new().read(true).write(true).open(Path::new(DEVICE)).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => KvmError::Missing,
            Some(libc::EACCES | libc::EPERM) => KvmError::NotPermitted(error),
            _ => KvmError::Unusable(error),
        }
    })
}

/// Takes an open /dev/kvm and checks that it offers what husk-vmm uses.
pub fn check(device: OwnedFd) -> Result<Kvm, KvmError> {
    // SAFETY: the descriptor is open and ours; Kvm closes it.
    let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
    if kvm.get_api_version() != 12 {
        return Err(KvmError::Unusable(io::Error::last_os_error()));
    }
    let needed =
        [Cap::UserMemory, Cap::Irqchip, Cap::Irqfd, Cap::Ioeventfd, Cap::IoeventfdNoLength];
    let needed = needed.into_iter().chain([Cap::SetTssAddr, Cap::ExtCpuid, Cap::ImmediateExit]);
    match needed.into_iter().find(|&cap| !kvm.check_extension(cap)) {
        Some(cap) => Err(KvmError::Lacks(cap)),
        None => Ok(kvm),
    }
}
