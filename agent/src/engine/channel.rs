// SPDX-License-Identifier: Apache-2.0

//! What a container's engine and the process that asked for the container tell each other:
//! one message to a packet of a socket pair. The children's end is shared by the stage and
//! by the process that it makes; it closes when that process runs its program, so the end
//! of the connection is the good news.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

/// Longest text of a failure.
const MAX_TEXT: usize = 16 << 10;

/// From the children.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// The process exists; its pid, as the asker sees it.
    Made(i32),
    /// Hooks of the runtime are due; the process waits for `go`.
    Hooks,
    /// The process waits for `go` to run its program.
    Ready,
    /// The program cannot be executed.
    NoProgram(String),
    /// Something else failed.
    Failed(String),
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Made(pid) => (b'm', pid.to_string()),
            Self::Hooks => (b'h', String::new()),
            Self::Ready => (b'r', String::new()),
            Self::NoProgram(why) => (b'p', why.clone()),
            Self::Failed(why) => (b'f', why.clone()),
        };
        let mut packet = vec![kind];
        packet.extend_from_slice(&body.as_bytes()[..body.len().min(MAX_TEXT)]);
        packet
    }

    fn decode(packet: &[u8]) -> Option<Self> {
        let (kind, body) = packet.split_first()?;
        let text = || String::from_utf8_lossy(body).into_owned();
        Some(match kind {
            b'm' => Self::Made(std::str::from_utf8(body).ok()?.parse().ok()?),
            b'h' => Self::Hooks,
            b'r' => Self::Ready,
            b'p' => Self::NoProgram(text()),
            b'f' => Self::Failed(text()),
            _ => return None,
        })
    }
}

/// A message with the descriptors that belong to it: with `Made` one that refers to the
/// process; with the last message before the program, the master side of its terminal.
pub type Received = (Message, Vec<OwnedFd>);

/// The asker's end and the children's.
pub fn pair() -> io::Result<(OwnedFd, Channel)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((ours, Channel(theirs)))
}

/// The children's end.
pub struct Channel(OwnedFd);

impl Channel {
    /// Tells; nobody to tell it to is no failure, for then the child is about to end.
    pub fn tell(&self, message: &Message, fds: &[BorrowedFd]) {
        let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let packet = message.encode();
        let packet = [IoSlice::new(&packet)];
        let _ = sendmsg::<()>(self.0.as_raw_fd(), &packet, rights, MsgFlags::MSG_NOSIGNAL, None);
    }

    /// Waits for `go`; false when the asker is gone.
    pub fn wait(&self) -> bool {
        let mut byte = [0];
        matches!(nix::unistd::read(&self.0, &mut byte), Ok(1))
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lets the process go on.
pub fn go(asker: BorrowedFd) -> io::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL;
    Ok(nix::sys::socket::send(asker.as_raw_fd(), b"g", flags).map(drop)?)
}

/// Receives the next message; `None` at the end. Fails with WouldBlock on a non-blocking
/// socket that has none.
pub fn receive(asker: BorrowedFd) -> io::Result<Option<Received>> {
    let mut bytes = [0; MAX_TEXT + 1];
    let mut buffer = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(asker.as_raw_fd(), &mut buffer, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for rights in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = rights {
            for fd in fds {
                // SAFETY: the kernel has just made it for us.
                received.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    match message.bytes {
        0 => Ok(None),
        length => match Message::decode(&bytes[..length]) {
            Some(message) => Ok(Some((message, received))),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_order_and_then_the_end() {
        let (ours, theirs) = pair().expect("pair");
        let null = std::fs::File::open("/dev/null").expect("null");
        let long = Message::Failed("x".repeat(9000));
        theirs.tell(&Message::Made(7), &[null.as_fd(), null.as_fd()]);
        theirs.tell(&Message::Ready, &[]);
        theirs.tell(&long, &[]);
        let (message, fds) = receive(ours.as_fd()).expect("receive").expect("made");
        assert_eq!((message, fds.len()), (Message::Made(7), 2));
        let next = || receive(ours.as_fd()).expect("receive").map(|(message, _)| message);
        assert_eq!(next(), Some(Message::Ready));
        assert_eq!(next(), Some(long));
        go(ours.as_fd()).expect("go");
        assert!(theirs.wait());
        drop(theirs);
        assert_eq!(next(), None);
    }

    #[test]
    fn a_child_sees_that_nobody_waits_any_more() {
        let (ours, theirs) = pair().expect("pair");
        drop(ours);
        assert!(!theirs.wait());
        theirs.tell(&Message::Ready, &[]);
    }
}
