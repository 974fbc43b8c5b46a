// SPDX-License-Identifier: Apache-2.0

//! Containers through the real containerd: what a user of any runtime expects, and what only
//! a microVM gives. A file is a subject; a test is a case with its line of what it checks.
//! See `husk_tests::containerd` for how they run and what a failure shows.

mod cgroup;
mod clock;
mod crash;
mod errors;
mod events;
mod exec;
mod exec_storm;
mod failures;
mod features;
mod files;
mod hooks;
mod huge_pages;
mod isolation;
mod lifecycle;
mod limits;
mod linux;
mod logs;
mod memory;
mod metrics;
mod mounts;
mod network;
mod network_faults;
mod network_plugins;
mod network_traffic;
mod pause;
mod process;
mod protocol;
mod resize;
mod restart;
mod rootfs;
mod run;
mod sandbox_api;
mod seccomp;
mod settings;
mod signals;
mod spec;
mod startup;
mod stats;
mod streams;
mod systemd;
mod terminal;
