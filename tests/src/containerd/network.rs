// SPDX-License-Identifier: Apache-2.0

//! A network for a pod as a CNI plugin leaves it: a namespace with an interface whose other
//! end is on the host. It is made with `ip`, and removed when it is dropped.

use std::path::PathBuf;
use std::process::Command;

use super::process::{LIMIT, Running, eventually};

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
        let left = || self.run("tc qdisc show | grep ingress; ip -o link show type tun; :");
        assert!(eventually(LIMIT, || left().is_empty()), "left in the namespace:\n{}", left());
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
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

#[track_caller]
fn run(words: &[&str]) -> String {
    let mut running = Running::start(Command::new(words[0]).args(&words[1..]));
    running.close_stdin();
    let output = running.wait();
    assert_eq!(output.code, 0, "{}: {}", output.line, output.error());
    output.text()
}
