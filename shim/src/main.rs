// SPDX-License-Identifier: Apache-2.0

//! containerd-shim-husk-v2: containerd's runtime shim for pods in microVMs.
//!
//! containerd runs `start`, which leaves a daemon behind and answers with its address; talks
//! to the daemon; and runs `delete` when the daemon is gone. The daemon owns one pod: its
//! VM through the sandbox library, its containers, their processes and streams.

mod address;
mod args;
mod bootstrap;
mod container;
mod create;
mod daemon;
mod delete;
mod events;
mod exec;
mod info;
mod io;
mod kill;
mod log;
mod metrics;
mod options;
mod phases;
mod pids;
mod pod;
mod process;
mod prometheus;
mod remove;
mod reply;
mod sandbox;
mod service;
mod stand_in;
mod start;
mod update;

use std::process::ExitCode;

use args::Action;

fn main() -> ExitCode {
    let parsed = args::parse(std::env::args().skip(1));
    let done = match parsed {
        Err(error) => Err(error),
        Ok(args) => match args.action {
            Action::Version => {
                println!("containerd-shim-husk-v2 {}", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
            Action::Info => info::print(),
            Action::Start => start::start(&args),
            Action::Delete => delete::delete(&args),
            Action::Daemon => daemon::run(&args),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this to the user as it is.
            eprintln!("containerd-shim-husk-v2: {error}");
            ExitCode::FAILURE
        }
    }
}
