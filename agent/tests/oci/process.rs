// SPDX-License-Identifier: Apache-2.0

//! What config.json's `process` says, as the process sees it (runtime-spec, config.md).

use serde_json::json;

use crate::bundle::Bundle;

/// Whether an output has each of the lines.
fn assert_lines(out: &str, lines: &[&str]) {
    for line in lines {
        assert!(out.lines().any(|l| l == *line), "no line {line:?} in\n{out}");
    }
}

#[test]
fn arguments_environment_directory_and_user() {
    let script = "echo \"$0 $1\"; pwd; env; grep -E '^(Uid|Gid|Groups|Umask)' /proc/self/status; \
                  echo cannot > /etc/passwd; touch /tmp/own && stat -c %a /tmp/own";
    let Some(mut bundle) = Bundle::script("user", script) else { return };
    bundle.push("/process/args", "zero".into());
    bundle.push("/process/args", "two words".into());
    bundle.push("/process/env", "A=b c".into());
    bundle.config["process"]["cwd"] = "/tmp".into();
    bundle.config["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o27});
    bundle.config["process"]["capabilities"] = json!({});
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(bundle.rootfs().join("tmp"), mode).expect("chmod");
    let ran = bundle.run();
    assert!(ran.err.contains("Permission denied"), "{ran:?}");
    assert_lines(
        &ran.ok(),
        &[
            "zero two words",
            "/tmp",
            "A=b c",
            "PATH=/bin",
            "HOME=/home/user",
            "Uid:\t1000\t1000\t1000\t1000",
            "Gid:\t1001\t1001\t1001\t1001",
            "Groups:\t7 8 ",
            "Umask:\t0027",
            "640",
        ],
    );
}

#[test]
fn a_directory_that_is_missing_is_made_and_one_that_is_forbidden_is_refused() {
    let Some(mut bundle) = Bundle::script("cwd", "pwd") else { return };
    bundle.config["process"]["cwd"] = "/made/for/me".into();
    assert_eq!(bundle.output(), "/made/for/me\n");
    bundle.config["process"]["cwd"] = "/etc/passwd".into();
    let error = bundle.run().fails(1);
    assert!(error.contains("/etc/passwd") && error.contains("not a directory"), "{error}");
}

#[test]
fn limits_and_scores() {
    let script = "cat /proc/self/limits /proc/self/oom_score_adj";
    let Some(mut bundle) = Bundle::script("rlimits", script) else { return };
    bundle.config["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 900, "hard": 1000},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
        {"type": "RLIMIT_NPROC", "soft": 500, "hard": 500},
    ]);
    bundle.config["process"]["oomScoreAdj"] = 321.into();
    let out = bundle.output();
    let words: Vec<Vec<&str>> = out.lines().map(|l| l.split_whitespace().collect()).collect();
    for limit in [
        &["Max", "open", "files", "900", "1000"][..],
        &["Max", "core", "file", "size", "0", "4096"],
        &["Max", "processes", "500", "500"],
        &["321"],
    ] {
        assert!(words.iter().any(|line| line.starts_with(limit)), "no {limit:?} in\n{out}");
    }
}

#[test]
fn capabilities_of_root_and_of_others() {
    let script = "grep -E '^(Cap|NoNew)' /proc/self/status";
    let Some(mut bundle) = Bundle::script("capabilities", script) else { return };
    // CAP_CHOWN, CAP_KILL and CAP_NET_ADMIN are the bits 0, 5 and 12.
    let all = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN"];
    let two = &all[..2];
    bundle.config["process"]["capabilities"] =
        json!({"bounding": all, "effective": two, "permitted": two});
    bundle.config["process"]["noNewPrivileges"] = false.into();
    let lines = ["CapBnd:\t0000000000001021", "NoNewPrivs:\t0", "CapAmb:\t0000000000000000"];
    // Root's programs get what the bounding set allows.
    let root = bundle.output();
    assert_lines(&root, &lines);
    assert_lines(&root, &["CapEff:\t0000000000001021"]);

    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let other = bundle.output();
    assert_lines(&other, &lines);
    assert_lines(&other, &["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"]);

    bundle.config["process"]["capabilities"] = json!({
        "bounding": all, "effective": two, "permitted": two, "inheritable": two, "ambient": two,
    });
    bundle.config["process"]["noNewPrivileges"] = true.into();
    let set = "0000000000000021";
    let kinds = ["CapInh", "CapPrm", "CapEff", "CapAmb"].map(|kind| format!("{kind}:\t{set}"));
    let out = bundle.output();
    assert_lines(&out, &kinds.each_ref().map(String::as_str));
    assert_lines(&out, &["CapBnd:\t0000000000001021", "NoNewPrivs:\t1"]);
}

#[test]
fn scheduler_and_priorities() {
    let Some(mut bundle) = Bundle::script("scheduler", "cat /proc/self/stat; ionice") else {
        return;
    };
    bundle.config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    bundle.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    let out = bundle.output();
    let (stat, io) = out.split_once('\n').expect("two lines");
    // proc_pid_stat(5): fields 19 and 41, counted behind the name, which is the second.
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("stat").1.split(' ').collect();
    const SCHED_BATCH: &str = "3";
    assert_eq!((fields[19 - 3], fields[41 - 3]), ("5", SCHED_BATCH), "{stat}");
    assert_eq!(io, "best-effort: prio 6\n");
}

#[test]
fn an_exec_runs_on_the_cpus_of_its_affinity() {
    let Some(bundle) = Bundle::new("affinity", &["sleep", "1000"]) else { return };
    let pid = bundle.start();
    let mut process = bundle.config["process"].clone();
    process["args"] = json!(["grep", "Cpus_allowed_list", "/proc/self/status"]);
    process["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    std::fs::write(bundle.path("process.json"), process.to_string()).expect("process.json");
    let out = bundle.exec(&["--process", "process.json"], &[]).ok();
    assert_eq!(out, "Cpus_allowed_list:\t0\n");
    bundle.kill_and_delete(pid);
}

#[test]
fn a_personality_of_32_bits() {
    let Some(mut bundle) = Bundle::new("personality", &["uname", "-m"]) else { return };
    bundle.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    assert_eq!(bundle.output(), "i686\n");
}

#[test]
fn a_program_gets_every_signal_and_the_streams_of_its_user() {
    let script = "grep SigBlk /proc/self/status; echo err > /dev/stderr; \
                  trap 'exit 3' PIPE TERM HUP INT QUIT; kill -PIPE $$";
    let Some(mut bundle) = Bundle::script("signals", script) else { return };
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let ran = bundle.run();
    assert_eq!(ran.err, "err\n");
    // A shell cannot trap what it was told to ignore.
    assert_eq!((ran.status, ran.out.as_str()), (3, "SigBlk:\t0000000000000000\n"), "{ran:?}");
}
