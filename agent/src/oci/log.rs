// SPDX-License-Identifier: Apache-2.0

//! What went wrong: on stderr for people, and in the log file in the form that callers of
//! runc read.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::json;

#[derive(Default)]
pub struct Log {
    pub file: Option<PathBuf>,
    pub json: bool,
}

impl Log {
    pub fn error(&self, message: &str) {
        self.write("error", message);
    }

    pub fn warning(&self, message: &str) {
        self.write("warning", message);
    }

    fn write(&self, level: &str, message: &str) {
        eprintln!("{message}");
        let Some(path) = &self.file else { return };
        let time = time(SystemTime::now());
        let line = if self.json {
            json!({"level": level, "msg": message, "time": time}).to_string()
        } else {
            format!("time={time:?} level={level} msg={message:?}")
        };
        let file = OpenOptions::new().create(true).append(true).open(path);
        // One write, so that lines of several runtimes do not mix.
        if let Err(e) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
            eprintln!("cannot write the log {path:?}: {e}");
        }
    }
}

/// A time by RFC 3339, in UTC.
pub fn time(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() as libc::time_t;
    // SAFETY: tm is plain data, for which zero is valid.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: reads a time_t and writes a tm, both alive during the call.
    unsafe { libc::gmtime_r(&raw const seconds, &raw mut tm) };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec,
        since.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_by_rfc_3339() {
        let leap = SystemTime::UNIX_EPOCH + std::time::Duration::new(951_782_400, 5);
        assert_eq!(time(leap), "2000-02-29T00:00:00.000000005Z");
    }
}
