// SPDX-License-Identifier: Apache-2.0

//! vsock over paths, for a VM without a supervisor.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::HostSide;

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
        UnixStream::connect(path)
    }
}
