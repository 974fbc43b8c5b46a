// SPDX-License-Identifier: Apache-2.0

//! Standing in for a process: whoever sees this program sees the container's. Signals are
//! passed on to it, its terminal is connected to this one, and its end is this one's.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Result, text};
use crate::stdio::set_size;

pub struct Foreground {
    signals: SignalFd,
}

impl Foreground {
    /// From now on signals wait until there is a process to pass them on to.
    pub fn begin() -> Result<Self> {
        let all = SigSet::all();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), None).map_err(text)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { signals: SignalFd::with_flags(&all, flags).map_err(text)? })
    }

    /// Waits for the end of a child and returns its exit status, as a shell would have it.
    pub fn wait(self, pid: i32, terminal: Option<OwnedFd>) -> Result<u8> {
        let _raw = terminal.as_ref().map(|_| Raw::begin());
        if let Some(terminal) = &terminal {
            let input = File::from(terminal.try_clone().map_err(text)?);
            // Ends with this program: a read of a terminal cannot be called off.
            std::thread::spawn(move || copy_input(input));
        }
        let mut output = terminal;
        let pid = Pid::from_raw(pid);
        loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)).map_err(text)? {
                WaitStatus::Exited(_, status) => return Ok(drained(output, status as u8)),
                WaitStatus::Signaled(_, signal, _) => {
                    return Ok(drained(output, 128 + signal as u8));
                }
                _ => {}
            }
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(
                output.iter().map(|terminal| PollFd::new(terminal.as_fd(), PollFlags::POLLIN)),
            );
            poll(&mut fds, PollTimeout::NONE).map_err(text)?;
            let readable = fds.get(1).is_some_and(|fd| fd.any() == Some(true));
            while let Some(signal) = self.signals.read_signal().map_err(text)? {
                pass_on(signal.ssi_signo as i32, pid, output.as_ref())?;
            }
            if readable && output.as_ref().is_some_and(|terminal| !copy_some(terminal)) {
                output = None;
            }
        }
    }
}

fn pass_on(signal: i32, pid: Pid, terminal: Option<&OwnedFd>) -> Result<()> {
    match (signal, terminal) {
        (libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE, _) => {}
        (libc::SIGWINCH, Some(terminal)) => {
            if let Some((rows, cols)) = size() {
                set_size(terminal, rows, cols).map_err(text)?;
            }
        }
        // SAFETY: kill() takes no pointers. The child has not been reaped.
        _ => drop(unsafe { libc::kill(pid.as_raw(), signal) }),
    }
    Ok(())
}

/// Rows and columns of this process's terminal, if it has one.
pub fn size() -> Option<(u32, u32)> {
    // SAFETY: winsize is plain data, for which zero is valid.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes a winsize, which is alive during the call.
    let got = unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) };
    (got == 0).then(|| (size.ws_row.into(), size.ws_col.into()))
}

fn copy_input(mut terminal: File) {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut terminal);
}

/// Copies what a terminal has to say; false when nobody holds its other side any more.
fn copy_some(terminal: &OwnedFd) -> bool {
    let mut buffer = [0; 4096];
    match nix::unistd::read(terminal, &mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(length) => {
            // Nobody to tell that nobody listens.
            let _ = std::io::stdout().write_all(&buffer[..length]);
            let _ = std::io::stdout().flush();
            true
        }
    }
}

/// Copies what is left of a process's output, but does not wait for what others may write.
fn drained(output: Option<OwnedFd>, status: u8) -> u8 {
    let Some(terminal) = output else { return status };
    loop {
        let mut fds = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1)) || !copy_some(&terminal) {
            return status;
        }
    }
}

/// Keeps this process's terminal from doing what the container's does already.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Self {
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw);
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}
