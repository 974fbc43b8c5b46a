// SPDX-License-Identifier: Apache-2.0

//! vsock over paths, for a VM without a supervisor, by the convention that Firecracker
//! began: the guest reaches host port 52 as the unix socket `<path>_52`; a client on the
//! host reaches a port of the guest by writing `CONNECT <port>\n` to the socket `<path>`,
//! and is told `OK <host port>\n`.

use std::io::{self, Read};
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::HostSide;

/// Longest line that a client may write: `CONNECT 4294967295\n` with some blanks to spare.
const MAX_LINE: usize = 32;

/// Connects the guest to unix sockets: host port 52 is the socket `<path>_52`.
pub struct HostPaths {
    path: PathBuf,
}

impl HostPaths {
    pub fn new(path: PathBuf) -> HostPaths {
        HostPaths { path }
    }
}

impl HostSide for HostPaths {
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        connect_nonblocking(Path::new(&path))
    }
}

/// Like [`UnixStream::connect`], which waits for a listener whose backlog is full; this fails.
fn connect_nonblocking(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: all zeros is an address: of family 0, with an empty path.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket path too long"));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    debug_assert!(len <= size_of::<libc::sockaddr_un>());
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: the address outlives the call, and len bytes of it are initialized.
    match unsafe { libc::connect(raw, (&raw const address).cast(), len as libc::socklen_t) } {
        0 => Ok(UnixStream::from(socket)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A client on the host that has not yet said which port of the guest it wants.
pub struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
    /// When the client has had time enough.
    pub deadline: Instant,
}

/// What to do with a client.
pub enum Step {
    /// The line is not whole yet.
    Wait(Handshake),
    Dial(u32, UnixStream),
    /// It closed, or said something else.
    Close,
}

impl Handshake {
    pub fn new(stream: UnixStream, deadline: Instant) -> io::Result<Handshake> {
        stream.set_nonblocking(true)?;
        Ok(Handshake { stream, line: Vec::with_capacity(MAX_LINE), deadline })
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Reads what the client has written: byte by byte, for what follows the line is already
    /// the guest's.
    pub fn read(mut self) -> Step {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => {
                    return match parse(&self.line) {
                        Some(port) => Step::Dial(port, self.stream),
                        None => Step::Close,
                    };
                }
                Ok(1) if self.line.len() < MAX_LINE => self.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait(self),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Step::Close,
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    if !verb.eq_ignore_ascii_case("CONNECT") || words.next().is_some() {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lines() {
        assert_eq!(parse(b"CONNECT 52"), Some(52));
        assert_eq!(parse(b"connect 4294967295\r"), Some(u32::MAX));
        for bad in [&b"CONNECT"[..], b"CONNECT x", b"CONNECT 1 2", b"OPEN 1", b"CONNECT 4294967296"]
        {
            assert_eq!(parse(bad), None);
        }
    }
}
