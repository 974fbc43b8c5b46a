// SPDX-License-Identifier: Apache-2.0

//! The logs of containers, in the format of CRI.

use std::fs;

use husk_tests::cri::{api, case};

/// As the session has it in containerd's configuration.
const MAX_LINE: usize = 16384;

#[test]
fn both_streams_and_long_lines() {
    case(
        "a log has both streams by their names, a long line in parts, and all of 2000 lines",
        |cri| {
            let pod = cri.pod("talking", |_| {});
            let script = "echo first; echo wrong >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; \
                      i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; printf end";
            let container = pod.sh("main", script);
            assert_eq!(container.exit_code(), 0);
            container.until_logged("end");
            assert_eq!(container.logged("stderr"), "wrong\n");
            let out: Vec<_> =
                container.log().into_iter().filter(|entry| entry.stream == "stdout").collect();
            assert_eq!(out[0].line, "first");
            let parts: Vec<_> = out.iter().filter(|entry| entry.line.starts_with('x')).collect();
            let lengths: Vec<_> = parts.iter().map(|part| part.line.len()).collect();
            assert_eq!(lengths, [MAX_LINE, MAX_LINE, 40000 - 2 * MAX_LINE]);
            assert_eq!(
                parts.iter().map(|part| part.partial).collect::<Vec<_>>(),
                [true, true, false]
            );
            let numbered = out
                .iter()
                .filter_map(|entry| entry.line.strip_prefix("line ")?.parse::<u32>().ok());
            assert!(numbered.eq(1..=2000), "lines are missing, or in another order");
            pod.remove();
        },
    );
}

#[test]
fn rotation() {
    case("a log that was moved away goes on in a new file once containerd is told", |cri| {
        let pod = cri.pod("rotated", |_| {});
        let container = pod.sh(
            "main",
            "echo before; until test -e /go; do usleep 10000; done; echo after; sleep 100000",
        );
        container.until_logged("before");
        let path = pod.log_path("main.log");
        fs::rename(&path, path.with_extension("old")).expect("rename");
        let request = api::ReopenContainerLogRequest {
            container_id: container.id.clone(),
            ..Default::default()
        };
        cri.ask::<api::ReopenContainerLogResponse>("ReopenContainerLog", &request)
            .expect("ReopenContainerLog");
        container.exec_sh(">/go");
        container.until_logged("after");
        assert_eq!(container.logged("stdout"), "after\n");
        pod.remove();
    });
}
