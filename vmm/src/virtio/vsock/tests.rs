// SPDX-License-Identifier: Apache-2.0

//! The device, driven as the guest's driver would.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::tempdir::TempDir;

use super::connection::BUF_ALLOC;
use super::packet::{HEADER_LEN, Header, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, op};
use super::table::MAX_CONNECTIONS;
use super::{GUEST_CID, HOST_CID, HostPaths, HostSide, Vsock};
use crate::memory::{Bytes, GuestAddress, GuestRam};
use crate::virtio::VirtioDevice;
use crate::virtio::driver::{self, DEADLINE, Ring};

const RX_BUFFER: u32 = 256;
const RX_COUNT: u16 = 32;
const RINGS: u64 = 0x10000;
const RX_AREA: u64 = 0x20000;
const TX_AREA: u64 = 0x40000;
const PORT: u32 = 1024;

/// Accepts connections of the guest to PORT; the test gets the other ends.
struct Streams(Mutex<std::sync::mpsc::Sender<UnixStream>>);

impl HostSide for Streams {
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        if port != PORT {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = UnixStream::pair()?;
        far.set_read_timeout(Some(DEADLINE))?;
        far.set_write_timeout(Some(DEADLINE))?;
        let _ = self.0.lock().expect("lock").send(far);
        Ok(near)
    }
}

/// A guest with its driver.
struct Guest {
    device: Vsock,
    ram: GuestRam,
    rx: Ring,
    tx: Ring,
    event: Ring,
    streams: Receiver<UnixStream>,
    faults: Receiver<String>,
    /// Packets received but not asked for yet.
    inbox: VecDeque<(Header, Vec<u8>)>,
}

impl Guest {
    fn new() -> Guest {
        let (sender, streams) = channel();
        let device = Vsock::new(Arc::new(Streams(Mutex::new(sender))), None).expect("device");
        Guest::with(device, streams)
    }

    fn with(device: Vsock, streams: Receiver<UnixStream>) -> Guest {
        let ram = driver::ram(1 << 20);
        let rx = Ring::new(&ram, RINGS, RX_COUNT);
        let tx = Ring::new(&ram, RINGS + 0x1000, 128);
        let event = Ring::new(&ram, RINGS + 0x3000, 16);
        let (_, faults) = channel();
        let inbox = VecDeque::new();
        let mut guest = Guest { device, ram, rx, tx, event, streams, faults, inbox };
        guest.start(true);
        guest
    }

    /// Starts the driver on fresh rings.
    fn start(&mut self, event_idx: bool) {
        self.rx = Ring::new(&self.ram, RINGS, RX_COUNT);
        self.tx = Ring::new(&self.ram, RINGS + 0x1000, 128);
        self.event = Ring::new(&self.ram, RINGS + 0x3000, 16);
        for ring in [&mut self.rx, &mut self.tx, &mut self.event] {
            ring.event_idx = event_idx;
        }
        let rings = [&self.rx, &self.tx, &self.event];
        self.faults = driver::activate(&mut self.device, &self.ram, &rings);
        self.offer_rx(RX_COUNT);
    }

    fn offer_rx(&mut self, count: u16) {
        for _ in 0..count {
            self.add_rx();
        }
        self.rx.kick();
    }

    /// Each descriptor has a buffer of its own.
    fn add_rx(&mut self) {
        let at = RX_AREA + u64::from(self.rx.next_head()) * u64::from(RX_BUFFER);
        self.rx.add(&[(at, RX_BUFFER, true)]);
    }

    fn fault(&self) -> String {
        self.faults.recv_timeout(DEADLINE).expect("the device should have failed")
    }

    fn header(operation: u16, port: u32) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: port,
            dst_port: PORT,
            kind: 1,
            op: operation,
            buf_alloc: 64 << 10,
            ..Header::default()
        }
    }

    /// Sends a packet and waits until the device has taken it.
    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header { len: data.len() as u32, ..header };
        self.send_raw(&header, data);
    }

    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        self.ram.write_slice(&header.encode(), GuestAddress(TX_AREA)).expect("RAM");
        let at = TX_AREA + HEADER_LEN as u64;
        self.ram.write_slice(data, GuestAddress(at)).expect("RAM");
        // Header, and data in two pieces.
        let half = (data.len() / 2) as u32;
        let mut chain = vec![(TX_AREA, HEADER_LEN as u32, false)];
        if half > 0 {
            chain.push((at, half, false));
        }
        if !data.is_empty() {
            chain.push((at + u64::from(half), data.len() as u32 - half, false));
        }
        self.tx.add(&chain);
        self.tx.kick();
        assert_eq!(self.tx.wait_used().1, 0);
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        if let Some(packet) = self.inbox.pop_front() {
            return packet;
        }
        let (head, len) = self.rx.wait_used();
        let at = GuestAddress(RX_AREA + u64::from(head) * u64::from(RX_BUFFER));
        let mut bytes = vec![0; len as usize];
        self.ram.read_slice(&mut bytes, at).expect("RAM");
        let data = bytes.split_off(HEADER_LEN);
        let header = Header::decode(&bytes.try_into().expect("a header"));
        assert_eq!(header.len as usize, data.len());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
        self.add_rx();
        self.rx.kick();
        (header, data)
    }

    /// The next packet that is not about credit.
    fn expect(&mut self, operation: u16) -> (Header, Vec<u8>) {
        loop {
            let (header, data) = self.receive();
            if header.op == operation {
                return (header, data);
            }
            let credit = [op::CREDIT_UPDATE, op::CREDIT_REQUEST].contains(&header.op);
            assert!(credit, "{header:?} instead of {operation}");
        }
    }

    /// Nothing comes for a while, because a request that follows is answered first.
    fn expect_silence(&mut self) {
        self.send(Guest::header(op::CREDIT_UPDATE, 99_999), &[]);
        let (header, _) = self.expect(op::RST);
        assert_eq!(header.dst_port, 99_999);
    }

    /// Connects from `port` to PORT.
    fn connect(&mut self, port: u32) -> UnixStream {
        self.send(Guest::header(op::REQUEST, port), &[]);
        let (answer, _) = self.expect(op::RESPONSE);
        assert_eq!((answer.src_port, answer.dst_port), (PORT, port));
        assert_eq!(answer.buf_alloc, BUF_ALLOC);
        self.streams.recv_timeout(DEADLINE).expect("stream")
    }

    /// Sends bytes as credit allows, and returns when the device has taken all.
    fn send_all(&mut self, port: u32, mut data: &[u8]) {
        let (mut sent, mut forwarded) = (0u32, 0u32);
        while !data.is_empty() {
            let room = BUF_ALLOC - sent.wrapping_sub(forwarded);
            let count = data.len().min(room as usize).min(10_000);
            if count == 0 {
                forwarded = self.expect(op::CREDIT_UPDATE).0.fwd_cnt;
                continue;
            }
            self.send(Guest::header(op::RW, port), &data[..count]);
            sent = sent.wrapping_add(count as u32);
            data = &data[count..];
        }
    }
}

/// Bytes that differ from their neighbours in every direction.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn read_exactly(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).expect("read");
    bytes
}

fn read_to_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read");
    bytes
}

#[test]
fn a_guest_connects_and_both_sides_talk() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    guest.send(Guest::header(op::RW, 5000), b"hello host");
    assert_eq!(read_exactly(&mut stream, 10), b"hello host");
    stream.write_all(b"hello guest").expect("write");
    assert_eq!(guest.expect(op::RW).1, b"hello guest");
}

#[test]
fn drivers_without_event_idx_are_served() {
    let mut guest = Guest::new();
    guest.device.reset();
    guest.start(false);
    let mut stream = guest.connect(5000);
    let data = pattern(1 << 20);
    let copy = data.clone();
    let writer = std::thread::spawn(move || {
        stream.write_all(&copy).expect("write");
        read_to_end(&mut stream)
    });
    let mut seen = Vec::new();
    while seen.len() < data.len() {
        let (header, bytes) = guest.receive();
        seen.extend(bytes);
        if header.op == op::CREDIT_REQUEST {
            let fwd_cnt = seen.len() as u32;
            guest.send(Header { fwd_cnt, ..Guest::header(op::CREDIT_UPDATE, 5000) }, &[]);
        }
    }
    assert!(seen == data);
    guest.send_all(5000, &data);
    guest.send(Header { flags: SHUTDOWN_SEND, ..Guest::header(op::SHUTDOWN, 5000) }, &[]);
    assert!(writer.join().expect("writer") == data);
}

#[test]
fn a_refused_port_is_reset() {
    let mut guest = Guest::new();
    guest.send(Header { dst_port: 77, ..Guest::header(op::REQUEST, 5000) }, &[]);
    let (header, _) = guest.expect(op::RST);
    assert_eq!((header.src_port, header.dst_port), (77, 5000));
}

#[test]
fn megabytes_reach_the_host_unchanged() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    let data = pattern(3 << 20);
    let reader = std::thread::spawn(move || read_to_end(&mut stream));
    guest.send_all(5000, &data);
    guest.send(Header { flags: SHUTDOWN_SEND, ..Guest::header(op::SHUTDOWN, 5000) }, &[]);
    assert!(reader.join().expect("reader") == data);
}

#[test]
fn megabytes_reach_the_guest_unchanged() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    let data = pattern(3 << 20);
    let copy = data.clone();
    let writer = std::thread::spawn(move || stream.write_all(&copy).map(|()| stream));
    let mut seen = Vec::new();
    let mut told = 0;
    while seen.len() < data.len() {
        let (header, bytes) = guest.receive();
        match header.op {
            op::RW => seen.extend(bytes),
            // The test frees its room late, so that the device must ask for it.
            op::CREDIT_REQUEST => {
                let fwd_cnt = seen.len() as u32;
                assert_eq!(seen.len() - told, 64 << 10);
                told = seen.len();
                guest.send(Header { fwd_cnt, ..Guest::header(op::CREDIT_UPDATE, 5000) }, &[]);
            }
            other => panic!("operation {other}"),
        }
    }
    assert!(seen == data);
    drop(writer.join().expect("writer").expect("write"));
    guest
        .send(Header { fwd_cnt: seen.len() as u32, ..Guest::header(op::CREDIT_UPDATE, 5000) }, &[]);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_BOTH);
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::new();
    let mut streams: Vec<_> = (0..8).map(|i| guest.connect(5000 + i)).collect();
    for stream in &mut streams {
        stream.write_all(&pattern(60_000)).expect("write");
    }
    let mut seen = [0; 8];
    while seen.iter().sum::<usize>() < 8 * 60_000 {
        let (header, data) = guest.expect(op::RW);
        seen[(header.dst_port - 5000) as usize] += data.len();
    }
    assert_eq!(seen, [60_000; 8]);
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    let data = pattern(4 << 20);
    let (mut sent, mut forwarded) = (0usize, 0usize);
    // As much as credit allows: the socket's buffer and ours.
    loop {
        let room = BUF_ALLOC as usize - (sent - forwarded);
        if room == 0 {
            guest.send(Guest::header(op::CREDIT_REQUEST, 5000), &[]);
            let now = guest.expect(op::CREDIT_UPDATE).0.fwd_cnt as usize;
            if now == forwarded {
                break;
            }
            forwarded = now;
            continue;
        }
        let count = room.min(10_000);
        guest.send(Guest::header(op::RW, 5000), &data[sent..sent + count]);
        sent += count;
        assert!(sent < 2 << 20, "the device buffers without end");
    }
    assert!(read_exactly(&mut stream, sent) == data[..sent]);
    // Room again.
    while forwarded < sent {
        guest.send(Guest::header(op::CREDIT_REQUEST, 5000), &[]);
        forwarded = guest.expect(op::CREDIT_UPDATE).0.fwd_cnt as usize;
    }
    guest.send(Guest::header(op::RW, 5000), b"more");
    assert_eq!(read_exactly(&mut stream, 4), b"more");
}

#[test]
fn a_guest_that_ignores_credit_is_reset() {
    let mut guest = Guest::new();
    let stream = guest.connect(5000);
    let data = vec![1; 60_000];
    let mut reset = false;
    for _ in 0..20 {
        guest.send(Guest::header(op::RW, 5000), &data);
        while let Some((head, _)) = guest.rx.pop_used() {
            let at = GuestAddress(RX_AREA + u64::from(head) * u64::from(RX_BUFFER) + 30);
            reset |= guest.ram.read_obj::<u16>(at).expect("RAM") == op::RST;
            guest.add_rx();
        }
    }
    if !reset {
        guest.expect(op::RST);
    }
    drop(stream);
}

#[test]
fn the_guest_closes_and_what_it_sent_arrives() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    // More than the socket takes, so that some is with the device at the close.
    let data = pattern(BUF_ALLOC as usize);
    for part in data.chunks(60_000) {
        guest.send(Guest::header(op::RW, 5000), part);
    }
    guest.send(Header { flags: SHUTDOWN_BOTH, ..Guest::header(op::SHUTDOWN, 5000) }, &[]);
    assert_eq!(guest.expect(op::RST).0.dst_port, 5000);
    // The port is free at once.
    let mut second = guest.connect(5000);
    assert!(read_to_end(&mut stream) == data);
    guest.send(Guest::header(op::RW, 5000), b"x");
    assert_eq!(read_exactly(&mut second, 1), b"x");
}

#[test]
fn half_closes_pass_in_both_directions() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    guest.send(Guest::header(op::RW, 5000), b"question");
    guest.send(Header { flags: SHUTDOWN_SEND, ..Guest::header(op::SHUTDOWN, 5000) }, &[]);
    assert_eq!(read_to_end(&mut stream), b"question");
    stream.write_all(b"answer").expect("write");
    assert_eq!(guest.expect(op::RW).1, b"answer");

    let mut stream = guest.connect(5001);
    stream.write_all(b"question").expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(guest.expect(op::RW).1, b"question");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.send(Guest::header(op::RW, 5001), b"answer");
    assert_eq!(read_exactly(&mut stream, 6), b"answer");
    drop(stream);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_BOTH);
    guest.send(Guest::header(op::RST, 5001), &[]);
    // Gone: anything further is answered with RST.
    guest.send(Guest::header(op::RW, 5001), b"late");
    assert_eq!(guest.expect(op::RST).0.dst_port, 5001);
}

#[test]
fn a_guest_that_stops_receiving_stops_the_host_writing() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    guest.send(Header { flags: SHUTDOWN_RCV, ..Guest::header(op::SHUTDOWN, 5000) }, &[]);
    assert_eq!(stream.write(b"x").expect_err("closed").kind(), io::ErrorKind::BrokenPipe);
    guest.send(Guest::header(op::RW, 5000), b"still here");
    assert_eq!(read_exactly(&mut stream, 10), b"still here");
}

#[test]
fn a_host_that_stops_reading_tells_the_guest() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    stream.shutdown(Shutdown::Read).expect("shutdown");
    guest.send(Guest::header(op::RW, 5000), b"lost");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_RCV);
    stream.write_all(b"still here").expect("write");
    assert_eq!(guest.expect(op::RW).1, b"still here");
}

#[test]
fn a_reset_closes_the_stream() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    guest.send(Guest::header(op::RST, 5000), &[]);
    assert_eq!(read_to_end(&mut stream), b"");
    guest.expect_silence();
}

#[test]
fn nonsense_is_reset_or_ignored() {
    let mut guest = Guest::new();
    // From or for somebody else: no answer.
    guest.send(Header { src_cid: 9, ..Guest::header(op::REQUEST, 1) }, &[]);
    guest.send(Header { dst_cid: 9, ..Guest::header(op::REQUEST, 1) }, &[]);
    // No RST for an RST.
    guest.send(Guest::header(op::RST, 1), &[]);
    guest.expect_silence();
    // Datagrams, and packets of no connection.
    guest.send(Header { kind: 3, ..Guest::header(op::REQUEST, 1) }, &[]);
    assert_eq!(guest.expect(op::RST).0.kind, 3);
    guest.send(Guest::header(op::RW, 1), b"data");
    guest.expect(op::RST);
    // An unknown operation, a second response and a second request; less data than announced.
    for (port, bad) in [(5000, 99), (5001, op::RESPONSE), (5002, op::REQUEST)] {
        let mut stream = guest.connect(port);
        guest.send(Guest::header(bad, port), &[]);
        guest.expect(op::RST);
        assert_eq!(read_to_end(&mut stream), b"");
    }
    let mut stream = guest.connect(5003);
    guest.send_raw(&Header { len: 100, ..Guest::header(op::RW, 5003) }, b"only ten b");
    guest.expect(op::RST);
    assert_eq!(read_to_end(&mut stream), b"");
    // Too short for a header.
    guest.tx.add(&[(TX_AREA, 43, false)]);
    guest.tx.kick();
    guest.tx.wait_used();
    guest.expect_silence();
}

#[test]
fn the_number_of_connections_is_capped() {
    let mut guest = Guest::new();
    let streams: Vec<_> = (0..MAX_CONNECTIONS as u32).map(|i| guest.connect(10_000 + i)).collect();
    guest.send(Guest::header(op::REQUEST, 5000), &[]);
    guest.expect(op::RST);
    // One less, one more.
    guest.send(Guest::header(op::RST, 10_000), &[]);
    guest.connect(5000);
    drop(streams);
}

#[test]
fn without_receive_buffers_streams_wait() {
    let (sender, streams) = channel();
    let device = Vsock::new(Arc::new(Streams(Mutex::new(sender))), None).expect("device");
    let mut guest = Guest::with(device, streams);
    let mut stream = guest.connect(5000);
    // Take all buffers, and give none back.
    stream.write_all(&pattern(40_000)).expect("write");
    let mut taken = Vec::new();
    while taken.len() < usize::from(RX_COUNT) {
        taken.push(guest.rx.wait_used());
    }
    guest.send(Guest::header(op::RW, 5000), b"the other way goes on");
    assert_eq!(read_exactly(&mut stream, 21), b"the other way goes on");
    let mut count: usize = taken.iter().map(|(_, len)| *len as usize - HEADER_LEN).sum();
    guest.offer_rx(RX_COUNT);
    while count < 40_000 {
        count += guest.expect(op::RW).1.len();
    }
    assert_eq!(count, 40_000);
}

#[test]
fn the_host_dials_the_guest() {
    let mut guest = Guest::new();
    let (near, mut far) = UnixStream::pair().expect("socketpair");
    far.set_read_timeout(Some(DEADLINE)).expect("timeout");
    far.write_all(b"early").expect("write");
    guest.device.dialer().dial(7, near).expect("dial");
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 7);
    let answer = |operation| Header {
        src_port: 7,
        dst_port: request.src_port,
        ..Guest::header(operation, 0)
    };
    guest.send(answer(op::RESPONSE), &[]);
    assert_eq!(guest.expect(op::RW).1, b"early");
    guest.send(answer(op::RW), b"hello");
    assert_eq!(read_exactly(&mut far, 5), b"hello");

    // Nobody listens.
    let (near, mut far) = UnixStream::pair().expect("socketpair");
    far.set_read_timeout(Some(DEADLINE)).expect("timeout");
    guest.device.dialer().dial(8, near).expect("dial");
    let (request, _) = guest.expect(op::REQUEST);
    let refusal = Header { src_port: 8, dst_port: request.src_port, ..Guest::header(op::RST, 0) };
    guest.send(refusal, &[]);
    assert_eq!(read_to_end(&mut far), b"");
}

#[test]
fn paths_lead_in_and_out() {
    let dir = TempDir::new().expect("directory");
    let path = dir.as_path().join("vsock");
    let listener = UnixListener::bind(&path).expect("bind");
    let host = Arc::new(HostPaths::new(path.clone()));
    let device = Vsock::new(host, Some(listener)).expect("device");
    let mut guest = Guest::with(device, channel().1);

    // Out: the guest to a listening path, and to none.
    let service = UnixListener::bind(dir.as_path().join("vsock_1024")).expect("bind");
    guest.send(Guest::header(op::REQUEST, 5000), &[]);
    guest.expect(op::RESPONSE);
    let (mut stream, _) = service.accept().expect("accept");
    guest.send(Guest::header(op::RW, 5000), b"out");
    assert_eq!(read_exactly(&mut stream, 3), b"out");
    guest.send(Header { dst_port: 9, ..Guest::header(op::REQUEST, 5001) }, &[]);
    guest.expect(op::RST);

    // In: a silent client does not hold up the next.
    let client = || {
        let stream = UnixStream::connect(&path).expect("connect");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        stream
    };
    let silent = client();
    let mut good = client();
    good.write_all(b"CONNECT 7\nand data").expect("write");
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 7);
    let from_guest = Header { src_port: 7, dst_port: request.src_port, ..Guest::header(0, 0) };
    guest.send(Header { op: op::RESPONSE, ..from_guest }, &[]);
    assert_eq!(guest.expect(op::RW).1, b"and data");
    guest.send(Header { op: op::RW, ..from_guest }, b"in");
    let greeting = format!("OK {}\nin", request.src_port);
    assert_eq!(read_exactly(&mut good, greeting.len()), greeting.as_bytes());

    for bad in ["HELLO 7\n", "CONNECT seven\n", &"x".repeat(100)] {
        let mut stream = client();
        stream.write_all(bad.as_bytes()).expect("write");
        // Unread bytes at the close show as a reset.
        match stream.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
    drop(silent);
}

#[test]
fn broken_rings_end_the_vm() {
    // An index that runs ahead of the ring.
    let mut guest = Guest::new();
    guest.tx.set_avail_idx(1000);
    guest.tx.kick();
    assert!(guest.fault().contains("virtqueue"), "a fault of the ring");

    // A buffer outside RAM.
    let mut guest = Guest::new();
    guest.tx.add(&[(1 << 40, 100, false)]);
    guest.tx.kick();
    assert!(guest.fault().contains("outside guest RAM"));

    // A transmit buffer that is for writing.
    let mut guest = Guest::new();
    guest.tx.add(&[(TX_AREA, 100, true)]);
    guest.tx.kick();
    assert!(guest.fault().contains("mixed up"));
}

#[test]
fn a_device_works_again_after_a_reset() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(5000);
    let writer = std::thread::spawn(move || {
        // Traffic until the reset closes the stream.
        while stream.write(&[7; 4096]).is_ok() {}
    });
    guest.expect(op::RW);
    let begun = Instant::now();
    guest.device.reset();
    guest.device.reset();
    assert!(begun.elapsed() < Duration::from_secs(5));
    writer.join().expect("writer");

    guest.start(true);
    let mut stream = guest.connect(5000);
    guest.send(Guest::header(op::RW, 5000), b"again");
    assert_eq!(read_exactly(&mut stream, 5), b"again");
}
