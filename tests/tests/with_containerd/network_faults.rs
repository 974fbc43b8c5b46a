// SPDX-License-Identifier: Apache-2.0

//! What a node's administrator, or a fault, can do to the network below a running pod: the
//! pod goes on with what it still has, and nothing is left of it in the end.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use husk_tests::containerd::network::{
    DataPath, Netns, SHOW, bridged, fetch, ip, server, try_fetch,
};
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{Lab, husk_case};

const LEN: usize = 256 << 10;

/// Fetches from there again and again, whatever comes of it, while `work` is done. Begins when
/// something has been fetched.
#[track_caller]
fn under_traffic(address: &'static str, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let fetched = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if try_fetch(address, "/data").is_ok_and(|data| data.len() == LEN) {
                    fetched.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let going = eventually(LIMIT, || fetched.load(Ordering::Relaxed) > 0);
        if going {
            work();
        }
        done.store(true, Ordering::Relaxed);
        assert!(going, "nothing can be fetched from {address}");
    });
}

/// A second network, of its own cable.
fn add_second(netns: &Netns) {
    netns.add_veth("net1", &["10.89.0.2/24"], "pod1", &["10.89.0.1/24"]);
}

#[test]
fn tap_that_is_deleted() {
    husk_case("the tap deleted under traffic: that interface is dead, the pod is not", |lab| {
        for path in DataPath::all(lab) {
            deleted_tap(lab, &path);
        }
    });
}

fn deleted_tap(lab: &Lab, path: &DataPath) {
    let netns = bridged("husk-fault");
    add_second(&netns);
    let (flag, path_flags) = (netns.flag(), path.flags(lab));
    let mut flags = vec!["--with-ns", &flag];
    flags.extend(path_flags.iter().map(String::as_str));
    lab.detached(&flags, "fault", &["sh", "-c", &server(LEN)]);
    under_traffic("10.88.0.2:8080", || {
        // The first that was made is the first interface's.
        netns.ip("link del husk0");
    });
    assert!(try_fetch("10.88.0.2:8080", "/small").is_err(), "through a tap that is gone");
    assert_eq!(fetch("10.89.0.2:8080", "/small"), b"small\n", "the other interface");
    assert_eq!(lab.exec_sh("fault", "ls /sys/class/net"), "eth0\nlo\nnet1");
    lab.remove("fault");
    netns.until_left();
}

/// The device that vhost-net is had by, away until this is dropped.
struct WithoutVhost;

impl WithoutVhost {
    const DEVICE: &str = "/dev/vhost-net";
    const AWAY: &str = "/dev/vhost-net.away";

    fn begin() -> WithoutVhost {
        std::fs::rename(Self::DEVICE, Self::AWAY).expect("vhost-net");
        WithoutVhost
    }
}

impl Drop for WithoutVhost {
    fn drop(&mut self) {
        let _ = std::fs::rename(Self::AWAY, Self::DEVICE);
    }
}

#[test]
fn host_without_vhost_net() {
    husk_case("without /dev/vhost-net husk-vmm serves the interface, and it is logged", |lab| {
        let _without = WithoutVhost::begin();
        let netns = bridged("husk-fault");
        lab.detached(&["--with-ns", &netns.flag()], "fault", &["sh", "-c", &server(LEN)]);
        assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n");
        DataPath::of_husk()[0].check(lab);
        let expected = "eth0 is served by husk-vmm: cannot open /dev/vhost-net";
        let log = || lab.log().lines().filter(|line| line.contains(expected)).count();
        assert!(eventually(LIMIT, || log() == 1), "{} lines of '{expected}'", log());
        lab.remove("fault");
        netns.until_left();
    });
}

#[test]
fn namespace_that_is_deleted() {
    husk_case("the namespace's name removed under traffic: the pod keeps it to its end", |lab| {
        let netns = bridged("husk-fault");
        lab.detached(&["--with-ns", &netns.flag()], "fault", &["sh", "-c", &server(LEN)]);
        under_traffic("10.88.0.2:8080", || {
            ip("netns del husk-fault");
        });
        assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n");
        lab.remove("fault");
        let gone = eventually(LIMIT, || !ip("link show").contains("pod0"));
        assert!(gone, "somebody keeps the namespace");
    });
}

#[test]
fn interface_that_goes_under_traffic() {
    husk_case("an interface removed under traffic and made again, five times", |lab| {
        for path in DataPath::all(lab) {
            let netns = bridged("husk-fault");
            add_second(&netns);
            let (flag, path_flags) = (netns.flag(), path.flags(lab));
            let mut flags = vec!["--with-ns", &flag];
            flags.extend(path_flags.iter().map(String::as_str));
            lab.detached(&flags, "fault", &["sh", "-c", &server(LEN)]);
            for _ in 0..5 {
                under_traffic("10.89.0.2:8080", || {
                    netns.ip("link del net1");
                });
                add_second(&netns);
            }
            assert_eq!(fetch("10.89.0.2:8080", "/small"), b"small\n", "{path}");
            assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n", "{path}");
            path.check(lab);
            lab.remove("fault");
            netns.until_left();
        }
    });
}

#[test]
fn link_that_flaps() {
    husk_case("a link that goes down and up 100 times under traffic: the guest follows", |lab| {
        let netns = bridged("husk-fault");
        lab.detached(&["--with-ns", &netns.flag()], "fault", &["sh", "-c", &server(LEN)]);
        under_traffic("10.88.0.2:8080", || {
            netns.run("for i in $(seq 100); do ip link set eth0 down; ip link set eth0 up; done");
        });
        // An interface that goes down loses its routes and its IPv6 addresses, in a namespace
        // as in a guest.
        let expected = netns.run(SHOW);
        let same = eventually(LIMIT, || lab.exec_sh("fault", SHOW) == expected);
        assert!(same, "{}\n--- the namespace has:\n{expected}", lab.exec_sh("fault", SHOW));
        assert_eq!(fetch("10.88.0.2:8080", "/small"), b"small\n");
        lab.remove("fault");
        netns.until_left();
    });
}
