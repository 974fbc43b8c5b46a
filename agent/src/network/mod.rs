// SPDX-License-Identifier: Apache-2.0

//! The guest's network as the host says it is to be: devices that the VMM has plugged get
//! the names, addresses and routes that the pod's interfaces have on the host. What an
//! earlier request set up and a later one does not name is taken away; what containers have
//! set up themselves is left alone.

mod device;
mod requests;

use std::net::IpAddr;

use husk_netlink::{Error as Refusal, Socket};
use husk_protocol::agent::{Interface, Route, SetNetwork};
use nix::errno::Errno;

use crate::error::{Doing, Error, Result};
use device::Device;

/// A device that a configured interface is, and its number in the kernel.
struct Link<'a> {
    interface: &'a Interface,
    index: u32,
}

/// The slots whose devices the new network does not have any more.
pub fn gone(old: &SetNetwork, new: &SetNetwork) -> Vec<u32> {
    let kept = |slot: &u32| new.interfaces.iter().any(|interface| interface.slot == *slot);
    old.interfaces.iter().map(|interface| interface.slot).filter(|slot| !kept(slot)).collect()
}

/// Leads the guest from one network to another, whose devices are there; those that are gone
/// have been removed. Can be repeated, also after it has failed somewhere in the middle.
pub fn apply(old: &SetNetwork, new: &SetNetwork) -> Result<()> {
    let devices: Vec<Device> =
        new.interfaces.iter().map(|i| device::find(i.slot)).collect::<Result<_>>()?;
    let socket = Socket::open().doing("open a netlink socket")?;
    rename(&socket, &devices, &new.interfaces)?;
    let links: Vec<Link> = devices
        .iter()
        .zip(&new.interfaces)
        .map(|(device, interface)| Link { interface, index: device.index })
        .collect();
    for link in &links {
        set_up(&socket, link)?;
    }
    remove_old(&socket, &links, old, new)?;
    add_new(&socket, &links, new)
}

/// Gives devices their names. One name may be another's at first, so all that change give
/// theirs up before.
fn rename(socket: &Socket, devices: &[Device], interfaces: &[Interface]) -> Result<()> {
    let wrong: Vec<_> =
        devices.iter().zip(interfaces).filter(|(device, to)| device.name != to.name).collect();
    for (device, interface) in &wrong {
        let between = format!("slot{}", interface.slot);
        socket
            .request(requests::rename(device.index, &between))
            .doing(format!("rename {} to {between}", device.name))?;
    }
    for (device, interface) in &wrong {
        socket
            .request(requests::rename(device.index, &interface.name))
            .doing(format!("name a network interface {:?}", interface.name))?;
    }
    Ok(())
}

/// MAC, MTU, what IPv6 does by itself, and whether it is up.
fn set_up(socket: &Socket, link: &Link) -> Result<()> {
    let Interface { name, no_ipv6, .. } = link.interface;
    // Whether the addresses are anybody else's has been found out on the host, and a second
    // of waiting for the same here is a second too much.
    for (file, on) in [("accept_dad", false), ("disable_ipv6", *no_ipv6)] {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{file}");
        std::fs::write(&path, u8::from(on).to_string()).doing(format!("write {path}"))?;
    }
    socket.request(requests::set_link(link.index, link.interface)).doing(format!("set up {name}"))
}

/// Takes away what only the old network has. Much of it has gone by itself, with its
/// interface or its address.
fn remove_old(socket: &Socket, links: &[Link], old: &SetNetwork, new: &SetNetwork) -> Result<()> {
    let gone = |error: &Refusal| {
        [Errno::ESRCH, Errno::ENOENT, Errno::EADDRNOTAVAIL, Errno::ENODEV].contains(&error.errno)
    };
    for route in old.routes.iter().filter(|route| !new.routes.contains(route)) {
        let Some(index) = route_index(links, route) else { continue };
        let done = socket.request(requests::remove_route(route, index)?);
        unless(done, gone).doing(format!("remove the route to {}", requests::target(route)))?;
    }
    for neighbour in old.neighbours.iter().filter(|n| !new.neighbours.contains(n)) {
        let Some(index) = index_of(links, neighbour.slot) else { continue };
        let done = socket.request(requests::remove_neighbour(neighbour, index)?);
        unless(done, gone).doing("remove a neighbour")?;
    }
    for interface in &old.interfaces {
        let Some(link) = links.iter().find(|link| link.interface.slot == interface.slot) else {
            continue;
        };
        let kept = &link.interface.addresses;
        for address in interface.addresses.iter().filter(|address| !kept.contains(address)) {
            let done = socket.request(requests::remove_address(address, link.index)?);
            unless(done, gone).doing(format!("remove an address from {}", link.interface.name))?;
        }
    }
    Ok(())
}

/// Adds all of the new network, for what was there may have gone with what was removed.
fn add_new(socket: &Socket, links: &[Link], new: &SetNetwork) -> Result<()> {
    let there = |error: &Refusal| error.errno == Errno::EEXIST;
    for Link { interface, index } in links {
        for address in &interface.addresses {
            let done = socket.request(requests::add_address(address, *index)?);
            unless(done, there).doing(format!(
                "give {} the address {}/{}",
                interface.name,
                ip(&address.ip)?,
                address.prefix
            ))?;
        }
    }
    for route in in_order(&new.routes) {
        let Some(index) = route_index(links, route) else { continue };
        let done = socket.request(requests::add_route(route, index)?);
        unless(done, there).doing(format!("add the route to {}", requests::target(route)))?;
    }
    for neighbour in &new.neighbours {
        let Some(index) = index_of(links, neighbour.slot) else { continue };
        socket
            .request(requests::add_neighbour(neighbour, index)?)
            .doing(format!("add the neighbour {}", ip(&neighbour.ip)?))?;
    }
    Ok(())
}

/// Routes in an order in which the kernel takes them: it wants to know how to reach a gateway
/// before it is told what is behind.
fn in_order(routes: &[Route]) -> impl Iterator<Item = &Route> {
    let direct = routes.iter().filter(|route| route.gateway.is_empty());
    direct.chain(routes.iter().filter(|route| !route.gateway.is_empty()))
}

/// The number of a route's interface, or 0 for one without; none if there is no such
/// interface, or it is down and can have no routes.
fn route_index(links: &[Link], route: &Route) -> Option<u32> {
    match requests::sends(route) {
        true => index_of(links, route.slot),
        false => Some(0),
    }
}

fn index_of(links: &[Link], slot: u32) -> Option<u32> {
    let link = links.iter().find(|link| link.interface.slot == slot && link.interface.up);
    link.map(|link| link.index)
}

/// Success also if it failed for an expected reason.
fn unless(
    done: std::result::Result<(), Refusal>,
    expected: impl Fn(&Refusal) -> bool,
) -> std::result::Result<(), Refusal> {
    match done {
        Err(error) if expected(&error) => Ok(()),
        done => done,
    }
}

/// An IP address of a message.
fn ip(bytes: &[u8]) -> Result<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| Error::invalid(format!("an IP address of {} bytes", bytes.len())))
}

#[cfg(test)]
mod tests;
