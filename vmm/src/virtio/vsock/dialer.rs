// SPDX-License-Identifier: Apache-2.0

//! Connections that the host opens to the guest.

use std::io;
use std::os::unix::net::UnixStream;

/// Opens connections to ports of the guest, from any thread.
#[derive(Clone)]
pub struct Dialer {}

impl Dialer {
    pub(super) fn new() -> io::Result<Dialer> {
        Ok(Dialer {})
    }

    /// Joins `stream` to the guest's `port`. If nobody listens there, or the guest does not
    /// answer, the stream is closed. An error means that too many dials are waiting for the
    /// device.
    pub fn dial(&self, _port: u32, _stream: UnixStream) -> io::Result<()> {
        Ok(())
    }
}
