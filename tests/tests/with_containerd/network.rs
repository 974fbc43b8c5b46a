// SPDX-License-Identifier: Apache-2.0

//! A pod's network: what its namespace on the host has, the guest has.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::network::{
    DataPath, Netns, SHOW, bridged, buckets, fetch, hash, ip, serve_once, server,
};
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{CTR_NAMESPACE, Lab, case, husk_case};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// What is sent in each direction, in bytes; less where it is not about much.
const LEN: usize = 20 << 20;

#[test]
fn interface_of_the_namespace() {
    case(
        "the namespace's interface: name, MAC, MTU, addresses, routes, neighbours; ping and 20 \
         MiB each way, IPv4 and IPv6; nothing is left of it",
        |lab| {
            let netns = bridged("husk-one");
            netns.ip("link set eth0 mtu 1400");
            netns.ip("route add 192.0.2.0/24 via 10.88.0.1 metric 50");
            netns.ip("route add blackhole 198.51.100.0/24");
            netns.ip("route add 203.0.113.1 dev eth0 scope link src 10.88.0.2");
            netns.ip("neigh add 203.0.113.1 lladdr 02:00:00:00:00:77 dev eth0");
            lab.detached(&["--with-ns", &netns.flag()], "one", &["sh", "-c", &server(LEN)]);
            let expected = netns.run(SHOW);
            assert!(expected.contains("10.88.0.2/24") && expected.contains("fd00:88::2/64"));
            assert_eq!(lab.exec_sh("one", SHOW), expected, "in the container, and on the host");

            for to in ["10.88.0.1", "fd00:88::1"] {
                let said = lab.exec_sh("one", &format!("ping -c 2 -W 20 {to}"));
                assert!(said.contains(" 0% packet loss"), "{said}");
            }
            let data = fetch("10.88.0.2:8080", "/data");
            assert_eq!(data.len(), LEN);
            let theirs = lab.exec_sh("one", "sha256sum </www/data");
            assert_eq!(theirs.split(' ').next(), Some(hash(&data).as_str()), "out of the guest");
            assert_eq!(fetch("[fd00:88::2]:8080", "/small"), b"small\n");
            let ours = hash(&data);
            for host in ["10.88.0.1", "fd00:88::1"] {
                let port = serve_once(host, data.clone());
                let said = lab.exec_sh("one", &format!("nc {host} {port} | sha256sum"));
                assert_eq!(said.split(' ').next(), Some(ours.as_str()), "into the guest, {host}");
            }
            let received = "cat /sys/class/net/eth0/statistics/rx_bytes";
            let received: usize = lab.exec_sh("one", received).parse().expect("a number");
            assert!(received > 2 * LEN, "the interface counted {received} bytes");
            lab.remove("one");
            netns.until_left();
        },
    );
}

#[test]
fn several_interfaces() {
    case(
        "two interfaces, one with large frames, and two vCPUs: all is as in the namespace, and \
         each leads where it should",
        |lab| {
            let netns = bridged("husk-two");
            netns.add_veth("net1", &["10.89.0.2/24"], "pod1", &["10.89.0.1/24"]);
            ip("link set pod1 mtu 9000");
            netns.ip("link set net1 mtu 9000");
            let netns_flag = netns.flag();
            let flags =
                ["--with-ns", &netns_flag, "--cpu-quota", "200000", "--cpu-period", "100000"];
            lab.detached(&flags, "two", &["sh", "-c", &server(LEN / 10)]);
            assert_eq!(lab.exec_sh("two", SHOW), netns.run(SHOW));
            let data = fetch("10.88.0.2:8080", "/data");
            assert_eq!(hash(&fetch("10.89.0.2:8080", "/data")), hash(&data));
            for (host, size) in [("10.88.0.1", "1400"), ("10.89.0.1", "8900")] {
                lab.exec_sh("two", &format!("ping -c 1 -W 20 -s {size} {host}"));
                let port = serve_once(host, data.clone());
                let said = lab.exec_sh("two", &format!("nc {host} {port} | sha256sum"));
                assert_eq!(said.split(' ').next(), Some(hash(&data).as_str()), "{host}");
            }
            if lab.is_husk() {
                let queues =
                    lab.exec_sh("two", "nproc; ls -d /sys/class/net/eth0/queues/rx-* | wc -l");
                // No more vCPUs than the host has CPUs.
                let vcpus =
                    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(2));
                assert_eq!(queues, format!("{vcpus}\n{vcpus}"), "a queue for each vCPU");
            }
            lab.remove("two");
            netns.until_left();
        },
    );
}

#[test]
fn changes_while_it_lives() {
    husk_case(
        "interfaces that come between create and start and later, change and go: the guest \
         follows",
        |lab| {
            let netns = Netns::new("husk-late");
            let bundle = Bundle::with(lab, CTR_NAMESPACE, "late", |spec| {
                spec["process"]["args"] = json!(["sh", "-c", server(1)]);
                spec["process"]["env"] = json!(["PATH=/bin"]);
                let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
                namespaces.retain(|namespace| namespace["type"] != "network");
                namespaces.push(json!({"type": "network", "path": netns.path()}));
            });
            bundle.create();
            netns.add_veth("eth0", &["10.88.0.2/24"], "pod0", &["10.88.0.1/24"]);
            bundle.start("").expect("Start");
            bundle
                .exec("first", &["sh", "-c", "ip -o address show dev eth0 | grep -q 10.88.0.2/24"]);
            assert_eq!(bundle.wait("first").expect("Wait").exit_status, 0, "there at Start");
            bundle.delete("first").expect("Delete");
            assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n");

            netns.add_veth("net1", &["10.89.0.2/24"], "pod1", &["10.89.0.1/24"]);
            assert_eq!(fetch("10.89.0.2:8080", "/small"), b"small\n");
            netns.ip("address add 10.89.0.3/24 dev net1");
            assert_eq!(fetch("10.89.0.3:8080", "/small"), b"small\n");
            netns.ip("link del net1");
            let gone = "i=0; while [ -e /sys/class/net/net1 ] && [ $i -lt 600 ]; do
                usleep 100000; i=$((i + 1)); done; ! [ -e /sys/class/net/net1 ]";
            bundle.exec("gone", &["sh", "-c", gone]);
            assert_eq!(bundle.wait("gone").expect("Wait").exit_status, 0, "net1 stays");
            bundle.delete("gone").expect("Delete");
            assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n");
            bundle.remove_pod();
            netns.until_left();
        },
    );
}

#[test]
fn set_up_by_a_hook() {
    husk_case("a createRuntime hook sets the network up, as nerdctl's does", |lab| {
        let directory = husk_tests::temporary("husk-network-hook");
        let hook = directory.path().join("hook");
        // The pid in the state is where the namespace is to be found.
        let script = "#!/bin/bash -e
            pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')
            export PATH=/usr/sbin:/usr/bin:/sbin:/bin
            ip link add pod0 type veth peer name eth0 netns $pid
            ip address add 10.88.0.1/24 dev pod0
            ip link set pod0 up
            nsenter -t $pid -n ip address add 10.88.0.2/24 dev eth0
            nsenter -t $pid -n ip link set eth0 up";
        fs::write(&hook, script).expect("the hook");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("chmod");
        let bundle = Bundle::with(lab, CTR_NAMESPACE, "hooked", |spec| {
            spec["process"]["args"] = json!(["sh", "-c", server(1)]);
            spec["process"]["env"] = json!(["PATH=/bin"]);
            spec["hooks"] = json!({"createRuntime": [{"path": hook}]});
        });
        bundle.launch();
        assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n");
        bundle.remove_pod();
    });
}

/// A pod on an interface that is not the end of a pair but a part of another interface.
fn on_a_part(lab: &Lab, kind: &str) {
    let outside = Netns::new("husk-outside");
    outside.add_veth("eth0", &["10.88.0.1/24", "fd00:88::1/64"], "parent0", &[]);
    let netns = Netns::new("husk-part");
    ip(&format!("link add link parent0 name part0 type {kind}"));
    ip("link set part0 netns husk-part name eth0");
    for address in ["10.88.0.2/24", "fd00:88::2/64 nodad"] {
        netns.ip(&format!("address add {address} dev eth0"));
    }
    netns.ip("link set eth0 up");
    lab.detached(&["--with-ns", &netns.flag()], "part", &["sh", "-c", &server(LEN / 10)]);
    assert_eq!(lab.exec_sh("part", SHOW), netns.run(SHOW), "{kind}");
    let theirs =
        lab.exec_sh("part", "until [ -s /www/data ]; do usleep 100000; done; sha256sum </www/data");
    for host in ["10.88.0.2", "[fd00:88::2]"] {
        let fetch = format!("busybox wget -q -O - http://{host}:8080/data | sha256sum");
        assert_eq!(outside.run(&fetch), theirs, "{kind}, {host}");
    }
    for to in ["10.88.0.1", "fd00:88::1"] {
        lab.exec_sh("part", &format!("ping -c 1 -W 20 {to}"));
    }
    lab.remove("part");
    netns.until_left();
}

#[test]
fn macvlan() {
    case("a macvlan interface", |lab| on_a_part(lab, "macvlan mode bridge"));
}

#[test]
fn ipvlan() {
    case("an ipvlan interface, layer 2", |lab| on_a_part(lab, "ipvlan mode l2"));
}

#[test]
fn namespace_that_is_taken() {
    husk_case("a second pod in a namespace is refused; the first one's network stays", |lab| {
        let netns = bridged("husk-taken");
        let netns_flag = netns.flag();
        let flags = ["--with-ns", &netns_flag];
        lab.detached(&flags, "first", &["sh", "-c", &server(LEN / 10)]);
        lab.run(&flags, "second", &["true"]).failed_with("another pod");
        assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n");
        lab.remove("first");
        netns.until_left();
        // All the same, one after the other.
        lab.run(&flags, "second", &["ping", "-c", "1", "-W", "20", "10.88.0.1"]).ended(0);
    });
}

/// Lets pods say how fast their network is; the flags that make use of it.
fn with_rates(lab: &Lab, path: &DataPath, rate: u32) -> Vec<String> {
    let names = ["io.husk.ingress-bandwidth", "io.husk.egress-bandwidth"];
    path.add_settings(&format!("[annotations]\nallowed = {names:?}\n"));
    let mut flags = path.flags(lab);
    for name in names {
        flags.extend(["--annotation".to_owned(), format!("{name}={rate}")]);
    }
    flags
}

#[test]
fn rates_by_annotation() {
    husk_case("a pod's annotations limit both directions of its interfaces", |lab| {
        for path in DataPath::all(lab) {
            rates_by(lab, &path);
        }
    });
}

fn rates_by(lab: &Lab, path: &DataPath) {
    const LEN: usize = 512 << 10;
    const RATE: u32 = 1_000_000;
    let netns = bridged("husk-rates");
    let netns_flag = netns.flag();
    let flags = with_rates(lab, path, RATE);
    let mut words = vec!["--with-ns", &netns_flag];
    words.extend(flags.iter().map(String::as_str));
    lab.detached(&words, "rates", &["sh", "-c", &server(LEN)]);
    let limits = || buckets(&netns.run("tc -s -j qdisc show"));
    let devices: Vec<_> = limits().iter().map(|limit| limit["dev"].clone()).collect();
    assert_eq!(devices, ["eth0", "husk0"], "{:?}", limits());
    let has_met = |device: &str| {
        let limits = limits();
        let limit = limits.iter().find(|limit| limit["dev"] == device).expect("the limit");
        assert_eq!(limit["options"]["rate"], RATE / 8, "{limit}");
        limit["overlimits"] != 0
    };
    assert!(!has_met("husk0"), "nothing has been sent to the pod yet");
    let data = fetch("10.88.0.2:8080", "/data");
    assert_eq!(lab.exec_sh("rates", "sha256sum </www/data | cut -c1-64"), hash(&data));
    assert!(has_met("eth0"), "{LEN} bytes have not met the limit: {:?}", limits());
    let port = serve_once("10.88.0.1", data.clone());
    let theirs = lab.exec_sh("rates", &format!("nc 10.88.0.1 {port} | sha256sum | cut -c1-64"));
    assert_eq!(theirs, hash(&data));
    assert!(has_met("husk0"), "{LEN} bytes have not met the limit: {:?}", limits());
    path.check(lab);
    lab.remove("rates");
    netns.until_left();

    let annotation = ["--annotation", "io.husk.egress-bandwidth=1M"];
    lab.run(&annotation, "rates", &["true"]).failed_with("not allowed on this node");
    netns.run("tc qdisc add dev eth0 root handle 1: pfifo");
    lab.run(&words, "rates", &["true"]).failed_with("it has a queueing discipline already");
    netns.until_left();
    assert!(netns.run("tc qdisc show dev eth0").contains("pfifo"), "somebody else's");
}

#[test]
fn nothing_is_left_after_a_crash() {
    husk_case("shim or VMM killed: nothing is left in the namespace", |lab| {
        let netns = bridged("husk-crash");
        let [_, path] = &DataPath::of_husk();
        let (netns_flag, rates) = (netns.flag(), with_rates(lab, path, 100_000_000));
        let mut flags = vec!["--with-ns", &netns_flag];
        flags.extend(rates.iter().map(String::as_str));
        for program in ["husk-vmm".to_owned(), lab.shim()] {
            let before = pids_of(&program);
            lab.idle(&flags, "crash");
            let new = pids_of(&program).into_iter().find(|pid| !before.contains(pid));
            kill(Pid::from_raw(new.expect("a process")), Signal::SIGKILL).expect("SIGKILL");
            let gone = || lab.status("crash").is_none_or(|status| status == "STOPPED");
            assert!(eventually(LIMIT, gone), "{program} killed: {:?}", lab.status("crash"));
            if lab.status("crash").is_some() {
                lab.remove_task("crash");
            }
            lab.ctr(&["containers", "rm", "crash"]).ended(0);
            netns.until_left();
        }
    });
}

#[test]
fn no_network() {
    case("a namespace that nobody sets up: loopback, and it works", |lab| {
        let script =
            "ls /sys/class/net; ip link set lo up; ping -c 1 -W 20 127.0.0.1 | grep -c ' 0% '
            ! ping -c 1 -W 1 10.88.0.1 >/dev/null 2>&1";
        assert_eq!(lab.sh("lonely", script).ended(0).text(), "lo\n1");
    });
}

#[test]
fn network_of_the_host() {
    husk_case("the host's network is no guest's: loopback only, and a line in the log", |lab| {
        let said = lab.run(&["--net-host"], "hostly", &["ls", "/sys/class/net"]).ended(0).text();
        assert_eq!(said, "lo");
        assert!(
            lab.log().contains("is to use the host's network, which a VM cannot"),
            "{}",
            lab.log()
        );
    });
}
