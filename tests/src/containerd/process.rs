// SPDX-License-Identifier: Apache-2.0

//! A program that is run from outside, most often `ctr`: what it says is collected while it
//! runs, so that a case can wait for words or for the end, always with a deadline. It runs
//! on pipes or on a terminal of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How long anything may take. An emulated machine under load takes seconds for what is
/// milliseconds elsewhere; what takes longer than this hangs.
pub const LIMIT: Duration = Duration::from_secs(90);

/// How a terminal's height and width are given.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Exit code, or 128 + n if signal n ended it.
    pub code: i32,
    /// On a terminal, all that was written.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    /// The output as text, without the white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// The same of stderr.
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }

    /// Fails the case unless the program ended with this code.
    #[track_caller]
    pub fn ended(self, code: i32) -> Output {
        assert_eq!(self.code, code, "exit code of: {}\nstderr: {}", self.line, self.error());
        self
    }

    /// Fails the case unless the program failed with these words on stderr.
    #[track_caller]
    pub fn failed_with(self, words: &str) -> Output {
        assert!(self.code != 0, "no failure of: {}", self.line);
        assert!(
            self.error().contains(words),
            "failure of: {}\nexpected: {words}\nstderr: {}",
            self.line,
            self.error()
        );
        self
    }
}

/// A running program. It is killed when this is dropped.
pub struct Running {
    shared: Arc<Shared>,
    input: Option<Box<dyn Write + Send>>,
    /// The outer end of its terminal.
    terminal: Option<OwnedFd>,
}

struct Shared {
    line: String,
    pid: Pid,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    open_streams: usize,
    status: Option<ExitStatus>,
}

impl Running {
    /// Starts a program whose stdin is written by [`Running::write`].
    pub fn start(command: &mut Command) -> Running {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command);
        let input = child.stdin.take().map(|pipe| Box::new(pipe) as Box<dyn Write + Send>);
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let shared = Shared::of(command, &child, 2);
        shared.collect(stdout, |state| &mut state.stdout);
        shared.collect(stderr, |state| &mut state.stderr);
        shared.reap(child);
        Running { shared, input, terminal: None }
    }

    /// Starts a program as the leader of a session on a new terminal.
    pub fn start_on_terminal(command: &mut Command, size: Size) -> Running {
        let pair = openpty(Some(&winsize(size)), None).expect("openpty");
        let (outer, inner) = (pair.master, pair.slave);
        let duplicate = |fd: &OwnedFd| fd.try_clone().expect("duplicate of a descriptor");
        command
            .stdin(duplicate(&inner))
            .stdout(duplicate(&inner))
            .stderr(duplicate(&inner))
            .env("TERM", "dumb");
        // SAFETY: between fork and exec only these two system calls are made.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = spawn(command);
        // The command holds the inner end until it is told of others; end of file comes
        // only once nobody holds it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        drop(inner);
        let shared = Shared::of(command, &child, 1);
        shared.collect(File::from(duplicate(&outer)), |state| &mut state.stdout);
        shared.reap(child);
        let input = Box::new(File::from(duplicate(&outer)));
        Running { shared, input: Some(input), terminal: Some(outer) }
    }

    pub fn pid(&self) -> Pid {
        self.shared.pid
    }

    /// What tells of it later, whatever becomes of it.
    pub fn trace(&self) -> Trace {
        Trace(self.shared.clone())
    }

    /// Writes to its stdin or types on its terminal.
    pub fn write(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("stdin is still open");
        input.write_all(bytes).and_then(|()| input.flush()).expect("write to stdin");
    }

    /// Writes all of it from a thread of its own, then closes stdin.
    pub fn write_and_close(&mut self, bytes: Vec<u8>) {
        let mut input = self.input.take().expect("stdin is still open");
        // If the program ends first, its output tells what went wrong.
        thread::spawn(move || input.write_all(&bytes));
    }

    pub fn close_stdin(&mut self) {
        self.input = None;
    }

    /// Changes the size of its terminal, as a window does.
    pub fn resize(&self, size: Size) {
        let terminal = self.terminal.as_ref().expect("it runs on a terminal");
        // SAFETY: the structure outlives the call, and TIOCSWINSZ only reads it.
        let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &winsize(size)) };
        assert_eq!(done, 0, "TIOCSWINSZ");
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        self.shared.signal(signal);
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().stdout).into_owned()
    }

    /// Waits until what it has written to stdout makes `find` find something.
    #[track_caller]
    pub fn until<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let mut found = None;
        let waited = self.shared.wait(|state| {
            found = find(&String::from_utf8_lossy(&state.stdout));
            found.is_some() || state.ended()
        });
        match found {
            Some(found) => found,
            None if waited => panic!("{} ended before: {what}", self.shared.line),
            None => panic!("{} did not come to: {what}", self.shared.line),
        }
    }

    /// Waits until these words are in its stdout.
    #[track_caller]
    pub fn until_said(&self, words: &str) {
        self.until(words, |said| said.contains(words).then_some(()));
    }

    /// Waits for its end and the end of its streams.
    #[track_caller]
    pub fn wait(self) -> Output {
        let ended = self.shared.wait(State::ended);
        let state = self.shared.lock();
        if !ended {
            let what = match state.status {
                None => "is still running".to_owned(),
                Some(status) => format!("ended ({status}), but its streams are open"),
            };
            panic!("after {} s {what}: {}", LIMIT.as_secs(), self.shared.line);
        }
        Output {
            line: self.shared.line.clone(),
            code: state.status.map_or(-1, code),
            stdout: state.stdout.clone(),
            stderr: state.stderr.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.signal(Signal::SIGKILL);
    }
}

/// Tells what a program did, after it.
pub struct Trace(Arc<Shared>);

impl std::fmt::Display for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.0.lock();
        writeln!(f, "$ {}", self.0.line)?;
        for (name, bytes) in [("stdout", &state.stdout), ("stderr", &state.stderr)] {
            if !bytes.is_empty() {
                let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(1500)..]);
                let escaped: String = tail
                    .chars()
                    .map(|c| if c.is_control() && c != '\n' { '.' } else { c })
                    .collect();
                writeln!(f, "  {name}, {} bytes:\n{}", bytes.len(), escaped.trim_end())?;
            }
        }
        match state.status {
            Some(status) => write!(f, "  = {}", code(status)),
            None => write!(f, "  still running"),
        }
    }
}

impl State {
    fn ended(&self) -> bool {
        self.status.is_some() && self.open_streams == 0
    }
}

impl Shared {
    fn of(command: &Command, child: &Child, open_streams: usize) -> Arc<Shared> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line = words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
        Arc::new(Shared {
            line,
            pid: Pid::from_raw(child.id() as i32),
            state: Mutex::new(State { open_streams, ..State::default() }),
            changed: Condvar::new(),
        })
    }

    /// Reads a stream to its end in a thread.
    fn collect(
        self: &Arc<Self>,
        mut stream: impl Read + Send + 'static,
        buffer: fn(&mut State) -> &mut Vec<u8>,
    ) {
        let shared = self.clone();
        thread::spawn(move || {
            let mut chunk = vec![0; 64 << 10];
            // A terminal whose inner end is closed reads as an error.
            while let Ok(len @ 1..) = stream.read(&mut chunk) {
                buffer(&mut shared.lock()).extend_from_slice(&chunk[..len]);
                shared.changed.notify_all();
            }
            shared.lock().open_streams -= 1;
            shared.changed.notify_all();
        });
    }

    /// Waits for the end in a thread. The process is reaped under the lock, so that no
    /// signal of ours goes to another one with its number.
    fn reap(self: &Arc<Self>, mut child: Child) {
        let shared = self.clone();
        thread::spawn(move || {
            let _ = waitid(Id::Pid(shared.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            let mut state = shared.lock();
            state.status = Some(child.wait().expect("wait for a child"));
            drop(state);
            shared.changed.notify_all();
        });
    }

    fn signal(&self, signal: Signal) {
        let state = self.lock();
        if state.status.is_none() {
            let _ = kill(self.pid, signal);
        }
    }

    /// Waits for a condition; false when time is up.
    fn wait(&self, mut condition: impl FnMut(&State) -> bool) -> bool {
        let end = Instant::now() + LIMIT;
        let mut state = self.lock();
        while !condition(&state) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (state, _) =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| {
        panic!("cannot start {}: {error}", command.get_program().to_string_lossy())
    })
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn winsize(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Waits until a condition holds, looking again and again; false when time is up. For what
/// no descriptor tells of.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
