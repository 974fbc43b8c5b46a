// SPDX-License-Identifier: Apache-2.0

//! Traffic of many small parts, between the host and a container: an echo server of both
//! kinds, many short connections, and datagrams of all sizes, and what the benchmark sends.
//! `husk-test-net` does the same inside a container.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

/// Lengths of datagrams: least, around what fits into a frame of 1500 bytes over IPv4 and
/// IPv6, and the most that UDP has.
pub const DATAGRAMS: [usize; 8] = [1, 1452, 1453, 1472, 1473, 4000, 9000, 65507];

/// Bytes of a connection.
const SHORT: usize = 100;

/// How long an answer may take before a datagram is sent again: one may be lost.
const AGAIN: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 30;

/// linux/udp.h.
const UDP_SEGMENT: libc::c_int = 103;

/// Answers every connection and every datagram at a port with what it brings, for ever.
pub fn echo(port: u16) -> io::Result<()> {
    // Of both families.
    let datagrams = UdpSocket::bind(("::", port))?;
    let listener = TcpListener::bind(("::", port))?;
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, from)) = datagrams.recv_from(&mut buffer) {
            // Nobody may be there any more.
            let _ = datagrams.send_to(&buffer[..len], from);
        }
    });
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut bytes = Vec::new();
        if stream.read_to_end(&mut bytes).is_ok() {
            let _ = stream.write_all(&bytes);
        }
    }
}

/// What a client wants of [`serve`].
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// So many bytes, after one that says when.
    Bytes,
    /// A byte when so many have come.
    Sink,
    /// Each byte back as it comes.
    Echo,
}

/// Says what is wanted, on a new connection to [`serve`].
pub fn want(stream: &mut TcpStream, wanted: Wanted, len: u64) -> io::Result<()> {
    let mut order = vec![wanted as u8];
    order.extend(len.to_be_bytes());
    stream.write_all(&order)
}

/// Does for one client after the other what it wants, for ever. Says so when it begins.
pub fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("::", port))?;
    println!("up");
    loop {
        let (stream, _) = listener.accept()?;
        // A client may break off.
        let _ = serve_one(stream);
    }
}

fn serve_one(mut stream: TcpStream) -> io::Result<()> {
    let mut order = [0; 9];
    stream.read_exact(&mut order)?;
    stream.set_nodelay(true)?;
    let [wanted, len @ ..] = order;
    let (len, mut byte) = (u64::from_be_bytes(len), [0]);
    if wanted == Wanted::Bytes as u8 {
        stream.read_exact(&mut byte)?;
        send(&mut stream, len)
    } else if wanted == Wanted::Sink as u8 {
        receive(&mut stream, len)?;
        stream.write_all(&byte)
    } else {
        loop {
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
    }
}

/// Bytes of a call.
const PIECE: usize = 64 << 10;

/// Sends so many zeros.
pub fn send(stream: &mut TcpStream, len: u64) -> io::Result<()> {
    let zeros = vec![0; PIECE];
    let mut missing = len as usize;
    while missing > 0 {
        missing -= stream.write(&zeros[..missing.min(PIECE)])?;
    }
    Ok(())
}

/// Receives so many bytes.
pub fn receive(stream: &mut TcpStream, len: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut missing = len as usize;
    while missing > 0 {
        match stream.read(&mut buffer[..missing.min(PIECE)])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            received => missing -= received,
        }
    }
    Ok(())
}

/// Makes so many connections to an echo server, one after the other, and checks what each
/// brings back.
pub fn connect(to: SocketAddr, count: u32) -> io::Result<()> {
    for number in 0..count {
        let mut stream = TcpStream::connect_timeout(&to, AGAIN * ATTEMPTS)?;
        stream.set_read_timeout(Some(AGAIN * ATTEMPTS))?;
        let bytes = pattern(SHORT, number);
        stream.write_all(&bytes)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        if back != bytes {
            return Err(wrong(format!("connection {number} brought {} bytes", back.len())));
        }
    }
    Ok(())
}

/// Sends datagrams of these lengths to an echo server and checks what comes back.
pub fn datagrams(to: SocketAddr, lengths: &[usize]) -> io::Result<()> {
    let socket = socket_for(to)?;
    for &len in lengths {
        let sent = pattern(len, len as u32);
        let mut back = vec![0; len + 1];
        let mut attempts = 0;
        loop {
            socket.send(&sent)?;
            match socket.recv(&mut back) {
                Ok(received) if back[..received] == sent => break,
                // Late, of one that was sent again.
                Ok(received) if lengths.contains(&received) && received != len => {}
                Ok(received) => return Err(wrong(format!("{received} bytes for {len}"))),
                Err(error) if error.kind() == ErrorKind::WouldBlock && attempts < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
            attempts += 1;
        }
    }
    Ok(())
}

/// Sends many datagrams by one call, which the kernel, a device or the host takes apart, and
/// checks that an echo server gets and returns them one by one.
pub fn segments(to: SocketAddr, len: u16, count: usize) -> io::Result<()> {
    let socket = socket_for(to)?;
    let size = libc::c_int::from(len);
    // SAFETY: the option is an int, which is alive during the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            UDP_SEGMENT,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let parts: Vec<Vec<u8>> =
        (0..count).map(|number| pattern(usize::from(len), number as u32)).collect();
    let mut missing: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    for _ in 0..ATTEMPTS {
        socket.send(&parts.concat())?;
        let mut back = vec![0; usize::from(len) + 1];
        while !missing.is_empty() {
            match socket.recv(&mut back) {
                Ok(received) if !parts.iter().any(|part| *part == back[..received]) => {
                    return Err(wrong(format!("a datagram of {received} bytes")));
                }
                Ok(received) => missing.retain(|part| *part != &back[..received]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
    }
    Err(wrong(format!("{} of {count} datagrams did not come back", missing.len())))
}

fn socket_for(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(AGAIN))?;
    Ok(socket)
}

/// Bytes that differ from those of other numbers.
fn pattern(len: usize, number: u32) -> Vec<u8> {
    let mut state = number.wrapping_mul(2_654_435_761).wrapping_add(1);
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}

fn wrong(text: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_comes_back() {
        let port = {
            let free = TcpListener::bind(("::", 0)).expect("a free port");
            free.local_addr().expect("an address").port()
        };
        thread::spawn(move || echo(port));
        for host in ["127.0.0.1", "::1"] {
            let to = SocketAddr::new(host.parse().expect("an address"), port);
            while TcpStream::connect(to).is_err() {}
            connect(to, 3).expect("connections");
            datagrams(to, &DATAGRAMS).expect("datagrams");
            segments(to, 1000, 20).expect("segments");
        }
    }
}
