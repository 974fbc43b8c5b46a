// SPDX-License-Identifier: Apache-2.0

//! Limits are in the container's cgroup, and hold.

use std::fs;
use std::path::Path;
use std::process::Command;

use husk_tests::containerd::config::{Check, Config};
use husk_tests::containerd::events::{Events, topics};
use husk_tests::containerd::{CD_CGROUP, CGROUP, IMAGE, Lab, case, husk_case};
use serde_json::{Value, json};

#[test]
fn limits_in_the_cgroup() {
    case("memory.max, cpu.max and cpu.weight are as asked", |lab| {
        let flags = ["--memory-limit", "67108864", "--cpus", "0.5", "--cpu-shares", "512"];
        let script = format!("{CD_CGROUP} cat memory.max cpu.max cpu.weight");
        let flags = [flags.as_slice(), CGROUP.as_slice()].concat();
        let said = lab.run(&flags, "limited", &["sh", "-c", &script]).ended(0).text();
        // 512 shares are (512 - 2) * 9999 / 262142 + 1 of weight.
        assert_eq!(said, "67108864\n50000 100000\n20");
    });
}

#[test]
fn memory_limit_holds() {
    case("a container over its memory limit ends with 137, and /tasks/oom tells of it", |lab| {
        let events = Events::listen(lab);
        // tail keeps the last line, which does not end.
        let flags = ["--memory-limit", "33554432"];
        lab.run(&flags, "greedy", &["tail", "/dev/zero"]).ended(137);
        let heard = events.until("greedy", "/tasks/delete");
        let topics = topics(&heard);
        assert!(topics.contains("oom"), "{topics}");
        let exit = heard.iter().find(|event| event.topic == "/tasks/exit").expect("exit");
        assert_eq!(exit.number("exit_status"), 137);
    });
}

#[test]
fn spec_and_rootfs_of_the_users_own() {
    case(
        "a spec and a root directory of the user's own: hostname and number \
                 of processes",
        |lab| {
            let directory = husk_tests::temporary("husk-rootfs");
            let rootfs = directory.path().join("rootfs");
            lab.ctr(&["images", "mount", IMAGE, &text(&directory.path().join("image"), true)])
                .ended(0);
            let mounted = directory.path().join("image");
            let copied = Command::new("cp").arg("-a").arg(&mounted).arg(&rootfs).status();
            lab.ctr(&["images", "unmount", "--rm", &text(&mounted, false)]).ended(0);
            assert!(copied.expect("cp").success(), "cp");

            let spec = lab.ctr(&["oci", "spec"]).ended(0).text();
            let mut spec: Value = serde_json::from_str(&spec).expect("a spec");
            spec["root"] = json!({ "path": text(&rootfs, false) });
            spec["hostname"] = json!("chosen");
            spec["linux"]["cgroupsPath"] = json!("/default/own");
            // The limit has to be enough for a runtime that runs in the cgroup itself.
            let script = "hostname; for i in $(seq 60); do sleep 5 & done; echo survived";
            spec["process"]["args"] = json!(["sh", "-c", script]);
            spec["linux"]["resources"]["pids"] = json!({ "limit": 50 });
            let config = directory.path().join("config.json");
            fs::write(&config, spec.to_string()).expect("write the spec");

            let runtime = lab.runtime();
            let config = text(&config, false);
            let output =
                lab.ctr(&["run", "--rm", "--runtime", runtime, "--config", &config, "own"]);
            assert!(output.text().starts_with("chosen"), "{}\n{}", output.text(), output.error());
            assert!(output.error().contains("fork"), "no process was refused:\n{}", output.error());
        },
    );
}

fn text(path: &Path, create: bool) -> String {
    if create {
        fs::create_dir(path).expect("make a directory");
    }
    path.to_str().expect("UTF-8").to_owned()
}

/// A container that sees its cgroup.
fn in_its_cgroup(lab: &Lab) -> Config {
    let cgroup = json!([{
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"],
    }]);
    Config::new(lab).add("/linux/namespaces", json!([{"type": "cgroup"}])).add("/mounts", cgroup)
}

#[test]
fn every_limit() {
    case("all resources are in the container's cgroup", |lab| {
        let mut config = in_its_cgroup(lab)
            .set(
                "/linux/resources/memory",
                json!({
                    "limit": 134_217_728, "reservation": 67_108_864, "swap": 201_326_592,
                }),
            )
            .set(
                "/linux/resources/cpu",
                json!({
                    "shares": 2048, "quota": 150_000, "period": 200_000, "cpus": "0", "mems": "0",
                }),
            )
            .set("/linux/resources/pids", json!({"limit": 77}))
            .set(
                "/linux/resources/unified",
                json!({"memory.low": "33554432", "memory.oom.group": "1"}),
            );
        let mut checks: Vec<Check> = vec![
            (
                "memory: limit, reservation and swap, which is what is over the limit",
                "cat memory.max memory.low memory.swap.max",
                "134217728 33554432 67108864",
            ),
            (
                "cpu: shares as weight, quota and period",
                "cat cpu.weight cpu.max",
                "79 150000 200000",
            ),
            (
                "cpuset: CPUs and memory nodes, in the cgroup and for processes",
                "cat cpuset.cpus cpuset.mems; grep _list: /proc/self/status",
                "0 0 Cpus_allowed_list: 0 Mems_allowed_list: 0",
            ),
            ("pids", "cat pids.max", "77"),
            (
                "unified: any file of the cgroup, in place of the field that is \
                 about the same",
                "cat memory.low memory.oom.group",
                "33554432 1",
            ),
        ];
        // runc 1.1 has no burst, and the machine it is compared on lacks the others.
        if lab.is_husk() {
            config = config
                .set("/linux/cgroupsPath", json!("system.slice:husk:limited"))
                .set("/linux/resources/cpu/burst", json!(50_000))
                .set(
                    "/linux/resources/hugepageLimits",
                    json!([
                        {"pageSize": "2MB", "limit": 4_194_304},
                    ]),
                )
                .set("/linux/resources/blockIO", json!({"weight": 500}));
            checks.extend([
                ("cpu: burst", "cat cpu.max.burst", "50000"),
                (
                    "huge pages, also of those that are reserved",
                    "cat hugetlb.2MB.max hugetlb.2MB.rsvd.max",
                    "4194304 4194304",
                ),
                ("weight of block I/O", "cat io.weight", "default 4950"),
            ]);
        }
        let checks: Vec<(&str, String, &str)> = checks
            .into_iter()
            .map(|(what, script, expected)| {
                (what, format!("cd /sys/fs/cgroup; {script}"), expected)
            })
            .collect();
        let checks: Vec<Check> = checks
            .iter()
            .map(|(what, script, expected)| (*what, script.as_str(), *expected))
            .collect();
        config.check(lab, "limited", &checks).finish();
    });
}

#[test]
fn idle() {
    husk_case("cpu.idle: a container that runs when nothing else does", |lab| {
        let config = in_its_cgroup(lab).set("/linux/resources/cpu", json!({"idle": 1}));
        let check = ("cpu: idle", "cat /sys/fs/cgroup/cpu.idle", "1");
        config.check(lab, "patient", &[check]).finish();
    });
}
