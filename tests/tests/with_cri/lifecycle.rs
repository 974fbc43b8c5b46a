// SPDX-License-Identifier: Apache-2.0

//! The lives of pods and of their containers.

use husk_tests::containerd::HUSK_SHIM;
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::cri::{case, grpc, husk_case};

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
