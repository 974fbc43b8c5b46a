// SPDX-License-Identifier: Apache-2.0

//! containerd itself: ended, killed and started again under running containers. The session
//! of `tests/lab/run` started the first one, and ends the one whose pid is in its file.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Lab;
use super::leftovers::is_running;
use super::process::{LIMIT, eventually};

impl Lab {
    /// containerd's pid.
    pub fn containerd_pid(&self) -> i32 {
        let text = fs::read_to_string(self.containerd_path("containerd.pid")).expect("its pid");
        text.trim().parse().expect("a pid")
    }

    /// Ends containerd by a signal and waits until it is gone.
    #[track_caller]
    pub fn end_containerd(&self, signal: Signal) {
        let pid = self.containerd_pid();
        kill(Pid::from_raw(pid), signal).expect("signal to containerd");
        self.until_containerd_ended();
    }

    /// Waits until somebody has ended containerd.
    #[track_caller]
    pub fn until_containerd_ended(&self) {
        let pid = self.containerd_pid();
        assert!(eventually(LIMIT, || !is_running(pid)), "containerd goes on");
    }

    /// Starts containerd again and waits until it answers.
    #[track_caller]
    pub fn start_containerd(&self) {
        const UP: &str = "containerd successfully booted";
        let before = self.log().matches(UP).count();
        let log = File::options().append(true).open(&self.log).expect("containerd's log");
        let mut child = Command::new("containerd")
            .arg("--config")
            .arg(self.containerd_path("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log)
            .spawn()
            .expect("start containerd");
        fs::write(self.containerd_path("containerd.pid"), child.id().to_string())
            .expect("write its pid");
        thread::spawn(move || child.wait());
        let up = eventually(LIMIT, || self.log().matches(UP).count() > before);
        assert!(up, "containerd does not start again");
    }
}
