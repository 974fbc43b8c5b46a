// SPDX-License-Identifier: Apache-2.0

//! Limits, changed limits and what was counted. These need the controllers of cgroup v2.

use serde_json::{Value, json};

use crate::bundle::Bundle;

fn read(bundle: &Bundle, file: &str) -> String {
    let path = bundle.cgroup().join(file);
    let text = std::fs::read_to_string(&path);
    text.unwrap_or_else(|e| panic!("{path:?}: {e}")).trim().to_owned()
}

#[test]
#[ignore = "needs root and the controllers of cgroup v2"]
fn limits_are_set_and_changed() {
    let Some(mut bundle) = Bundle::new("limits", &["sleep", "1000"]) else { return };
    bundle.config["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
        "cpu": {"quota": 20000, "period": 100000, "shares": 512, "cpus": "0"},
        "pids": {"limit": 20},
        "unified": {"memory.high": "50331648"},
    });
    let pid = bundle.start();
    for (file, value) in [
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.high", "50331648"),
        ("cpu.max", "20000 100000"),
        ("cpuset.cpus", "0"),
        ("pids.max", "20"),
    ] {
        assert_eq!(read(&bundle, file), value, "{file}");
    }
    let update = |options: &[&str]| bundle.on(&[&["update"], options].concat()).ok();
    update(&["--memory", "128m", "--memory-swap", "128m", "--pids-limit", "30"]);
    update(&["--cpu-quota", "50000", "--cpu-period", "200000", "--memory-reservation", "1m"]);
    update(&["--cpu-share", "1024"]);
    for (file, value) in [
        ("memory.max", "134217728"),
        ("memory.low", "1048576"),
        ("cpu.max", "50000 200000"),
        ("pids.max", "30"),
    ] {
        assert_eq!(read(&bundle, file), value, "{file}");
    }
    let limits = json!({"memory": {"limit": 96 << 20}, "pids": {"limit": -1}});
    std::fs::write(bundle.path("limits.json"), limits.to_string()).expect("limits.json");
    update(&["--resources", "limits.json"]);
    assert_eq!(read(&bundle, "memory.max"), "100663296");
    assert_eq!(read(&bundle, "pids.max"), "max");
    let (mut command, ..) = bundle.command(&["update", "-r", "-", &bundle.id]);
    let file = std::fs::File::open(bundle.path("limits.json")).expect("limits.json");
    assert!(command.stdin(file).status().expect("run").success());
    let error = bundle.on(&["update", "--cpuset-cpus", "nonsense"]).fails(1);
    assert!(error.contains("cpuset.cpus"), "{error}");
    bundle.kill_and_delete(pid);
}

#[test]
#[ignore = "needs root and the controllers of cgroup v2"]
fn what_was_counted_is_shown() {
    let Some(mut bundle) = Bundle::new("events", &["sleep", "1000"]) else { return };
    bundle.config["linux"]["resources"] =
        json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 9}});
    let pid = bundle.start();
    let events: Value =
        serde_json::from_str(&bundle.on(&["events", "--stats"]).ok()).expect("JSON");
    assert_eq!((&events["type"], &events["id"]), (&json!("stats"), &json!(bundle.id)));
    let data = &events["data"];
    assert_eq!(data["pids"], json!({"current": 1, "limit": 9}));
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert!(data["memory"]["usage"]["usage"].as_u64().is_some_and(|usage| usage > 0), "{events}");
    assert!(data["cpu"]["usage"]["total"].as_u64().is_some_and(|total| total > 0), "{events}");
    bundle.kill_and_delete(pid);
}

#[test]
#[ignore = "needs root and the controllers of cgroup v2"]
fn a_limit_that_cannot_be_undoes_the_container() {
    let Some(mut bundle) = Bundle::new("badlimit", &["true"]) else { return };
    bundle.config["linux"]["resources"] = json!({"cpu": {"cpus": "nonsense"}});
    let error = bundle.run().fails(1);
    assert!(error.contains("\"nonsense\" is no valid cpuset.cpus"), "{error}");
}

#[test]
#[ignore = "needs root and the controllers of cgroup v2"]
fn processes_are_limited() {
    let script = "i=0; while [ $i -lt 9 ]; do sleep 1000 & i=$((i + 1)); done; echo all";
    let Some(mut bundle) = Bundle::script("pids", script) else { return };
    bundle.config["linux"]["resources"] = json!({"pids": {"limit": 5}});
    let ran = bundle.run();
    assert!(!ran.out.contains("all") && ran.err.contains("fork"), "{ran:?}");
}
