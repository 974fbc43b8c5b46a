// SPDX-License-Identifier: Apache-2.0

//! Memory balloon (virtio 1.3, 5.5), for one thing: the guest reports pages that it has
//! freed (5.5.6.7), and the host takes them back. The balloon itself is never inflated; a
//! guest that does so gives nothing away.
//!
//! The queues are numbered without those whose features are not offered, as all drivers and
//! devices have it.

use std::io;

use super::queue::VirtQueue;
use super::worker::{Poll, Serve, Worker};
use super::{Activation, TYPE_BALLOON, VirtioDevice};
use crate::memory;

/// VIRTIO_BALLOON_F_PAGE_REPORTING.
const F_PAGE_REPORTING: u64 = 1 << 5;

/// Which of the queues, after inflateq and deflateq, brings reports.
const REPORTING: usize = 2;

#[derive(Default)]
pub struct Balloon {
    worker: Option<Worker>,
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &'static str {
        "balloon"
    }

    fn device_type(&self) -> u16 {
        TYPE_BALLOON
    }

    fn features(&self) -> u64 {
        F_PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        // Linux reports 32 ranges in one chain.
        &[16, 16, 32]
    }

    fn config(&self) -> &[u8] {
        // num_pages, actual: no page is asked for, ever.
        &[0; 8]
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let server = Server { queues: activation.queues };
        self.worker = Some(Worker::spawn("balloon", server, activation.fault)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

struct Server {
    queues: Vec<VirtQueue>,
}

impl Serve for Server {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn kicked(&mut self, queue: usize, _poll: &Poll) -> io::Result<()> {
        let ram = self.queues[queue].ram().clone();
        self.queues[queue].serve(|chain| {
            if queue == REPORTING {
                for range in chain.writable() {
                    memory::discard(&ram, range.addr(), range.len() as usize)?;
                }
            }
            Ok(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Bytes, GuestAddress, GuestRam};
    use crate::virtio::driver::{self, Ring};

    const PAGE: u64 = 4096;

    struct Setup {
        ram: GuestRam,
        rings: Vec<Ring>,
        faults: std::sync::mpsc::Receiver<String>,
        device: Balloon,
    }

    fn setup() -> Setup {
        let ram = driver::ram(1 << 20);
        let rings: Vec<_> = (0..3).map(|i| Ring::new(&ram, i * PAGE, 16)).collect();
        let mut device = Balloon::default();
        let faults = driver::activate(&mut device, &ram, &rings.iter().collect::<Vec<_>>());
        Setup { ram, rings, faults, device }
    }

    fn byte(ram: &GuestRam, page: u64) -> u8 {
        ram.read_obj(GuestAddress(page * PAGE)).expect("a byte of RAM")
    }

    #[test]
    fn reported_pages_are_gone_and_no_others() {
        let Setup { ram, mut rings, device: _device, .. } = setup();
        ram.write_slice(&vec![7; 1 << 19], GuestAddress(1 << 19)).expect("fill");
        // Of the second range one page is whole.
        let ranges = [
            (130 * PAGE, 4 * PAGE as u32, true),
            (140 * PAGE + 1, 2 * PAGE as u32, true),
            (150 * PAGE, PAGE as u32, false),
        ];
        rings[REPORTING].add(&[ranges[2], ranges[0], ranges[1]]);
        rings[REPORTING].kick();
        assert_eq!(rings[REPORTING].wait_used().1, 0);
        let gone: Vec<_> = (128..160).filter(|&page| byte(&ram, page) == 0).collect();
        assert_eq!(gone, [130, 131, 132, 133, 141]);
    }

    #[test]
    fn inflating_gives_nothing_away() {
        let Setup { ram, mut rings, device: _device, .. } = setup();
        ram.write_slice(&[7; 4096], GuestAddress(200 * PAGE)).expect("fill");
        ram.write_obj(200u32, GuestAddress(100 * PAGE)).expect("a page's number");
        for ring in &mut rings[..REPORTING] {
            ring.add(&[(100 * PAGE, 4, false)]);
            ring.kick();
            ring.wait_used();
        }
        assert_eq!(byte(&ram, 200), 7);
    }

    #[test]
    fn a_range_outside_ram_ends_the_vm() {
        let Setup { mut rings, faults, device: _device, .. } = setup();
        rings[REPORTING].add(&[(1 << 20, PAGE as u32, true)]);
        rings[REPORTING].kick();
        faults.recv_timeout(driver::DEADLINE).expect("a fault");
    }
}
