// SPDX-License-Identifier: Apache-2.0

//! What a container uses, by `ctr tasks metrics`.

use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{Lab, case};
use serde_json::Value;

fn metrics(lab: &Lab, id: &str) -> Value {
    let text = lab.ctr(&["tasks", "metrics", "--format", "json", id]).ended(0).text();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in:\n{text}"))
}

#[track_caller]
fn number(metrics: &Value, group: &str, field: &str) -> u64 {
    // protobuf's JSON leaves out what is 0.
    assert!(metrics[group].is_object(), "no {group} in {metrics}");
    metrics[group][field].as_u64().unwrap_or(0)
}

#[test]
fn metrics_are_the_containers() {
    case("metrics: processes, memory and CPU time are the container's own, and change", |lab| {
        lab.detached(
            &["--memory-limit", "67108864"],
            "measured",
            &["sh", "-c", "sleep 100000 & exec sleep 100000"],
        );
        // Both are there when the shell has come so far.
        let mut first = Value::Null;
        let both = eventually(LIMIT, || {
            first = metrics(lab, "measured");
            number(&first, "pids", "current") == 2
        });
        assert!(both, "{first}");
        let memory = number(&first, "memory", "usage");
        assert!((16 << 10..32 << 20).contains(&memory), "memory usage {memory}");
        assert_eq!(number(&first, "memory", "usage_limit"), 64 << 20);
        let cpu = number(&first, "cpu", "usage_usec");
        assert!((1..600_000_000).contains(&cpu), "CPU time {cpu} us");

        // 8 MB of files in memory and some work.
        let work = "head -c 8388608 /dev/zero >/dev/shm/file; sha256sum /dev/shm/file";
        lab.exec_sh("measured", work);
        let second = metrics(lab, "measured");
        let more = number(&second, "memory", "usage");
        assert!(more > memory + (6 << 20), "memory usage {memory}, then {more}");
        let more = number(&second, "cpu", "usage_usec");
        assert!(more > cpu + 1000, "CPU time {cpu} us, then {more}");
        lab.remove("measured");
    });
}
