// SPDX-License-Identifier: Apache-2.0

//! A logging program that is ready when the case says so. A Create with it as the
//! container's output is under way until then, for 10 s at most.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::process::{LIMIT, eventually};

/// Says that it is up, is ready once somebody writes to the FIFO, and throws all output away.
const SCRIPT: &str = "#!/bin/sh
>\"$2/up\"
read -r line <\"$2/go\"
exec 5>&-
cat <&3 >/dev/null &
cat <&4 >/dev/null
wait
";

pub struct SlowLogger(TempDir);

impl SlowLogger {
    #[expect(clippy::new_without_default, reason = "it makes files")]
    pub fn new() -> SlowLogger {
        let logger = SlowLogger(crate::temporary("husk-logger"));
        let script = logger.path("logger");
        fs::write(&script, SCRIPT).expect("write");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
        mkfifo(&logger.path("go"), Mode::S_IRWXU).expect("mkfifo");
        logger
    }

    /// For a task's stdout.
    pub fn uri(&self) -> String {
        let directory = self.0.path().display();
        format!("binary://{directory}/logger?directory={directory}")
    }

    /// Waits until it has been started and a Create waits for it.
    #[track_caller]
    pub fn until_it_waits(&self) {
        assert!(eventually(LIMIT, || self.path("up").exists()), "no logging program was started");
    }

    pub fn be_ready(&self) {
        fs::write(self.path("go"), "\n").expect("write to the FIFO");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
