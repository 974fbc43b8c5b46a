// SPDX-License-Identifier: Apache-2.0

//! The lives of pods and of their containers.

use husk_tests::containerd::HUSK_SHIM;
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::container::mount;
use husk_tests::cri::{api, case, grpc, husk_case};

#[test]
fn a_pod_of_one() {
    case(
        "a pod is run, is ready, runs a container to its exit code, is stopped and removed, each twice",
        |cri| {
            let pod = cri.pod("one", |_| {});
            assert!(pod.is_ready());
            let container = pod.sh("main", "echo out; echo err >&2; exit 7");
            assert_eq!(container.exit_code(), 7);
            assert_eq!(container.status().reason, "Error");
            container.until_logged("err");
            assert_eq!(
                (container.logged("stdout"), container.logged("stderr")),
                ("out\n".into(), "err\n".into())
            );
            pod.stop();
            assert!(!pod.is_ready());
            pod.stop();
            pod.remove_only();
            pod.remove_only();
            let missing = container.exec(&["true"], 0).expect_err("it is gone");
            assert_eq!(missing.code, grpc::NOT_FOUND, "{missing}");
        },
    );
}

#[test]
fn one_vm() {
    husk_case("three containers of a pod are in one VM, behind one shim", |cri| {
        let (vms, shims) = (pids_of("husk-vmm"), pids_of(HUSK_SHIM));
        let pod = cri.pod("three", |_| {});
        let containers = ["a", "b", "c"].map(|name| pod.idle(name));
        let boots = containers.each_ref().map(|c| c.exec_sh("cat /proc/sys/kernel/random/boot_id"));
        assert!(boots.iter().all(|boot| *boot == boots[0]), "{boots:?}");
        assert_eq!(pids_of("husk-vmm").len(), vms.len() + 1);
        assert_eq!(pids_of(HUSK_SHIM).len(), shims.len() + 1);
        pod.remove();
    });
}

#[test]
fn restart() {
    case("a container that ended is made again, as a new attempt, while another goes on", |cri| {
        let pod = cri.pod("again", |_| {});
        let steady = pod.sh("steady", "while :; do echo >>/count; usleep 10000; done");
        steady.until_sh("test -e /count");
        let count = || steady.exec_sh("wc -l </count").parse::<u64>().expect("a number");
        let mut before = count();
        for attempt in 0..3 {
            let container =
                pod.start("crashing", &["sh", "-c", "test ! -e /old && >/old; exit 3"], |config| {
                    config.metadata.mut_or_insert_default().attempt = attempt;
                });
            assert_eq!(container.exit_code(), 3, "attempt {attempt}: its files are new");
            container.remove();
            let now = count();
            assert!(now > before, "attempt {attempt}: the other container was held up");
            before = now;
        }
        assert!(steady.is_running());
        pod.remove();
    });
}

#[test]
fn init_container_and_sidecar() {
    case(
        "an init container ends before the main one is made, and a sidecar outlives both",
        |cri| {
            let pod = cri.pod("ordered", |_| {});
            let volume = pod.volume("work");
            let with_volume =
                |config: &mut api::ContainerConfig| mount(config, &volume, "/work", false);
            let init = pod.start("init", &["sh", "-c", "echo prepared >/work/state"], with_volume);
            assert_eq!(init.exit_code(), 0);
            assert_eq!(init.status().reason, "Completed");
            let sidecar = pod.start("sidecar", &["sleep", "100000"], with_volume);
            let main = pod.start(
                "main",
                &["sh", "-c", "grep prepared /work/state && exit 4"],
                with_volume,
            );
            assert_eq!(main.exit_code(), 4);
            init.remove();
            main.remove();
            assert_eq!(sidecar.exec_sh("cat /work/state"), "prepared");
            assert!(pod.is_ready());
            pod.remove();
        },
    );
}

#[test]
fn stop_and_remove() {
    case(
        "a container is stopped by its signal or after its grace, each call may come twice, and a pod with running containers is removed",
        |cri| {
            let pod = cri.pod("stopping", |_| {});
            let willing =
                pod.sh("willing", "trap 'exit 9' TERM; >/ready; while :; do usleep 10000; done");
            willing.until_sh("test -e /ready");
            willing.stop(60);
            willing.stop(60);
            assert_eq!(willing.status().exit_code, 9);
            let deaf = pod.sh("deaf", "trap '' TERM; >/ready; while :; do usleep 10000; done");
            deaf.until_sh("test -e /ready");
            deaf.stop(1);
            assert_eq!(deaf.status().exit_code, 137);
            deaf.remove();
            deaf.remove();
            let never_started = pod.create("never", &["true"], |_| {});
            never_started.remove();
            pod.create("neither", &["true"], |_| {});
            pod.idle("running");
            pod.remove();
        },
    );
}

#[test]
fn what_cannot_start() {
    case(
        "a program that is not there fails its start, with its name, and the pod goes on",
        |cri| {
            let pod = cri.pod("typo", |_| {});
            let container = pod.create("wrong", &["/no/such/program"], |_| {});
            let error = container.try_start().expect_err("there is no such program");
            assert!(error.message.contains("/no/such/program"), "{error}");
            assert_eq!(container.exit_code(), 128);
            assert_eq!(container.status().reason, "StartError");
            container.remove();
            assert_eq!(pod.sh("right", "exit 6").exit_code(), 6);
            pod.remove();
        },
    );
}

#[test]
fn the_pause_container_is_a_task() {
    husk_case(
        "the pod's own task is husk-vmm's pid and runs; killed, its pod is not ready and can be removed",
        |cri| {
            let pod = cri.pod("paused", |_| {});
            let other = pod.idle("other");
            let vmm = pids_of("husk-vmm");
            let listed = |id: &str| -> (i32, String) {
                let list = cri.lab.ctr(&["tasks", "ls"]).ended(0).text();
                let line = list.lines().find(|line| line.starts_with(id)).expect("it is listed");
                let words: Vec<_> = line.split_whitespace().collect();
                (words[1].parse().expect("a pid"), words[2].to_owned())
            };
            assert_eq!(listed(&pod.id), (vmm[0], "RUNNING".to_owned()));
            let (pid, state) = listed(&other.id);
            assert_eq!(state, "RUNNING");
            assert_ne!(pid, vmm[0], "a number of its own");
            let network =
                |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("a namespace");
            assert_eq!(network(pid), network(vmm[0]));
            cri.lab.kill("KILL", &pod.id);
            assert!(eventually(LIMIT, || !pod.is_ready()), "the pod stays ready");
            pod.remove();
        },
    );
}
