// SPDX-License-Identifier: Apache-2.0

//! Connections that the host opens to the guest: a queue that any thread may fill and that
//! the device's thread empties.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most dials that may wait for the device.
const MAX_WAITING: usize = 256;

/// Opens connections to ports of the guest, from any thread.
#[derive(Clone)]
pub struct Dialer(Arc<Waiting>);

struct Waiting {
    dials: Mutex<VecDeque<(u32, UnixStream)>>,
    wake: EventFd,
}

impl Dialer {
    pub(super) fn new() -> io::Result<Dialer> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        Ok(Dialer(Arc::new(Waiting { dials: Mutex::default(), wake })))
    }

    /// Joins `stream` to the guest's `port`. If nobody listens there, or the guest does not
    /// answer, the stream is closed. An error means that too many dials wait for a guest that
    /// has not started its driver.
    pub fn dial(&self, port: u32, stream: UnixStream) -> io::Result<()> {
        let mut dials = self.dials();
        if dials.len() == MAX_WAITING {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many dials are waiting"));
        }
        dials.push_back((port, stream));
        // Fails only when the counter is full, and then the device is awake anyway.
        let _ = self.0.wake.write(1);
        Ok(())
    }

    /// Readable when there are dials.
    pub(super) fn wake_fd(&self) -> RawFd {
        self.0.wake.as_raw_fd()
    }

    pub(super) fn take(&self) -> VecDeque<(u32, UnixStream)> {
        // Nonblocking: nothing to take is no error.
        let _ = self.0.wake.read();
        std::mem::take(&mut *self.dials())
    }

    /// A queue is whole after any panic: it only ever gains or loses entries.
    fn dials(&self) -> MutexGuard<'_, VecDeque<(u32, UnixStream)>> {
        self.0.dials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
