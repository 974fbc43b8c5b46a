// SPDX-License-Identifier: Apache-2.0

//! husk-agent: the first process of a guest. It makes the VM a pod's (`boot`, `setup`),
//! answers the host's requests about containers (`control`, `agent`, `verbs`), reaps every
//! process of the guest (`reaper`) and tells the host what ends. It has one thread, opens
//! every connection itself (`host`), and outlives any failed request, because its end is
//! the VM's. Outside of a guest the same program is an OCI runtime (`oci`).

mod agent;
mod boot;
mod cgroup;
mod container;
mod control;
mod disks;
mod engine;
mod error;
mod host;
mod network;
mod oci;
mod outbox;
mod pci;
mod reaper;
mod resources;
mod setup;
mod stdio;
mod verbs;

use std::path::Path;
use std::process::ExitCode;

use error::{Doing, Result};
use host::Host;

fn main() -> ExitCode {
    let started_ns = control::boottime_ns();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    // As a link of this name it can take the place of another OCI runtime.
    if Path::new(&name).file_name().is_some_and(|name| name == "husk-oci") {
        return oci::main(arguments);
    }
    match arguments.next() {
        Some(first) if first == "oci" => return oci::main(arguments),
        // For development: the agent without a VM, in namespaces that are its own, with the
        // host's ports as Unix sockets in a directory.
        Some(first) if first == "--host-directory" && std::process::id() == 1 => {
            let Some(directory) = arguments.next() else { return ExitCode::from(2) };
            let host = Host::Directory(directory.into());
            return match run(host, started_ns) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("husk-agent: {error}");
                    ExitCode::FAILURE
                }
            };
        }
        _ => {}
    }
    if std::process::id() != 1 {
        eprintln!(
            "husk-agent {} runs as the first process of a husk guest",
            env!("CARGO_PKG_VERSION")
        );
        return ExitCode::from(2);
    }
    if let Err(error) = boot::cover_root().and_then(|()| run(Host::Vsock, started_ns)) {
        eprintln!("husk-agent: {error}; switching off");
    }
    boot::power_off()
}

/// Serves the host until the connection ends.
fn run(host: Host, started_ns: u64) -> Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().doing("start the runtime")?;
    tokio::task::LocalSet::new().block_on(&runtime, control::serve(host, started_ns))
}
