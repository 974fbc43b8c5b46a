// SPDX-License-Identifier: Apache-2.0

//! The pod's network as CNI plugins make it: here a bridge, with ports of the host.

use husk_tests::cri::api::NamespaceMode;
use husk_tests::cri::pod::{Pod, namespaces};
use husk_tests::cri::{Cri, api, case};

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
