// SPDX-License-Identifier: Apache-2.0

//! Connections that the guest makes to ports of the host. A port exists from the moment
//! somebody expects a connection there until one has come or the wait is given up; a
//! connection to any other port is closed.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use husk_protocol::FIRST_STREAM_PORT;
use tokio::sync::oneshot;

use crate::error::Error;

/// The ports of one VM.
#[derive(Debug, Clone, Default)]
pub struct Streams(Arc<Mutex<Ports>>);

#[derive(Debug, Default)]
struct Ports {
    /// Ports given out so far.
    given: u32,
    waiting: HashMap<u32, oneshot::Sender<OwnedFd>>,
    /// Why no connection will come any more.
    closed: Option<String>,
}

/// A connection that has not come yet.
#[derive(Debug)]
pub struct Expected {
    port: u32,
    streams: Streams,
    receiver: oneshot::Receiver<OwnedFd>,
}

impl Streams {
    /// A port of its own for one stream.
    pub fn expect(&self) -> Expected {
        let port = {
            let mut ports = self.ports();
            let port = FIRST_STREAM_PORT + ports.given % (u32::MAX - FIRST_STREAM_PORT);
            ports.given = ports.given.wrapping_add(1);
            port
        };
        self.expect_on(port)
    }

    /// The next connection to a fixed port.
    pub fn expect_on(&self, port: u32) -> Expected {
        let (sender, receiver) = oneshot::channel();
        let mut ports = self.ports();
        if ports.closed.is_none() {
            ports.waiting.insert(port, sender);
        }
        Expected { port, streams: self.clone(), receiver }
    }

    /// Hands a connection to whoever expects it; closes it if nobody does.
    pub fn deliver(&self, port: u32, stream: OwnedFd) {
        let waiting = self.ports().waiting.remove(&port);
        if let Some(sender) = waiting {
            // If the wait has just been given up, the stream is closed here.
            let _ = sender.send(stream);
        }
    }

    /// No connection will come any more: every wait fails with this reason.
    pub fn close(&self, reason: &str) {
        let mut ports = self.ports();
        ports.closed.get_or_insert_with(|| reason.to_owned());
        ports.waiting.clear();
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        // Nothing panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expected {
    /// What to tell the guest.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The connection, nonblocking. Fails when the VM is gone.
    pub async fn connected(mut self) -> Result<UnixStream, Error> {
        let Ok(fd) = (&mut self.receiver).await else {
            let closed = self.streams.ports().closed.clone();
            let reason = closed.unwrap_or_else(|| "the port was taken over".into());
            return Err(Error::unavailable(reason));
        };
        let stream = UnixStream::from(fd);
        stream
            .set_nonblocking(true)
            .map_err(|error| Error::internal(format!("a stream of the guest: {error}")))?;
        Ok(stream)
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        // Closed first, so that our own entry shows; another's on the same port does not.
        self.receiver.close();
        let mut ports = self.streams.ports();
        if ports.waiting.get(&self.port).is_some_and(oneshot::Sender::is_closed) {
            ports.waiting.remove(&self.port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[tokio::test]
    async fn each_stream_arrives_where_it_is_expected() {
        let streams = Streams::default();
        let (one, two) = (streams.expect(), streams.expect());
        assert_eq!(one.port(), FIRST_STREAM_PORT);
        assert_ne!(one.port(), two.port());
        let (mut near, far) = UnixStream::pair().expect("pair");
        streams.deliver(two.port(), far.into());
        let mut stream = two.connected().await.expect("connected");
        stream.write_all(b"x").expect("write");
        let mut byte = [0];
        near.read_exact(&mut byte).expect("read");
        drop(one);
        assert!(streams.ports().waiting.is_empty());
    }

    #[test]
    fn connections_that_nobody_expects_are_closed() {
        let streams = Streams::default();
        let expected = streams.expect();
        let (mut near, far) = UnixStream::pair().expect("pair");
        streams.deliver(expected.port() + 1, far.into());
        assert_eq!(near.read(&mut [0]).expect("closed"), 0);
        let port = expected.port();
        drop(expected);
        let (mut near, far) = UnixStream::pair().expect("pair");
        streams.deliver(port, far.into());
        assert_eq!(near.read(&mut [0]).expect("closed"), 0);
    }

    #[tokio::test]
    async fn waits_fail_with_the_reason_when_the_vm_is_gone() {
        let streams = Streams::default();
        let before = streams.expect();
        streams.close("the guest powered off");
        for expected in [before, streams.expect()] {
            let error = expected.connected().await.expect_err("gone");
            assert_eq!(error, Error::unavailable("the guest powered off"));
        }
    }
}
