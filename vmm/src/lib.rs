// SPDX-License-Identifier: Apache-2.0

//! A microVM monitor for KVM. `control` and `config` are what a supervisor needs; the rest
//! is the machine.

pub mod arch;
pub mod config;
pub mod control;
pub mod devices;
pub mod kvm;
pub mod log;
pub mod memory;
pub mod pci;
mod platform;
pub mod probe;
pub mod resize;
mod vcpu;
pub mod virtio;
pub mod vm;
