// SPDX-License-Identifier: Apache-2.0

//! A pod's network, by a client on the host at the other end of a veth pair: what a byte takes
//! out of a container and into it, and what a request takes to its answer. Of husk for both of
//! its data paths.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{Instants, LIMIT_MS, Runs, now_ns, repeat};
use crate::traffic::{Wanted, receive, send, want};

pub const OUT: &str = "a byte out";
pub const IN: &str = "a byte in";
pub const REQUEST: &str = "request to answer";

/// Bytes each way of a run.
pub const BYTES: u64 = 32 << 20;
/// Requests of a run, one after the other, of a byte each.
pub const REQUESTS: u64 = 1000;

/// How long nothing may come before the VM counts as hung.
const LIMIT: Duration = Duration::from_millis(LIMIT_MS as u64);

/// Measures against `husk-test-net serve`.
pub fn traffic(server: SocketAddr, rounds: u32) -> Result<Runs, String> {
    repeat(rounds, |_| {
        let mut instants = Instants::new();
        let measured = [(OUT, Wanted::Bytes), (IN, Wanted::Sink), (REQUEST, Wanted::Echo)];
        for (name, wanted) in measured {
            match timed(server, wanted) {
                Ok(took) => instants.insert(name.to_owned(), took),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(format!("{name}: {error}")),
            };
        }
        Ok(Some(instants))
    })
}

/// ns of one exchange, without the connection's beginning.
fn timed(server: SocketAddr, wanted: Wanted) -> io::Result<u64> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    want(&mut stream, wanted, BYTES)?;
    let mut byte = [0];
    let begun = now_ns();
    match wanted {
        Wanted::Bytes => {
            stream.write_all(&[0])?;
            receive(&mut stream, BYTES)?;
        }
        Wanted::Sink => {
            send(&mut stream, BYTES)?;
            // Said when all has been read.
            stream.read_exact(&mut byte)?;
        }
        Wanted::Echo => {
            for _ in 0..REQUESTS {
                stream.write_all(&[0])?;
                stream.read_exact(&mut byte)?;
            }
        }
    }
    Ok(now_ns() - begun)
}
