// SPDX-License-Identifier: Apache-2.0

//! The pod's network as CNI plugins make it: here a bridge, with ports of the host.

use std::fs;
use std::path::PathBuf;

use husk_tests::containerd::network::{buckets, load_ifb, run};
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::api::NamespaceMode;
use husk_tests::cri::pod::{Pod, namespaces};
use husk_tests::cri::{Cri, api, case, husk_case};

/// A pod on the bridge.
fn pod<'a>(
    cri: &'a Cri<'a>,
    name: &str,
    change: impl FnOnce(&mut api::PodSandboxConfig),
) -> Pod<'a> {
    cri.pod(name, |config| {
        namespaces(config).network = NamespaceMode::POD.into();
        change(config);
    })
}

#[test]
fn addresses() {
    case("a pod has the addresses that CNI gave it, and they are free when it is gone", |cri| {
        let first = pod(cri, "first", |_| {});
        let second = pod(cri, "second", |_| {});
        let of = |pod: &Pod| pod.status().network.unwrap_or_default();
        for network in [of(&first), of(&second)] {
            assert!(network.ip.starts_with("10.88."), "{network:?}");
            assert!(network.additional_ips[0].ip.starts_with("fd00:88::"), "{network:?}");
        }
        assert_ne!(of(&first).ip, of(&second).ip);
        first.remove();
        second.remove();
    });
}

#[test]
fn pods_and_host_reach_each_other() {
    let subject =
        "a server in one pod is reached from another, by both families, and by the host's port";
    case(subject, |cri| {
        let server = pod(cri, "server", |config| {
            config.port_mappings.push(api::PortMapping {
                container_port: 80,
                host_port: 8080,
                ..Default::default()
            });
        });
        let web = server.sh("web", "echo served >/index.html; exec httpd -f -p 80 -h /");
        let client = pod(cri, "client", |_| {});
        let wget = client.idle("wget");
        let network = server.status().network.unwrap_or_default();
        let six = &network.additional_ips[0].ip;
        wget.until_sh(&format!("test \"$(wget -q -O - http://{}/)\" = served", network.ip));
        wget.until_sh(&format!("test \"$(wget -q -O - 'http://[{six}]/')\" = served"));
        // The bridge's address is the host's.
        wget.until_sh("test \"$(wget -q -O - http://10.88.0.1:8080/)\" = served");
        assert!(web.is_running());
        client.remove();
        server.remove();
    });
}

#[test]
fn counters_in_stats() {
    case("a pod's statistics have what its interface received and sent", |cri| {
        const LEN: u64 = 2 << 20;
        // Without a cgroup there are no statistics of a pod.
        let cgroup = std::path::Path::new("/sys/fs/cgroup/husk-pods-counted");
        fs::create_dir(cgroup).expect("make the pods' cgroup");
        let counted = |config: &mut api::PodSandboxConfig| {
            config.linux.mut_or_insert_default().cgroup_parent = "/husk-pods-counted".to_owned();
        };
        let server = pod(cri, "server", counted);
        let data = format!("head -c {LEN} /dev/zero >/data; exec httpd -f -p 80 -h /");
        let _web = server.sh("web", &data);
        let client = pod(cri, "client", counted);
        let wget = client.idle("wget");
        let address = server.status().network.unwrap_or_default().ip;
        wget.until_sh(&format!("test $(wget -q -O - http://{address}/data | wc -c) = {LEN}"));
        let usage = |pod: &Pod| {
            let request = api::PodSandboxStatsRequest {
                pod_sandbox_id: pod.id.clone(),
                ..Default::default()
            };
            let answer: api::PodSandboxStatsResponse =
                cri.ask("PodSandboxStats", &request).expect("PodSandboxStats");
            let usage = answer.stats.linux.network.default_interface.clone().unwrap_or_default();
            assert_eq!(usage.name, "eth0", "{:?}", answer.stats);
            (usage.rx_bytes.value, usage.tx_bytes.value)
        };
        let (received, sent) = usage(&server);
        assert!(sent > LEN && received < LEN, "the server's: {received} received, {sent} sent");
        let (received, sent) = usage(&client);
        assert!(received > LEN && sent < LEN, "the client's: {received} received, {sent} sent");
        client.remove();
        server.remove();
        fs::remove_dir(cgroup).expect("nothing is left in the pods' cgroup");
    });
}

#[test]
fn network_of_the_host() {
    husk_case("hostNetwork: the pod runs, with loopback only, and a line in the log", |cri| {
        let pod = cri.pod("hostly", |_| {});
        let container = pod.idle("main");
        assert_eq!(container.exec_sh("ls /sys/class/net"), "lo");
        assert_eq!(container.exec_sh("ping -c 1 127.0.0.1 | grep -c ' 0% '"), "1");
        let log = cri.lab.log();
        assert!(log.contains("is to use the host's network, which a VM cannot"), "{log}");
        pod.remove();
    });
}

/// A list of plugins in the place of the session's, until this is dropped. containerd reads
/// it when it is there, and the session's again.
struct Plugins<'a> {
    cri: &'a Cri<'a>,
    file: PathBuf,
}

impl<'a> Plugins<'a> {
    #[track_caller]
    fn new(cri: &'a Cri<'a>, list: &str) -> Plugins<'a> {
        // Before the session's, which begins with 10.
        let file = cri.lab.containerd_path("cni/00-test.conflist");
        // As a whole, or containerd may read a part of it.
        let part = file.with_extension("part");
        fs::write(&part, list).expect("write");
        fs::rename(&part, &file).expect("rename");
        let plugins = Plugins { cri, file };
        assert!(plugins.are_used(true), "containerd does not take the list of plugins");
        plugins
    }

    fn are_used(&self, wanted: bool) -> bool {
        let request = api::StatusRequest { verbose: true, ..Default::default() };
        eventually(LIMIT, || {
            let answer: Result<api::StatusResponse, _> = self.cri.ask("Status", &request);
            let config = answer.ok().and_then(|mut answer| answer.info.remove("cniconfig"));
            config.is_some_and(|config| config.contains("husk-other") == wanted)
        })
    }
}

impl Drop for Plugins<'_> {
    fn drop(&mut self) {
        let removed = fs::remove_file(&self.file);
        let back = self.are_used(false);
        if !std::thread::panicking() {
            removed.expect("the list of plugins");
            assert!(back, "containerd does not go back to the session's list of plugins");
        }
    }
}

#[test]
fn other_plugins() {
    case(
        "ptp with portmap and bandwidth: two pods, a port of the host, Kubernetes' annotations \
         of bandwidth",
        |cri| {
            let addresses = husk_tests::temporary("husk-ipam");
            let list = serde_json::json!({
                "cniVersion": "0.4.0",
                "name": "husk-other",
                "plugins": [
                    {"type": "ptp", "ipMasq": true, "ipam": {
                        "type": "host-local",
                        "dataDir": addresses.path(),
                        "ranges": [[{"subnet": "10.90.0.0/24"}], [{"subnet": "fd00:90::/64"}]],
                        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                    }},
                    {"type": "portmap", "capabilities": {"portMappings": true}},
                    {"type": "bandwidth", "capabilities": {"bandwidth": true}},
                ],
            });
            load_ifb();
            let plugins = Plugins::new(cri, &list.to_string());
            let server = pod(cri, "server", |config| {
                config.port_mappings.push(api::PortMapping {
                    container_port: 80,
                    host_port: 8080,
                    ..Default::default()
                });
                for direction in ["ingress", "egress"] {
                    let name = format!("kubernetes.io/{direction}-bandwidth");
                    config.annotations.insert(name, "20M".to_owned());
                }
            });
            let _web = server.sh("web", "echo served >/index.html; exec httpd -f -p 80 -h /");
            let limits = buckets(&run(&["tc", "-s", "-j", "qdisc", "show"]));
            assert_eq!(limits.len(), 2, "{limits:?}");
            let client = pod(cri, "client", |_| {});
            let wget = client.idle("wget");
            let network = server.status().network.unwrap_or_default();
            assert!(network.ip.starts_with("10.90.0."), "{network:?}");
            wget.until_sh(&format!("test \"$(wget -q -O - http://{}/)\" = served", network.ip));
            let six = &network.additional_ips[0].ip;
            wget.until_sh(&format!("test \"$(wget -q -O - 'http://[{six}]/')\" = served"));
            wget.until_sh("test \"$(wget -q -O - http://10.90.0.1:8080/)\" = served");
            client.remove();
            server.remove();
            drop(plugins);
        },
    );
}
