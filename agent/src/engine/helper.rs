// SPDX-License-Identifier: Apache-2.0

//! The other life of this binary: started by the agent to make one process, single-threaded,
//! and gone when that is done. Its standard streams are those of the process to be, so it
//! must not print; it has a pipe for its log, and its report goes over a socket.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Dispatch, Event, Level, LevelFilter, Metadata, Subscriber};

use super::report::{self, Report};
use super::{Task, create, join};

/// The first argument of a helper. Descriptors follow: socket, result pipe, log pipe, and
/// where a container is to be entered the pidfd of its first process.
pub const ARGUMENT: &str = "engine-helper";

/// What the process to be has inherited.
pub struct Inherited {
    /// Text about why the program cannot be executed goes here; closed by execve.
    pub result: OwnedFd,
    pub init: Option<OwnedFd>,
}

/// Does the one task and reports. Returns the exit status.
pub fn main(arguments: impl Iterator<Item = OsString>) -> u8 {
    let mut fds = arguments.filter_map(|argument| inherited(&argument));
    let (Some(control), Some(result), Some(log)) = (fds.next(), fds.next(), fds.next()) else {
        return 2;
    };
    listen(File::from(log));
    let inherited = Inherited { result, init: fds.next() };
    let mut control = File::from(control);
    let made = read_task(&mut control).and_then(|task| match task {
        Task::Create { id, bundle } => create::create(&id, &bundle, &inherited),
        Task::Join(task) => join::join(&task, &inherited),
    });
    let sent = match &made {
        Ok((pid, terminal)) => {
            let terminal = terminal.as_ref().map(AsFd::as_fd);
            report::send(control.as_fd(), &Report::Made { pid: *pid }, terminal)
        }
        Err(why) => report::send(control.as_fd(), &Report::Failed { why: why.clone() }, None),
    };
    u8::from(made.is_err() || sent.is_err())
}

fn inherited(argument: &OsString) -> Option<OwnedFd> {
    let number: RawFd = argument.to_str()?.parse().ok()?;
    if number < 3 {
        return None;
    }
    // SAFETY: F_SETFD takes no pointers.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: it is open, and the agent has left it to this process alone.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

fn read_task(control: &mut File) -> Result<Task, String> {
    let mut text = Vec::new();
    control.read_to_end(&mut text).map_err(|e| format!("cannot read the task: {e}"))?;
    serde_json::from_slice(&text).map_err(|e| format!("cannot understand the task: {e}"))
}

/// Sends errors that libcontainer logs, and panics, to the log pipe.
fn listen(log: File) {
    if let Ok(panics) = log.try_clone() {
        std::panic::set_hook(Box::new(move |panic| {
            let _ = (&panics).write_all(format!("the engine panicked: {panic}\n").as_bytes());
        }));
    }
    // Fails only if there is one already.
    let _ = tracing_core::dispatcher::set_global_default(Dispatch::new(Errors {
        log: Mutex::new(log),
    }));
}

/// Takes errors only; everything else is not even formatted.
struct Errors {
    log: Mutex<File>,
}

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}{}\n", line.message, line.fields);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = log.write_all(text.as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}").replace('\n', " ");
        match field.name() {
            "message" => self.message = text,
            name => self.fields.push_str(&format!(" {name}={text}")),
        }
    }
}
