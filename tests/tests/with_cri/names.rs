// SPDX-License-Identifier: Apache-2.0

//! What a pod's containers are told of names: their own, and how others are found.

use std::fs;

use husk_tests::cri::api::NamespaceMode;
use husk_tests::cri::container::mount;
use husk_tests::cri::pod::namespaces;
use husk_tests::cri::{api, case};

#[test]
fn names() {
    case(
        "hostname, /etc/hostname, /etc/resolv.conf and /etc/hosts are the pod's in each container",
        |cri| {
            let pod = cri.pod("named", |config| {
                namespaces(config).network = NamespaceMode::POD.into();
                config.hostname = "web-0".to_owned();
                let dns = config.dns_config.mut_or_insert_default();
                dns.servers = vec!["10.0.0.10".to_owned()];
                dns.searches = vec!["tests.svc.example".to_owned()];
                dns.options = vec!["ndots:5".to_owned()];
            });
            let hosts = pod.log_path("hosts");
            fs::write(&hosts, "10.1.2.3 other\n").expect("write hosts");
            let with_hosts =
                |config: &mut api::ContainerConfig| mount(config, &hosts, "/etc/hosts", false);
            let [a, b] = ["a", "b"].map(|name| pod.start(name, &["sleep", "100000"], with_hosts));
            for container in [&a, &b] {
                assert_eq!(container.exec_sh("hostname; cat /etc/hostname"), "web-0\nweb-0");
                let resolver = "search tests.svc.example\nnameserver 10.0.0.10\noptions ndots:5";
                assert_eq!(container.exec_sh("cat /etc/resolv.conf"), resolver);
                assert_eq!(container.exec_sh("cat /etc/hosts"), "10.1.2.3 other");
            }
            a.exec_sh("echo 10.1.2.4 another >>/etc/hosts");
            assert_eq!(b.exec_sh("cat /etc/hosts"), "10.1.2.3 other\n10.1.2.4 another");
            pod.remove();
        },
    );
}
