// SPDX-License-Identifier: Apache-2.0

//! The way to the host. The guest opens every connection: the control connection and one
//! per stdio stream, each named by a port.
//!
//! A connected stream is a `UnixStream` whatever its address family: reading, writing,
//! shutting down and polling are the same calls on any stream socket.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;

use tokio::net::UnixStream;

/// Where ports lead.
pub enum Host {
    /// vsock, to the machine that runs this VM.
    Vsock,
    /// A directory of Unix sockets, `port_<number>`; for development without a VM.
    Directory(PathBuf),
}

impl Host {
    /// Connects to `port` of the host. The kernel gives up after two seconds.
    pub async fn dial(&self, port: u32) -> io::Result<UnixStream> {
        match self {
            Host::Vsock => dial_vsock(port).await,
            Host::Directory(directory) => {
                UnixStream::connect(directory.join(format!("port_{port}"))).await
            }
        }
    }
}

async fn dial_vsock(port: u32) -> io::Result<UnixStream> {
    // SAFETY: socket() takes no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_VSOCK,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_vm is plain data, for which zero is valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port;
    // SAFETY: the address is a sockaddr_vm of the length given, alive during the call.
    let connected = unsafe {
        libc::connect(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    };
    let pending = connected < 0;
    if pending {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
    }
    let stream = UnixStream::from_std(StdStream::from(fd))?;
    if pending {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}
