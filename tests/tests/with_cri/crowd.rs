// SPDX-License-Identifier: Apache-2.0

//! Many containers in one pod, and how they leave each other alone.

use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::logger::SlowLogger;
use husk_tests::cri::{case, husk_case};

#[test]
fn thirty_containers() {
    case(
        "30 containers in a pod, each with its own files and processes, and one pod's end for all",
        |cri| {
            let pod = cri.pod("crowded", |_| {});
            // Each can be told by what it runs.
            let sleep = |n: usize| format!("sleep {}", 1_000_000 + n);
            let containers: Vec<_> = (0..30)
                .map(|n| pod.sh(&format!("c{n}"), &format!("echo {n} >/number; {}", sleep(n))))
                .collect();
            for (n, container) in containers.iter().enumerate() {
                container.until_sh("test -s /number");
                assert_eq!(container.exec_sh("cat /number"), n.to_string());
                let seen = container.command_lines();
                let whose: Vec<_> = (0..30).filter(|&other| seen.contains(&sleep(other))).collect();
                assert_eq!(whose, [n], "whose processes container {n} sees");
            }
            pod.remove();
        },
    );
}

#[test]
fn a_stalled_container() {
    husk_case(
        "while the create of one container hangs, another is entered, stopped and removed, and a third made",
        |cri| {
            let pod = cri.pod("patient", |_| {});
            let first = pod.idle("first");
            let stalled = Bundle::in_cri_pod(cri.lab, &pod.id, "stalled", &["sleep", "100000"]);
            let logger = SlowLogger::new();
            let create = stalled.create_beside(logger.uri());
            logger.until_it_waits();
            assert_eq!(first.exec_sh("echo prompt"), "prompt");
            let third = pod.idle("third");
            first.stop(0);
            first.remove();
            assert_eq!(third.exec_sh("echo prompt"), "prompt");
            assert!(!create.is_finished(), "the other Create did not wait");
            logger.be_ready();
            create.join().expect("a thread").expect("Create");
            stalled.start("").expect("Start");
            stalled.remove();
            pod.remove();
        },
    );
}
