// SPDX-License-Identifier: Apache-2.0

//! The tap that a VM's device is the other end of. It lives as long as a descriptor of it is
//! open, which is in husk-vmm.

use std::ffi::CStr;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};

use husk_netlink::{Message, Socket};

use crate::error::{Error, IoContext};

const TUN: &str = "/dev/net/tun";
const VHOST: &str = "/dev/vhost-net";

/// The kernel puts a number in the place of `%d` that makes it a name of its own.
const NAME: &[u8] = b"husk%d";

/// Inside IFLA_AF_SPEC: whether and how the kernel makes up link-local addresses.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// Makes a tap in the calling thread's network namespace and brings it up; its number, and a
/// descriptor for each queue pair.
pub fn open(socket: &Socket, queue_pairs: usize, mtu: u32) -> Result<(u32, Vec<OwnedFd>), Error> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = if queue_pairs > 1 { flags | libc::IFF_MULTI_QUEUE } else { flags };
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = *from as libc::c_char;
    }
    let mut queues = Vec::new();
    for _ in 0..queue_pairs {
        let queue = OpenOptions::new()
            .read(true)
            .write(true)
            .open(TUN)
            .context(|| format!("cannot open {TUN}; load the module tun"))?;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an ifreq, which is alive during the call. It
        // writes the name that the tap got, by which the next descriptor finds it.
        let done = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        nix::errno::Errno::result(done).context(|| "cannot make a tap".to_owned())?;
        queues.push(queue.into());
    }
    // SAFETY: the kernel has written a name that ends with a zero byte.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    let index = nix::net::if_::if_nametoindex(name).context(|| format!("cannot find {name:?}"))?;
    bring_up(socket, index, mtu).context(|| format!("cannot bring {name:?} up"))?;
    Ok((index, queues))
}

/// vhost-net for each queue pair.
pub fn vhost(queue_pairs: usize) -> Result<Vec<OwnedFd>, Error> {
    let open = |_| OpenOptions::new().read(true).write(true).open(VHOST).map(OwnedFd::from);
    let opened: Result<_, _> = (0..queue_pairs).map(open).collect();
    opened.context(|| format!("cannot open {VHOST}; load the module vhost_net, if it is wanted"))
}

fn bring_up(socket: &Socket, index: u32, mtu: u32) -> Result<(), husk_netlink::Error> {
    // Two requests: what the kernel itself sends, it sends when the link comes up.
    socket.request(link(index, 0).attribute(libc::IFLA_MTU, mtu.to_ne_bytes()).nest(
        libc::IFLA_AF_SPEC,
        |families| {
            families.nest(libc::AF_INET6 as u16, |inet6| {
                inet6.attribute(IFLA_INET6_ADDR_GEN_MODE, [IN6_ADDR_GEN_MODE_NONE])
            })
        },
    ))?;
    socket.request(link(index, libc::IFF_UP as u32))
}

/// A change of a link, with these flags set.
fn link(index: u32, flags: u32) -> Message {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&flags.to_ne_bytes());
    Message::new(libc::RTM_SETLINK, 0, &body)
}
