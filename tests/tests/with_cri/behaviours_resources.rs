// SPDX-License-Identifier: Apache-2.0

//! Requests and limits as Kubernetes sets them: classes of service, the smallest, and what is
//! used within and beyond them.

use husk_tests::containerd::CD_CGROUP;
use husk_tests::cri::case;
use husk_tests::cri::container::resources;

const MIB: i64 = 1 << 20;

#[test]
fn classes_of_service() {
    case(
        "guaranteed, burstable and best effort: weights, limits and ranks for the OOM killer of containers",
        |cri| {
            let pod = cri.pod("classes", |_| {});
            for (name, shares, quota, memory, adj, found) in [
                ("guaranteed", 512, 50_000, 64 * MIB, -997, "20 50000 100000 67108864"),
                ("burstable", 102, 0, 128 * MIB, 900, "4 max 100000 134217728"),
                ("besteffort", 2, 0, 0, 1000, "1 max 100000 max"),
                // The least that a LimitRange may leave.
                ("least", 2, 10_000, 8 * MIB, 999, "1 10000 100000 8388608"),
            ] {
                let container = pod.start(name, &["sleep", "100000"], |config| {
                    let resources = resources(config);
                    resources.cpu_shares = shares;
                    resources.cpu_period = 100_000;
                    resources.cpu_quota = quota;
                    resources.memory_limit_in_bytes = memory;
                    resources.oom_score_adj = adj;
                });
                let line = format!("{CD_CGROUP} echo $(cat cpu.weight cpu.max memory.max)");
                assert_eq!(container.exec_sh(&line), found, "{name}");
                for process in ["1", "self"] {
                    let line = format!("cat /proc/{process}/oom_score_adj");
                    assert_eq!(container.exec_sh(&line), adj.to_string(), "{name}");
                }
            }
            pod.remove();
        },
    );
}

#[test]
fn within_and_beyond() {
    case(
        "what fits a limit runs; an exec beyond it is killed alone; more processes than allowed are refused; the neighbour never notices",
        |cri| {
            let pod = cri.pod("bounded", |_| {});
            let neighbour = pod.idle("neighbour");
            let container = pod.start("main", &["sleep", "100000"], |config| {
                let resources = resources(config);
                resources.memory_limit_in_bytes = 48 * MIB;
                resources.unified.insert("pids.max".to_owned(), "16".to_owned());
            });
            container.exec_sh("head -c 33554432 /dev/zero >/dev/shm/within; rm /dev/shm/within");
            let killed = container.exec(&["tail", "/dev/zero"], 0).expect("ExecSync");
            assert_eq!(killed.exit_code, 137);
            let events = container.exec_sh(&format!("{CD_CGROUP} grep oom_kill memory.events"));
            assert!(events.starts_with("oom_kill 1"), "{events}");
            assert!(container.is_running());

            assert_eq!(container.exec_sh(&format!("{CD_CGROUP} cat pids.max")), "16");
            // Their output is none, or the exec would last as long as they do.
            let bomb = "for n in $(seq 40); do sleep 100000 >/dev/null 2>&1 & done";
            let refused = container.exec(&["sh", "-c", bomb], 0).expect("ExecSync");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains("fork"), "40 processes of 16: {said}");
            assert_eq!(neighbour.exec_sh("(sleep 0 & wait); echo here"), "here");
            pod.remove();
        },
    );
}
