// SPDX-License-Identifier: Apache-2.0

//! Sockets and FIFOs that have a name in the directory, between processes here.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::calls::*;
use super::process::{ALICE, as_user, start};
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("a_stream_socket_is_bound_and_reached", a_stream_socket_is_bound_and_reached),
    ("a_datagram_socket_is_bound_and_reached", a_datagram_socket_is_bound_and_reached),
    ("a_sockets_name_is_a_file", a_sockets_name_is_a_file),
    ("sockets_obey_modes", sockets_obey_modes),
    ("a_fifo_joins_processes", a_fifo_joins_processes),
    ("a_fifo_has_no_size_and_many_openers", a_fifo_has_no_size_and_many_openers),
];

fn a_stream_socket_is_bound_and_reached() -> Outcome {
    let listener = UnixListener::bind("socket")?;
    let server = start(|| {
        let (mut stream, _) = listener.accept()?;
        let mut question = [0; 5];
        stream.read_exact(&mut question)?;
        Ok(stream.write_all(&question.map(|byte| byte.to_ascii_uppercase()))?)
    })?;
    let mut stream = UnixStream::connect("socket")?;
    stream.write_all(b"hello")?;
    same("answer", std::io::read_to_string(&stream)?, "HELLO".to_owned())?;
    server.end()
}

fn a_datagram_socket_is_bound_and_reached() -> Outcome {
    let receiver = UnixDatagram::bind("receiver")?;
    let sender = UnixDatagram::bind("sender")?;
    sender.send_to(b"hello", "receiver")?;
    let mut bytes = [0; 10];
    let (len, from) = receiver.recv_from(&mut bytes)?;
    same("datagram", &bytes[..len], b"hello")?;
    same("sender", from.as_pathname(), Some(std::path::Path::new("sender")))
}

fn a_sockets_name_is_a_file() -> Outcome {
    let listener = UnixListener::bind("socket")?;
    same("kind", kind(&stat("socket")?), FileType::Socket)?;
    let again = UnixListener::bind("socket").err().and_then(|error| error.raw_os_error());
    same("a second bind", again, Some(libc::EADDRINUSE))?;
    rename("socket", "moved")?;
    link("moved", "link")?;
    symlink("moved", "symlink")?;
    for name in ["moved", "link", "symlink"] {
        UnixStream::connect(name)?;
    }
    drop(listener);
    let dead = UnixStream::connect("moved").err().and_then(|error| error.raw_os_error());
    same("a connection to nobody", dead, Some(libc::ECONNREFUSED))?;
    create("file")?;
    let file = UnixStream::connect("file").err().and_then(|error| error.raw_os_error());
    same("a connection to a file", file, Some(libc::ECONNREFUSED))?;
    unlink("moved")?;
    let gone = UnixStream::connect("moved").err().and_then(|error| error.raw_os_error());
    same("a connection to no name", gone, Some(libc::ENOENT))
}

fn sockets_obey_modes() -> Outcome {
    let _listener = UnixListener::bind("socket")?;
    chmod("socket", 0o600)?;
    as_user(ALICE, || {
        let error = UnixStream::connect("socket").err().and_then(|error| error.raw_os_error());
        same("a stranger's connection", error, Some(libc::EACCES))
    })?;
    chmod("socket", 0o666)?;
    as_user(ALICE, || Ok(UnixStream::connect("socket").map(drop)?))
}

fn a_fifo_joins_processes() -> Outcome {
    mknod("fifo", FileType::Fifo, 0o644, 0)?;
    let writer = start(|| {
        let mut fifo = open("fifo", OFlags::WRONLY)?;
        for number in 0..1000u32 {
            fifo.write_all(&number.to_le_bytes())?;
        }
        Ok(())
    })?;
    let mut content = Vec::new();
    open("fifo", OFlags::RDONLY)?.read_to_end(&mut content)?;
    writer.end()?;
    let numbers =
        content.chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap_or_default()));
    holds("all that was written, in order", numbers.eq(0..1000))
}

fn a_fifo_has_no_size_and_many_openers() -> Outcome {
    mknod("fifo", FileType::Fifo, 0o644, 0)?;
    refused(open("fifo", OFlags::WRONLY | OFlags::NONBLOCK), Errno::NXIO)?;
    let reader = open("fifo", OFlags::RDONLY | OFlags::NONBLOCK)?;
    let (mut a, mut b) = (open("fifo", OFlags::WRONLY)?, open("fifo", OFlags::WRONLY)?);
    a.write_all(b"a")?;
    b.write_all(b"b")?;
    same("size", stat("fifo")?.st_size, 0)?;
    let mut bytes = [0; 10];
    let len = rustix::io::read(&reader, &mut bytes)?;
    same("content", &bytes[..len], b"ab")?;
    refused(rustix::io::read(&reader, &mut bytes), Errno::AGAIN)?;
    drop((a, b));
    same("end of file", rustix::io::read(&reader, &mut bytes)?, 0)
}
