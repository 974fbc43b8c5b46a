// SPDX-License-Identifier: Apache-2.0

//! A network for a pod as a CNI plugin leaves it: a namespace with an interface whose other
//! end is on the host. It is made with `ip`, and removed when it is dropped.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::Lab;
use super::leftovers::pids_of;
use super::process::{LIMIT, Running, eventually};
use crate::temporary;

/// Prints what is in a network namespace but loopback, taps and what the kernel makes up by
/// itself, in the words of one program on both sides.
pub const SHOW: &str = "
    for name in $(busybox ls /sys/class/net); do
        case $name in lo | husk*) continue ;; esac
        echo link $name $(cat /sys/class/net/$name/address /sys/class/net/$name/mtu)
        busybox ip -o address show dev $name scope global | busybox sed 's/^[0-9]*: //; s/ secondary//; s/ noprefixroute//; s/ flags 02 / /'
    done
    { busybox ip route; busybox ip -6 route; } |
        busybox sed 's/  */ /g; s/ proto [a-z]*//; s/ $//; /^fe80:/d; /^multicast/d; / lo /d' | busybox sort
    busybox ip neigh show nud permanent | busybox sort";

/// The flags of `ctr run` for the one or the other data path of husk's network devices: that
/// of the host's kernel, and husk's own.
pub struct DataPath {
    vhost: bool,
    settings: TempDir,
}

impl DataPath {
    /// Those to be tested: both of husk; another runtime has one, without flags.
    pub fn all(lab: &Lab) -> Vec<DataPath> {
        let [own, kernel] = DataPath::of_husk();
        if lab.is_husk() { vec![own, kernel] } else { vec![own] }
    }

    /// Those of husk: its own, and that of the host's kernel.
    pub fn of_husk() -> [DataPath; 2] {
        [false, true].map(DataPath::new)
    }

    pub fn is_vhost(&self) -> bool {
        self.vhost
    }

    fn new(vhost: bool) -> DataPath {
        let settings = temporary("husk-path");
        let text = format!("[vm]\nvhost_net = {vhost}\n");
        std::fs::write(settings.path().join("config.toml"), text).expect("settings");
        DataPath { vhost, settings }
    }

    /// Further settings of the node.
    pub fn add_settings(&self, text: &str) {
        let file = File::options().append(true).open(self.settings.path().join("config.toml"));
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("settings");
    }

    pub fn flags(&self, lab: &Lab) -> Vec<String> {
        if lab.is_husk() { self.husk_flags() } else { Vec::new() }
    }

    pub fn husk_flags(&self) -> Vec<String> {
        let file = self.settings.path().join("config.toml");
        vec!["--runtime-config-path".to_owned(), file.display().to_string()]
    }

    /// Fails the case unless the one VM that runs uses it.
    #[track_caller]
    pub fn check(&self, lab: &Lab) {
        if !lab.is_husk() {
            return;
        }
        let pids = pids_of("husk-vmm");
        assert_eq!(pids.len(), 1, "VMs that run");
        let tasks = std::fs::read_dir(format!("/proc/{}/task", pids[0])).expect("threads");
        // Name and cgroup.
        let threads: Vec<[String; 2]> = tasks
            .map(|task| {
                let task = task.expect("a thread").path();
                ["comm", "cgroup"].map(|file| {
                    let text = std::fs::read_to_string(task.join(file)).expect("of a thread");
                    text.trim().to_owned()
                })
            })
            .collect();
        // The kernel's threads are named by whom they work for, and are in its cgroup.
        let of_kernel = threads.iter().any(|[name, _]| name.starts_with("vhost-"));
        let own = threads.iter().any(|[name, _]| name == "net0");
        assert_eq!((of_kernel, own), (self.vhost, !self.vhost), "{threads:?}");
        assert!(threads.iter().all(|[_, cgroup]| *cgroup == threads[0][1]), "{threads:?}");
    }
}

impl std::fmt::Display for DataPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.vhost { "by vhost-net" } else { "by the own path" })
    }
}

/// A named network namespace.
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn new(name: &str) -> Netns {
        ip(&format!("netns add {name}"));
        Netns { name: name.to_owned() }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// The flag of `ctr run` that puts a container there.
    pub fn flag(&self) -> String {
        format!("network:{}", self.path().display())
    }

    /// Runs `ip` with these words in the namespace; what it says.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.name))
    }

    /// Runs a line for the shell in the namespace. Not busybox's, whose own `ip` comes first.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        run(&["ip", "netns", "exec", &self.name, "bash", "-c", line])
    }

    /// Works in the namespace, on a thread that enters it and ends.
    #[track_caller]
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace");
        let entered = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        };
        thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|p| resume_unwind(p))
    }

    /// Makes a veth pair: `name` in the namespace, with these addresses, and `other` on the
    /// host, with those. Both are up.
    #[track_caller]
    pub fn add_veth(&self, name: &str, addresses: &[&str], other: &str, others: &[&str]) {
        ip(&format!("link add {other} type veth peer name {name} netns {}", self.name));
        for address in addresses {
            self.ip(&format!("address add {address} dev {name}{}", nodad(address)));
        }
        for address in others {
            ip(&format!("address add {address} dev {other}{}", nodad(address)));
        }
        ip(&format!("link set {other} up"));
        self.ip(&format!("link set {name} up"));
    }

    /// Fails the case if a pod has left something here, which may take it a moment.
    #[track_caller]
    pub fn until_left(&self) {
        let left = || self.run("tc qdisc show | grep 'ingress\\|tbf'; ip -o link show type tun; :");
        assert!(eventually(LIMIT, || left().is_empty()), "left in the namespace:\n{}", left());
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A namespace with what CNI's bridge gives a pod, both families.
pub fn bridged(name: &str) -> Netns {
    let netns = Netns::new(name);
    netns.add_veth(
        "eth0",
        &["10.88.0.2/24", "fd00:88::2/64"],
        "pod0",
        &["10.88.0.1/24", "fd00:88::1/64"],
    );
    netns.ip("route add default via 10.88.0.1");
    netns.ip("-6 route add default via fd00:88::1");
    netns
}

/// SHA-256, as sha256sum writes it.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The body of what a web server has, once it is up.
#[track_caller]
pub fn fetch(address: &str, path: &str) -> Vec<u8> {
    let mut stream = None;
    let connected = eventually(LIMIT, || {
        stream = TcpStream::connect(address).ok();
        stream.is_some()
    });
    assert!(connected, "nobody listens on {address}");
    ask(stream.expect("a connection"), path, LIMIT).expect("an answer")
}

/// The same if it is up now and stays so: nothing is waited for longer than a few seconds.
pub fn try_fetch(address: &str, path: &str) -> io::Result<Vec<u8>> {
    const SHORT: Duration = Duration::from_secs(3);
    let address = address.parse().map_err(io::Error::other)?;
    ask(TcpStream::connect_timeout(&address, SHORT)?, path, SHORT)
}

fn ask(mut stream: TcpStream, path: &str, limit: Duration) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
    let head = head.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(answer.split_off(head + 4))
}

/// Sends these bytes to whoever connects first; the port.
pub fn serve_once(address: &str, bytes: Vec<u8>) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("listen");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || listener.accept().and_then(|(mut stream, _)| stream.write_all(&bytes)));
    port
}

/// A web server that has /small, and so many random bytes at /data.
pub fn server(len: usize) -> String {
    format!(
        "mkdir /www && cd /www && echo small >small && head -c {len} /dev/urandom >data &&
            exec httpd -f -p 8080 -h /www"
    )
}

fn nodad(address: &str) -> &str {
    if address.contains(':') { " nodad" } else { "" }
}

/// Runs `ip` with these words on the host.
#[track_caller]
pub fn ip(words: &str) -> String {
    let words: Vec<&str> = ["ip"].into_iter().chain(words.split(' ')).collect();
    run(&words)
}

/// Loads what the plugin bandwidth works with, without the interfaces that come with it.
#[track_caller]
pub fn load_ifb() {
    run(&["modprobe", "ifb", "numifbs=0"]);
}

/// The token buckets among what `tc -s -j qdisc show` has said: what limits a rate.
pub fn buckets(said: &str) -> Vec<Value> {
    let mut qdiscs: Vec<Value> = serde_json::from_str(said).expect("a list");
    qdiscs.retain(|qdisc| qdisc["kind"] == "tbf");
    qdiscs
}

#[track_caller]
pub fn run(words: &[&str]) -> String {
    let mut running = Running::start(Command::new(words[0]).args(&words[1..]));
    running.close_stdin();
    let output = running.wait();
    assert_eq!(output.code, 0, "{}: {}", output.line, output.error());
    output.text()
}
