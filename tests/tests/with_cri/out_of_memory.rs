// SPDX-License-Identifier: Apache-2.0

//! No memory left beyond the limits of containers: in the guest as a whole, and for the VM on
//! the host.

use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::container::{Container, resources, security};
use husk_tests::cri::{Cri, husk_case};

const MIB: i64 = 1 << 20;

#[track_caller]
fn check_out_of_memory(container: &Container) {
    assert_eq!(container.exit_code(), 137);
    let oom = || container.status().reason == "OOMKilled";
    assert!(eventually(LIMIT, oom), "{:?}", container.status());
}

#[track_caller]
fn check_logged(cri: &Cri, pod: &str, words: &str) {
    let log = cri.lab.log();
    let told = log.lines().any(|line| line.contains(pod) && line.contains(words));
    assert!(told, "the shim's log does not say {words:?} of pod {pod}");
}

#[test]
fn of_the_guest() {
    husk_case(
        "containers without a limit that take all of the guest's memory, by a process or by \
         files in memory: they are OOMKilled; those that are as dear, dearer and the agent go on",
        |cri| {
            let pod = cri.pod("crowded", |_| {});
            let others = [("besteffort", 0, 1000), ("guaranteed", 32 * MIB, -997)];
            let others = others.map(|(name, memory, adj)| {
                pod.start(name, &["sleep", "100000"], |config| {
                    resources(config).memory_limit_in_bytes = memory;
                    resources(config).oom_score_adj = adj;
                })
            });
            let files = "mount -t tmpfs -o size=100% files /mnt && cat /dev/zero > /mnt/files
                 exec tail /dev/zero";
            for (name, line) in [("process", "exec tail /dev/zero"), ("files", files)] {
                let greedy = pod.start(name, &["sh", "-c", line], |config| {
                    resources(config).oom_score_adj = 1000;
                    let capabilities = security(config).capabilities.mut_or_insert_default();
                    capabilities.add_capabilities = vec!["SYS_ADMIN".to_owned()];
                });
                check_out_of_memory(&greedy);
                for other in &others {
                    assert_eq!(other.exec_sh("echo alive"), "alive");
                }
            }
            // All of it is free again.
            let free = "awk '$1 == \"MemAvailable:\" { print $2 }' /proc/meminfo";
            others[0].until_sh(&format!("test $({free}) -gt 131072"));
            assert!(pod.is_ready());
            pod.remove();
        },
    );
}

#[test]
fn nothing_to_kill() {
    husk_case(
        "a guest without memory whose kernel may kill none of its processes: the pod fails, its \
         containers are OOMKilled, the log says why",
        |cri| {
            let pod = cri.pod("deadlocked", |_| {});
            let [idle, greedy] = [("idle", "sleep 100000"), ("greedy", "exec tail /dev/zero")].map(
                |(name, line)| {
                    pod.start(name, &["sh", "-c", line], |config| {
                        resources(config).oom_score_adj = -1000;
                    })
                },
            );
            for container in [&greedy, &idle] {
                check_out_of_memory(container);
            }
            assert!(eventually(LIMIT, || !pod.is_ready()), "the pod is ready without its VM");
            check_logged(cri, &pod.id, "it had no memory left and nothing to kill");
            pod.remove();
        },
    );
}

#[test]
fn on_the_host() {
    husk_case(
        "a VM that the host has no memory for is killed: its containers are OOMKilled, the log \
         says why",
        |cri| {
            let cgroup = std::path::Path::new("/sys/fs/cgroup/husk-pod-oom");
            std::fs::create_dir(cgroup).expect("make the pod's cgroup");
            let pod = cri.pod("starved", |config| {
                config.linux.mut_or_insert_default().cgroup_parent = "/husk-pod-oom".to_owned();
            });
            let idle = pod.idle("idle");
            let used = std::fs::read_to_string(cgroup.join("memory.current")).expect("read");
            let limit = used.trim().parse::<i64>().expect("a number") + 32 * MIB;
            std::fs::write(cgroup.join("memory.max"), limit.to_string()).expect("limit the pod");
            // None is above the pause container's, so the VM's is not, and neither may be the shim's.
            let greedy = pod.start("greedy", &["sh", "-c", "exec tail /dev/zero"], |config| {
                resources(config).oom_score_adj = -998;
            });
            for container in [&greedy, &idle] {
                check_out_of_memory(container);
            }
            check_logged(cri, &pod.id, "the host's OOM killer took husk-vmm");
            pod.remove();
            std::fs::remove_dir(cgroup).expect("nothing is left in the pod's cgroup");
        },
    );
}
