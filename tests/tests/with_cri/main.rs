// SPDX-License-Identifier: Apache-2.0

//! Pods of several containers through containerd's CRI plugin, as a kubelet runs them. A file
//! is a subject; a test is a case with its line of what it checks. See `husk_tests::cri` for
//! how they run.

mod crash;
mod crowd;
mod exec;
mod identity;
mod lifecycle;
mod limits;
mod logs;
mod names;
mod namespaces;
mod network;
mod port_forward;
mod streaming;
mod volumes;
