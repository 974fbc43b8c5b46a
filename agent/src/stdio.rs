// SPDX-License-Identifier: Apache-2.0

//! A process's standard streams: pipes or a pseudo-terminal on its side, one connection
//! per stream on the host's side, and a task for each that copies between them.
//!
//! Pipes, and not the connections themselves, because a process may open /dev/stdout again,
//! which works with a pipe only. A copy holds at most one buffer, so a host that does not
//! read stops the process that writes, and nothing else.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use husk_protocol::agent::Stdio as Ports;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use crate::error::{Doing, Result};
use crate::host::Host;

/// As much as a pipe holds.
const BUFFER: usize = 64 << 10;

/// Streams that are connected to the host, but not yet to a process.
pub struct Connected {
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
    stderr: Option<UnixStream>,
}

/// The copying between a process and the host. Ends by itself when the process's side and
/// the host's are closed; dropping it delivers what is in the pipes and then closes.
pub struct Streams {
    _finish: watch::Sender<()>,
}

impl Connected {
    /// Dials the ports that are not 0.
    pub async fn dial(host: &Host, ports: &Ports) -> Result<Self> {
        let (stdin, stdout, stderr) = tokio::join!(
            dial(host, ports.stdin_port, "stdin"),
            dial(host, ports.stdout_port, "stdout"),
            dial(host, ports.stderr_port, "stderr"),
        );
        Ok(Self { stdin: stdin?, stdout: stdout?, stderr: stderr? })
    }

    /// No streams at all.
    #[cfg(test)]
    pub fn none() -> Self {
        Self { stdin: None, stdout: None, stderr: None }
    }

    /// Makes pipes for the three standard descriptors, owned by `uid` so that the process may open them again, and starts to
    /// copy. Streams without a connection are /dev/null.
    pub fn pipes(self, uid: u32) -> Result<([OwnedFd; 3], Streams)> {
        let (finish, finished) = watch::channel(());
        let stdin = match self.stdin {
            None => null()?,
            Some(stream) => {
                let (read, write) = pipe(uid)?;
                let write = Endpoint::new(write)?;
                tokio::task::spawn_local(copy_in(stream, Rc::new(write), finished.clone()));
                read
            }
        };
        let output = |stream: Option<UnixStream>| match stream {
            None => null(),
            Some(stream) => {
                let (read, write) = pipe(uid)?;
                let read = Endpoint::new(read)?;
                tokio::task::spawn_local(copy_out(Rc::new(read), stream, finished.clone()));
                Ok(write)
            }
        };
        let (stdout, stderr) = (output(self.stdout)?, output(self.stderr)?);
        Ok(([stdin, stdout, stderr], Streams { _finish: finish }))
    }

    /// Starts to copy between the host and the master side of a pseudo-terminal.
    pub fn terminal(self, master: &OwnedFd) -> Result<Streams> {
        let (finish, finished) = watch::channel(());
        let master = Rc::new(Endpoint::new(master.try_clone().doing("duplicate the terminal")?)?);
        if let Some(stream) = self.stdin {
            tokio::task::spawn_local(copy_in(stream, master.clone(), finished.clone()));
        }
        match self.stdout {
            Some(stream) => {
                tokio::task::spawn_local(copy_out(master, stream, finished));
            }
            // Nobody listens, but somebody must read, or the process would stop writing.
            None => {
                tokio::task::spawn_local(discard(master, finished));
            }
        }
        Ok(Streams { _finish: finish })
    }
}

async fn dial(host: &Host, port: u32, name: &str) -> Result<Option<UnixStream>> {
    if port == 0 {
        return Ok(None);
    }
    host.dial(port).await.map(Some).doing(format!("connect {name} to port {port} of the host"))
}

fn null() -> Result<OwnedFd> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).doing("open /dev/null")
}

fn pipe(uid: u32) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).doing("make a pipe")?;
    if uid != 0 {
        let owner = Some(nix::unistd::Uid::from_raw(uid));
        nix::unistd::fchown(&read, owner, None).doing("give a pipe to its user")?;
    }
    Ok((read, write))
}

/// From the host to the process. The host's end of stream closes the pipe; the process's
/// end of reading closes the connection.
async fn copy_in(stream: UnixStream, to: Rc<Endpoint>, mut finished: watch::Receiver<()>) {
    let (mut stream, _unused) = stream.into_split();
    let copy = async {
        let mut buffer = vec![0; BUFFER];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = copy => {}
        _ = finished.changed() => {}
    }
}

/// From the process to the host, to the last byte, and then a half-close.
async fn copy_out(from: Rc<Endpoint>, stream: UnixStream, mut finished: watch::Receiver<()>) {
    let (mut host, mut stream) = stream.into_split();
    if drain(&from, &mut host, &mut stream, &mut finished).await.is_err() {
        return;
    }
    // The process sees from now on that nobody reads.
    drop(from);
    if stream.shutdown().await.is_err() {
        return;
    }
    // Closing now could overtake what the host has not read yet.
    tokio::select! {
        () = closed(&mut host) => {}
        _ = finished.changed() => {}
    }
}

/// Copies until the process's side is closed, or until it is empty once `finished` says
/// so. Fails when the host closes the connection first.
async fn drain(
    from: &Endpoint,
    host: &mut OwnedReadHalf,
    stream: &mut OwnedWriteHalf,
    finished: &mut watch::Receiver<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut host_may_close = true;
    let length = loop {
        let length = tokio::select! {
            biased;
            length = from.read(&mut buffer) => length?,
            () = closed(host), if host_may_close => {
                // Both directions closed is the end; one is the host saying that it has
                // nothing to send, which is so.
                if stream.ready(Interest::WRITABLE).await?.is_write_closed() {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                host_may_close = false;
                continue;
            }
            _ = finished.changed() => break from.try_read(&mut buffer)?,
        };
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    };
    let mut rest = length;
    while let Some(length @ 1..) = rest {
        stream.write_all(&buffer[..length]).await?;
        rest = from.try_read(&mut buffer)?;
    }
    Ok(())
}

async fn discard(from: Rc<Endpoint>, mut finished: watch::Receiver<()>) {
    let read = async {
        let mut buffer = vec![0; 4096];
        while let Ok(1..) = from.read(&mut buffer).await {}
    };
    tokio::select! {
        () = read => {}
        _ = finished.changed() => {}
    }
}

/// Returns when the host sends no more. What it sent is dropped: output has no input.
async fn closed(host: &mut OwnedReadHalf) {
    let mut scratch = [0; 64];
    while let Ok(1..) = host.read(&mut scratch).await {}
}

/// The agent's end of a pipe, or of a pseudo-terminal.
struct Endpoint {
    fd: AsyncFd<OwnedFd>,
}

impl Endpoint {
    fn new(fd: OwnedFd) -> Result<Self> {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).doing("read a stream's flags")?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).doing("make a stream non-blocking")?;
        // SAFETY: an OwnedFd's descriptor stays the same and open until it is dropped.
        Ok(Self { fd: unsafe { AsyncFd::register(fd) }.doing("poll a stream")? })
    }

    /// Reads at least a byte; 0 at the end of the stream. Safe to cancel.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |fd: &AsyncFd<OwnedFd>| read_once(fd.get_ref(), buffer);
        let mut read = read;
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(result) = ready.try_io(&mut read) {
                return result;
            }
        }
    }

    /// Reads what is there; `None` if nothing is.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match read_once(self.fd.get_ref(), buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => result.map(Some),
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            if let Ok(written) =
                ready.try_io(|fd| nix::unistd::write(fd.get_ref(), bytes).map_err(io::Error::from))
            {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }
}

fn read_once(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    match nix::unistd::read(fd, buffer) {
        // The last process that held the terminal has closed it.
        Err(nix::Error::EIO) => Ok(0),
        result => result.map_err(io::Error::from),
    }
}

/// Sets the size of a terminal, through either of its sides.
pub fn set_size(terminal: &OwnedFd, rows: u32, cols: u32) -> Result<()> {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let size =
        libc::winsize { ws_row: clamp(rows), ws_col: clamp(cols), ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which is alive during the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 {
        return Err(io::Error::last_os_error()).doing("set the size of the terminal");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::LocalSet;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// Runs a test where tasks can be spawned.
    fn local<F: Future<Output = ()>>(test: F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        LocalSet::new().block_on(&runtime.expect("runtime"), async {
            timeout(SOON, test).await.expect("the test hangs");
        });
    }

    fn connected(stdin: bool, stdout: bool) -> (Connected, Option<UnixStream>, Option<UnixStream>) {
        let pair = |wanted: bool| {
            wanted
                .then(|| UnixStream::pair().expect("pair"))
                .map_or((None, None), |(a, b)| (Some(a), Some(b)))
        };
        let ((stdin, host_in), (stdout, host_out)) = (pair(stdin), pair(stdout));
        (Connected { stdin, stdout, stderr: None }, host_in, host_out)
    }

    fn blocking_write(fd: OwnedFd, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            let mut file = std::fs::File::from(fd);
            std::io::Write::write_all(&mut file, &bytes).expect("write");
        })
    }

    #[test]
    fn output_arrives_whole_and_ends_with_a_half_close() {
        local(async {
            let (connected, _, host) = connected(false, true);
            let mut host = host.expect("stdout");
            let ([_stdin, child, _], _streams) = connected.pipes(0).expect("pipes");
            let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
            let writer = blocking_write(child, bytes.clone());
            let mut read = Vec::new();
            host.read_to_end(&mut read).await.expect("read");
            writer.join().expect("writer");
            assert_eq!(read.len(), bytes.len());
            assert!(read == bytes);
        });
    }

    #[test]
    fn input_ends_where_the_host_ends_it() {
        local(async {
            let (connected, host, _) = connected(true, false);
            let mut host = host.expect("stdin");
            let ([child, _, _], _streams) = connected.pipes(0).expect("pipes");
            host.write_all(b"hello").await.expect("write");
            host.shutdown().await.expect("shutdown");
            let child = Endpoint::new(child).expect("endpoint");
            let mut buffer = [0; 16];
            assert_eq!(child.read(&mut buffer).await.expect("read"), 5);
            assert_eq!(child.read(&mut buffer).await.expect("read"), 0);
        });
    }

    #[test]
    fn a_host_that_half_closes_an_output_still_gets_it() {
        local(async {
            let (connected, _, host) = connected(false, true);
            let mut host = host.expect("stdout");
            let ([_stdin, child, _], _streams) = connected.pipes(0).expect("pipes");
            host.shutdown().await.expect("shutdown");
            // Delivered after the half-close was there to be seen: it has been seen.
            let mut early = [0; 5];
            nix::unistd::write(&child, b"early").expect("write");
            host.read_exact(&mut early).await.expect("read");
            nix::unistd::write(&child, b"late").expect("write");
            drop(child);
            let mut read = Vec::new();
            host.read_to_end(&mut read).await.expect("read");
            assert_eq!(&early, b"early");
            assert_eq!(read, b"late");
        });
    }

    #[test]
    fn a_host_that_goes_away_closes_the_pipe() {
        local(async {
            let (connected, _, host) = connected(false, true);
            let ([_stdin, child, _], _streams) = connected.pipes(0).expect("pipes");
            drop(host);
            let child = Endpoint::new(child).expect("endpoint");
            loop {
                if child.write_all(&[0; 4096]).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
    }

    #[test]
    fn dropping_the_streams_delivers_what_was_written() {
        local(async {
            let (connected, _, host) = connected(false, true);
            let mut host = host.expect("stdout");
            let ([_stdin, child, _], streams) = connected.pipes(0).expect("pipes");
            nix::unistd::write(&child, b"tail").expect("write");
            drop(streams);
            let mut read = Vec::new();
            // The process's end is still open.
            host.read_to_end(&mut read).await.expect("read");
            assert_eq!(read, b"tail");
        });
    }

    #[test]
    fn a_terminal_delivers_its_tail_and_then_ends() {
        local(async {
            let (connected, _, host) = connected(false, true);
            let mut host = host.expect("stdout");
            let pty = nix::pty::openpty(None, None).expect("openpty");
            let _streams = connected.terminal(&pty.master).expect("terminal");
            drop(pty.master);
            nix::unistd::write(&pty.slave, b"last words").expect("write");
            drop(pty.slave);
            let mut read = Vec::new();
            host.read_to_end(&mut read).await.expect("read");
            assert_eq!(read, b"last words");
        });
    }
}
