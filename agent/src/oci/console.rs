// SPDX-License-Identifier: Apache-2.0

//! Terminals: who gets the master side of one, and how.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use oci_spec::runtime::Process;

use super::foreground;
use super::{Result, text};
use crate::engine::Stdio;

/// Refuses a socket without a terminal to send, and a terminal that nobody would hold.
pub fn check(terminal: bool, detach: bool, socket: Option<&PathBuf>) -> Result<()> {
    match (terminal, detach, socket) {
        (true, true, None) => {
            Err("a terminal without --console-socket needs somebody to hold it: do not detach"
                .into())
        }
        (terminal, detach, Some(_)) if !terminal || !detach => {
            Err("--console-socket is for a terminal of a detached process".to_owned())
        }
        _ => Ok(()),
    }
}

/// The standard streams of a process: a terminal of the size that is asked for, or else of
/// that of this process's own; or what this process has.
pub fn stdio(process: &Process) -> Stdio<'static> {
    if process.terminal() != Some(true) {
        return Stdio::Inherited;
    }
    let asked = process.console_size().map(|size| (size.height() as u32, size.width() as u32));
    let (rows, cols) = asked.or_else(foreground::size).unwrap_or((0, 0));
    Stdio::Terminal(rows, cols)
}

/// Gives the master side of a terminal to the one who listens at a socket, if one is named;
/// otherwise it stays the caller's.
pub fn hand_over(terminal: Option<OwnedFd>, socket: Option<&Path>) -> Result<Option<OwnedFd>> {
    match (terminal, socket) {
        (Some(master), Some(socket)) => send(socket, &master).map(|()| None),
        (terminal, _) => Ok(terminal),
    }
}

fn send(socket: &Path, terminal: &OwnedFd) -> Result<()> {
    let stream = UnixStream::connect(socket)
        .map_err(|e| format!("cannot connect to the console socket {socket:?}: {e}"))?;
    let fds = [terminal.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    // Receivers take the data for the terminal's name.
    let name = [IoSlice::new(b"/dev/ptmx")];
    sendmsg::<()>(stream.as_raw_fd(), &name, &rights, MsgFlags::MSG_NOSIGNAL, None)
        .map(drop)
        .map_err(|e| format!("cannot send the terminal to {socket:?}: {}", text(e)))
}
