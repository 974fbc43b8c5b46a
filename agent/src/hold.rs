// SPDX-License-Identifier: Apache-2.0

//! `husk-agent hold`: the process that holds a pod's namespaces where no pause image does. It
//! is the first process of the pod's PID namespace, and all that it does there is to let
//! orphans end.

use nix::sys::signal::{SigHandler, Signal, signal};

/// Waits until it is killed.
pub fn hold() -> ! {
    // The kernel then reaps what ends.
    // SAFETY: no handler of ours runs.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) };
    loop {
        nix::unistd::pause();
    }
}
