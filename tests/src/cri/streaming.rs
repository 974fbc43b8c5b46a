// SPDX-License-Identifier: Apache-2.0

//! What Exec, Attach and PortForward answer with: a URL for a WebSocket (RFC 6455) that speaks
//! Kubernetes' `v4.channel.k8s.io`. Each message is a channel's number and bytes for it. In
//! this protocol no channel can be closed by itself.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::api;
use super::container::Container;
use super::pod::Pod;
use crate::containerd::process::LIMIT;

/// Channels of Exec and Attach.
pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const STATUS: u8 = 3;
pub const RESIZE: u8 = 4;

/// Channels of PortForward for one port; both begin with its number.
pub const DATA: u8 = 0;
pub const ERROR: u8 = 1;

const CHANNELS: usize = 5;

/// Opcodes of frames.
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Larger messages are sent as several.
const MAX_SENT: usize = 32 << 10;

/// Which of a process's streams a client wants.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wants {
    pub stdin: bool,
    pub tty: bool,
}

impl Container<'_> {
    /// Starts a process in it whose streams are the channels.
    #[track_caller]
    pub fn exec_stream(&self, command: &[&str], wants: Wants) -> Channels {
        let request = api::ExecRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            stdin: wants.stdin,
            stdout: true,
            stderr: !wants.tty,
            tty: wants.tty,
            ..Default::default()
        };
        let answer: api::ExecResponse = self.pod.cri.ask("Exec", &request).expect("Exec");
        Channels::open(&answer.url)
    }

    /// Attaches to its first process.
    #[track_caller]
    pub fn attach(&self, wants: Wants) -> Channels {
        let request = api::AttachRequest {
            container_id: self.id.clone(),
            stdin: wants.stdin,
            stdout: true,
            stderr: !wants.tty,
            tty: wants.tty,
            ..Default::default()
        };
        let answer: api::AttachResponse = self.pod.cri.ask("Attach", &request).expect("Attach");
        Channels::open(&answer.url)
    }
}

impl Pod<'_> {
    /// Connects to a port of its localhost.
    #[track_caller]
    pub fn forward(&self, port: u16) -> Channels {
        let request = api::PortForwardRequest {
            pod_sandbox_id: self.id.clone(),
            port: vec![port.into()],
            ..Default::default()
        };
        let answer: api::PortForwardResponse =
            self.cri.ask("PortForward", &request).expect("PortForward");
        let channels = Channels::open(&answer.url);
        // Both are greeted with the port's number.
        for channel in [DATA, ERROR] {
            let greeting = channels.until_bytes(channel, 2);
            assert_eq!(greeting, port.to_le_bytes(), "channel {channel}");
            channels.drop_bytes(channel, 2);
        }
        channels
    }
}

/// A connection. Dropping it closes it.
pub struct Channels {
    stream: TcpStream,
    received: Arc<Received>,
}

#[derive(Default)]
struct Received {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    channels: [Vec<u8>; CHANNELS],
    ended: bool,
}

impl Channels {
    #[track_caller]
    fn open(url: &str) -> Channels {
        let (address, path) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .unwrap_or_else(|| panic!("the URL of a server: {url}"));
        let stream = TcpStream::connect(address).expect("connect to containerd's streaming server");
        stream.set_write_timeout(Some(LIMIT)).expect("a limit");
        write!(
            &stream,
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: aHVzayBodXNrIGh1c2sgaA==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )
        .expect("ask for a WebSocket");
        let mut reader = BufReader::new(stream.try_clone().expect("a duplicate"));
        let head = read_head(&mut reader).expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let received = Arc::new(Received::default());
        let channels = Channels { stream, received: received.clone() };
        let stream = channels.stream.try_clone().expect("a duplicate");
        thread::spawn(move || {
            // Its end is all that counts; what is missing then, the case notices.
            let _ = receive(&mut reader, &stream, &received);
            received.lock().ended = true;
            received.changed.notify_all();
        });
        channels
    }

    /// Sends bytes to a channel.
    #[track_caller]
    pub fn send(&self, channel: u8, bytes: &[u8]) {
        for piece in bytes.chunks(MAX_SENT) {
            let message = [&[channel][..], piece].concat();
            send_frame(&self.stream, BINARY, &message).expect("send to a channel");
        }
    }

    /// Sets the size of the terminal.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        self.send(RESIZE, size.as_bytes());
    }

    /// What has come on a channel so far.
    pub fn said(&self, channel: u8) -> String {
        let state = self.received.lock();
        String::from_utf8_lossy(&state.channels[usize::from(channel)]).into_owned()
    }

    /// Waits until these words have come on a channel.
    #[track_caller]
    pub fn until_said(&self, channel: u8, words: &str) {
        let found = self.wait(|state| {
            String::from_utf8_lossy(&state.channels[usize::from(channel)]).contains(words)
        });
        assert!(
            found,
            "channel {channel} does not say {words:?}; it said {:?}",
            self.said(channel)
        );
    }

    /// Waits until so many bytes have come on a channel; these.
    #[track_caller]
    pub fn until_bytes(&self, channel: u8, count: usize) -> Vec<u8> {
        let channel = usize::from(channel);
        let enough = self.wait(|state| state.channels[channel].len() >= count);
        let state = self.received.lock();
        assert!(enough, "{} bytes have come, not {count}", state.channels[channel].len());
        state.channels[channel][..count].to_vec()
    }

    /// Takes bytes that have come away.
    fn drop_bytes(&self, channel: u8, count: usize) {
        self.received.lock().channels[usize::from(channel)].drain(..count);
    }

    /// Waits for the server to close the connection; all that came on a channel.
    #[track_caller]
    pub fn to_its_end(&self, channel: u8) -> String {
        assert!(self.wait(|state| state.ended), "the server does not close the connection");
        self.said(channel)
    }

    /// Waits for its end; the exit code that the server told.
    #[track_caller]
    pub fn exit_code(&self) -> i32 {
        let text = self.to_its_end(STATUS);
        let status: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text:?}"));
        if status["status"] == "Success" {
            return 0;
        }
        let causes = status["details"]["causes"].as_array();
        let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
        let code = code.and_then(|cause| cause["message"].as_str()?.parse().ok());
        code.unwrap_or_else(|| panic!("no exit code: {text}"))
    }

    /// Waits for a condition, or for the end; whether it holds.
    fn wait(&self, condition: impl Fn(&State) -> bool) -> bool {
        let end = Instant::now() + LIMIT;
        let mut state = self.received.lock();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if condition(&state) || state.ended || left.is_zero() {
                return condition(&state);
            }
            let waited = self.received.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Received {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    Ok(head)
}

/// Takes messages in until the server closes.
fn receive(reader: &mut impl Read, stream: &TcpStream, received: &Received) -> io::Result<()> {
    loop {
        let mut head = [0; 2];
        reader.read_exact(&mut head)?;
        let len = match head[1] {
            126 => u16::from_be_bytes(read(reader)?).into(),
            127 => u64::from_be_bytes(read(reader)?),
            len => len.into(),
        };
        let mut message = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        reader.read_exact(&mut message)?;
        match (head[0] & 0xf, message.split_first()) {
            (TEXT | BINARY, Some((&channel, bytes))) => {
                let mut state = received.lock();
                let channel = state.channels.get_mut(usize::from(channel));
                channel.ok_or_else(|| io::Error::other("no such channel"))?.extend(bytes);
                received.changed.notify_all();
            }
            (CLOSE, _) => return Ok(()),
            (PING, _) => send_frame(stream, PONG, &message)?,
            _ => {}
        }
    }
}

fn read<const LEN: usize>(reader: &mut impl Read) -> io::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    reader.read_exact(&mut bytes).map(|()| bytes)
}

/// A client masks what it sends, here with zeroes.
fn send_frame(mut stream: &TcpStream, opcode: u8, message: &[u8]) -> io::Result<()> {
    const LAST: u8 = 0x80;
    const MASKED: u8 = 0x80;
    let mut frame = vec![LAST | opcode];
    match u16::try_from(message.len()).map_err(io::Error::other)? {
        len @ 0..126 => frame.push(MASKED | len as u8),
        len => {
            frame.push(MASKED | 126);
            frame.extend(len.to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend_from_slice(message);
    stream.write_all(&frame)
}
