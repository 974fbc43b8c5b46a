// SPDX-License-Identifier: Apache-2.0

//! Many containers in one pod, and how they leave each other alone.

use std::fs;
use std::os::fd::AsFd;

use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::fifos::Fifos;
use husk_tests::containerd::logger::SlowLogger;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::{case, husk_case};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

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

#[test]
fn unread_output_and_a_hung_delete() {
    husk_case(
        "while nobody reads the output of one container, and then while its delete hangs, others are made, entered, stopped and removed",
        |cri| {
            let pod = cri.pod("patient", |_| {});
            let first = pod.idle("first");
            let place = husk_tests::temporary("husk-hung");
            let [up, go] = ["up", "go"].map(|name| place.path().join(name));
            mkfifo(&go, Mode::S_IRWXU).expect("mkfifo");
            let stalled = Bundle::in_cri_pod(cri.lab, &pod.id, "stalled", &["yes"]);
            let hook = format!(">{}; read -r line <{}", up.display(), go.display());
            stalled.change(|config| {
                let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", hook]});
                config["hooks"] = json!({"poststop": [hook]});
            });
            let fifos = Fifos::new();
            let unread = fifos.open("stdout");
            let create = stalled.create_beside(fifos.outputs().stdout);
            create.join().expect("a thread").expect("Create");
            stalled.start("").expect("Start");
            let mut waited = [PollFd::new(unread.as_fd(), PollFlags::POLLIN)];
            let limit = PollTimeout::try_from(LIMIT).expect("a limit");
            assert_eq!(poll(&mut waited, limit), Ok(1), "it writes nothing");
            let others = |round: &str| {
                let other = pod.idle(round);
                assert_eq!(first.exec_sh("echo prompt"), "prompt");
                assert_eq!(other.exec_sh("echo prompt"), "prompt");
                other.stop(0);
                other.remove();
            };
            others("unread");
            stalled.kill("", libc::SIGKILL).expect("Kill");
            stalled.wait("").expect("Wait");
            let delete = stalled.delete_beside("");
            others("draining");
            assert!(eventually(LIMIT, || up.exists()), "the delete does not come to its hook");
            others("hung");
            assert!(!delete.is_finished(), "the Delete did not wait");
            fs::write(go, "\n").expect("let the hook end");
            delete.join().expect("a thread").expect("Delete");
            pod.remove();
        },
    );
}
