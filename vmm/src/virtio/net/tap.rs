// SPDX-License-Identifier: Apache-2.0

//! One queue of a tap, as the supervisor opened it: what it says of itself, and what has to
//! be told to it. Frames go by readv and writev on the descriptor, each with a header before
//! it (`header`); the calls for that are in `memory`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, c_uint, c_ulong};

use super::features::*;
use super::header;

pub struct Tap(pub(super) File);

/// All that a tap can be told that its reader understands.
const OFFLOADS: c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// Segmentation of UDP, which Linux knows since 6.2, and only both together.
const UDP_OFFLOADS: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

impl Tap {
    /// Takes a descriptor that is a tap's; it does not block from now on. `several` is
    /// whether the tap has more of them.
    pub fn new(fd: OwnedFd, several: bool) -> io::Result<Tap> {
        let tap = Tap(File::from(fd));
        let flags = tap.flags().map_err(|error| refused(format!("not a tap: {error}")))?;
        let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        let needed = if several { needed | IFF_MULTI_QUEUE } else { needed };
        if flags & needed != needed {
            let text = "a tap is opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, and with \
                        IFF_MULTI_QUEUE for several queue pairs";
            return Err(refused(format!("{text}; this one has the flags {flags:#x}")));
        }
        rustix::io::ioctl_fionbio(&tap.0, true)?;
        let size = header::LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(tap.0.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) })?;
        Ok(tap)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether somebody has deleted it from under its descriptors.
    pub fn is_gone(&self) -> bool {
        self.flags().is_err()
    }

    fn flags(&self) -> io::Result<libc::c_int> {
        let mut request = request(0);
        // SAFETY: TUNGETIFF writes one ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
        // SAFETY: TUNGETIFF filled the union's flags, of 16 bits; their sign means nothing.
        Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags } as u16))
    }

    /// Whether this host's taps know segmentation of UDP.
    pub fn knows_udp_segmentation(&self) -> bool {
        let known = self.set_offloads(OFFLOADS | UDP_OFFLOADS).is_ok();
        // Until a driver says what it takes.
        known && self.set_offloads(0).is_ok()
    }

    /// Has the host leave to the guest what the driver has accepted.
    pub fn offload(&self, features: u64) -> io::Result<()> {
        let has = |feature: u64, flag| if features & feature == feature { flag } else { 0 };
        let segmentation = has(GUEST_TSO4, libc::TUN_F_TSO4) | has(GUEST_TSO6, libc::TUN_F_TSO6);
        let ecn = if segmentation != 0 { has(GUEST_ECN, libc::TUN_F_TSO_ECN) } else { 0 };
        let udp = has(GUEST_USO4 | GUEST_USO6, UDP_OFFLOADS);
        // Without checksums there is nothing of the rest (5.1.3.1).
        let all = libc::TUN_F_CSUM | segmentation | ecn | udp;
        self.set_offloads(has(GUEST_CSUM, all))
    }

    fn set_offloads(&self, flags: c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes a number and no pointer.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(flags)) };
        check(result)
    }

    /// Lets the host deal frames to this queue, or not. A queue that nobody reads is to be
    /// off. An error means that it is that way already, or that the tap is gone.
    pub fn attach(&self, on: bool) -> io::Result<()> {
        let flag = if on { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        let request = request(flag);
        // SAFETY: TUNSETQUEUE reads one ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETQUEUE, &request) })
    }
}

fn request(flags: libc::c_int) -> libc::ifreq {
    // SAFETY: an ifreq of zeros is one without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

fn refused(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
