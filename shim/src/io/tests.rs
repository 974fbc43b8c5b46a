// SPDX-License-Identifier: Apache-2.0

//! Real FIFOs in a directory of the test's own; the guest's streams are socket pairs.

use super::*;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use husk_sandbox::{Pidfd, Streams};

const OWNER: Owner<'static> = Owner { container: "c1", namespace: "ns" };

struct Place {
    dir: tempfile::TempDir,
    streams: Streams,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().expect("directory"), streams: Streams::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A FIFO, by path.
    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        path.display().to_string()
    }

    async fn open(&self, stdio: &Stdio) -> Result<(Io, Terminal), Error> {
        Io::open(stdio, OWNER, || self.streams.expect()).await
    }

    /// The guest connects to a port; its end.
    fn connect(&self, port: u32) -> UnixStream {
        let (guest, host) = UnixStream::pair().expect("pair");
        self.streams.deliver(port, host.into());
        guest
    }
}

fn open_now(path: &str, options: &mut OpenOptions) -> File {
    options.custom_flags(libc::O_NONBLOCK).open(path).expect("open")
}

/// Reads until the end or `len` bytes, on a thread, as a client would.
async fn read(mut from: impl Read + Send + 'static, len: usize) -> Vec<u8> {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        (&mut from).take(len as u64).read_to_end(&mut bytes).expect("read");
        bytes
    })
    .await
    .expect("reader")
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn outputs_are_kept_apart_and_end_with_the_guests() {
    let place = Place::new();
    let stdio = Stdio { stdout: place.fifo("out"), stderr: place.fifo("err"), ..Stdio::default() };
    let (io, ports) = place.open(&stdio).await.expect("open");
    assert_eq!(ports.stdin_port, 0);
    let data = pattern(3 << 20);
    let mut guest = (place.connect(ports.stdout_port), place.connect(ports.stderr_port));
    let sent = data.clone();
    let writer = std::thread::spawn(move || {
        guest.0.write_all(&sent).expect("stdout");
        guest.1.write_all(b"errors").expect("stderr");
    });
    let (out, err) = (fs::File::open, stdio.stderr.clone());
    let stdout = stdio.stdout.clone();
    let out = tokio::task::spawn_blocking(move || out(stdout).expect("open")).await.expect("open");
    let err = tokio::task::spawn_blocking(move || fs::File::open(err).expect("open"));
    let (out, err) = tokio::join!(read(out, usize::MAX), read(err.await.expect("open"), 99));
    assert!(out == data, "{} bytes", out.len());
    assert_eq!(err, b"errors");
    writer.join().expect("writer");
    drain(vec![io]).await;
}

#[tokio::test]
async fn a_reader_may_go_away_and_come_back() {
    let place = Place::new();
    let stdio = Stdio { stdout: place.fifo("out"), ..Stdio::default() };
    let (io, ports) = place.open(&stdio).await.expect("open");
    let mut guest = place.connect(ports.stdout_port);
    let reader = fs::File::open(&stdio.stdout).expect("open");
    guest.write_all(b"one").expect("write");
    assert_eq!(read(reader, 3).await, b"one");
    // Nobody reads now. What is written waits for the next reader.
    guest.write_all(b"two").expect("write");
    let reader = fs::File::open(&stdio.stdout).expect("open");
    assert_eq!(read(reader, 3).await, b"two");
    drop(io);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_holds_a_drain_up_only_so_long() {
    let place = Place::new();
    let stdio = Stdio { stdout: place.fifo("out"), ..Stdio::default() };
    let (io, ports) = place.open(&stdio).await.expect("open");
    let mut guest = place.connect(ports.stdout_port);
    guest.set_nonblocking(true).expect("nonblocking");
    let _reader = open_now(&stdio.stdout, OpenOptions::new().read(true));
    // As much as the socket and the FIFO take; then the guest has to wait, and nothing is
    // held in this process.
    let mut taken = 0;
    let chunk = pattern(64 << 10);
    loop {
        match guest.write(&chunk) {
            Ok(len) => taken += len,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                tokio::task::yield_now().await;
                if guest.write(b"x").is_err() {
                    break;
                }
            }
        }
        assert!(taken < 8 << 20, "somebody takes it all");
    }
    // One to which the guest never connects waits at the same time, not after it.
    let stdio = Stdio { stdout: place.fifo("other"), ..Stdio::default() };
    let (other, _) = place.open(&stdio).await.expect("open");
    let started = tokio::time::Instant::now();
    drain(vec![io, other]).await;
    let took = started.elapsed();
    assert!(took >= DRAIN_LIMIT && took < 2 * DRAIN_LIMIT, "{took:?}");
    // Its stream is closed.
    guest.set_nonblocking(false).expect("blocking");
    assert!(guest.write_all(&chunk).is_err());
}

#[tokio::test]
async fn stdin_ends_only_by_close_io_and_after_what_was_written() {
    let place = Place::new();
    let stdio = Stdio { stdin: place.fifo("in"), ..Stdio::default() };
    let (mut io, ports) = place.open(&stdio).await.expect("open");
    let guest = place.connect(ports.stdin_port);
    assert!(
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&stdio.stdin).is_err(),
        "a client cannot write before the start"
    );
    io.open_stdin().expect("stdin");
    // One client writes and goes away; that is not the end.
    open_now(&stdio.stdin, OpenOptions::new().write(true)).write_all(b"one ").expect("write");
    let copy = guest.try_clone().expect("clone");
    assert_eq!(read(copy, 4).await, b"one ");
    // Another says CloseIO before it closes, as ctr does.
    let mut client = open_now(&stdio.stdin, OpenOptions::new().write(true));
    client.write_all(b"two").expect("write");
    io.close_stdin();
    client.write_all(b" and three").expect("write");
    drop(client);
    assert_eq!(read(guest, usize::MAX).await, b"two and three");
}

#[tokio::test]
async fn close_io_before_the_guest_connects_is_not_lost() {
    let place = Place::new();
    let stdio = Stdio { stdin: place.fifo("in"), ..Stdio::default() };
    let mut client = {
        // The client opens its side first and finds a reader later; O_RDWR waits for nobody.
        let path = place.path("in");
        OpenOptions::new().read(true).write(true).open(path).expect("open")
    };
    client.write_all(b"early").expect("write");
    let (mut io, ports) = place.open(&stdio).await.expect("open");
    io.close_stdin();
    io.open_stdin().expect("stdin");
    drop(client);
    let guest = place.connect(ports.stdin_port);
    assert_eq!(read(guest, usize::MAX).await, b"early");
}

#[tokio::test]
async fn a_process_that_closes_its_stdin_is_no_trouble() {
    let place = Place::new();
    let stdio = Stdio { stdin: place.fifo("in"), ..Stdio::default() };
    let (mut io, ports) = place.open(&stdio).await.expect("open");
    drop(place.connect(ports.stdin_port));
    io.open_stdin().expect("stdin");
    let mut client = open_now(&stdio.stdin, OpenOptions::new().write(true));
    let writer = tokio::task::spawn_blocking(move || client.write_all(b"nobody listens"));
    writer.await.expect("joined").expect("it fits into the FIFO");
    let Stdin::Open { _feed: mut feed, .. } = std::mem::take(&mut io.stdin) else {
        panic!("not open")
    };
    (&mut feed.0).await.expect("the task ends");
}

#[tokio::test]
async fn no_paths_are_dev_null() {
    let place = Place::new();
    let (io, ports) = place.open(&Stdio::default()).await.expect("open");
    assert_eq!((ports.stdin_port, ports.stdout_port, ports.stderr_port), (0, 0, 0));
    drain(vec![io]).await;
}

#[tokio::test]
async fn a_terminal_has_one_output() {
    let place = Place::new();
    let stdio = Stdio {
        stdout: place.fifo("out"),
        stderr: place.path("never opened").display().to_string(),
        terminal: true,
        ..Stdio::default()
    };
    let (_io, ports) = place.open(&stdio).await.expect("open");
    assert!(ports.terminal && ports.stdout_port != 0 && ports.stderr_port == 0);
}

#[tokio::test]
async fn a_log_file_takes_both_outputs() {
    let place = Place::new();
    let path = place.path("deep/down/log");
    let stdio = Stdio { stdout: format!("file://{}", path.display()), ..Stdio::default() };
    for round in ["a", "b"] {
        let (io, ports) = place.open(&stdio).await.expect("open");
        place.connect(ports.stdout_port).write_all(round.as_bytes()).expect("stdout");
        place.connect(ports.stderr_port).write_all(round.as_bytes()).expect("stderr");
        drain(vec![io]).await;
    }
    assert_eq!(fs::read_to_string(&path).expect("log"), "aabb");
    assert_eq!(fs::metadata(&path).expect("log").permissions().mode() & 0o777, 0o644);
}

#[tokio::test]
async fn a_logging_program_gets_what_it_is_promised() {
    let place = Place::new();
    let script = place.path("logger");
    let out = place.path("log");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\ntrap '' TERM\nprintf r >&5\nexec 5>&-\n\
             {{ echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\"; cat <&3; cat <&4; }} > {}.part\n\
             mv {0}.part {0}\n",
            out.display()
        ),
    )
    .expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("mode");
    let stdio =
        Stdio { stdout: format!("binary://{}?k=v&flag", script.display()), ..Stdio::default() };
    let (io, ports) = place.open(&stdio).await.expect("open");
    place.connect(ports.stdout_port).write_all(b"out ").expect("stdout");
    place.connect(ports.stderr_port).write_all(b"err").expect("stderr");
    let logger = io.logger.as_ref().and_then(Logger::pid).expect("running");
    let ended = Pidfd::open(logger).expect("pidfd");
    drain(vec![io]).await;
    let ended = tokio::task::spawn_blocking(move || ended.wait(Duration::from_secs(10)));
    assert!(ended.await.expect("joined"));
    assert_eq!(fs::read_to_string(&out).expect("log"), "c1 ns k v flag \nout err");
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let place = Place::new();
    let regular = place.path("regular");
    fs::write(&regular, b"").expect("file");
    let path = |name: &str| place.path(name).display().to_string();
    for (stdio, part) in [
        (Stdio { stdout: path("none"), ..Stdio::default() }, "none"),
        (Stdio { stdin: path("none"), ..Stdio::default() }, "none"),
        (Stdio { stdin: path("regular"), ..Stdio::default() }, "not a FIFO"),
        (Stdio { stdout: "http://x/y".into(), ..Stdio::default() }, "http://"),
        (Stdio { stdout: "binary:///nonexistent".into(), ..Stdio::default() }, "/nonexistent"),
        (Stdio { stderr: "binary:///bin/true".into(), ..Stdio::default() }, "stderr"),
    ] {
        let error = place.open(&stdio).await.expect_err(part);
        assert!(error.message.contains(part), "{error}");
    }
}
