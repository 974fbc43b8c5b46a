// SPDX-License-Identifier: Apache-2.0

//! `delete`: containerd runs it whenever it has lost a container's connection, after every
//! ordinary delete too. For the pod itself it undoes all that a dead daemon left; for a
//! container of a pod it leaves the pod alone. It may be repeated, and needs no bundle.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use husk_sandbox::{ProcessId, clock, mount, run_dir};
use protobuf::{Message, MessageField};

use crate::address::{self, SOCKET_DIR};
use crate::args::Args;
use crate::process::LOST_STATUS;
use crate::reply::timestamp;
use crate::start::{self, PID_FILE};

/// How long a daemon that is about to exit may take. containerd gives all of this 5 s.
const DAEMON_LIMIT: Duration = Duration::from_secs(2);

pub fn delete(args: &Args) -> Result<(), String> {
    let bundle = match args.bundle.is_empty() {
        true => std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/nonexistent")),
        false => PathBuf::from(&args.bundle),
    };
    // An unreadable config.json is no reason to leave anything behind.
    let group = address::group(&args.id, &bundle).unwrap_or_else(|_| args.id.clone());
    let mut errors = Vec::new();
    if group == args.id {
        end_daemon(args, &bundle);
        errors.extend(remove_socket(args).err());
    }
    errors.extend(mount::unmount_all(&bundle.join("rootfs")).err().map(|error| error.message));
    if group == args.id {
        // Last, for it may run hooks.
        errors.extend(
            run_dir::clean(Path::new(run_dir::RUN_ROOT), &args.namespace, &args.id)
                .err()
                .map(|error| error.message),
        );
    }
    if !errors.is_empty() {
        // containerd logs it as a warning; the answer below counts all the same.
        eprintln!("containerd-shim-husk-v2: {}", errors.join("; "));
    }
    let response = DeleteResponse {
        exit_status: LOST_STATUS,
        exited_at: MessageField::some(timestamp(clock::realtime())),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().map_err(|error| format!("cannot encode it: {error}"))?;
    std::io::stdout().write_all(&bytes).map_err(|error| format!("cannot write to stdout: {error}"))
}

/// Lets a daemon that is shutting down finish. One that goes on although its VM lives has
/// been given up by containerd, so nobody would ever end it: it is killed. One without a VM
/// still has to answer for the pod's other containers.
fn end_daemon(args: &Args, bundle: &Path) {
    let Some(process) = fs::read_to_string(bundle.join(PID_FILE)).ok().and_then(|text| {
        let (pid, start) = text.trim().split_once(' ')?;
        Some(ProcessId { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }) else {
        return;
    };
    let Some(pidfd) = process.open() else { return };
    if !pidfd.wait(DAEMON_LIMIT)
        && run_dir::has_vm(Path::new(run_dir::RUN_ROOT), &args.namespace, &args.id)
    {
        let _ = pidfd.signal(libc::SIGKILL);
        pidfd.wait(DAEMON_LIMIT);
    }
}

/// Removes the pod's socket unless somebody listens there.
fn remove_socket(args: &Args) -> Result<(), String> {
    let directory = Path::new(SOCKET_DIR);
    let socket = address::socket_path(directory, &args.address, &args.namespace, &args.id);
    if !socket.exists() {
        return Ok(());
    }
    let _lock = start::lock(directory)?;
    start::answers(&socket).map(drop)
}
