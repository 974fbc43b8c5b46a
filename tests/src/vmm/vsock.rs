// SPDX-License-Identifier: Apache-2.0

//! vsock: connections that either side opens carry 100 MB each way, at the same time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept, bind, connect, listen,
    shutdown, socket,
};

use super::{Noise, Run, echo, hash};

const SIZE: u64 = 100_000_000;
/// Port of the host that the guest dials, and of the guest that the host dials.
const HOST_PORT: u32 = 5000;
const GUEST_PORT: u32 = 6000;

pub fn host() {
    let folder = crate::temporary("vsock");
    let path = folder.path().join("vm.sock");
    let listener = UnixListener::bind(format!("{}_{HOST_PORT}", path.display())).expect("listen");
    let running = Run::case("vsock", &["--vsock", &path.display().to_string()]).start();

    echo(accepted(&listener)).expect("echo to the guest");

    // The guest says on another connection that it listens.
    drop(accepted(&listener));
    let mut refused = connected(&path);
    refused.write_all(b"CONNECT 7777\n").expect("ask for a port");
    let mut answer = String::new();
    refused.read_to_string(&mut answer).expect("end of stream");
    assert_eq!(answer, "", "nobody listens at that port");

    let mut stream = BufReader::new(connected(&path));
    stream.get_mut().write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes()).expect("ask");
    let mut answer = String::new();
    stream.read_line(&mut answer).expect("answer");
    assert!(answer.starts_with("OK "), "{answer:?}");
    let mut writer = stream.get_ref().try_clone().expect("clone");
    let sender = std::thread::spawn(move || {
        io::copy(&mut Noise::new(12).take(SIZE), &mut writer)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let received = hash(&mut stream).expect("receive");
    sender.join().expect("sender").expect("send");
    let sent = hash(Noise::new(12).take(SIZE)).expect("hash");
    assert_eq!(received, sent, "what came back from the guest");
    drop(accepted(&listener));

    let outcome = running.wait();
    assert_eq!(outcome.done(), hash(Noise::new(11).take(SIZE)).expect("hash"), "{outcome}");
    println!("100 MB each way on a connection of the guest and on one of the host, by hash");
}

/// Longest silence on a connection.
const DEADLINE: Duration = Duration::from_secs(120);

/// The guest's next connection.
fn accepted(listener: &UnixListener) -> UnixStream {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE).expect("timeout");
    assert_eq!(poll(&mut fds, timeout).expect("poll"), 1, "no connection of the guest in time");
    with_deadline(listener.accept().expect("accept").0)
}

fn connected(path: &Path) -> UnixStream {
    with_deadline(UnixStream::connect(path).expect("connect"))
}

fn with_deadline(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream.set_write_timeout(Some(DEADLINE)).expect("timeout");
    stream
}

pub fn guest() -> io::Result<String> {
    let stream = dial(HOST_PORT)?;
    let mut writer = File::from(stream.try_clone()?);
    let sender = std::thread::spawn(move || {
        io::copy(&mut Noise::new(11).take(SIZE), &mut writer)?;
        shutdown(writer.as_raw_fd(), Shutdown::Write).map_err(io::Error::from)
    });
    let received = hash(File::from(stream))?;
    sender.join().map_err(|_| io::Error::other("the sender panicked"))??;

    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, GUEST_PORT))?;
    listen(&listener, Backlog::new(1)?)?;
    drop(dial(HOST_PORT)?);
    // SAFETY: accept gives a new descriptor that nobody else owns.
    let stream =
        unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(accept(listener.as_raw_fd())?) };
    echo(File::from(stream))?;
    // A VM that is switched off takes what it has just sent with it: wait until the host,
    // which has everything then, closes this connection.
    io::copy(&mut File::from(dial(HOST_PORT)?), &mut io::sink())?;
    Ok(received)
}

/// Connects to a port of the host.
pub fn dial(port: u32) -> io::Result<OwnedFd> {
    let stream = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(stream.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, port))?;
    Ok(stream)
}
