// SPDX-License-Identifier: Apache-2.0

//! The device against a driver that keeps to the rules, and one that does not.

use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::memory::Bytes;
use crate::virtio::driver::{self, Ring};

/// Of RAM at boot, and of the region.
const BOOT: u64 = 4 << 20;
const LEN: u64 = 128 << 20;
const BLOCKS: u16 = (LEN / BLOCK) as u16;
/// Where requests and answers lie.
const REQUESTS: u64 = 1 << 20;

struct Setup {
    ram: GuestRam,
    region: Region,
    start: u64,
    ring: Ring,
    faults: Receiver<String>,
    device: Mem,
}

fn setup() -> Setup {
    let ram = memory::map(BOOT, BOOT + LEN).expect("map");
    let (start, len) = ram.room().expect("room");
    assert_eq!(len, LEN);
    assert!(ram.read_obj::<u8>(GuestAddress(start)).is_err(), "closed at first");
    ram.open().expect("open");
    let region = Region::new(start, len);
    let ring = Ring::new(&ram, 0, 16);
    let mut device = Mem::new(region.clone());
    let faults = driver::activate(&mut device, &ram, &[&ring]);
    Setup { ram, region, start, ring, faults, device }
}

impl Setup {
    /// Sends a request; the answer and what it says of the state.
    fn ask(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        let mut request = [0; REQUEST];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&blocks.to_le_bytes());
        self.ram.write_slice(&request, GuestAddress(REQUESTS)).expect("request");
        let answer = REQUESTS + REQUEST as u64;
        self.ring.add(&[(REQUESTS, REQUEST as u32, false), (answer, ANSWER as u32, true)]);
        self.ring.kick();
        assert_eq!(self.ring.wait_used().1, ANSWER as u32);
        let mut bytes = [0; ANSWER];
        self.ram.read_slice(&mut bytes, GuestAddress(answer)).expect("answer");
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (word(0), word(8))
    }

    /// The same, with the number of a block.
    fn ask_of(&mut self, kind: u16, block: u64, blocks: u16) -> u16 {
        self.ask(kind, self.start + block * BLOCK, blocks).0
    }

    fn state_of(&mut self, block: u64, blocks: u16) -> u16 {
        let (code, state) = self.ask(STATE, self.start + block * BLOCK, blocks);
        assert_eq!(code, ACK);
        state
    }

    /// A field of the configuration, all of which are read as 8 bytes here.
    fn field(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_config(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn plugged(&self) -> u64 {
        self.field(40)
    }
}

#[test]
fn the_driver_is_told_what_is_wanted_and_the_host_when_it_is_so() {
    let mut setup = setup();
    assert_eq!([0, 16, 24, 32].map(|at| setup.field(at)), [BLOCK, setup.start, LEN, LEN]);
    let (sender, reached) = channel();
    let reach = |name: &'static str| {
        let sender = sender.clone();
        move || sender.send(name).expect("send")
    };
    setup.region.request(3 * BLOCK - 1, reach("three"));
    assert_eq!((setup.plugged(), setup.field(48)), (0, 3 * BLOCK), "whole blocks");
    assert_eq!(setup.ask_of(PLUG, 0, 2), ACK);
    assert!(reached.try_recv().is_err(), "one is missing");
    assert_eq!(setup.ask_of(PLUG, 5, 1), ACK);
    assert_eq!(reached.recv_timeout(driver::DEADLINE), Ok("three"));
    // Something else is asked for before this was reached.
    setup.region.request(LEN, reach("all"));
    setup.region.request(u64::MAX, reach("more than all"));
    assert_eq!(setup.field(48), LEN);
    setup.region.request(BLOCK, reach("one"));
    assert_eq!(setup.ask_of(UNPLUG, 0, 2), ACK);
    assert_eq!(reached.recv_timeout(driver::DEADLINE), Ok("one"));
    setup.region.request(BLOCK, reach("as it is"));
    assert_eq!(reached.try_recv(), Ok("as it is"));
    // Once for each request, whatever the guest does.
    assert_eq!(setup.ask_of(UNPLUG, 5, 1), ACK);
    assert_eq!(setup.ask_of(PLUG, 5, 1), ACK);
    assert!(reached.try_recv().is_err());
}

#[test]
fn what_is_unplugged_has_no_pages() {
    let mut setup = setup();
    setup.region.request(LEN, || {});
    let at = |setup: &Setup, block: u64| GuestAddress(setup.start + block * BLOCK);
    assert_eq!(setup.ask_of(PLUG, 0, BLOCKS), ACK);
    for block in [0, 1, 2] {
        setup.ram.write_obj(7u8, at(&setup, block)).expect("write");
    }
    assert_eq!(setup.ask_of(UNPLUG, 1, 1), ACK);
    let found = [0, 1, 2].map(|block| setup.ram.read_obj::<u8>(at(&setup, block)).expect("read"));
    assert_eq!(found, [7, 0, 7]);
    assert_eq!((setup.state_of(0, 1), setup.state_of(1, 1)), (PLUGGED, UNPLUGGED));
    assert_eq!(setup.state_of(0, BLOCKS), MIXED);
    assert_eq!(setup.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!((setup.plugged(), setup.state_of(0, BLOCKS)), (0, UNPLUGGED));
    assert_eq!(setup.ram.read_obj::<u8>(at(&setup, 2)).expect("read"), 0);
}

#[test]
fn requests_against_the_rules_change_nothing() {
    let mut setup = setup();
    setup.region.request(4 * BLOCK, || {});
    assert_eq!(setup.ask_of(PLUG, 0, 5), NACK, "more than was asked for");
    assert_eq!(setup.ask_of(PLUG, 2, 2), ACK);
    let start = setup.start;
    let end = start + LEN;
    for (what, address, blocks) in [
        ("no block", start, 0),
        ("in the midst of a block", start + 1, 1),
        ("before the region", start - BLOCK, 2),
        ("at 0", 0, 1),
        ("behind the region", end, 1),
        ("over its end", end - BLOCK, 2),
        ("over the end of all addresses", u64::MAX - BLOCK + 1, u16::MAX),
        ("more than there is", start, u16::MAX),
    ] {
        for kind in [PLUG, UNPLUG, STATE] {
            assert_eq!(setup.ask(kind, address, blocks).0, ERROR, "{what}");
        }
    }
    assert_eq!(setup.ask_of(PLUG, 1, 2), ERROR, "half of it is plugged");
    assert_eq!(setup.ask_of(UNPLUG, 3, 2), ERROR, "half of it is not plugged");
    assert_eq!(setup.ask_of(9, 0, 1), ERROR, "no such request");
    assert_eq!((setup.plugged(), setup.state_of(2, 2)), (2 * BLOCK, PLUGGED));
    // Less is wanted now than is plugged.
    setup.region.request(0, || {});
    assert_eq!(setup.ask_of(PLUG, 0, 1), NACK);
    assert!(setup.faults.try_recv().is_err());
}

#[test]
fn a_reset_leaves_what_is_plugged() {
    let mut setup = setup();
    setup.region.request(BLOCK, || {});
    assert_eq!(setup.ask_of(PLUG, 0, 1), ACK);
    setup.device.reset();
    assert_eq!(setup.plugged(), BLOCK);
    setup.region.request(2 * BLOCK, || {});
    setup.ring = Ring::new(&setup.ram, 0, 16);
    setup.faults = driver::activate(&mut setup.device, &setup.ram, &[&setup.ring]);
    assert_eq!(setup.ask_of(PLUG, 1, 1), ACK);
    assert_eq!(setup.plugged(), 2 * BLOCK);
}

#[test]
fn what_is_no_request_ends_the_vm() {
    for chain in [
        [(REQUESTS, REQUEST as u32 - 1, false), (REQUESTS + 64, ANSWER as u32, true)],
        [(REQUESTS, REQUEST as u32, false), (REQUESTS + 64, ANSWER as u32 - 1, true)],
    ] {
        let mut setup = setup();
        setup.ring.add(&chain);
        setup.ring.kick();
        setup.faults.recv_timeout(driver::DEADLINE).expect("a fault");
    }
}
