// SPDX-License-Identifier: Apache-2.0

//! Why a VM ended, from all that its supervisor has seen of it.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use husk_vmm::control::{Event, ExitReason};

/// Of a VM that the host's OOM killer took.
const TAKEN: &str = "the host's OOM killer took husk-vmm: the pod's cgroup or the host had no \
                     memory left for it; give the pod more, or its containers lower limits";

/// Of one whose guest panicked for want of memory.
const EXHAUSTED: &str = "the guest kernel panicked: it had no memory left and nothing to kill for \
                         it; give the pod's containers memory limits";

/// What the guest's kernel says then (Linux, mm/oom_kill.c).
const DEADLOCKED: &str = "Kernel panic - not syncing: System is deadlocked on memory";

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// A sentence for the user.
    pub reason: String,
    /// The last lines of the guest's console.
    pub console: String,
    /// It ended for want of memory, the host's or its own.
    pub oom: bool,
}

/// What is known of an end.
pub struct End {
    /// Why we killed it, where we did.
    pub cause: Option<String>,
    /// What husk-vmm said of it.
    pub last_words: Option<Event>,
    /// How husk-vmm ended.
    pub status: io::Result<ExitStatus>,
    pub stderr: String,
    pub console: String,
    /// The host's OOM killer has been in the pod's cgroup.
    pub oom_killed: bool,
}

impl End {
    pub fn judge(self) -> Ended {
        let killed = matches!(&self.status, Ok(status) if status.signal() == Some(libc::SIGKILL));
        let panicked = matches!(self.last_words, Some(Event::Exited(ExitReason::Panic)));
        let no_memory = match self.cause {
            Some(_) => None,
            None if killed && self.oom_killed => Some(TAKEN),
            None if panicked && self.console.contains(DEADLOCKED) => Some(EXHAUSTED),
            None => None,
        };
        let reason = no_memory.map_or_else(|| self.reason(), str::to_owned);
        Ended { reason, console: self.console, oom: no_memory.is_some() }
    }

    /// One sentence: why we killed it, else what it said, else how it died.
    fn reason(&self) -> String {
        match (&self.cause, &self.last_words) {
            (Some(cause), _) => return cause.clone(),
            (None, Some(Event::Exited(reason))) => return reason.to_string(),
            (None, Some(Event::Failed(text))) => return text.clone(),
            (None, _) => {}
        }
        let how = match &self.status {
            Ok(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("husk-vmm was killed by signal {signal}"),
                (None, code) => format!("husk-vmm exited with status {}", code.unwrap_or(-1)),
            },
            Err(error) => format!("husk-vmm is gone ({error})"),
        };
        match self.stderr.as_str() {
            "" => how,
            text => format!("{how}: {text}"),
        }
    }
}
