// SPDX-License-Identifier: Apache-2.0

//! The streams of a process as a client of containerd makes them: FIFOs in a directory of
//! their own. Nobody reads an output before the case asks for it.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::process::LIMIT;
use super::shim::Stdio;

pub struct Fifos(TempDir);

impl Fifos {
    #[expect(clippy::new_without_default, reason = "it makes files")]
    pub fn new() -> Fifos {
        let fifos = Fifos(crate::temporary("husk-fifos"));
        for name in ["stdin", "stdout", "stderr"] {
            mkfifo(&fifos.path(name), Mode::from_bits_truncate(0o600)).expect("mkfifo");
        }
        fifos
    }

    /// All three streams.
    pub fn stdio(&self) -> Stdio {
        let text = |name| self.path(name).to_string_lossy().into_owned();
        let [stdin, stdout, stderr] = ["stdin", "stdout", "stderr"].map(text);
        Stdio { stdin, stdout, stderr, terminal: false }
    }

    /// The two outputs and no input.
    pub fn outputs(&self) -> Stdio {
        Stdio { stdin: String::new(), ..self.stdio() }
    }

    /// Input and output of a terminal.
    pub fn terminal(&self) -> Stdio {
        Stdio { stderr: String::new(), terminal: true, ..self.stdio() }
    }

    /// The writing end of stdin; for both directions, so that it needs no reader yet.
    pub fn stdin(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.path("stdin")).expect("open stdin")
    }

    /// Opens the reading end of an output. It does not end before a writer has come.
    pub fn open(&self, name: &str) -> File {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        options.open(self.path(name)).expect("open an output")
    }

    /// Reads an output from now on.
    pub fn read(&self, name: &'static str) -> Reading {
        let mut stream = self.open(name);
        let (sender, chunks) = channel();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let mut waited = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
                let ready = poll(&mut waited, PollTimeout::NONE);
                match stream.read(&mut buffer) {
                    Ok(len @ 1..) if sender.send(buffer[..len].to_vec()).is_ok() => {}
                    Err(error)
                        if ready.is_ok() && error.kind() == std::io::ErrorKind::WouldBlock => {}
                    _ => return,
                }
            }
        });
        Reading { name, chunks, said: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// What is read from an output.
pub struct Reading {
    name: &'static str,
    chunks: Receiver<Vec<u8>>,
    said: Vec<u8>,
}

impl Reading {
    /// Waits until these words have come; gives all until then.
    #[track_caller]
    pub fn until_said(&mut self, words: &str) -> String {
        loop {
            let said = String::from_utf8_lossy(&self.said).into_owned();
            if said.contains(words) {
                return said;
            }
            assert!(self.more(), "{} ended without '{words}':\n{said}", self.name);
        }
    }

    /// Waits for the end; gives everything.
    #[track_caller]
    pub fn to_end(mut self) -> Vec<u8> {
        while self.more() {}
        self.said
    }

    /// The same as text, without the white space around it.
    #[track_caller]
    pub fn text(self) -> String {
        String::from_utf8_lossy(&self.to_end()).trim().to_owned()
    }

    /// Waits for more; false at the end.
    #[track_caller]
    fn more(&mut self) -> bool {
        match self.chunks.recv_timeout(LIMIT) {
            Ok(chunk) => {
                self.said.extend(chunk);
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => panic!(
                "{} does not end; it said:\n{}",
                self.name,
                String::from_utf8_lossy(&self.said)
            ),
        }
    }
}
