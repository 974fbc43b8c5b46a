// SPDX-License-Identifier: Apache-2.0

//! The data path of a queue pair in the host's kernel (linux/vhost.h): it takes frames from
//! the tap to the guest's buffers and back on a thread of its own, is kicked by the driver and
//! interrupts it without us. It knows guest RAM by a table, and translates all addresses in
//! the rings by it; the rings themselves it knows by our addresses, so those are checked here.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libc::{c_int, c_ulong};
use vmm_sys_util::eventfd::EventFd;

use super::features::MRG_RXBUF;
use super::tap::Tap;
use crate::memory::{self, GuestRam};
use crate::virtio::queue::{Shared, VirtQueue};
use crate::virtio::transport;

const GET_FEATURES: c_ulong = 0x8008_af00;
const SET_FEATURES: c_ulong = 0x4008_af00;
const SET_OWNER: c_ulong = 0xaf01;
const SET_MEM_TABLE: c_ulong = 0x4008_af03;
const SET_VRING_NUM: c_ulong = 0x4008_af10;
const SET_VRING_ADDR: c_ulong = 0x4028_af11;
const SET_VRING_BASE: c_ulong = 0x4008_af12;
const SET_VRING_KICK: c_ulong = 0x4008_af20;
const GET_VRING_BASE: c_ulong = 0xc008_af12;
const SET_VRING_CALL: c_ulong = 0x4008_af21;
const SET_VRING_ERR: c_ulong = 0x4008_af22;
const NET_SET_BACKEND: c_ulong = 0x4008_af30;

/// What every kernel with vhost-net has, and our devices always offer.
const NEEDED: u64 = transport::TRANSPORT_FEATURES | MRG_RXBUF;

/// Receive and transmit, in the order of the device's queues.
const RINGS: u32 = 2;

/// struct vhost_vring_state and struct vhost_vring_file: a ring, and a number or descriptor.
#[repr(C)]
struct Ring {
    index: u32,
    value: c_int,
}

/// struct vhost_vring_addr.
#[repr(C)]
struct Addresses {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// /dev/vhost-net, opened by the supervisor, for one queue pair.
pub struct Vhost(OwnedFd);

impl Vhost {
    pub fn new(fd: OwnedFd) -> io::Result<Vhost> {
        let vhost = Vhost(fd);
        let mut known = 0u64;
        // SAFETY: the request writes one u64.
        check(unsafe { libc::ioctl(vhost.0.as_raw_fd(), GET_FEATURES, &raw mut known) })?;
        if known & NEEDED != NEEDED {
            let text = format!("vhost-net of this host has the features {known:#x}; too few");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        // SAFETY: the request takes no argument. The kernel's thread works for this process.
        check(unsafe { libc::ioctl(vhost.0.as_raw_fd(), SET_OWNER) })?;
        Ok(vhost)
    }

    /// Has the kernel know all of guest RAM, that which may come later too, and nothing else.
    fn set_memory(&self, ram: &GuestRam) -> io::Result<()> {
        // struct vhost_memory: the number of regions, padding, and for each address, length,
        // our address and padding.
        let mut table = vec![0u64];
        for (guest, len, host) in memory::regions_and_room(ram) {
            table.extend([guest, len, host, 0]);
            table[0] += 1;
        }
        // SAFETY: the request reads the table, as long as its first number says. What it says
        // is RAM, which may change at any time.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_MEM_TABLE, table.as_ptr()) })
    }

    /// Learns of the queues of a pair, and touches nothing in them. They belong to the driver's
    /// RAM, which has to be mapped from [`Vhost::start`] to [`Vhost::stop`]. `broken` is
    /// signalled when one cannot be served any more.
    pub fn prepare(
        &self,
        features: u64,
        ram: &GuestRam,
        queues: &[VirtQueue],
        broken: &EventFd,
    ) -> io::Result<()> {
        let features = features & NEEDED;
        // SAFETY: the request reads one u64.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_FEATURES, &raw const features) })?;
        self.set_memory(ram)?;
        for (index, queue) in (0..).zip(queues) {
            let Shared { size, descriptors, available, used, kick, interrupt } = queue.share()?;
            self.set_ring(SET_VRING_NUM, index, size.into())?;
            let addresses = Addresses { index, flags: 0, descriptors, used, available, log: 0 };
            // SAFETY: the request reads the structure. The rings are in RAM as a whole.
            let done =
                unsafe { libc::ioctl(self.0.as_raw_fd(), SET_VRING_ADDR, &raw const addresses) };
            check(done)?;
            self.set_ring(SET_VRING_CALL, index, interrupt)?;
            self.set_ring(SET_VRING_KICK, index, kick)?;
            self.set_ring(SET_VRING_ERR, index, broken.as_raw_fd())?;
        }
        Ok(())
    }

    /// Serves the queues from now on.
    pub fn start(&self, tap: &Tap) -> io::Result<()> {
        for index in 0..RINGS {
            self.set_ring(NET_SET_BACKEND, index, tap.fd().as_raw_fd())?;
        }
        Ok(())
    }

    /// Serves nothing any more; returns when no buffer is in use. False if something was taken
    /// of the queues since the last time; the next ones are served from their beginning.
    pub fn stop(&self) -> bool {
        const NONE: RawFd = -1;
        let mut untouched = true;
        for index in 0..RINGS {
            // They fail for one that was never prepared.
            let _ = self.set_ring(NET_SET_BACKEND, index, NONE);
            let mut next = Ring { index, value: 0 };
            // SAFETY: the request reads the index and writes the number.
            unsafe { libc::ioctl(self.0.as_raw_fd(), GET_VRING_BASE, &raw mut next) };
            untouched &= next.value == 0;
            let _ = self.set_ring(SET_VRING_BASE, index, 0);
        }
        untouched
    }

    fn set_ring(&self, request: c_ulong, index: u32, value: c_int) -> io::Result<()> {
        let ring = Ring { index, value };
        // SAFETY: these requests read one structure of an index and a number. Descriptors in
        // it are looked up by the kernel, which keeps the files.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw const ring) })
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use crate::memory::{GuestAddress, GuestRam};
    use crate::virtio::driver::Ring;

    #[test]
    fn a_ring_that_is_not_in_one_piece_of_ram_is_refused() {
        // One behind the other for the guest, and each somewhere for us.
        const LEN: u64 = 0x10_0000;
        let regions = [0, LEN].map(|start| (GuestAddress(start), LEN as usize));
        let ram = GuestRam::from_ranges(&regions).expect("RAM");
        let shares = |base: u64| Ring::new(&ram, base, 256).device_side().share().is_ok();
        for whole in [0, 0x1000, LEN, LEN + 0x1000] {
            assert!(shares(whole), "{whole:#x}");
        }
        // Descriptors, available ring and used ring, in the order in which they lie.
        for (what, before) in [("descriptors", 0x800), ("available", 0x1100), ("used", 0x1310)] {
            assert!(!shares(LEN - before), "{what}");
        }
    }
}
