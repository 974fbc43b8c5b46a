// SPDX-License-Identifier: Apache-2.0

//! The agent as an OCI runtime: `husk-agent oci`, as containerd and people call it, with
//! real containers on this machine. The cases need root and a static busybox, and say so
//! where they are not run; those that limit something need the controllers of cgroup v2,
//! and run in the lab.

mod bundle;
mod containerd;
mod errors;
mod exec;
mod files;
mod hooks;
mod life;
mod limits;
mod namespaces;
mod parity;
mod process;
mod terminal;
