// SPDX-License-Identifier: Apache-2.0

//! A pod's network without a VM: the interfaces are real, and so are taps and redirection;
//! the fake husk-vmm sends every datagram that a tap gives it back to where it came from, and
//! says in the guest's log what it was told.

use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command as Program;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use husk_protocol::agent as guest;
use husk_sandbox::{Network, Sandbox, run_dir};
use husk_vmm::config::Plug;
use husk_vmm::control::{Command, Event, Packets};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Place;

/// How long anything may take that should be there at once.
const LIMIT: Duration = Duration::from_secs(30);

/// First slot that the fake plugs into.
const FIRST_SLOT: u8 = 6;

/// A network namespace, entered by a thread that works in it.
struct Namespace {
    path: PathBuf,
    thread: i32,
    work: Sender<Box<dyn FnOnce() + Send>>,
}

impl Namespace {
    fn new() -> Namespace {
        let (work, orders) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            // SAFETY: neither call takes a pointer; unshare moves this thread only.
            let thread = unsafe {
                assert_eq!(libc::unshare(libc::CLONE_NEWNET), 0, "a network namespace");
                libc::gettid()
            };
            tell.send(thread).expect("tell");
            orders.into_iter().for_each(|order| order());
        });
        let thread = told.recv().expect("a thread");
        let path = format!("/proc/{}/task/{thread}/ns/net", std::process::id()).into();
        Namespace { path, thread, work }
    }

    fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.work.send(Box::new(move || drop(tell.send(work())))).expect("the thread");
        told.recv().expect("an answer")
    }

    /// Runs a command in it; what it says.
    fn run(&self, line: &str) -> String {
        let line = line.to_owned();
        self.within(move || {
            let mut words = line.split(' ');
            let mut program = Program::new(words.next().expect("a program"));
            let output = program.args(words).output().expect(&line);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {error}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// Makes an interface of the pod, its other end in another namespace.
    fn add(&self, name: &str, mac: &str, outside: &Namespace, other: &str) {
        self.run(&format!("ip link add {name} address {mac} type veth peer name {other}"));
        self.run(&format!("ip link set {other} netns {}", outside.thread));
        outside.run(&format!("ip link set {other} up"));
        self.run(&format!("ip link set {name} up"));
    }

    /// Nothing of a pod is here any more.
    fn assert_left(&self) {
        let qdiscs = self.run("tc qdisc show");
        assert!(!qdiscs.contains("ingress"), "{qdiscs}");
        let links = self.run("ip -o link show");
        assert!(!links.contains("husk"), "{links}");
    }

    /// Sends datagrams to the guest and waits for what comes back.
    fn assert_echo(&self) {
        self.within(|| {
            let socket = UdpSocket::bind("10.9.0.1:7").expect("bind");
            socket.set_read_timeout(Some(LIMIT)).expect("a limit");
            for len in [1, 512, 1300] {
                let sent: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
                socket.send_to(&sent, "10.9.0.2:9").expect("send");
                let mut received = [0; 2000];
                let len = socket.recv(&mut received).expect("an echo");
                assert_eq!(&received[..len], sent);
            }
        });
    }
}

/// A pod's namespace with one interface, and the outside.
fn namespaces() -> (Namespace, Namespace) {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    outside.run("ip link set lo up");
    pod.add("eth0", "02:00:00:00:09:02", &outside, "host0");
    pod.run("ip link set eth0 mtu 1400");
    pod.run("ip address add 10.9.0.2/24 brd 10.9.0.255 dev eth0");
    pod.run("ip route add default via 10.9.0.1");
    pod.run("ip neigh add 10.9.0.1 lladdr 02:00:00:00:09:01 dev eth0");
    outside.run("ip address add 10.9.0.1/24 dev host0");
    outside.run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:09:02 dev host0");
    (pod, outside)
}

/// What the guest said that it was told.
async fn told(events: &mut tokio::sync::mpsc::Receiver<guest::Event>) -> String {
    match tokio::time::timeout(LIMIT, events.recv()).await.expect("in time").and_then(|e| e.kind) {
        Some(guest::event::Kind::Log(line)) => line.message,
        other => panic!("not a line of the log: {other:?}"),
    }
}

pub async fn a_network_is_joined_followed_and_left() {
    let place = Place::new();
    let (pod, outside) = namespaces();
    let launch =
        husk_sandbox::Launch { network: Network::At(pod.path.clone()), ..place.launch("") };
    let (sandbox, mut events) = Sandbox::launch(launch.clone()).expect("launch");
    let network = sandbox.network().expect("a network").clone();
    network.update().await.expect("joined");
    let first = "6 eth0 020000000902 1400 up 10.9.0.2/24; 10.9.0.0/24 6; 0.0.0.0/0 10.9.0.1 6; \
                 10.9.0.1 020000000901 6;";
    let said = told(&mut events).await;
    for part in first.split_inclusive("; ") {
        assert!(said.contains(part.trim()), "{part} in {said}");
    }
    outside.assert_echo();
    network.update().await.expect("nothing to do");

    // Another pod in the namespace is refused and does no harm.
    let second = husk_sandbox::Launch { id: "second".into(), ..launch };
    let (refused, _events) = Sandbox::launch(second).expect("launch");
    let error = refused.network().expect("a network").update().await.expect_err("taken");
    assert!(error.message.contains("eth0") && error.message.contains("another pod"), "{error}");
    refused.stop("refused").await.expect("stop");
    outside.assert_echo();

    pod.add("eth1", "02:00:00:00:09:03", &outside, "host1");
    let mut said = String::new();
    while !said.contains("7 eth1 020000000903 1500 up") {
        tokio::time::timeout(LIMIT, network.changed()).await.expect("a change");
        network.update().await.expect("joined");
        while let Ok(event) = events.try_recv() {
            let Some(guest::event::Kind::Log(line)) = event.kind else { panic!("not a line") };
            said = line.message;
        }
    }
    assert!(said.contains("6 eth0"), "{said}");
    pod.run("ip link del eth1");
    network.update().await.expect("left");
    let said = told(&mut events).await;
    assert!(said.contains("6 eth0") && !said.contains("eth1"), "{said}");
    let taps = pod.run("ip -o link show type tun").lines().count();
    assert_eq!(taps, 1, "that of eth1 is gone");
    outside.assert_echo();

    sandbox.stop("enough").await.expect("stop");
    pod.assert_left();
    network.update().await.expect_err("too late");
    place.assert_clean();
}

pub async fn a_crash_leaves_no_redirection() {
    let place = Place::new();
    let (pod, _outside) = namespaces();
    let launch =
        husk_sandbox::Launch { network: Network::At(pod.path.clone()), ..place.launch("") };
    let (sandbox, _events) = Sandbox::launch(launch).expect("launch");
    sandbox.network().expect("a network").update().await.expect("joined");
    assert!(pod.run("tc qdisc show dev eth0").contains("ingress"));
    run_dir::clean(&place.path("run"), "ns", "pod").expect("clean");
    sandbox.ended().await;
    pod.assert_left();
    place.assert_clean();
}

pub async fn a_host_network_is_none() {
    let place = Place::new();
    for network in [Network::Host, Network::At("/proc/self/ns/net".into())] {
        let launch = husk_sandbox::Launch { network, ..place.launch("") };
        let (sandbox, _events) = Sandbox::launch(launch).expect("launch");
        assert!(sandbox.network().is_none());
        sandbox.stop("enough").await.expect("stop");
    }
    place.assert_clean();
}

/// The fake's devices: answers to commands, and an echo for what the taps say.
pub fn serve(control: &Packets<OwnedFd>) {
    let mut devices: Vec<(u8, Vec<OwnedFd>)> = Vec::new();
    loop {
        let queues: Vec<&OwnedFd> = devices.iter().flat_map(|(_, queues)| queues).collect();
        let watched = [&control.0].into_iter().chain(queues.iter().copied());
        let mut ready: Vec<PollFd<'_>> =
            watched.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut ready, PollTimeout::NONE).expect("poll");
        let ready: Vec<bool> = ready.iter().map(|fd| fd.any() == Some(true)).collect();
        for (queue, _) in queues.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            echo(queue);
        }
        if ready[0] {
            let Ok(Some((command, files))) = control.receive() else { return };
            match command {
                Command::Plug { id, device: Plug::Net(net) } => {
                    assert_eq!(net.queues, [0, 1], "a queue pair for each vCPU");
                    assert_eq!(net.mac[..5], [2, 0, 0, 0, 9]);
                    let slot = FIRST_SLOT + devices.len() as u8;
                    devices.push((slot, files));
                    control.send(&Event::Plugged { id, slot }, &[]).expect("send");
                }
                Command::Unplug { id, slot } => {
                    devices.retain(|(used, _)| *used != slot);
                    control.send(&Event::Unplugged { id }, &[]).expect("send");
                }
                // The slot tells the test what was asked for.
                Command::Resize { id, memory_mib, .. } => {
                    let slot = Some((memory_mib / 100) as u8);
                    control.send(&Event::MemoryReached { id }, &[]).expect("send");
                    control.send(&Event::Resized { id, slot }, &[]).expect("send");
                }
                other => panic!("not expected: {other:?}"),
            }
        }
    }
}

/// Sends an IPv4 datagram back: MACs, addresses and ports change places, and the checksums
/// stay right. What else comes is dropped.
fn echo(queue: &OwnedFd) {
    /// struct virtio_net_hdr as a tap has it from the start.
    const HEADER: usize = 10;
    let mut bytes = [0; 4096];
    let len = nix::unistd::read(queue, &mut bytes).expect("read");
    let frame = &mut bytes[HEADER..len];
    let (ethernet, ip) = (0..6, 14 + 12);
    if frame.len() < 42 || frame[12..14] != [8, 0] || frame[23] != libc::IPPROTO_UDP as u8 {
        return;
    }
    let mut exchange = |at: usize, len: usize| {
        let (first, second) = frame[at..].split_at_mut(len);
        first.swap_with_slice(&mut second[..len]);
    };
    exchange(ethernet.start, 6);
    exchange(ip, 4);
    exchange(ip + 8, 2);
    bytes[..HEADER].fill(0);
    nix::unistd::write(queue, &bytes[..len]).expect("write");
}

/// What the guest was told, in a line.
pub fn describe(network: &guest::SetNetwork) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let ip = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => std::net::Ipv4Addr::from(v4).to_string(),
        Err(_) => hex(bytes),
    };
    let mut text = String::new();
    for one in &network.interfaces {
        let up = if one.up { "up" } else { "down" };
        text += &format!("{} {} {} {} {up} ", one.slot, one.name, hex(&one.mac), one.mtu);
        for address in &one.addresses {
            text += &format!("{}/{}; ", ip(&address.ip), address.prefix);
        }
    }
    for route in &network.routes {
        text += &format!("{}/{} ", ip(&route.destination), route.prefix);
        if !route.gateway.is_empty() {
            text += &format!("{} ", ip(&route.gateway));
        }
        text += &format!("{}; ", route.slot);
    }
    for one in &network.neighbours {
        text += &format!("{} {} {}; ", ip(&one.ip), hex(&one.mac), one.slot);
    }
    text
}
