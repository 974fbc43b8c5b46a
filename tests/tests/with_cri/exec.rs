// SPDX-License-Identifier: Apache-2.0

//! Further processes in the containers of a pod.

use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::{case, grpc};

#[test]
fn exec_sync() {
    case("ExecSync gives both streams and the exit code, and ends what takes too long", |cri| {
        let pod = cri.pod("asked", |_| {});
        let container = pod.idle("main");
        let done =
            container.exec(&["sh", "-c", "echo out; echo err >&2; exit 5"], 0).expect("ExecSync");
        assert_eq!((done.stdout, done.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
        assert_eq!(done.exit_code, 5);
        let late = container.exec(&["sleep", "4242"], 1).expect_err("it takes too long");
        assert_eq!(late.code, grpc::DEADLINE_EXCEEDED, "{late}");
        let ended = eventually(LIMIT, || !container.command_lines().contains("sleep 4242"));
        assert!(ended, "what took too long goes on");
        let wrong = container.exec(&["/no/such/program"], 0).expect_err("there is no such program");
        assert!(wrong.message.contains("/no/such/program"), "{wrong}");
        let many = container.exec(&["sh", "-c", "yes | head -c 1000000"], 0).expect("ExecSync");
        assert_eq!(many.stdout.len(), 1_000_000);
        pod.remove();
    });
}
