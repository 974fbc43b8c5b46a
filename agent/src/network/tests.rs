// SPDX-License-Identifier: Apache-2.0

//! A pair of interfaces in a network namespace of the test's own takes the place of a device
//! that was plugged; what the kernel then has, `ip` tells.

use std::process::Command;

use husk_protocol::agent::route::Kind;
use husk_protocol::agent::{Address, Neighbour};

use super::*;

const SLOT: u32 = 5;

fn ip_of(text: &str) -> Vec<u8> {
    match text.parse().expect(text) {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(ip: &str, prefix: u32) -> Address {
    Address { ip: ip_of(ip), prefix, ..Default::default() }
}

fn route(destination: &str, prefix: u32, gateway: &str) -> Route {
    Route {
        destination: ip_of(destination),
        prefix,
        gateway: if gateway.is_empty() { Vec::new() } else { ip_of(gateway) },
        scope: if gateway.is_empty() { 253 } else { 0 },
        slot: SLOT,
        ..Default::default()
    }
}

/// What CNI's ptp gives a pod, with IPv6: the subnet is behind the gateway.
fn network() -> SetNetwork {
    SetNetwork {
        interfaces: vec![Interface {
            slot: SLOT,
            name: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, 9],
            mtu: 1400,
            up: true,
            addresses: vec![address("10.9.0.2", 24), address("fd00::2", 64)],
            ..Default::default()
        }],
        routes: vec![
            route("0.0.0.0", 0, "10.9.0.1"),
            Route { mtu: 1300, metric: 7, ..route("10.9.0.0", 24, "10.9.0.1") },
            route("::", 0, "fd00::1"),
            route("10.9.0.1", 32, ""),
            Route { scope: 0, ..route("fd00::", 64, "") },
            Route { kind: Kind::BLACKHOLE.into(), ..route("10.99.0.0", 16, "") },
        ],
        neighbours: vec![Neighbour {
            slot: SLOT,
            ip: ip_of("10.9.0.1"),
            mac: vec![2, 0, 0, 0, 0, 1],
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn gateways_come_after_the_way_to_them() {
    let network = network();
    let order: Vec<_> = in_order(&network.routes).map(requests::target).collect();
    let direct = ["10.9.0.1/32", "fd00::/64", "10.99.0.0/16"];
    assert_eq!(order, [&direct[..], &["0.0.0.0/0", "10.9.0.0/24", "::/0"]].concat());
}

#[test]
fn what_is_no_address_is_refused() {
    for bytes in [&[][..], &[1, 2, 3], &[0; 15]] {
        assert!(ip(bytes).is_err(), "{bytes:?}");
    }
    let bad = Address { prefix: 300, ..address("10.0.0.1", 8) };
    let error = requests::add_address(&bad, 1).expect_err("no such prefix");
    assert!(error.message.contains("300"), "{error}");
}

/// Runs in a network namespace with the interface `one`, whose other end is up.
fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let entered = || {
            // SAFETY: unshare takes no pointer; it moves this thread only.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return println!("skipped: a network namespace needs root");
            }
            run("ip link add one type veth peer name other");
            run("ip link set other up");
            test();
        };
        scope.spawn(entered).join().expect("the test");
    });
}

/// What a command says.
fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    let output = command.args(words).output().expect(line);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Leads the namespace from one network to another, with `one` or what became of it as the
/// device.
fn lead(old: &SetNetwork, new: &SetNetwork) -> Result<()> {
    let show = run("ip -o link show type veth");
    let (index, rest) = show.lines().last().and_then(|l| l.split_once(": ")).expect("a link");
    let name = rest.split('@').next().expect("a name").to_owned();
    let index = index.parse().expect("a number");
    let socket = Socket::open().expect("socket");
    rename(&socket, &[Device { name, index }], &new.interfaces)?;
    let links = [Link { interface: &new.interfaces[0], index }];
    set_up(&socket, &links[0])?;
    remove_old(&socket, &links, old, new)?;
    add_new(&socket, &links, new)
}

/// The words of each line of what `ip` says, those that change with the machine left out.
fn listed(line: &str) -> Vec<String> {
    let each = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines: Vec<_> = run(line).lines().map(each).collect();
    lines.sort();
    lines
}

#[test]
fn the_kernel_has_what_the_host_said_and_nothing_else() {
    in_namespace(|| {
        let first = network();
        for time in ["first", "again"] {
            lead(&SetNetwork::default(), &first).expect(time);
            let link = run("ip link show eth0");
            for part in ["mtu 1400", "02:00:00:00:00:09", ",UP"] {
                assert!(link.contains(part), "{part} in {link}");
            }
            let addresses = run("ip -o address show eth0");
            for part in ["10.9.0.2/24", "fd00::2/64 scope global nodad noprefixroute", "fe80::"] {
                assert!(addresses.contains(part), "{part} in {addresses}");
            }
            assert!(!addresses.contains("tentative"), "{addresses}");
            assert_eq!(
                listed("ip -4 route show"),
                [
                    "10.9.0.0/24 via 10.9.0.1 dev eth0 proto static metric 7 mtu 1300",
                    "10.9.0.1 dev eth0 proto static scope link",
                    "blackhole 10.99.0.0/16 proto static scope link",
                    "default via 10.9.0.1 dev eth0 proto static",
                ]
            );
            let routes = run("ip -6 route show dev eth0");
            for part in ["default via fd00::1 proto static", "fd00::/64 proto static"] {
                assert!(routes.contains(part), "{part} in {routes}");
            }
            assert_eq!(
                listed("ip neigh show nud permanent"),
                ["10.9.0.1 dev eth0 lladdr 02:00:00:00:00:01 PERMANENT"]
            );
        }
    });
}

#[test]
fn only_what_the_host_took_away_goes() {
    in_namespace(|| {
        let first = network();
        lead(&SetNetwork::default(), &first).expect("first");
        run("ip address add 192.0.2.7/32 dev eth0");
        run("ip route add 198.51.100.0/24 via 10.9.0.1");
        let mut second = network();
        second.interfaces[0].name = "net1".into();
        second.interfaces[0].mtu = 1500;
        second.interfaces[0].no_ipv6 = true;
        second.interfaces[0].addresses = vec![address("10.9.0.3", 24)];
        second.routes = vec![route("10.9.0.1", 32, ""), route("0.0.0.0", 0, "10.9.0.1")];
        second.neighbours.clear();
        for time in ["second", "again"] {
            lead(&first, &second).expect(time);
            let mut addresses = listed("ip -o address show net1");
            addresses.retain(|line| !line.contains("192.0.2.7/32"));
            assert_eq!(addresses.len(), 1, "{addresses:?}");
            assert!(addresses[0].contains("10.9.0.3/24"), "{addresses:?}");
            assert_eq!(
                listed("ip -4 route show"),
                [
                    "10.9.0.1 dev net1 proto static scope link",
                    "198.51.100.0/24 via 10.9.0.1 dev net1",
                    "default via 10.9.0.1 dev net1 proto static",
                ]
            );
            assert_eq!(listed("ip neigh show nud permanent"), [""; 0]);
        }
    });
}

#[test]
fn names_can_be_exchanged() {
    in_namespace(|| {
        run("ip link set one name eth0");
        run("ip link set other name eth1");
        let number = |name: &str| {
            let path = format!("ip -o link show {name}");
            run(&path).split(':').next().and_then(|n| n.parse().ok()).expect("a number")
        };
        let device = |name: &str| Device { name: name.into(), index: number(name) };
        let devices = [device("eth0"), device("eth1")];
        let interface =
            |slot, name: &str| Interface { slot, name: name.into(), ..Default::default() };
        let socket = Socket::open().expect("socket");
        rename(&socket, &devices, &[interface(5, "eth1"), interface(6, "eth0")]).expect("rename");
        assert_eq!([number("eth1"), number("eth0")], devices.map(|device| device.index));
    });
}
