// SPDX-License-Identifier: Apache-2.0

//! What the helper tells the agent: one line of JSON, with the master side of the terminal
//! attached where there is one.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::error::{Doing, Error, Result};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    Made { pid: i32 },
    Failed { why: String },
}

/// Sends a report, all of it at once; it is far smaller than the socket's buffer.
pub fn send(control: BorrowedFd, report: &Report, terminal: Option<BorrowedFd>) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.truncate(16 << 10);
    line.push(b'\n');
    let fds: Vec<RawFd> = terminal.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(control.as_raw_fd(), &[IoSlice::new(&line)], rights, flags, None)?;
    Ok(())
}

/// Waits for the report. An error says that the helper is gone without one.
pub async fn receive(control: &UnixStream) -> Result<(Report, Option<OwnedFd>)> {
    let mut partial = Partial::default();
    loop {
        let more = control.async_io(Interest::READABLE, || partial.receive(control.as_raw_fd()));
        if !more.await.doing("hear from the container's engine")? {
            return Err(Error::internal("the container's engine ended without a report"));
        }
        if let Some(report) = partial.report()? {
            return Ok((report, partial.terminal));
        }
    }
}

/// The report, if it is there.
pub fn receive_now(control: &UnixStream) -> Option<(Report, Option<OwnedFd>)> {
    let mut partial = Partial::default();
    while partial.receive(control.as_raw_fd()).ok()? {
        if let Some(report) = partial.report().ok()? {
            return Some((report, partial.terminal));
        }
    }
    None
}

#[derive(Default)]
struct Partial {
    line: Vec<u8>,
    terminal: Option<OwnedFd>,
}

impl Partial {
    /// Receives some of it; false when nothing more comes.
    fn receive(&mut self, control: RawFd) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!(RawFd);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(control, &mut buffer, Some(&mut space), flags)?;
        for rights in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = rights {
                for fd in fds {
                    // SAFETY: the kernel has just made it for us.
                    self.terminal = Some(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        let length = message.bytes;
        self.line.extend_from_slice(&bytes[..length]);
        Ok(length > 0)
    }

    fn report(&self) -> Result<Option<Report>> {
        let Some(line) = self.line.strip_suffix(b"\n") else { return Ok(None) };
        serde_json::from_slice(line).map(Some).doing("understand the container's engine")
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    fn pair() -> (UnixStream, StdStream) {
        let (ours, theirs) = StdStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("non-blocking");
        (UnixStream::from_std(ours).expect("stream"), theirs)
    }

    #[tokio::test]
    async fn a_report_arrives_with_its_terminal() {
        let (ours, theirs) = pair();
        let null = std::fs::File::open("/dev/null").expect("null");
        let report = Report::Made { pid: 9 };
        send(theirs.as_fd(), &report, Some(null.as_fd())).expect("send");
        let (received, terminal) = receive(&ours).await.expect("receive");
        assert_eq!(received, report);
        assert!(terminal.is_some());
    }

    #[tokio::test]
    async fn a_long_report_arrives_whole() {
        let (ours, theirs) = pair();
        let report = Report::Failed { why: "x".repeat(9000) };
        send(theirs.as_fd(), &report, None).expect("send");
        assert_eq!(receive_now(&ours).expect("report").0, report);
    }

    #[tokio::test]
    async fn a_helper_that_says_nothing_is_an_error() {
        let (ours, theirs) = pair();
        drop(theirs);
        assert!(receive(&ours).await.is_err());
        assert!(receive_now(&ours).is_none());
    }
}
