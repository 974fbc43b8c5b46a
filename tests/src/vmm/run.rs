// SPDX-License-Identifier: Apache-2.0

//! Runs husk-vmm as a user does.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Longest that a guest of these tests may take; an emulated processor is slow.
const DEADLINE: Duration = Duration::from_secs(180);

/// The guest kernel that is installed beside husk-vmm.
pub fn kernel() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("vmlinux"))
        .find(|file| file.exists())
        .expect("vmlinux on PATH: run this through tests/lab/run")
}

/// The image of the test guest, beside this test.
pub fn test_guest() -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    test.with_file_name("test-guest.img")
}

/// A run of husk-vmm.
pub struct Run {
    command: Command,
    input: Vec<u8>,
    shown: String,
}

pub struct Outcome {
    pub status: i32,
    pub console: String,
    pub errors: String,
    shown: String,
}

impl Run {
    /// husk-vmm with these arguments and nothing else.
    pub fn bare(arguments: &[&str]) -> Run {
        let mut command = Command::new("husk-vmm");
        command.args(arguments);
        Run { command, input: Vec::new(), shown: arguments.join(" ") }
    }

    /// The test guest with this half of a case, and further arguments.
    pub fn case(name: &str, arguments: &[&str]) -> Run {
        Run::with_cmdline(&format!("console=hvc0 quiet panic=-1 case={name}"), arguments)
    }

    pub fn with_cmdline(cmdline: &str, arguments: &[&str]) -> Run {
        let (kernel, image) = (kernel(), test_guest());
        let fixed = ["--kernel", &kernel.to_string_lossy(), "--initramfs"].map(str::to_owned);
        let image = image.to_string_lossy().into_owned();
        let mut all: Vec<&str> = fixed.iter().map(String::as_str).collect();
        all.extend([image.as_str(), "--cmdline", cmdline]);
        all.extend(arguments);
        Run::bare(&all)
    }

    /// What the guest reads from its console, given to it once it has said that it is ready.
    pub fn input(mut self, bytes: &[u8]) -> Run {
        self.input = bytes.to_vec();
        self
    }

    /// Runs as another user.
    pub fn uid(mut self, uid: u32) -> Run {
        std::os::unix::process::CommandExt::uid(&mut self.command, uid);
        self
    }

    /// Runs to the end.
    pub fn finish(self) -> Outcome {
        self.start().wait()
    }

    /// Starts without waiting.
    pub fn start(mut self) -> Running {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("husk-vmm on PATH");
        let stdin = child.stdin.take().expect("piped");
        let console = collect(child.stdout.take().expect("piped"), Some((stdin, self.input)));
        let errors = collect(child.stderr.take().expect("piped"), None);
        Running { child, console, errors, shown: self.shown }
    }
}

/// A husk-vmm that runs.
pub struct Running {
    child: Child,
    console: Receiver<String>,
    errors: Receiver<String>,
    shown: String,
}

impl Running {
    pub fn wait(mut self) -> Outcome {
        let console = self.console.recv_timeout(DEADLINE);
        if console.is_err() {
            let _ = self.child.kill();
        }
        let text = |receiver: &Receiver<String>| {
            receiver.recv_timeout(Duration::from_secs(10)).unwrap_or_default()
        };
        let late = console.is_err();
        let console = console.unwrap_or_else(|_| text(&self.console));
        let errors = text(&self.errors);
        let status = self.child.wait().expect("wait");
        assert!(!late, "husk-vmm {} did not end in time; console:\n{console}", self.shown);
        Outcome { status: status.code().unwrap_or(-1), console, errors, shown: self.shown }
    }
}

/// What the guest prints when it reads its console. What comes earlier Linux may drop.
pub const READY: &str = "ready for input";

/// Reads to the end on a thread; when the text has [`READY`], writes the answer.
fn collect(
    mut stream: impl Read + Send + 'static,
    mut answer: Option<(ChildStdin, Vec<u8>)>,
) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            text.extend_from_slice(&piece[..count]);
            if let Some((stdin, input)) = &mut answer
                && text.windows(READY.len()).any(|window| window == READY.as_bytes())
            {
                // A guest that ends without reading is the test's business.
                let _ = stdin.write_all(&std::mem::take(input));
            }
        }
        let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
    });
    receiver
}

impl Outcome {
    /// The guest did its half and powered off; returns what it said.
    pub fn done(&self) -> &str {
        let said = self.console.lines().find_map(|line| line.trim_end().strip_prefix("done: "));
        match said {
            Some(said) if self.status == 0 => said,
            _ => panic!("the guest did not do its half\n{self}"),
        }
    }

    /// One line on stderr that contains `text`, and this exit status.
    pub fn refused(&self, status: i32, text: &str) {
        let lines = self.errors.lines().count();
        let right = self.status == status && lines == 1 && self.errors.contains(text);
        assert!(right, "expected status {status} and one line with {text:?}\n{self}");
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { status, console, errors, shown } = self;
        write!(f, "husk-vmm {shown}\nstatus {status}\nstderr:\n{errors}\nconsole:\n{console}")
    }
}
