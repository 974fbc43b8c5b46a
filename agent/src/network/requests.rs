// SPDX-License-Identifier: Apache-2.0

//! What the kernel is asked for, one function for each request (rtnetlink(7)).

use std::net::IpAddr;

use husk_netlink::Message;
use husk_protocol::agent::route::Kind;
use husk_protocol::agent::{Address, Interface, Neighbour, Route};

use super::ip;
use crate::error::{Error, Result};

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCL: u16 = libc::NLM_F_EXCL as u16;
const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;

/// Metrics of a route (linux/rtnetlink.h).
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// A gateway is on the link even if no route says so.
const RTNH_F_ONLINK: u32 = 4;

const LEN_OF_MAC: usize = 6;

pub fn rename(index: u32, name: &str) -> Message {
    link(index, 0, 0).attribute(libc::IFLA_IFNAME, zero_terminated(name))
}

/// MAC, MTU, up or down, ARP.
pub fn set_link(index: u32, interface: &Interface) -> Message {
    let flag = |flag: i32, set: bool| if set { flag as u32 } else { 0 };
    let flags = flag(libc::IFF_UP, interface.up) | flag(libc::IFF_NOARP, interface.no_arp);
    let mut message = link(index, flags, (libc::IFF_UP | libc::IFF_NOARP) as u32);
    if interface.mac.len() == LEN_OF_MAC {
        message = message.attribute(libc::IFLA_ADDRESS, &interface.mac);
    }
    message.attribute(libc::IFLA_MTU, interface.mtu.to_ne_bytes())
}

/// With `flags` of those that `change` has.
fn link(index: u32, flags: u32, change: u32) -> Message {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    Message::new(libc::RTM_NEWLINK, 0, &body)
}

pub fn add_address(address: &Address, index: u32) -> Result<Message> {
    let message = self::address(libc::RTM_NEWADDR, CREATE | EXCL, address, index)?;
    // The host's routes come with the request.
    let flags = libc::IFA_F_NOPREFIXROUTE | libc::IFA_F_NODAD;
    let message = message.attribute(libc::IFA_FLAGS, flags.to_ne_bytes());
    Ok(match address.broadcast.is_empty() {
        true => message,
        false => message.attribute(libc::IFA_BROADCAST, &address.broadcast),
    })
}

pub fn remove_address(address: &Address, index: u32) -> Result<Message> {
    self::address(libc::RTM_DELADDR, 0, address, index)
}

fn address(kind: u16, flags: u16, address: &Address, index: u32) -> Result<Message> {
    let mut body = [0; 8];
    body[0] = family(ip(&address.ip)?);
    body[1] = byte(address.prefix, "prefix")?;
    body[3] = byte(address.scope, "scope")?;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let peer = if address.peer.is_empty() { &address.ip } else { &address.peer };
    Ok(Message::new(kind, flags, &body)
        .attribute(libc::IFA_LOCAL, &address.ip)
        .attribute(libc::IFA_ADDRESS, peer))
}

/// Whether packets that take a route leave through an interface.
pub fn sends(route: &Route) -> bool {
    route.kind.enum_value_or_default() == Kind::UNICAST
}

/// A route's destination as people write it.
pub fn target(route: &Route) -> String {
    match ip(&route.destination) {
        Ok(ip) => format!("{ip}/{}", route.prefix),
        Err(error) => error.message,
    }
}

/// Beside others to the same destination.
pub fn add_route(route: &Route, index: u32) -> Result<Message> {
    self::route(libc::RTM_NEWROUTE, CREATE | APPEND, route, index)
}

pub fn remove_route(route: &Route, index: u32) -> Result<Message> {
    self::route(libc::RTM_DELROUTE, 0, route, index)
}

fn route(kind: u16, flags: u16, route: &Route, index: u32) -> Result<Message> {
    let destination = ip(&route.destination)?;
    let mut body = [0; 12];
    body[0] = family(destination);
    body[1] = byte(route.prefix, "prefix")?;
    body[4] = libc::RT_TABLE_MAIN;
    body[5] = libc::RTPROT_STATIC;
    body[6] = byte(route.scope, "scope")?;
    body[7] = match route.kind.enum_value_or_default() {
        Kind::UNICAST => libc::RTN_UNICAST,
        Kind::BLACKHOLE => libc::RTN_BLACKHOLE,
        Kind::UNREACHABLE => libc::RTN_UNREACHABLE,
        Kind::PROHIBIT => libc::RTN_PROHIBIT,
        Kind::THROW => libc::RTN_THROW,
    };
    let onlink = if route.onlink { RTNH_F_ONLINK } else { 0 };
    body[8..12].copy_from_slice(&onlink.to_ne_bytes());
    let mut message = Message::new(kind, flags, &body);
    if route.prefix > 0 {
        message = message.attribute(libc::RTA_DST, &route.destination);
    }
    if index > 0 {
        message = message.attribute(libc::RTA_OIF, index.to_ne_bytes());
    }
    if !route.gateway.is_empty() {
        let gateway = family(ip(&route.gateway)?);
        message = match gateway == family(destination) {
            true => message.attribute(libc::RTA_GATEWAY, &route.gateway),
            false => {
                let via = [&u16::from(gateway).to_ne_bytes()[..], &route.gateway].concat();
                message.attribute(libc::RTA_VIA, via)
            }
        };
    }
    if !route.source.is_empty() {
        message = message.attribute(libc::RTA_PREFSRC, &route.source);
    }
    if route.metric > 0 {
        message = message.attribute(libc::RTA_PRIORITY, route.metric.to_ne_bytes());
    }
    Ok(message.nest(libc::RTA_METRICS, |mut metrics| {
        for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
            if value > 0 {
                metrics = metrics.attribute(kind, value.to_ne_bytes());
            }
        }
        metrics
    }))
}

pub fn add_neighbour(neighbour: &Neighbour, index: u32) -> Result<Message> {
    let message = self::neighbour(libc::RTM_NEWNEIGH, CREATE | REPLACE, neighbour, index)?;
    Ok(message.attribute(libc::NDA_LLADDR, &neighbour.mac))
}

pub fn remove_neighbour(neighbour: &Neighbour, index: u32) -> Result<Message> {
    self::neighbour(libc::RTM_DELNEIGH, 0, neighbour, index)
}

fn neighbour(kind: u16, flags: u16, neighbour: &Neighbour, index: u32) -> Result<Message> {
    let mut body = [0; 12];
    body[0] = family(ip(&neighbour.ip)?);
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    Ok(Message::new(kind, flags, &body).attribute(libc::NDA_DST, &neighbour.ip))
}

fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn byte(value: u32, what: &str) -> Result<u8> {
    u8::try_from(value).map_err(|_| Error::invalid(format!("a {what} of {value}")))
}

fn zero_terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}
