// SPDX-License-Identifier: Apache-2.0

//! A netlink socket. It belongs to the network namespace of the thread that opens it, and
//! may then be used by any.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

use crate::message::{Attributes, HEADER, Message, Reply, replies};

/// Longest packet of a dump: what the kernel fills at most (netlink(7)).
const MAX_PACKET: usize = 32 << 10;

/// How often a dump is begun again that something has changed during.
const DUMP_ATTEMPTS: u32 = 10;

/// Attribute of an answer: why, in the kernel's words (NLMSGERR_ATTR_MSG).
const REASON: u16 = 1;

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    pub errno: Errno,
    /// The kernel's own words, where it has some.
    pub reason: Option<String>,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = io::Error::from(self.errno);
        match &self.reason {
            Some(reason) => write!(f, "{reason} ({text})"),
            None => write!(f, "{text}"),
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        Error { errno, reason: None }
    }
}

/// A route netlink socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Socket, Error> {
        let fd = open(SockFlag::SOCK_CLOEXEC, 0)?;
        // Answers then say why, and do not repeat the request.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            set_option(fd.as_fd(), option)?;
        }
        Ok(Socket(fd))
    }

    /// Opens one that is readable whenever something of these groups (RTMGRP_) changes, and
    /// does not block.
    pub fn watch(groups: u32) -> Result<OwnedFd, Error> {
        Ok(open(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, groups)?)
    }

    /// Sends a request and waits until the kernel has done it.
    pub fn request(&self, message: Message) -> Result<(), Error> {
        const SEQUENCE: u32 = 1;
        self.send(message, libc::NLM_F_ACK as u16, SEQUENCE)?;
        loop {
            for reply in self.receive()? {
                if reply.sequence == SEQUENCE && reply.kind == libc::NLMSG_ERROR as u16 {
                    return answer(&reply);
                }
            }
        }
    }

    /// Asks for all there is of something.
    pub fn dump(&self, message: Message) -> Result<Vec<Reply>, Error> {
        for sequence in 1..=DUMP_ATTEMPTS {
            self.send(message.clone(), libc::NLM_F_DUMP as u16, sequence)?;
            if let Some(complete) = self.receive_dump(sequence)? {
                return Ok(complete);
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// The messages of one dump; nothing if it is not consistent.
    fn receive_dump(&self, sequence: u32) -> Result<Option<Vec<Reply>>, Error> {
        let mut found = Vec::new();
        let mut consistent = true;
        loop {
            for reply in self.receive()? {
                if reply.sequence != sequence {
                    continue;
                }
                consistent &= reply.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
                match i32::from(reply.kind) {
                    libc::NLMSG_ERROR => answer(&reply)?,
                    libc::NLMSG_DONE => {
                        // With the status of the dump.
                        answer(&reply)?;
                        return Ok(consistent.then_some(found));
                    }
                    _ => found.push(reply),
                }
            }
        }
    }

    fn send(&self, message: Message, flags: u16, sequence: u32) -> Result<(), Error> {
        send(self.0.as_raw_fd(), &message.finish(flags, sequence), MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&self) -> Result<Vec<Reply>, Error> {
        let mut packet = vec![0; MAX_PACKET];
        let len = recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty())?;
        Ok(replies(&packet[..len]).collect())
    }
}

/// What an NLMSG_ERROR says, which may be that all is well.
fn answer(reply: &Reply) -> Result<(), Error> {
    /// Behind the error number, in an NLMSG_ERROR.
    const REQUEST_HEADER: usize = HEADER;
    let number = reply.payload.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number));
    if number >= 0 {
        return Ok(());
    }
    let attributes = reply.payload.get(4 + REQUEST_HEADER..).unwrap_or_default();
    let reason = Attributes(attributes).text(REASON);
    Err(Error { errno: Errno::from_raw(number.saturating_neg()), reason })
}

fn open(flags: SockFlag, groups: u32) -> Result<OwnedFd, Errno> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

fn set_option(fd: BorrowedFd<'_>, option: libc::c_int) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the option is an int, which is alive during the call.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct ifinfomsg.
    const LINK: [u8; 16] = [0; 16];

    #[test]
    fn loopback_is_found() {
        let socket = Socket::open().expect("socket");
        let links = socket.dump(Message::new(libc::RTM_GETLINK, 0, &LINK)).expect("dump");
        let names: Vec<_> =
            links.iter().filter_map(|link| link.split::<16>()?.1.text(libc::IFLA_IFNAME)).collect();
        assert!(names.iter().any(|name| name == "lo"), "{names:?}");
    }

    #[test]
    fn a_refusal_is_an_error() {
        let socket = Socket::open().expect("socket");
        let mut nobody = LINK;
        nobody[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let error = socket.request(Message::new(libc::RTM_SETLINK, 0, &nobody)).expect_err("no");
        assert!([Errno::ENODEV, Errno::EPERM].contains(&error.errno), "{error}");
        assert!(!error.to_string().is_empty());
    }
}
