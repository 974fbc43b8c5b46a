// SPDX-License-Identifier: Apache-2.0

//! One pod's VM as the host sees it. The shim and the `husk` command drive it.
//!
//! [`Sandbox::launch`] finds nothing and decides nothing: the caller brings the files
//! ([`Assets`]), the [`Size`] and the names. It makes the pod's directory and share, starts
//! husk-vmm and returns while the VM boots; requests to the agent wait for it, so the caller
//! can mount root file systems meanwhile. Everything made on the host has an owner whose
//! drop undoes it, and a line in the pod's state file from which [`run_dir::clean`] undoes
//! it after a crash.

mod agent;
mod assets;
mod cgroup;
pub mod clock;
pub mod config;
mod disks;
mod error;
mod forward;
mod hooks;
pub mod mount;
mod network;
mod process;
pub mod reactor;
mod resize;
pub mod run_dir;
mod sandbox;
mod share;
mod size;
mod spec;
mod streams;
mod tail;
mod vm;
mod volumes;

pub use assets::Assets;
pub use config::{Config, PodSettings};
pub use disks::Disk;
pub use error::{Code, Error, IoContext, clip};
pub use forward::PortForwarding;
pub use hooks::{HostHooks, Poststop};
pub use husk_vmm::control::DeviceCounters;
pub use network::{Network, NetworkSettings, PodNetwork};
pub use process::{Pidfd, ProcessId};
pub use sandbox::{Exec, KVM, Launch, Milestones, Sandbox, Signal, Terminal, guest_share};
pub use share::SharedContainer;
pub use size::{Growth, Limits, Size, host_capacity};
pub use spec::{BindSource, BlockDevice, GuestProcess, GuestSpec, Member, Spec};
pub use streams::{Expected, Streams};
pub use vm::Ended;
