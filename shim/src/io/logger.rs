// SPDX-License-Identifier: Apache-2.0

//! A logging program, `binary:///path?key=value`: it reads the container's stdout on
//! descriptor 3 and stderr on 4, and says on 5 that it is ready, by a byte or by closing it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use husk_sandbox::{Error, IoContext, Pidfd, reactor};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::Interest;

use super::Owner;
use super::uri::Uri;

/// The descriptors that the program is promised.
const FIRST_FD: i32 = 3;
const LAST_FD: i32 = 5;

/// How long the program may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// How long it may go on after it was asked to end.
const END_LIMIT: Duration = Duration::from_secs(12);

/// A running logging program. When it is dropped, after the pipes, the program is asked to
/// end and made to.
#[derive(Debug)]
pub struct Logger(Option<Child>);

impl Logger {
    /// Starts the program and waits until it is ready. The writing ends of its stdout and
    /// stderr pipes.
    pub async fn start(uri: &Uri, owner: Owner<'_>) -> Result<(Logger, OwnedFd, OwnedFd), Error> {
        let what = || format!("cannot start the logging program {}", uri.path);
        let (stdout_reader, stdout) = pipe().context(what)?;
        let (stderr_reader, stderr) = pipe().context(what)?;
        let (ready, ready_writer) = pipe().context(what)?;
        for writer in [&stdout, &stderr, &ready] {
            set_nonblocking(writer).context(what)?;
        }
        let mut command = Command::new(&uri.path);
        for (key, value) in &uri.query {
            command.args([key, value]);
        }
        command
            .env("CONTAINER_ID", owner.container)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let logger = Logger(Some(
            spawn(&mut command, [stdout_reader, stderr_reader, ready_writer]).context(what)?,
        ));
        let ready = reactor::watch(ready, Interest::READABLE).context(what)?;
        match tokio::time::timeout(READY_LIMIT, ready.readable()).await {
            Ok(Ok(_)) => Ok((logger, stdout, stderr)),
            Ok(Err(error)) => Err(Error::internal(format!("{}: {error}", what()))),
            Err(_) => Err(Error::internal(format!(
                "the logging program {} was not ready within {} s; it has to write to or close \
                 descriptor {LAST_FD}",
                uri.path,
                READY_LIMIT.as_secs()
            ))),
        }
    }
}

#[cfg(test)]
impl Logger {
    pub fn pid(&self) -> Option<u32> {
        self.0.as_ref().map(Child::id)
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // Its pipes are closed; waiting for its end must not hold up anybody.
        let reap = move || {
            if let Ok(pidfd) = Pidfd::open(child.id()) {
                let _ = pidfd.signal(libc::SIGTERM);
                if !pidfd.wait(END_LIMIT) {
                    let _ = child.kill();
                }
            }
            let _ = child.wait();
        };
        let _ = std::thread::Builder::new().name("logger-end".into()).spawn(reap);
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Starts the command with `fds` as its descriptors 3, 4 and 5.
fn spawn(command: &mut Command, fds: [OwnedFd; 3]) -> io::Result<Child> {
    // Each moves out of the way of the three numbers, and a placeholder takes what of them
    // is free, so that none is the one on which Command reports a failed start.
    let moved = fds
        .iter()
        .map(|fd| duplicate_from(fd, LAST_FD + 1))
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    let mut placeholders = Vec::new();
    loop {
        let placeholder = duplicate_from(&moved[0], FIRST_FD)?;
        if placeholder.as_raw_fd() > LAST_FD {
            break;
        }
        placeholders.push(placeholder);
    }
    let raw: Vec<i32> = moved.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            for (fd, wanted) in raw.iter().zip(FIRST_FD..) {
                if libc::dup2(*fd, wanted) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn()
}

/// A copy of the descriptor with a number of at least `least`.
fn duplicate_from(fd: &OwnedFd, least: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a descriptor that we own touches no memory.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
