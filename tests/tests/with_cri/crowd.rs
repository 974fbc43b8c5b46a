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
            let names: Vec<_> = (0..30).map(|n| format!("c{n}")).collect();
            let containers: Vec<_> = names
                .iter()
                .map(|name| pod.sh(name, &format!("echo {name} >/name; sleep 100000")))
                .collect();
            for (container, name) in containers.iter().zip(&names) {
                container.until_sh("test -s /name");
                assert_eq!(container.exec_sh("cat /name"), *name);
                let own = container.command_lines().matches("sleep 100000").count();
                assert_eq!(own, 2, "shell and sleep of {name} and of nobody else");
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
