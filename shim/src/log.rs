// SPDX-License-Identifier: Apache-2.0

//! Lines for containerd's log, through the FIFO `log` of the bundle.
//!
//! Never blocks and never fails: a line that does not fit into the FIFO now, or that nobody
//! reads, is dropped. The format is logrus text, which containerd's log carries on. Each line
//! names namespace and pod, and husk-vmm's process once there is one.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use husk_sandbox::clock;

/// Longest line: what a FIFO takes whole or not at all.
const MAX_LINE: usize = libc::PIPE_BUF;

static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    path: PathBuf,
    debug: bool,
    /// `key=value key=value`.
    pod: String,
    vmm: OnceLock<u32>,
    file: Mutex<Option<File>>,
}

/// Sets the FIFO that all lines go to, and whose they are. Without it they are dropped.
pub fn open(path: PathBuf, debug: bool, namespace: &str, pod: &str) {
    let file = Mutex::new(open_fifo(&path));
    let pod = format!("namespace={namespace} pod={pod}");
    // A second call would come from a second daemon in this process; there is none.
    let _ = LOG.set(Log { path, debug, pod, vmm: OnceLock::new(), file });
}

/// The process of the pod's VM, from now on.
pub fn set_vmm(pid: u32) {
    // A pod has one VM.
    let _ = LOG.get().map(|log| log.vmm.set(pid));
}

pub fn debug(message: &str) {
    if LOG.get().is_some_and(|log| log.debug) {
        write("debug", message, "");
    }
}

pub fn info(message: &str) {
    write("info", message, "");
}

pub fn warn(message: &str) {
    write("warning", message, "");
}

pub fn error(message: &str) {
    write("error", message, "");
}

/// A line with fields, which are written as they are: `key=value key=value`.
pub fn info_with(message: &str, fields: &str) {
    write("info", message, fields);
}

fn write(level: &str, message: &str, fields: &str) {
    let Some(log) = LOG.get() else { return };
    let mut all = log.pod.clone();
    if let Some(vmm) = log.vmm.get() {
        all += &format!(" vmm={vmm}");
    }
    if !fields.is_empty() {
        all += &format!(" {fields}");
    }
    let line = line(&rfc3339(clock::realtime()), level, message, &all);
    let mut file = log.file.lock().unwrap_or_else(PoisonError::into_inner);
    if file.is_none() {
        *file = open_fifo(&log.path);
    }
    let Some(open) = file.as_mut() else { return };
    match open.write(&line) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        // The reader is gone: the next line looks for another.
        Err(_) => *file = None,
    }
}

fn open_fifo(path: &PathBuf) -> Option<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).ok()
}

fn line(time: &str, level: &str, message: &str, fields: &str) -> Vec<u8> {
    let mut line = format!("time=\"{time}\" level={level} msg=\"").into_bytes();
    let end = format!("\" {fields}\n");
    let room = MAX_LINE.saturating_sub(line.len() + end.len());
    let mut text = String::new();
    for c in message.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            c if c.is_control() => {}
            c => text.push(c),
        }
        if text.len() > room {
            break;
        }
    }
    let mut text = husk_sandbox::clip(text, room);
    // An escape cut in half would swallow the closing quote.
    if text.chars().rev().take_while(|&c| c == '\\').count() % 2 == 1 {
        text.pop();
    }
    line.extend_from_slice(text.as_bytes());
    line.extend_from_slice(end.as_bytes());
    line.truncate(MAX_LINE);
    line
}

/// A time since 1970 as RFC 3339 in UTC, to the microsecond.
fn rfc3339(time: std::time::Duration) -> String {
    let seconds = time.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years: years begin in March, so that the leap
    // day is the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!(
        "{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        era * 400 + year + next,
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
        time.subsec_micros()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (1_772_323_200, "2026-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), date);
        }
    }

    #[test]
    fn lines_are_logrus_text() {
        let line = line("T", "info", "a \"b\"\nc\x07", "k=1");
        assert_eq!(line, b"time=\"T\" level=info msg=\"a \\\"b\\\"\\nc\" k=1\n");
    }

    #[test]
    fn long_lines_stay_whole_lines() {
        let line = line("T", "info", &"\\".repeat(9000), "k=1");
        assert!(line.len() <= MAX_LINE);
        assert!(line.ends_with(b"\\\\\" k=1\n"));
    }
}
