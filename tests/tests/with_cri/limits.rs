// SPDX-License-Identifier: Apache-2.0

//! Limits of containers and of pods, and what is used of them.

use husk_tests::containerd::CD_CGROUP;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::api::NamespaceMode;
use husk_tests::cri::container::resources;
use husk_tests::cri::pod::namespaces;
use husk_tests::cri::{api, case, husk_case};
use protobuf::MessageField;

const MIB: i64 = 1 << 20;

#[test]
fn limits() {
    case(
        "limits hold for one container, can be changed, and one that needs more is killed for it",
        |cri| {
            let pod = cri.pod("limited", |_| {});
            let free = pod.idle("free");
            let container = pod.start("main", &["sleep", "100000"], |config| {
                let resources = resources(config);
                resources.memory_limit_in_bytes = 64 * MIB;
                resources.cpu_period = 100_000;
                resources.cpu_quota = 50_000;
            });
            let limits = format!("{CD_CGROUP} cat memory.max cpu.max");
            assert_eq!(container.exec_sh(&limits), "67108864\n50000 100000");
            assert_eq!(free.exec_sh(&limits), "max\nmax 100000");
            let update = api::UpdateContainerResourcesRequest {
                container_id: container.id.clone(),
                linux: MessageField::some(api::LinuxContainerResources {
                    memory_limit_in_bytes: 32 * MIB,
                    cpu_period: 100_000,
                    cpu_quota: 20_000,
                    ..Default::default()
                }),
                ..Default::default()
            };
            cri.ask::<api::UpdateContainerResourcesResponse>("UpdateContainerResources", &update)
                .expect("UpdateContainerResources");
            assert_eq!(container.exec_sh(&limits), "33554432\n20000 100000");

            let greedy = pod.start("greedy", &["sh", "-c", "exec tail /dev/zero"], |config| {
                resources(config).memory_limit_in_bytes = 16 * MIB;
            });
            assert_eq!(greedy.exit_code(), 137);
            assert!(
                eventually(LIMIT, || greedy.status().reason == "OOMKilled"),
                "{:?}",
                greedy.status()
            );
            assert!(free.is_running() && container.is_running());
            pod.remove();
        },
    );
}

#[test]
fn size_of_the_vm() {
    husk_case("a pod's VM has the memory and the CPUs of all its containers together", |cri| {
        let of = |memory: i64, quota: i64| {
            let pod = cri.pod("sized", |config| {
                let resources =
                    config.linux.mut_or_insert_default().resources.mut_or_insert_default();
                resources.memory_limit_in_bytes = memory;
                resources.cpu_period = 100_000;
                resources.cpu_quota = quota;
            });
            let container = pod.idle("main");
            let kib = container.exec_sh("awk '$1 == \"MemTotal:\" { print $2 }' /proc/meminfo");
            let cpus = container.exec_sh("nproc");
            pod.remove();
            (kib.parse::<i64>().expect("a number") >> 10, cpus)
        };
        let (small, cpus) = of(0, 0);
        assert_eq!(cpus, "1");
        let (large, cpus) = of(300 * MIB, 150_000);
        assert_eq!(cpus, "2");
        assert!((290..310).contains(&(large - small)), "{large} and {small} MiB");
    });
}

#[test]
fn resized() {
    husk_case(
        "a pod's VM grows for containers that it was not made for, and follows their updates",
        |cri| {
            let pod = cri.pod("resized", |_| {});
            let free = pod.idle("free");
            let mib = || {
                let kib = free.exec_sh("awk '$1 == \"MemTotal:\" { print $2 }' /proc/meminfo");
                kib.parse::<i64>().expect("a number") >> 10
            };
            let at_boot = mib();
            let mut expected = 0;
            let containers: Vec<_> = [("first", 128), ("second", 256)]
                .map(|(name, limit)| {
                    let container = pod.start(name, &["sleep", "100000"], |config| {
                        resources(config).memory_limit_in_bytes = limit * MIB;
                    });
                    expected += limit;
                    let (now, wanted) = (mib(), at_boot + expected);
                    assert!((wanted - 30..=wanted).contains(&now), "{now} MiB, not {wanted}");
                    container
                })
                .into();
            let update = |limit: i64| {
                let request = api::UpdateContainerResourcesRequest {
                    container_id: containers[1].id.clone(),
                    linux: MessageField::some(api::LinuxContainerResources {
                        memory_limit_in_bytes: limit * MIB,
                        cpu_period: 100_000,
                        cpu_quota: 150_000,
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                cri.ask::<api::UpdateContainerResourcesResponse>(
                    "UpdateContainerResources",
                    &request,
                )
                .expect("UpdateContainerResources");
            };
            assert_eq!(free.exec_sh("nproc"), "1");
            update(512);
            assert!(mib() >= at_boot + 600, "{} MiB at most", mib());
            assert_eq!(free.exec_sh("nproc"), "2");
            update(64);
            assert!(eventually(LIMIT, || mib() < at_boot + 200), "{} MiB at last", mib());
            pod.remove();
        },
    );
}

#[test]
fn stats() {
    case("the figures of one container, of all of a pod, and of those of no pod", |cri| {
        let pod = cri.pod("counted", |_| {});
        let idle = pod.idle("idle");
        let busy = pod.sh("busy", "while :; do :; done");
        let cpu = |stats: &api::ContainerStats| stats.cpu.usage_core_nano_seconds.value;
        let memory = |stats: &api::ContainerStats| stats.memory.working_set_bytes.value;
        let first = cpu(&busy.stats().expect("ContainerStats"));
        assert!(
            eventually(LIMIT, || cpu(&busy.stats().expect("ContainerStats")) > first),
            "no CPU time is counted"
        );
        let list = |pod_sandbox_id: &str| {
            let filter = api::ContainerStatsFilter {
                pod_sandbox_id: pod_sandbox_id.to_owned(),
                ..Default::default()
            };
            let request = api::ListContainerStatsRequest {
                filter: MessageField::some(filter),
                ..Default::default()
            };
            let answer: api::ListContainerStatsResponse =
                cri.ask("ListContainerStats", &request).expect("ListContainerStats");
            answer.stats
        };
        let listed = list(&pod.id);
        assert_eq!(listed.len(), 2, "{listed:?}");
        for stats in &listed {
            assert!([&idle.id, &busy.id].contains(&&stats.attributes.id));
            assert!(memory(stats) > 0, "{stats:?}");
        }
        assert!(list("of-no-pod").is_empty());
        pod.remove();
    });
}

#[test]
fn stats_of_a_pod() {
    husk_case(
        "what a pod uses of the host is its VM's, in the cgroup that the kubelet made",
        |cri| {
            let cgroup = std::path::Path::new("/sys/fs/cgroup/husk-pod-stats");
            std::fs::create_dir(cgroup).expect("make the pod's cgroup");
            let pod = cri.pod("weighed", |config| {
                config.linux.mut_or_insert_default().cgroup_parent = "/husk-pod-stats".to_owned();
            });
            let container = pod.idle("main");
            let request = api::PodSandboxStatsRequest {
                pod_sandbox_id: pod.id.clone(),
                ..Default::default()
            };
            let answer: api::PodSandboxStatsResponse =
                cri.ask("PodSandboxStats", &request).expect("PodSandboxStats");
            let stats = &answer.stats.linux;
            // A guest that has booted has touched more than this.
            assert!(stats.memory.usage_bytes.value > 32 << 20, "{stats:?}");
            assert!(stats.cpu.usage_core_nano_seconds.value > 0, "{stats:?}");
            assert_eq!(stats.containers.len(), 1);
            assert_eq!(stats.containers[0].attributes.id, container.id);
            pod.remove();
            std::fs::remove_dir(cgroup).expect("nothing is left in the pod's cgroup");
        },
    );
}

#[test]
fn traffic_of_a_pod() {
    husk_case("what a pod has sent and received is counted as with any runtime", |cri| {
        let cgroup = std::path::Path::new("/sys/fs/cgroup/husk-pod-talking");
        std::fs::create_dir(cgroup).expect("make the pod's cgroup");
        let pod = cri.pod("talking", |config| {
            config.linux.mut_or_insert_default().cgroup_parent = "/husk-pod-talking".to_owned();
            namespaces(config).network = NamespaceMode::POD.into();
        });
        let container = pod.idle("main");
        let counted = || {
            let request = api::PodSandboxStatsRequest {
                pod_sandbox_id: pod.id.clone(),
                ..Default::default()
            };
            let answer: api::PodSandboxStatsResponse =
                cri.ask("PodSandboxStats", &request).expect("PodSandboxStats");
            let interface = &answer.stats.linux.network.default_interface;
            assert_eq!(interface.name, "eth0");
            (interface.rx_bytes.value, interface.tx_bytes.value)
        };
        let before = counted();
        // Three packets of 1000 bytes each way, to the bridge.
        container.exec_sh("ping -c 3 -s 1000 10.88.0.1");
        let after = counted();
        for (before, after) in [(before.0, after.0), (before.1, after.1)] {
            assert!((3_000..30_000).contains(&(after - before)), "{before}, {after}");
        }
        pod.remove();
        std::fs::remove_dir(cgroup).expect("nothing is left in the pod's cgroup");
    });
}
