// SPDX-License-Identifier: Apache-2.0

//! The verbs of the protocol, one file each; Pause and Resume share one.

pub mod clock;
pub mod create;
pub mod delete;
pub mod dial;
pub mod disk;
pub mod exec;
pub mod huge_pages;
pub mod network;
pub mod pause;
pub mod pids;
pub mod resize;
pub mod signal;
pub mod size;
pub mod start;
pub mod stats;
pub mod update;
pub mod wake;

use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::{Done, Process};

fn done() -> Outcome {
    Outcome::Done(Done::new())
}

fn process(pid: i32) -> Outcome {
    Outcome::Process(Process { pid: pid as u32, ..Default::default() })
}
