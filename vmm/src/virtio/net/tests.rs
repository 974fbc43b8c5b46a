// SPDX-License-Identifier: Apache-2.0

//! A queue pair, driven as the guest's driver would, and as a bad one. In the tap's place is
//! a socket that keeps the bounds of frames, as a tap does, so that no rights are needed.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::*;
use crate::memory::{Bytes, GuestAddress, GuestRam};
use crate::virtio::Fault;
use crate::virtio::driver::{self, DEADLINE, Ring};

const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x1_4000;
const CONTROL_RING: u64 = 0x1_8000;
const RX_AREA: u64 = 0x10_0000;
const TX_AREA: u64 = 0x4_0000;
/// Frames of these tests that have to be large.
const LARGE: usize = 60_000;

struct Guest {
    ram: GuestRam,
    rx: Ring,
    tx: Ring,
    control: Ring,
    /// The host's end of the wire.
    wire: UnixDatagram,
    counters: Arc<Counters>,
    faults: Receiver<String>,
    _worker: Worker,
}

impl Guest {
    fn new(features: u64) -> Guest {
        Guest::with(features, |_| {})
    }

    /// A guest whose rings `prepare` has seen before the device starts.
    fn with(features: u64, prepare: impl FnOnce(&mut [&mut Ring; 3])) -> Guest {
        let ram = driver::ram(4 << 20);
        let mut rx = Ring::new(&ram, RX_RING, QUEUE_SIZE);
        let mut tx = Ring::new(&ram, TX_RING, QUEUE_SIZE);
        let mut control = Ring::new(&ram, CONTROL_RING, CONTROL_QUEUE_SIZE);
        prepare(&mut [&mut rx, &mut tx, &mut control]);
        let (wire, far) = UnixDatagram::pair().expect("socketpair");
        wire.set_read_timeout(Some(DEADLINE)).expect("timeout");
        wire.set_write_timeout(Some(DEADLINE)).expect("timeout");
        far.set_nonblocking(true).expect("nonblocking");
        let tap = Arc::new(Tap(OwnedFd::from(far).into()));
        let counters = Arc::new(Counters::default());
        let queues = [rx.device_side(), tx.device_side()];
        let mut pair = Pair::new(tap, queues, &ram, features, counters.clone());
        // Two pairs, of which the second is nobody's.
        let other = Arc::new(Switch::new().expect("switch"));
        pair.add_control(Some(control.device_side()), vec![other]);
        let (sender, faults) = std::sync::mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let fault = Fault::new(move |what| {
            let _ = sender.lock().expect("lock").send(what);
        });
        let worker = Worker::spawn("net0", pair, fault).expect("worker");
        Guest { ram, rx, tx, control, wire, counters, faults, _worker: worker }
    }

    fn fault(&self) -> String {
        self.faults.recv_timeout(DEADLINE).expect("the device should have failed")
    }

    /// Offers `count` buffers of `size` bytes, each at a place of its own.
    fn offer(&mut self, count: usize, size: u32) {
        for _ in 0..count {
            let at = RX_AREA + u64::from(self.rx.next_head()) * 4096;
            self.rx.add(&[(at, size, true)]);
        }
        self.rx.kick();
    }

    /// The next frame that arrived: header, frame, and the buffers that it took.
    fn received(&mut self) -> (Vec<u8>, Vec<u8>, usize) {
        let (mut bytes, mut wanted, mut taken) = (Vec::new(), 1, 0);
        while taken < wanted {
            let (head, len) = self.rx.wait_used();
            let mut part = vec![0; len as usize];
            let at = GuestAddress(RX_AREA + u64::from(head) * 4096);
            self.ram.read_slice(&mut part, at).expect("in RAM");
            bytes.extend(part);
            taken += 1;
            wanted = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        }
        let frame = bytes.split_off(header::LEN);
        (bytes, frame, taken)
    }

    /// Sends `frame` with `header`, as one buffer and another.
    fn send(&mut self, header: [u8; header::LEN], frame: &[u8]) {
        self.ram.write_slice(&header, GuestAddress(TX_AREA)).expect("in RAM");
        let at = TX_AREA + 0x1000;
        self.ram.write_slice(frame, GuestAddress(at)).expect("in RAM");
        self.tx.add(&[(TX_AREA, header::LEN as u32, false), (at, frame.len() as u32, false)]);
        self.tx.kick();
        self.tx.wait_used();
    }

    /// What the host's end gets next: header and frame.
    fn sent(&self) -> (Vec<u8>, Vec<u8>) {
        let mut bytes = vec![0; header::LEN + header::MAX_FRAME];
        let len = self.wire.recv(&mut bytes).expect("a frame");
        bytes.truncate(len);
        let frame = bytes.split_off(header::LEN);
        (bytes, frame)
    }

    /// Sends one that has to be lost, and a good one behind it that has to arrive.
    fn loses(&mut self, what: &str, chain: &[driver::Descriptor]) {
        let before = self.counters.transmit.dropped.load(Ordering::Relaxed);
        self.tx.add(chain);
        self.tx.kick();
        self.tx.wait_used();
        let after = self.counters.transmit.dropped.load(Ordering::Relaxed);
        assert_eq!(after, before + 1, "{what} was not counted as lost");
        let good = pattern(100, 9);
        self.send([0; header::LEN], &good);
        assert_eq!(self.sent().1, good, "{what} reached the tap");
    }

    fn wait_for_lost(&self, count: u64) {
        let end = Instant::now() + DEADLINE;
        while self.counters.receive.dropped.load(Ordering::Relaxed) < count {
            assert!(Instant::now() < end, "the frame was not dropped");
            std::thread::yield_now();
        }
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

/// A frame as the tap gives it.
fn on_wire(frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; header::LEN];
    // The last two bytes are for the device to fill.
    bytes[0] = 2;
    bytes.extend(frame);
    bytes
}

#[test]
fn frames_arrive_whole_in_as_many_buffers_as_they_need() {
    let mut guest = Guest::new(MRG_RXBUF);
    guest.offer(120, 1500);
    for (seed, len) in [14, 60, 1488, 1489, 9000, LARGE].into_iter().enumerate() {
        let frame = pattern(len, seed as u8);
        guest.wire.send(&on_wire(&frame)).expect("send");
        let (header, received, buffers) = guest.received();
        assert_eq!(received, frame, "a frame of {len} bytes");
        assert_eq!(header[0], 2, "the tap's flags");
        assert_eq!(buffers, (len + header::LEN).div_ceil(1500), "buffers for {len} bytes");
        guest.offer(buffers, 1500);
    }
    let counted = &guest.counters.receive;
    assert_eq!(counted.packets.load(Ordering::Relaxed), 6);
    assert_eq!(
        counted.bytes.load(Ordering::Relaxed),
        (14 + 60 + 1488 + 1489 + 9000 + LARGE) as u64
    );
    println!("six frames of up to {LARGE} bytes arrived whole");
}

#[test]
fn a_frame_waits_until_the_driver_has_room_for_the_largest() {
    let mut guest = Guest::new(MRG_RXBUF);
    guest.wire.send(&on_wire(&pattern(LARGE, 1))).expect("send");
    guest.offer(10, 1500);
    guest.offer(40, 1500);
    assert_eq!(guest.received().1, pattern(LARGE, 1));
    println!("a frame that came before its buffers was kept");
}

#[test]
fn many_frames_in_a_row_come_in_order() {
    let mut guest = Guest::new(MRG_RXBUF);
    let wire = guest.wire.try_clone().expect("clone");
    let sender = std::thread::spawn(move || {
        for i in 0..2000usize {
            wire.send(&on_wire(&pattern(14 + i * 7 % 3000, i as u8))).expect("send");
        }
    });
    guest.offer(100, 1500);
    for i in 0..2000usize {
        let (_, frame, buffers) = guest.received();
        assert_eq!(frame, pattern(14 + i * 7 % 3000, i as u8), "frame {i}");
        guest.offer(buffers, 1500);
    }
    sender.join().expect("sender");
    println!("2000 frames in order through a ring of {QUEUE_SIZE}");
}

#[test]
fn without_merging_a_frame_has_one_buffer_or_is_lost() {
    let mut guest = Guest::new(0);
    guest.offer(4, 1500);
    guest.wire.send(&on_wire(&pattern(4000, 1))).expect("send");
    guest.wait_for_lost(1);
    guest.wire.send(&on_wire(&pattern(1488, 2))).expect("send");
    let (_, frame, buffers) = guest.received();
    assert_eq!((frame, buffers), (pattern(1488, 2), 1));
    println!("a frame too long for its buffer was counted as lost");
}

#[test]
fn a_driver_that_can_bring_no_more_room_loses_only_what_is_too_long() {
    let mut guest = Guest::new(MRG_RXBUF);
    // The whole ring: 25,600 bytes.
    guest.offer(usize::from(QUEUE_SIZE), 100);
    guest.wire.send(&on_wire(&pattern(LARGE, 1))).expect("send");
    guest.wait_for_lost(1);
    guest.wire.send(&on_wire(&pattern(20_000, 2))).expect("send");
    assert_eq!(guest.received().1, pattern(20_000, 2));
    println!("small buffers take what fits");
}

#[test]
fn a_header_split_into_bytes_is_written_right() {
    let mut guest = Guest::new(0);
    let chain: Vec<_> =
        (0..20).map(|i| (RX_AREA + i, if i < 19 { 1 } else { 500 }, true)).collect();
    guest.rx.add(&chain);
    guest.rx.kick();
    guest.wire.send(&on_wire(&pattern(400, 1))).expect("send");
    let (header, frame, buffers) = guest.received();
    assert_eq!((header[0], frame, buffers), (2, pattern(400, 1), 1));
    println!("one buffer of 20 pieces");
}

#[test]
fn frames_leave_with_a_checked_header() {
    let mut guest = Guest::new(CSUM | HOST_TSO4);
    let frame = pattern(LARGE, 3);
    // Asks for segmentation, with bytes in its last field that mean nothing.
    let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 7, 7];
    guest.send(header, &frame);
    let (sent, arrived) = guest.sent();
    assert_eq!(arrived, frame);
    assert_eq!(sent, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    let counted = &guest.counters.transmit;
    assert_eq!(counted.bytes.load(Ordering::Relaxed), LARGE as u64);
    println!("a frame of {LARGE} bytes left with what was accepted of its header");
}

#[test]
fn frames_that_make_no_sense_are_lost_and_the_next_is_sent() {
    let mut guest = Guest::new(CSUM);
    let write = |guest: &Guest, header: [u8; 12]| {
        guest.ram.write_slice(&header, GuestAddress(TX_AREA + 0x8000)).expect("in RAM");
    };
    let (at, frame) = (TX_AREA + 0x8000, (TX_AREA + 0x1000, 100, false));
    write(&guest, [0; 12]);
    guest.loses("an empty chain", &[(at, 0, false)]);
    guest.loses("a header of 11 bytes", &[(at, 11, false)]);
    guest.loses("a header alone", &[(at, 12, false)]);
    guest.loses("a frame of 13 bytes", &[(at, 25, false)]);
    guest.loses("a frame of 3 MiB", &[(at, 12, false), (0x1000, 3 << 20, false)]);
    let pieces: Vec<_> = (0..200).map(|_| (0x1000, 1000, false)).collect();
    guest.loses("a frame of 200 KB in pieces", &[&[(at, 12, false)], &pieces[..]].concat());
    write(&guest, [1, 0, 0, 0, 0, 0, 90, 0, 16, 0, 0, 0]);
    guest.loses("a checksum beyond the frame", &[(at, 12, false), frame]);
    write(&guest, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    guest.loses("segmentation that was not accepted", &[(at, 12, false), frame]);
    println!("eight kinds of bad frames were lost, and a good one behind each was sent");
}

#[test]
fn a_frame_in_a_loop_of_descriptors_is_lost() {
    let mut guest = Guest::new(0);
    let head = guest.tx.add(&[(TX_AREA, 2000, false), (TX_AREA, 2000, false)]);
    // The second leads back to the first.
    let second = TX_RING + 16 * u64::from(head + 1);
    guest.ram.write_obj(1u16, GuestAddress(second + 12)).expect("in RAM");
    guest.ram.write_obj(head, GuestAddress(second + 14)).expect("in RAM");
    guest.tx.kick();
    guest.tx.wait_used();
    assert_eq!(guest.counters.transmit.dropped.load(Ordering::Relaxed), 1);
    let good = pattern(100, 9);
    guest.send([0; 12], &good);
    assert_eq!(guest.sent().1, good);
    println!("a loop ended where the ring's length does");
}

#[test]
fn a_full_tap_is_waited_for() {
    let mut guest = Guest::new(0);
    let frame = pattern(LARGE, 5);
    guest.ram.write_slice(&[0; 12], GuestAddress(TX_AREA)).expect("in RAM");
    guest.ram.write_slice(&frame, GuestAddress(TX_AREA + 0x1000)).expect("in RAM");
    // More than a socket holds before its reader has taken anything.
    let count = 120;
    for _ in 0..count {
        guest.tx.add(&[(TX_AREA, 12, false), (TX_AREA + 0x1000, LARGE as u32, false)]);
    }
    guest.tx.kick();
    for i in 0..count {
        assert_eq!(guest.sent().1, frame, "frame {i}");
    }
    for _ in 0..count {
        guest.tx.wait_used();
    }
    assert_eq!(guest.counters.transmit.dropped.load(Ordering::Relaxed), 0);
    println!("{count} frames of {LARGE} bytes went through a socket that was full");
}

#[test]
fn rings_and_buffers_that_are_wrong_end_the_vm() {
    let outside = 1 << 40;
    for (what, features, rx, chain, text) in [
        ("a received frame's buffer for reading", 0, true, vec![(0x1000, 1500, false)], "writing"),
        ("a buffer without room for a header", 0, true, vec![(0x1000, 11, true)], "smaller"),
        ("an empty buffer", MRG_RXBUF, true, vec![(0x1000, 0, true)], "smaller"),
        ("a buffer outside RAM", 0, true, vec![(outside, 1500, true)], ""),
        ("a buffer that leaves RAM", 0, true, vec![((4 << 20) - 100, 1500, true)], ""),
        ("a frame in a buffer for writing", 0, false, vec![(0x1000, 100, true)], "writing"),
        ("a header outside RAM", 0, false, vec![(outside, 100, false)], ""),
        ("a frame outside RAM", 0, false, vec![(0x1000, 12, false), (outside, 9, false)], ""),
    ] {
        let mut guest = Guest::new(features);
        let ring = if rx { &mut guest.rx } else { &mut guest.tx };
        ring.add(&chain);
        ring.kick();
        let fault = guest.fault();
        assert!(fault.starts_with("virtio-net0: ") && fault.contains(text), "{what}: {fault}");
        println!("{what}: {fault}");
    }
    for rx in [true, false] {
        let mut guest = Guest::new(0);
        let ring = if rx { &mut guest.rx } else { &mut guest.tx };
        ring.set_avail_idx(QUEUE_SIZE * 2);
        ring.kick();
        println!("an available index far ahead: {}", guest.fault());
        let mut guest = Guest::new(0);
        let ring = if rx { &mut guest.rx } else { &mut guest.tx };
        ring.offer(QUEUE_SIZE);
        ring.kick();
        println!("a head that is no descriptor: {}", guest.fault());
    }
}

#[test]
fn the_number_of_pairs_is_checked() {
    let mut guest = Guest::new(CTRL_VQ | MQ);
    let (request, answer) = (0x3000, 0x3100);
    for (bytes, expected) in [
        (&[4, 0, 1, 0][..], 0),
        (&[4, 0, 2, 0], 0),
        (&[4, 0, 0, 0], 1),
        (&[4, 0, 3, 0], 1),
        (&[4, 1, 1, 0], 1),
        (&[0, 0, 1, 0], 1),
        (&[4, 0, 1], 1),
        (&[], 1),
    ] {
        guest.ram.write_slice(bytes, GuestAddress(request)).expect("in RAM");
        guest.ram.write_obj(0xffu8, GuestAddress(answer)).expect("in RAM");
        guest.control.add(&[(request, bytes.len() as u32, false), (answer, 1, true)]);
        guest.control.kick();
        guest.control.wait_used();
        let said: u8 = guest.ram.read_obj(GuestAddress(answer)).expect("in RAM");
        assert_eq!(said, expected, "{bytes:?}");
    }
    guest.control.add(&[(request, 4, false)]);
    guest.control.kick();
    println!("no room for an answer: {}", guest.fault());
}

#[test]
fn a_driver_without_event_indices_is_served() {
    let mut guest = Guest::with(MRG_RXBUF, |rings| {
        for ring in rings {
            ring.event_idx = false;
        }
    });
    guest.offer(50, 1500);
    for i in 0..300 {
        guest.send([0; 12], &pattern(100, i as u8));
        guest.wire.send(&on_wire(&guest.sent().1)).expect("send");
        let (_, frame, buffers) = guest.received();
        assert_eq!(frame, pattern(100, i as u8), "frame {i}");
        guest.offer(buffers, 1500);
    }
    println!("300 frames out and in again");
}

#[test]
fn what_is_no_tap_is_refused() {
    let open = |count: usize, mac, mtu| {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null"));
        let queues = (0..count).map(|_| null()).collect();
        let config = NetConfig { queues, vhost: Vec::new(), mac, mtu };
        let refused = Net::new(config, Arc::new(|what| panic!("{what}")));
        refused.err().expect("an error").to_string()
    };
    let good = [2, 0, 0, 0, 0, 1];
    for (said, expected) in [
        (open(1, good, None), "not a tap"),
        (open(0, good, None), "0 queue pairs"),
        (open(17, good, None), "17 queue pairs"),
        (open(1, [1, 0, 0, 0, 0, 1], None), "not the MAC"),
        (open(1, [0; 6], None), "not the MAC"),
        (open(1, good, Some(67)), "MTU"),
    ] {
        assert!(said.contains(expected), "{said}");
        println!("{said}");
    }
}

#[test]
fn a_ring_that_the_kernel_finds_broken_ends_the_vm() {
    let (sender, faults) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let fault = Fault::new(move |what| {
        let _ = sender.lock().expect("lock").send(what);
    });
    let broken = EventFd::new(EFD_NONBLOCK).expect("eventfd");
    let kernel = broken.try_clone().expect("eventfd");
    let beside = Beside { control: None, taps: Vec::new(), broken };
    let _worker = Worker::spawn("net", beside, fault).expect("worker");
    kernel.write(1).expect("signal");
    let said = faults.recv_timeout(DEADLINE).expect("the device should have failed");
    assert!(said.contains("broke a virtqueue"), "{said}");
    println!("{said}");
}
