// SPDX-License-Identifier: Apache-2.0

//! Makes container processes. Only this module knows that libcontainer does part of the
//! work, so another engine can take its place.
//!
//! libcontainer clones without regard for threads and changes the calling process, so it
//! runs in a helper: this binary, executed again (`helper`). The helper makes the process a
//! child of the agent, reports its pid and exits. Whether the container's program could be
//! executed is known later, and told through a pipe that execve closes (`Pending`).

pub mod helper;
pub mod spec;

#[allow(dead_code)]
pub mod capabilities;
mod create;
#[allow(dead_code)]
pub mod device_rules;
#[cfg(test)]
mod forked;
mod join;
mod program;
mod report;
#[allow(dead_code)]
mod rootfs;
#[allow(dead_code)]
pub mod seccomp;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use oci_spec::runtime::{LinuxSeccomp, Process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::boot::STATE;
use crate::error::{Doing, Error, Result};
use crate::reaper::{ExitStatus, Reaper};
use crate::stdio::ChildStdio;

/// Longest text about a failure that is read from a helper.
const MAX_TEXT: u64 = 16 << 10;

/// A process that exists. It runs, or waits to be started.
pub struct Made {
    pub pid: i32,
    /// The master side, if it has a terminal.
    pub terminal: Option<OwnedFd>,
    pub pending: Pending,
}

/// Tells whether a process has become the program it was meant to be.
pub struct Pending {
    result: pipe::Receiver,
}

/// What the helper is to do; sent to it as JSON.
#[derive(Serialize, Deserialize)]
pub enum Task {
    /// Make a container whose config.json is in `bundle`.
    Create { id: String, bundle: PathBuf },
    /// Start a process in a container.
    Join(Box<Join>),
}

#[derive(Serialize, Deserialize)]
pub struct Join {
    /// The namespaces to enter, as CLONE_NEW flags; those of the process that the pidfd
    /// refers to.
    pub namespaces: i32,
    /// The pid of that process.
    pub init: i32,
    pub cgroup: PathBuf,
    pub process: Process,
    pub seccomp: Option<LinuxSeccomp>,
    /// Initial size of the terminal.
    pub rows: u32,
    pub cols: u32,
}

/// Where what a container's engine needs on disk is.
pub fn bundle(id: &str) -> PathBuf {
    Path::new(STATE).join("containers").join(id)
}

/// Where libcontainer keeps what it knows of containers.
pub fn state_root() -> PathBuf {
    Path::new(STATE).join("oci")
}

/// Makes a container up to the point where its first process waits for `start`. Calls
/// `on_helper` with the helper's pid, so that a stuck helper can be killed.
pub async fn create(
    reaper: &Reaper,
    id: &str,
    stdio: ChildStdio,
    on_helper: impl FnOnce(i32),
) -> Result<Made> {
    let task = Task::Create { id: id.to_owned(), bundle: bundle(id) };
    run(reaper, &task, stdio, None, on_helper).await
}

/// Makes a process in the container whose first process `init` refers to. The program runs
/// when `Pending` says so.
pub async fn join(reaper: &Reaper, join: Join, stdio: ChildStdio, init: OwnedFd) -> Result<Made> {
    run(reaper, &Task::Join(Box::new(join)), stdio, Some(init), |_| {}).await
}

/// Lets the first process of a container run its program.
pub async fn start(id: &str, pending: Pending) -> Result<()> {
    // Through the directory's descriptor, because a socket's path is limited to 107 bytes.
    let directory = state_root().join(id);
    let directory =
        std::fs::File::open(&directory).doing(format!("open the container's state of {id}"))?;
    let path = format!("/proc/self/fd/{}/notify.sock", directory.as_raw_fd());
    let socket = UnixStream::connect(path).await;
    let mut socket = socket.doing("reach the container's first process")?;
    socket.write_all(b"start container").await.doing("start the container's first process")?;
    drop(socket);
    pending.executed().await
}

/// Removes what the engine keeps of a container. Nothing to do where there is nothing.
pub fn forget(id: &str) -> Result<()> {
    for directory in [state_root().join(id), bundle(id)] {
        match std::fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).doing(format!("remove {directory:?}"));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Pending {
    /// Returns when the process runs its program or has ended, or says why it cannot.
    pub async fn executed(self) -> Result<()> {
        let mut text = Vec::new();
        let read = self.result.take(MAX_TEXT).read_to_end(&mut text).await;
        read.doing("learn whether the program runs")?;
        if text.is_empty() { Ok(()) } else { Err(program_error(&text)) }
    }
}

/// The helper, as the agent sees it.
struct Helper {
    control: UnixStream,
    pending: Pending,
    log: pipe::Receiver,
    exited: oneshot::Receiver<ExitStatus>,
}

async fn run(
    reaper: &Reaper,
    task: &Task,
    stdio: ChildStdio,
    init: Option<OwnedFd>,
    on_helper: impl FnOnce(i32),
) -> Result<Made> {
    let task = serde_json::to_vec(task).doing("describe the process to its engine")?;
    let mut helper = spawn(reaper, stdio, init, on_helper)?;
    let sent = async {
        helper.control.write_all(&task).await?;
        helper.control.shutdown().await
    };
    // If it died, its report or its log says more than the broken connection.
    let _ = sent.await;
    let received = tokio::select! {
        biased;
        received = report::receive(&helper.control) => received,
        status = &mut helper.exited => match report::receive_now(&helper.control) {
            Some(received) => Ok(received),
            None => Err(Error::internal(match status {
                Ok(ExitStatus { killed: true, .. }) => "the container's engine was killed".into(),
                Ok(status) => format!("the container's engine exited with {}", status.code),
                Err(_) => "the container's engine is gone".into(),
            })),
        },
    };
    match received {
        Ok((report::Report::Made { pid }, terminal)) => {
            Ok(Made { pid, terminal, pending: helper.pending })
        }
        Ok((report::Report::Failed { why }, _)) => Err(helper.explain(Error::internal(why))),
        Err(error) => Err(helper.explain(error)),
    }
}

/// Executes this binary as a helper. The descriptors that it inherits are open across
/// exec for the moment of the spawn only; nothing else runs then, for there is one thread.
fn spawn(
    reaper: &Reaper,
    stdio: ChildStdio,
    init: Option<OwnedFd>,
    on_helper: impl FnOnce(i32),
) -> Result<Helper> {
    let (control, theirs) = StdStream::pair().doing("make a socket pair")?;
    let make_pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).doing("make a pipe");
    let (result, result_theirs) = make_pipe()?;
    let (log, log_theirs) = make_pipe()?;
    let mut inherited = vec![OwnedFd::from(theirs), result_theirs, log_theirs];
    inherited.extend(init);
    let mut command = Command::new("/proc/self/exe");
    command.arg(helper::ARGUMENT);
    for fd in &inherited {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).doing("hand a descriptor over")?;
        command.arg(fd.as_raw_fd().to_string());
    }
    command.env_clear().current_dir("/");
    command.stdin(Stdio::from(stdio.stdin));
    command.stdout(Stdio::from(stdio.stdout));
    command.stderr(Stdio::from(stdio.stderr));
    let since = reaper.now();
    // Not waited for here: the reaper waits for everything.
    let pid = command.spawn().doing("start the container's engine")?.id() as i32;
    on_helper(pid);
    let (sender, exited) = oneshot::channel();
    reaper.watch(pid, since, |status| {
        let _ = sender.send(status);
    });
    control.set_nonblocking(true).doing("poll the engine's socket")?;
    Ok(Helper {
        control: UnixStream::from_std(control).doing("poll the engine's socket")?,
        pending: Pending { result: receiver(result)? },
        log: receiver(log)?,
        exited,
    })
}

fn receiver(fd: OwnedFd) -> Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(fd).doing("poll a pipe of the engine")
}

impl Helper {
    /// Adds what is known of a failure: that the program cannot be executed is all that
    /// people want to hear; otherwise what libcontainer logged first tells the cause.
    fn explain(self, error: Error) -> Error {
        let text = read_now(&self.pending.result);
        if !text.is_empty() {
            return program_error(&text);
        }
        let log = read_now(&self.log);
        let log = String::from_utf8_lossy(&log);
        let mut message = error.message;
        // The first is where it failed; the second, one level up, often has the errno.
        for cause in log.lines().filter(|line| !line.is_empty()).take(2) {
            message.push_str(": ");
            message.push_str(cause);
        }
        Error::new(error.code, message)
    }
}

fn program_error(text: &[u8]) -> Error {
    Error::invalid(String::from_utf8_lossy(text).trim_end())
}

fn read_now(pipe: &pipe::Receiver) -> Vec<u8> {
    let mut text = vec![0; MAX_TEXT as usize];
    // SAFETY: reads at most text.len() bytes into text. Not try_read: the readiness that
    // it relies on may not have been seen yet.
    let length = unsafe { libc::read(pipe.as_raw_fd(), text.as_mut_ptr().cast(), text.len()) };
    text.truncate(usize::try_from(length).unwrap_or(0));
    text
}

/// Refers to a process, so that it cannot be mistaken for a later one of the same pid.
pub fn pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open() takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).doing(format!("open process {pid}"));
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
