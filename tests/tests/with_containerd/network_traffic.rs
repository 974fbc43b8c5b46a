// SPDX-License-Identifier: Apache-2.0

//! What goes through a pod's network beside one large stream: many short connections,
//! datagrams of all lengths, and that both sides count the same.

use std::net::SocketAddr;
use std::thread;

use husk_tests::containerd::network::{
    DataPath, Netns, bridged, fetch, hash, ip, serve_once, server,
};
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{Lab, case};
use husk_tests::traffic;

use crate::metrics::samples;

const PORT: u16 = 7;
const POD: [&str; 2] = ["10.88.0.2:7", "[fd00:88::2]:7"];
const HOST: [&str; 2] = ["10.88.0.1:7777", "[fd00:88::1]:7777"];

/// An echo server in a container, and one on the host, once for all cases.
#[track_caller]
fn echo_servers(lab: &Lab, netns: &Netns, path: &DataPath, id: &str) {
    let program = husk_tests::program("husk-test-net").display().to_string();
    let mount = format!("type=bind,src={program},dst=/husk-test-net,options=bind:ro");
    let (netns, path_flags) = (netns.flag(), path.flags(lab));
    // With two vCPUs, so that there are two queue pairs.
    let mut flags = vec!["--with-ns", &netns, "--mount", &mount];
    flags.extend(["--cpu-quota", "200000", "--cpu-period", "100000"]);
    flags.extend(path_flags.iter().map(String::as_str));
    lab.detached(&flags, id, &["/husk-test-net", "echo", &PORT.to_string()]);
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        thread::spawn(|| traffic::echo(7777));
    });
    for host in HOST.map(socket) {
        let up = eventually(LIMIT, || traffic::connect(host, 1).is_ok());
        assert!(up, "the host's echo server does not answer at {host}");
    }
    let up = eventually(LIMIT, || traffic::connect(socket(POD[0]), 1).is_ok());
    assert!(up, "the container's echo server does not answer, {path}");
    path.check(lab);
}

fn socket(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

#[test]
fn short_connections() {
    case("1,000 short connections each way, over IPv4 and IPv6", |lab| {
        for path in DataPath::all(lab) {
            let netns = bridged("husk-short");
            echo_servers(lab, &netns, &path, "short");
            for (pod, host) in POD.iter().zip(HOST) {
                traffic::connect(socket(pod), 500).expect("from the host");
                lab.exec_sh("short", &format!("/husk-test-net connect {host} 500"));
            }
            lab.remove("short");
            netns.until_left();
        }
    });
}

#[test]
fn datagrams() {
    case(
        "UDP: datagrams from 1 to 65,507 bytes, whole or in fragments, and many by one call, \
         each way, over IPv4 and IPv6",
        |lab| {
            for path in DataPath::all(lab) {
                let netns = bridged("husk-udp");
                echo_servers(lab, &netns, &path, "udp");
                for (pod, host) in POD.iter().zip(HOST) {
                    traffic::datagrams(socket(pod), &traffic::DATAGRAMS).expect("from the host");
                    lab.exec_sh("udp", &format!("/husk-test-net datagrams {host}"));
                    traffic::segments(socket(pod), 1200, 40).expect("segments from the host");
                    lab.exec_sh("udp", &format!("/husk-test-net segments {host} 1200 40"));
                }
                lab.remove("udp");
                netns.until_left();
            }
        },
    );
}

#[test]
fn large_transfers() {
    case(
        "16 MiB each way by hash, at an MTU of 1400, 1500 and 9000, with what the kernels leave \
         to each other",
        |lab| {
            const LEN: usize = 16 << 20;
            for path in DataPath::all(lab) {
                let netns = bridged("husk-large");
                let (flag, path_flags) = (netns.flag(), path.flags(lab));
                let mut flags = vec!["--with-ns", &flag];
                flags.extend(path_flags.iter().map(String::as_str));
                lab.detached(&flags, "large", &["sh", "-c", &server(LEN)]);
                for mtu in ["1400", "1500", "9000"] {
                    ip(&format!("link set pod0 mtu {mtu}"));
                    netns.ip(&format!("link set eth0 mtu {mtu}"));
                    let told = eventually(LIMIT, || {
                        lab.exec_sh("large", "cat /sys/class/net/eth0/mtu") == mtu
                    });
                    assert!(told, "the guest is not told of the MTU {mtu}, {path}");
                    let data = fetch("10.88.0.2:8080", "/data");
                    assert_eq!(data.len(), LEN);
                    let theirs = lab.exec_sh("large", "sha256sum </www/data | cut -c1-64");
                    assert_eq!(theirs, hash(&data), "out of the guest, MTU {mtu}, {path}");
                    let port = serve_once("10.88.0.1", data);
                    let line = format!("nc 10.88.0.1 {port} | sha256sum | cut -c1-64");
                    let said = lab.exec_sh("large", &line);
                    assert_eq!(said, theirs, "into the guest, MTU {mtu}, {path}");
                }
                path.check(lab);
                // A large transfer takes far less packets than frames of that size would be.
                let read = "cd /sys/class/net/eth0/statistics; cat tx_bytes tx_packets";
                let numbers: Vec<u64> = lab
                    .exec_sh("large", read)
                    .lines()
                    .map(|line| line.parse().expect("a number"))
                    .collect();
                let mean = numbers[0] / numbers[1];
                assert!(mean > 3000, "{mean} bytes a packet: not segmented by the host, {path}");
                lab.remove("large");
                netns.until_left();
            }
        },
    );
}

#[test]
fn counters() {
    case("the guest's counters of an interface go with those of the namespace's", |lab| {
        for path in DataPath::all(lab) {
            counters_by(lab, &path);
        }
    });
}

fn counters_by(lab: &Lab, path: &DataPath) {
    const LEN: usize = 4 << 20;
    let netns = bridged("husk-counters");
    let (flag, path_flags) = (netns.flag(), path.flags(lab));
    let mut flags = vec!["--with-ns", &flag];
    flags.extend(path_flags.iter().map(String::as_str));
    lab.detached(&flags, "counters", &["sh", "-c", &server(LEN)]);
    fetch("10.88.0.2:8080", "/index.html");
    let read = "cd /sys/class/net/eth0/statistics;
            cat rx_packets rx_bytes tx_packets tx_bytes rx_dropped tx_dropped";
    let numbers = |text: String| -> Vec<i64> {
        text.lines().map(|line| line.trim().parse().expect("a number")).collect()
    };
    let differences = || {
        let inside = numbers(lab.exec_sh("counters", read));
        let outside = numbers(netns.run(read));
        let each = inside.iter().zip(&outside).map(|(inside, outside)| outside - inside);
        (each.collect::<Vec<_>>(), inside, outside)
    };
    // What came before the guest was there, only the namespace has counted. A packet
    // between the two readings is in one of them: then they are read again.
    let (mut before, mut inside, _) = differences();
    let settled = eventually(LIMIT, || {
        let last = before.clone();
        (before, inside, _) = differences();
        last == before
    });
    assert!(settled, "the counters do not settle");
    let data = fetch("10.88.0.2:8080", "/data");
    assert_eq!(lab.exec_sh("counters", "sha256sum </www/data | cut -c1-64"), hash(&data));
    let same = eventually(LIMIT, || differences().0 == before);
    let (after, now_inside, now_outside) = differences();
    assert!(same, "{before:?} became {after:?}: {now_inside:?} inside, {now_outside:?} out");
    assert!(now_inside[3] - inside[3] > LEN as i64, "{inside:?}, {now_inside:?}");
    if lab.is_husk() {
        // What nobody counts is not said to be nothing.
        let of_device = |name: &String| name.contains("device=\"net\"");
        let counted = samples("counters").keys().filter(|name| of_device(name)).count();
        assert_eq!(counted > 0, !path.is_vhost(), "{counted} figures of the device, {path}");
    }
    lab.remove("counters");
    netns.until_left();
}
