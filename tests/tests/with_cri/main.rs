// SPDX-License-Identifier: Apache-2.0

//! Pods of several containers through containerd's CRI plugin, as a kubelet runs them. A file
//! is a subject; a test is a case with its line of what it checks. See `husk_tests::cri` for
//! how they run.

mod behaviours_exec;
mod behaviours_life;
mod behaviours_resources;
mod behaviours_security;
mod block_volumes;
mod crash;
mod crowd;
mod exec;
mod huge_pages;
mod identity;
mod lifecycle;
mod limits;
mod logs;
mod names;
mod namespaces;
mod network;
mod out_of_memory;
mod port_forward;
mod sandboxer;
mod storms;
mod streaming;
mod volumes;
mod volumes_of_the_host;
