// SPDX-License-Identifier: Apache-2.0

//! What becomes of pods when something below them dies.

use husk_tests::containerd::HUSK_SHIM;
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::{Cri, case, husk_case};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Kills the one process of this name that is there in a pod of two, and looks at the pod.
fn pod_without(cri: &Cri, program: &str) {
    let other = cri.pod("other", |_| {});
    let steady = other.idle("steady");
    let before = pids_of(program);
    let pod = cri.pod("struck", |_| {});
    let containers = ["a", "b"].map(|name| pod.idle(name));
    let victim =
        pids_of(program).into_iter().find(|pid| !before.contains(pid)).expect("its process");
    kill(Pid::from_raw(victim), Signal::SIGKILL).expect("kill");
    for container in &containers {
        assert_ne!(container.exit_code(), 0);
    }
    assert!(eventually(LIMIT, || !pod.is_ready()), "the pod stays ready without {program}");
    pod.remove();
    assert_eq!(steady.exec_sh("echo here"), "here", "another pod's container");
    other.remove();
}

#[test]
fn vmm_killed() {
    husk_case(
        "husk-vmm killed: the pod is not ready, its containers have ended, it can be removed",
        |cri| {
            pod_without(cri, "husk-vmm");
        },
    );
}

#[test]
fn shim_killed() {
    // Of runc's shim the socket stays.
    husk_case(
        "the shim killed: the pod is not ready, its containers have ended, it can be removed",
        |cri| pod_without(cri, HUSK_SHIM),
    );
}

#[test]
fn containerd_restarts() {
    case(
        "containerd killed under a pod: its containers go on, can be asked and added to, and one that ended meanwhile has its code",
        |cri| {
            let pod = cri.pod("lasting", |_| {});
            let volume = pod.volume("v");
            let with_volume = |config: &mut husk_tests::cri::api::ContainerConfig| {
                husk_tests::cri::container::mount(config, &volume, "/v", false);
            };
            let steady = pod.start("steady", &["sleep", "100000"], with_volume);
            let script = "until test -e /v/go; do usleep 10000; done; >/v/gone; exit 8";
            let ending = pod.start("ending", &["sh", "-c", script], with_volume);
            cri.lab.end_containerd(Signal::SIGKILL);
            std::fs::write(volume.join("go"), "").expect("let it end");
            assert!(eventually(LIMIT, || volume.join("gone").exists()), "it does not end");
            cri.lab.start_containerd();
            cri.until_ready();
            assert!(pod.is_ready());
            assert_eq!(ending.exit_code(), 8);
            assert_eq!(steady.exec_sh("echo here"), "here");
            ending.remove();
            assert_eq!(pod.idle("new").exec_sh("echo there"), "there");
            pod.remove();
        },
    );
}
