// SPDX-License-Identifier: Apache-2.0

//! What is in a network namespace, read by route netlink, and the same as the guest is told.

use husk_netlink::{Attributes, Error, Message, Reply, Socket};
use husk_protocol::agent::route::Kind;
use husk_protocol::agent::{Address, Interface, Neighbour, Route, SetNetwork};

use crate::error::Error as Refusal;

/// Kinds of devices that are not joined: taps are ours, or the end of something like us.
const TUN: &str = "tun";

/// A kind that has a mode in its own attributes (linux/if_link.h).
const IPVLAN: &str = "ipvlan";
const IFLA_IPVLAN_MODE: u16 = 1;
const IPVLAN_MODE_L3S: u16 = 2;

/// IPv6's settings in the attributes of a link (linux/if_link.h, linux/ipv6.h).
const IFLA_INET6_CONF: u16 = 2;
const DEVCONF_DISABLE_IPV6: usize = 26;

/// Metrics of a route and flags of a next hop (linux/rtnetlink.h).
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RTNH_F_ONLINK: u32 = 4;

/// Routes that routers have told.
const RTPROT_RA: u8 = 9;

/// An interface that can be a device of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub up: bool,
    no_arp: bool,
    no_ipv6: bool,
    /// An ipvlan interface of the mode l3s.
    layer_3s: bool,
}

impl Link {
    /// Refuses one whose packets do not pass where they could be redirected.
    pub fn check(&self) -> Result<(), Refusal> {
        match self.layer_3s {
            false => Ok(()),
            true => Err(Refusal::precondition(
                "it is an ipvlan interface of the mode l3s, whose packets the host's IP takes \
                 before they are the interface's; use the mode l2 or l3",
            )),
        }
    }
}

/// What was found, addresses, routes and neighbours with the number of their interface.
#[derive(Debug)]
pub struct Survey {
    /// By their numbers, which is the order in which they were made.
    pub links: Vec<Link>,
    addresses: Vec<(u32, Address)>,
    routes: Vec<(u32, Route)>,
    neighbours: Vec<(u32, Neighbour)>,
}

impl Survey {
    /// Reads the socket's namespace.
    pub fn read(socket: &Socket) -> Result<Survey, Error> {
        let dump = |kind, body: &[u8]| socket.dump(Message::new(kind, 0, body));
        let mut links: Vec<Link> =
            dump(libc::RTM_GETLINK, &[0; 16])?.iter().filter_map(link).collect();
        links.sort_by_key(|link| link.index);
        let mut survey =
            Survey { links, addresses: Vec::new(), routes: Vec::new(), neighbours: Vec::new() };
        // Most namespaces without an interface stay so, and this is on the way to a start.
        if !survey.links.is_empty() {
            let addresses = dump(libc::RTM_GETADDR, &[0; 8])?;
            survey.addresses = addresses.iter().filter_map(address).collect();
            survey.routes = dump(libc::RTM_GETROUTE, &[0; 12])?.iter().flat_map(routes).collect();
            let neighbours = dump(libc::RTM_GETNEIGH, &[0; 12])?;
            survey.neighbours = neighbours.iter().filter_map(neighbour).collect();
        }
        Ok(survey)
    }

    /// What the guest is told, if these interfaces are devices in these slots.
    pub fn for_guest(&self, joined: &[(u32, u8)]) -> SetNetwork {
        let slot_of = |index: u32| {
            joined.iter().find(|(joined, _)| *joined == index).map(|(_, slot)| u32::from(*slot))
        };
        let interfaces = self.links.iter().filter_map(|link| {
            let addresses = self.addresses.iter().filter(|(index, _)| *index == link.index);
            Some(Interface {
                slot: slot_of(link.index)?,
                name: link.name.clone(),
                mac: link.mac.to_vec(),
                mtu: link.mtu,
                up: link.up,
                no_arp: link.no_arp,
                no_ipv6: link.no_ipv6,
                addresses: addresses.map(|(_, address)| address.clone()).collect(),
                ..Default::default()
            })
        });
        let routes = self.routes.iter().filter_map(|(index, route)| {
            let mut route = route.clone();
            if route.kind.enum_value_or_default() == Kind::UNICAST {
                route.slot = slot_of(*index)?;
            }
            Some(route)
        });
        let neighbours = self.neighbours.iter().filter_map(|(index, neighbour)| {
            Some(Neighbour { slot: slot_of(*index)?, ..neighbour.clone() })
        });
        SetNetwork {
            interfaces: interfaces.collect(),
            routes: routes.collect(),
            neighbours: neighbours.collect(),
            ..Default::default()
        }
    }
}

/// A link that can be joined: an Ethernet interface that is neither a tap nor a part of
/// another interface or on top of one.
fn link(reply: &Reply) -> Option<Link> {
    let (body, attributes) = reply.split::<16>()?;
    let info = attributes.inside(libc::IFLA_LINKINFO);
    let kind = info.text(libc::IFLA_INFO_KIND);
    let below = attributes.get(libc::IFLA_LINK).is_some();
    let below_is_elsewhere = attributes.get(libc::IFLA_LINK_NETNSID).is_some();
    let flags = number(&body[8..]);
    let has = |flag: i32| flags & flag as u32 != 0;
    let joins = body[2..4] == libc::ARPHRD_ETHER.to_ne_bytes()
        && kind.as_deref() != Some(TUN)
        && attributes.get(libc::IFLA_MASTER).is_none()
        && (!below || below_is_elsewhere);
    if !joins {
        return None;
    }
    let mode = info.inside(libc::IFLA_INFO_DATA).get(IFLA_IPVLAN_MODE);
    let inet6 = attributes.inside(libc::IFLA_AF_SPEC).inside(libc::AF_INET6 as u16);
    let disabled = inet6.get(IFLA_INET6_CONF).and_then(|list| list.get(DEVCONF_DISABLE_IPV6 * 4..));
    Some(Link {
        index: number(&body[4..]),
        name: attributes.text(libc::IFLA_IFNAME)?,
        mac: attributes.get(libc::IFLA_ADDRESS)?.try_into().ok()?,
        mtu: attributes.number(libc::IFLA_MTU)?,
        up: has(libc::IFF_UP),
        no_arp: has(libc::IFF_NOARP),
        // A kernel without IPv6 says nothing of it.
        no_ipv6: disabled.is_none_or(|disabled| number(disabled) != 0),
        layer_3s: kind.as_deref() == Some(IPVLAN)
            && mode == Some(&IPVLAN_MODE_L3S.to_ne_bytes()[..]),
    })
}

fn address(reply: &Reply) -> Option<(u32, Address)> {
    let (body, attributes) = reply.split::<8>()?;
    let [family, prefix, _, scope, ..] = *body;
    let flags = attributes.number(libc::IFA_FLAGS)?;
    if flags & libc::IFA_F_DADFAILED != 0 {
        return None;
    }
    // Those that a router's advertisement made here, it makes in the guest.
    if i32::from(family) == libc::AF_INET6 && flags & libc::IFA_F_PERMANENT == 0 {
        return None;
    }
    let other = attributes.get(libc::IFA_ADDRESS)?;
    let ip = attributes.get(libc::IFA_LOCAL).unwrap_or(other);
    let address = Address {
        ip: ip.to_vec(),
        prefix: prefix.into(),
        peer: if other == ip { Vec::new() } else { other.to_vec() },
        broadcast: attributes.get(libc::IFA_BROADCAST).unwrap_or_default().to_vec(),
        scope: scope.into(),
        ..Default::default()
    };
    Some((number(&body[4..]), address))
}

/// The routes in a message: one for each next hop.
fn routes(reply: &Reply) -> Vec<(u32, Route)> {
    let Some((route, body, attributes)) = route(reply) else { return Vec::new() };
    let mut hops = Vec::new();
    match attributes.get(libc::RTA_MULTIPATH) {
        None => hops.push((
            attributes.number(libc::RTA_OIF).unwrap_or(0),
            with_gateway(route, number(&body[8..]), &attributes),
        )),
        Some(mut list) => {
            // struct rtnexthop, with attributes behind it.
            while let Some(hop) = list.first_chunk::<8>() {
                let len = usize::from(u16::from_ne_bytes([hop[0], hop[1]]));
                let Some(inside) = list.get(8..len) else { break };
                let gateway = with_gateway(route.clone(), hop[2].into(), &Attributes(inside));
                hops.push((number(&hop[4..]), gateway));
                list = list.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
    hops
}

/// A route of the main table that somebody has set, without where it leads to.
fn route(reply: &Reply) -> Option<(Route, &[u8; 12], Attributes<'_>)> {
    let (body, attributes) = reply.split::<12>()?;
    let [family, prefix, source_prefix, tos, table, protocol, scope, kind, ..] = *body;
    let table = attributes.number(libc::RTA_TABLE).unwrap_or(table.into());
    // What routers tell, they tell the guest.
    let told = [libc::RTPROT_REDIRECT, RTPROT_RA].contains(&protocol);
    let cached = number(&body[8..]) & libc::RTM_F_CLONED != 0;
    let main = table == u32::from(libc::RT_TABLE_MAIN);
    if !main || told || cached || source_prefix != 0 || tos != 0 {
        return None;
    }
    let kind = match kind {
        libc::RTN_UNICAST => Kind::UNICAST,
        libc::RTN_BLACKHOLE => Kind::BLACKHOLE,
        libc::RTN_UNREACHABLE => Kind::UNREACHABLE,
        libc::RTN_PROHIBIT => Kind::PROHIBIT,
        libc::RTN_THROW => Kind::THROW,
        _ => return None,
    };
    let destination = match (attributes.get(libc::RTA_DST), i32::from(family)) {
        (Some(destination), _) => destination.to_vec(),
        (None, libc::AF_INET) => vec![0; 4],
        (None, libc::AF_INET6) => vec![0; 16],
        _ => return None,
    };
    let metrics = attributes.inside(libc::RTA_METRICS);
    let route = Route {
        kind: kind.into(),
        destination,
        prefix: prefix.into(),
        source: attributes.get(libc::RTA_PREFSRC).unwrap_or_default().to_vec(),
        scope: scope.into(),
        metric: attributes.number(libc::RTA_PRIORITY).unwrap_or(0),
        mtu: metrics.number(RTAX_MTU).unwrap_or(0),
        advmss: metrics.number(RTAX_ADVMSS).unwrap_or(0),
        ..Default::default()
    };
    Some((route, body, attributes))
}

fn with_gateway(route: Route, flags: u32, attributes: &Attributes) -> Route {
    let of_other_family = || attributes.get(libc::RTA_VIA)?.get(2..);
    let gateway = attributes.get(libc::RTA_GATEWAY).or_else(of_other_family);
    let gateway = gateway.unwrap_or_default().to_vec();
    Route { gateway, onlink: flags & RTNH_F_ONLINK != 0, ..route }
}

/// A permanent entry.
fn neighbour(reply: &Reply) -> Option<(u32, Neighbour)> {
    let (body, attributes) = reply.split::<12>()?;
    let state = u16::from_ne_bytes([body[8], body[9]]);
    if state & libc::NUD_PERMANENT == 0 || body[10] & libc::NTF_PROXY != 0 {
        return None;
    }
    let neighbour = Neighbour {
        ip: attributes.get(libc::NDA_DST)?.to_vec(),
        mac: attributes.get(libc::NDA_LLADDR)?.to_vec(),
        ..Default::default()
    };
    Some((number(&body[4..]), neighbour))
}

/// The number that a structure has here; these are of fixed length.
fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}
