// SPDX-License-Identifier: Apache-2.0

//! Descriptors that tokio watches.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the current runtime watch a descriptor, which should not block.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and the same one, for as long as it exists.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
