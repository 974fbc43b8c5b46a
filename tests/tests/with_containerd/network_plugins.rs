// SPDX-License-Identifier: Apache-2.0

//! A pod on what each of the CNI plugins makes: what the namespace has, the guest has, and
//! packets go both ways. bridge and portmap through Kubernetes are in the suite with_cri.

use husk_tests::containerd::cni::CniNetwork;
use husk_tests::containerd::network::{
    Netns, SHOW, bridged, buckets, fetch, hash, ip, load_ifb, run, server,
};
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{Lab, case, husk_case};
use serde_json::{Value, json};

/// Bytes that a pod serves.
const LEN: usize = 1 << 20;

const SUBNETS: [&str; 2] = ["10.88.0.0/24", "fd00:88::/64"];

/// Another machine of the network: its end of a cable is eth0 with .1 of [`SUBNETS`], the
/// host's is parent0.
fn neighbour() -> Netns {
    let neighbour = Netns::new("husk-neighbour");
    neighbour.add_veth("eth0", &["10.88.0.1/24", "fd00:88::1/64"], "parent0", &[]);
    neighbour
}

fn in_url(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// Runs a pod there and checks that `work` is done with what it serves by `reach`, and that it
/// reaches those addresses; then removes it.
#[track_caller]
fn pod_on(
    lab: &Lab,
    network: &CniNetwork,
    reach: impl Fn(&str) -> Vec<u8>,
    others: [&str; 2],
    meanwhile: impl FnOnce(),
) {
    lab.detached(&["--with-ns", &network.netns.flag()], "pod", &["sh", "-c", &server(LEN)]);
    let expected = network.netns.run(SHOW);
    let addresses = network.addresses();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for address in &addresses {
        assert!(expected.contains(address.as_str()), "{address} is not in:\n{expected}");
    }
    assert_eq!(lab.exec_sh("pod", SHOW), expected, "in the container, and on the host");
    for address in &addresses {
        let data = reach(&format!("{}:8080", in_url(address)));
        let theirs = lab.exec_sh("pod", "sha256sum </www/data | cut -c1-64");
        assert_eq!(theirs, hash(&data), "by {address}");
    }
    for other in others {
        lab.exec_sh("pod", &format!("ping -c 1 -W 20 -s 1400 {other}"));
    }
    meanwhile();
    lab.remove("pod");
    network.netns.until_left();
}

/// One whose interface is a part of parent0, or is taken from the host.
fn on_the_cable(lab: &Lab, plugin: Value) {
    let neighbour = neighbour();
    let network = CniNetwork::add("husk-plugin", &SUBNETS, json!([plugin]));
    let reach = |address: &str| neighbour.within(|| fetch(address, "/data"));
    pod_on(lab, &network, reach, ["10.88.0.1", "fd00:88::1"], || {});
}

/// An interface of the host, which goes when this does.
struct Link(&'static str);

impl Drop for Link {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["link", "del", self.0]).status();
    }
}

#[test]
fn bridge() {
    case("bridge, with large frames", |lab| {
        // No plugin removes it.
        let _bridge = Link("husk-test0");
        let plugin =
            json!({"type": "bridge", "bridge": "husk-test0", "isGateway": true, "mtu": 9000});
        let network = CniNetwork::add("husk-plugin", &SUBNETS, json!([plugin]));
        let reach = |address: &str| fetch(address, "/data");
        pod_on(lab, &network, reach, ["10.88.0.1", "fd00:88::1"], || {});
    });
}

#[test]
fn ptp() {
    case("ptp: the gateway is reached by a route of its own, all else through it", |lab| {
        let plugin = json!({"type": "ptp", "ipMasq": false, "mtu": 1400});
        let network = CniNetwork::add("husk-plugin", &SUBNETS, json!([plugin]));
        let reach = |address: &str| fetch(address, "/data");
        pod_on(lab, &network, reach, ["10.88.0.1", "fd00:88::1"], || {});
    });
}

#[test]
fn portmap_and_bandwidth() {
    case(
        "ptp with portmap and bandwidth: the pod is reached by the host's port, and both \
         directions are held to their rates",
        |lab| {
            let mapping = json!({"hostPort": 8081, "containerPort": 8080, "protocol": "tcp"});
            // 4 Mbit/s, after what a burst lets through.
            let (rate, burst) = (4_000_000, 800_000);
            let plugins = json!([
                {"type": "ptp"},
                {
                    "type": "portmap", "snat": true, "capabilities": {"portMappings": true},
                    "runtimeConfig": {"portMappings": [mapping]},
                },
                {
                    "type": "bandwidth",
                    "ingressRate": rate, "ingressBurst": burst,
                    "egressRate": rate, "egressBurst": burst,
                },
            ]);
            load_ifb();
            let network = CniNetwork::add("husk-plugin", &SUBNETS, plugins);
            let reach = |address: &str| fetch(address, "/data");
            pod_on(lab, &network, reach, ["10.88.0.1", "fd00:88::1"], || {
                assert_eq!(fetch("10.88.0.1:8081", "/small"), b"small\n", "the host's port");
                // On the host's end, and on that of the interface that egress goes through.
                let limits = buckets(&run(&["tc", "-s", "-j", "qdisc", "show"]));
                assert_eq!(limits.len(), 2, "{limits:?}");
                let met = limits.iter().filter(|limit| limit["overlimits"] != 0).count();
                assert!(met >= 1, "{LEN} bytes have not met {rate} bits/s: {limits:?}");
            });
        },
    );
}

#[test]
fn macvlan() {
    case("macvlan", |lab| {
        on_the_cable(lab, json!({"type": "macvlan", "master": "parent0", "mode": "bridge"}));
    });
}

#[test]
fn ipvlan() {
    case("ipvlan, layer 2", |lab| {
        on_the_cable(lab, json!({"type": "ipvlan", "master": "parent0", "mode": "l2"}));
    });
}

#[test]
fn ipvlan_of_layer_3() {
    case("ipvlan, layer 3: without ARP, by a route on the other machine", |lab| {
        let neighbour = neighbour();
        for address in ["10.88.0.10/24", "fd00:88::10/64 nodad"] {
            ip(&format!("address add {address} dev parent0"));
        }
        neighbour.ip("route add 10.89.0.0/24 via 10.88.0.10");
        neighbour.ip("route add fd00:89::/64 via fd00:88::10");
        let plugin = json!({"type": "ipvlan", "master": "parent0", "mode": "l3"});
        let subnets = ["10.89.0.0/24", "fd00:89::/64"];
        let network = CniNetwork::add("husk-plugin", &subnets, json!([plugin]));
        let reach = |address: &str| neighbour.within(|| fetch(address, "/data"));
        pod_on(lab, &network, reach, ["10.88.0.1", "fd00:88::1"], || {});
    });
}

#[test]
fn ipvlan_that_is_refused() {
    husk_case("ipvlan, layer 3s: its packets do not pass the interface, so it is refused", |lab| {
        let _neighbour = neighbour();
        let plugin = json!({"type": "ipvlan", "master": "parent0", "mode": "l3s"});
        let network = CniNetwork::add("husk-plugin", &SUBNETS, json!([plugin]));
        lab.run(&["--with-ns", &network.netns.flag()], "pod", &["true"]).failed_with("l3s");
        network.netns.until_left();
    });
}

#[test]
fn host_device() {
    case("host-device: an interface of the host is the pod's, and the host's again", |lab| {
        on_the_cable(lab, json!({"type": "host-device", "device": "parent0"}));
        // The neighbour's end is gone, and this with it.
        let gone = eventually(LIMIT, || !ip("link show").contains("parent0"));
        assert!(gone, "the device of the host stays");
    });
}

#[test]
fn routes_of_all_kinds() {
    case("routes on the link, to one address, with metrics and to nowhere", |lab| {
        let netns = Netns::new("husk-routes");
        netns.add_veth("eth0", &["10.88.0.2/32"], "pod0", &["10.88.0.1/32"]);
        ip("route add 10.88.0.2 dev pod0");
        // As some plugins do: no network on the link, and a gateway that is said to be there.
        netns.ip("route add 169.254.1.1 dev eth0 scope link");
        netns.ip("route add default via 169.254.1.1 dev eth0 src 10.88.0.2");
        netns.ip("route add 192.0.2.0/24 via 198.51.100.1 dev eth0 onlink mtu 1300");
        netns.ip("route add 203.0.113.0/24 nexthop via 169.254.1.1 dev eth0 nexthop via 198.51.100.1 dev eth0 onlink");
        netns.ip("neigh add 169.254.1.1 lladdr 02:00:00:00:00:99 nud permanent dev eth0");
        ip("link set pod0 address 02:00:00:00:00:99");
        netns.ip("-6 address add fd00:88::2/128 nodad dev eth0");
        netns.ip("-6 route add fe80::1 dev eth0");
        netns.ip("-6 route add default via fe80::1 dev eth0");
        lab.detached(&["--with-ns", &netns.flag()], "routes", &["sh", "-c", &server(1)]);
        let routes = "busybox ip route | busybox grep -v 203.0.113 | busybox sort; busybox ip -6 route | busybox grep -v 'fe80::/\\|multicast' | busybox sort";
        assert_eq!(normal(&lab.exec_sh("routes", routes)), normal(&netns.run(routes)));
        let hops = lab.exec_sh("routes", "ip route show 203.0.113.0/24");
        assert!(hops.contains("169.254.1.1") && hops.contains("198.51.100.1"), "{hops}");
        assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n");
        lab.remove("routes");
        netns.until_left();
    });
}

/// Routes without what tells who has set them.
fn normal(routes: &str) -> Vec<String> {
    let words = |line: &str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        if let Some(at) = words.iter().position(|word| *word == "proto") {
            words.drain(at..at + 2);
        }
        words.join(" ")
    };
    routes.lines().map(words).collect()
}

#[test]
fn filters_of_the_host() {
    case("a filter on the host's end of the pair holds for what the pod sends and gets", |lab| {
        let netns = bridged("husk-filter");
        lab.detached(&["--with-ns", &netns.flag()], "filter", &["sh", "-c", &server(1)]);
        let ping = |host: &str, wanted: bool| {
            let line = format!("ping -c 1 -W {} {host}", if wanted { 20 } else { 1 });
            let code = lab.exec(&[], "filter", &["sh", "-c", &line]).code;
            assert_eq!(code == 0, wanted, "{line}");
        };
        let filters = [("iptables", "10.88.0.1", "icmp"), ("ip6tables", "fd00:88::1", "icmpv6")];
        for (program, host, protocol) in filters {
            let rule = ["INPUT", "-i", "pod0", "-d", host, "-p", protocol, "-j", "DROP"];
            ping(host, true);
            run(&[&[program, "-A"], &rule[..]].concat());
            ping(host, false);
            let seen = run(&[program, "-L", "INPUT", "-v", "-x", "-n"]);
            run(&[&[program, "-D"], &rule[..]].concat());
            let dropped = seen
                .lines()
                .any(|line| line.contains("DROP") && !line.trim_start().starts_with("0 "));
            assert!(dropped, "the filter has counted nothing:\n{seen}");
            ping(host, true);
        }
        assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n");
        lab.remove("filter");
        netns.until_left();
    });
}
