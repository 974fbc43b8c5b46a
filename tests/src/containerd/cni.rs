// SPDX-License-Identifier: Apache-2.0

//! A pod's network as CNI plugins make it, called as a CNI client does
//! (github.com/containernetworking/cni, SPEC.md, 0.4.0): a list of plugins, each with the
//! result of those before it.

use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::bundle::run;
use super::network::Netns;
use super::process::Output;
use crate::temporary;

const PLUGINS: &str = "/usr/lib/cni";

/// A namespace that plugins have put an interface into, eth0. They take it away again when
/// this is dropped.
pub struct CniNetwork {
    pub netns: Netns,
    plugins: Vec<Value>,
    /// What the last one said.
    result: Value,
    _addresses: TempDir,
}

impl CniNetwork {
    /// Calls the plugins with these configurations, one after the other. What is `ipam` in the
    /// first gets addresses of `subnets`, with a default route for each.
    #[track_caller]
    pub fn add(name: &str, subnets: &[&str], plugins: Value) -> CniNetwork {
        let addresses = temporary("husk-cni");
        let mut plugins: Vec<Value> = serde_json::from_value(plugins).expect("a list");
        let range = |subnet: &&str| json!([{ "subnet": subnet }]);
        let route = |subnet: &&str| match subnet.contains(':') {
            true => json!({"dst": "::/0"}),
            false => json!({"dst": "0.0.0.0/0"}),
        };
        plugins[0]["ipam"] = json!({
            "type": "host-local",
            "dataDir": addresses.path(),
            "ranges": subnets.iter().map(range).collect::<Vec<_>>(),
            "routes": subnets.iter().map(route).collect::<Vec<_>>(),
        });
        for plugin in &mut plugins {
            plugin["cniVersion"] = "0.4.0".into();
            plugin["name"] = "husk-tests".into();
        }
        let netns = Netns::new(name);
        let mut network = CniNetwork { netns, plugins, result: Value::Null, _addresses: addresses };
        for index in 0..network.plugins.len() {
            let said = network.call("ADD", index).ended(0).text();
            network.result = serde_json::from_str(&said).expect("a result");
        }
        network
    }

    /// The addresses that were given, without their prefixes.
    pub fn addresses(&self) -> Vec<String> {
        let ips = self.result["ips"].as_array().into_iter().flatten();
        let addresses = ips.filter_map(|ip| ip["address"].as_str()?.split('/').next());
        addresses.map(str::to_owned).collect()
    }

    fn call(&self, verb: &str, index: usize) -> Output {
        let mut config = self.plugins[index].clone();
        if self.result != Value::Null {
            config["prevResult"] = self.result.clone();
        }
        let kind = config["type"].as_str().expect("the plugin's name");
        let mut command = Command::new(format!("{PLUGINS}/{kind}"));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "husk-tests")
            .env("CNI_NETNS", self.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS);
        let mut output = run(&mut command, config.to_string().as_bytes());
        // A plugin says on stdout what is wrong.
        if output.code != 0 {
            output.stderr.extend_from_slice(&output.stdout);
        }
        output
    }
}

impl Drop for CniNetwork {
    fn drop(&mut self) {
        for index in (0..self.plugins.len()).rev() {
            let done = self.call("DEL", index);
            if !std::thread::panicking() {
                done.ended(0);
            }
        }
    }
}
