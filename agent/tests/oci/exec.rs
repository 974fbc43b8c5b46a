// SPDX-License-Identifier: Apache-2.0

//! Further processes in a container.

use serde_json::json;

use crate::bundle::{Bundle, ended, wait_for_line, wait_until};

fn sleeper(name: &str) -> Option<(Bundle, i32)> {
    let bundle = Bundle::new(name, &["sleep", "1000"])?;
    let pid = bundle.start();
    Some((bundle, pid))
}

#[test]
fn an_exec_is_like_the_first_process_but_for_its_options() {
    let Some((bundle, pid)) = sleeper("exec") else { return };
    let script = "pwd; echo $PATH $A; grep -E '^(Uid|Gid|Groups|NoNew|CapEff)' /proc/self/status; \
                  readlink /proc/self/ns/pid; ps -o pid,args | grep -c 'sleep 1000$'; exit 9";
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid")).expect("namespace");
    let namespace = namespace.to_string_lossy();
    let ran = bundle.exec(&[], &["sh", "-c", script]);
    assert_eq!(ran.status, 9, "{ran:?}");
    let first = format!(
        "/\n/bin\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t \nCapEff:\t00000000000000e3\n\
         NoNewPrivs:\t1\n{namespace}\n1\n"
    );
    assert_eq!(ran.out, first);
    let options = [
        "--cwd",
        "/tmp",
        "-e",
        "A=a",
        "--env",
        "PATH=/bin:/x",
        "-u",
        "1000:1001",
        "-g",
        "7",
        "--additional-gids",
        "8",
        "--cap",
        "CAP_NET_ADMIN",
    ];
    let ran = bundle.exec(&options, &["sh", "-c", script]);
    assert_eq!(ran.status, 9, "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    let ids = ["Uid:\t1000\t1000\t1000\t1000", "Gid:\t1001\t1001\t1001\t1001", "Groups:\t7 8 "];
    assert_eq!(lines[..2], ["/tmp", "/bin:/x a"]);
    assert_eq!(lines[2..5], ids);
    bundle.kill_and_delete(pid);
}

#[test]
fn capabilities_and_privileges_can_be_changed() {
    let Some(mut bundle) = Bundle::new("execcaps", &["sleep", "1000"]) else { return };
    bundle.config["process"]["noNewPrivileges"] = false.into();
    let pid = bundle.start();
    let script = "grep -E '^(NoNewPrivs|CapBnd)' /proc/self/status";
    let out = bundle.exec(&[], &["sh", "-c", script]).ok();
    assert_eq!(out, "CapBnd:\t00000000000000e3\nNoNewPrivs:\t0\n");
    let options = ["--no-new-privs", "--cap", "CAP_NET_ADMIN"];
    let out = bundle.exec(&options, &["sh", "-c", script]).ok();
    assert_eq!(out, "CapBnd:\t00000000000010e3\nNoNewPrivs:\t1\n");
    let error = bundle.exec(&["--cap", "CAP_NONE"], &["true"]).fails(255);
    assert!(error.contains("unknown capability"), "{error}");
    bundle.kill_and_delete(pid);
}

#[test]
fn a_whole_process_is_given_as_json() {
    let Some((bundle, pid)) = sleeper("execjson") else { return };
    let process = json!({
        "user": {"uid": 3, "gid": 4, "additionalGids": [5]},
        "args": ["sh", "-c", "id -u; id -g; env; umask; ulimit -n; cat /proc/self/oom_score_adj"],
        "env": ["ONLY=this", "PATH=/bin"],
        "cwd": "/tmp",
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}],
        "oomScoreAdj": 100,
    });
    std::fs::write(bundle.path("process.json"), process.to_string()).expect("process.json");
    let out = bundle.exec(&["-p", "process.json"], &[]).ok();
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort();
    for line in ["3", "4", "ONLY=this", "HOME=/", "0022", "64", "100", "PWD=/tmp"] {
        assert!(lines.contains(&line), "no {line} in {out}");
    }
    for (json, why) in [("{", "cannot make sense of"), (r#"{"cwd":"/"}"#, "cannot make sense of")] {
        std::fs::write(bundle.path("process.json"), json).expect("process.json");
        let error = bundle.exec(&["-p", "process.json"], &[]).fails(255);
        assert!(error.contains(why), "{error}");
    }
    bundle.kill_and_delete(pid);
}

#[test]
fn an_exec_can_be_left_alone() {
    let Some((bundle, pid)) = sleeper("detached") else { return };
    bundle.exec(&["--detach", "--pid-file", "exec"], &["sh", "-c", "echo here; exit 6"]).ok();
    let exec = std::fs::read_to_string(bundle.path("exec")).expect("pid").parse().expect("a pid");
    assert_eq!(ended(exec), 6);
    assert_eq!(bundle.output_of(2), "here\n");
    bundle.exec(&["-d", "--pid-file", "exec"], &["sleep", "1000"]).ok();
    let exec = std::fs::read_to_string(bundle.path("exec")).expect("pid").parse().expect("a pid");
    let mut pids: Vec<i32> =
        serde_json::from_str(&bundle.on(&["ps", "-f", "json"]).ok()).expect("JSON");
    pids.sort();
    assert_eq!(pids, [pid, exec]);
    bundle.oci(&["kill", "--all", &bundle.id, "KILL"]).ok();
    // The first process of a PID namespace has ended when all others are gone.
    assert_eq!(ended(exec), 137);
    bundle.kill_and_delete(pid);
}

#[test]
fn what_cannot_be_executed_is_told_as_runc_does() {
    let Some((bundle, pid)) = sleeper("execbad") else { return };
    for (program, words) in [
        ("nope", r#"exec: "nope": executable file not found in $PATH"#),
        ("/nope", r#"exec: "/nope": stat /nope: no such file or directory"#),
        ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
    ] {
        let error = bundle.exec(&[], &[program]).fails(255);
        let expected = format!("exec failed: unable to start container process: {words}\n");
        assert_eq!(error, expected);
    }
    assert!(bundle.exec(&[], &[]).fails(255).contains("process.args is empty"));
    assert!(bundle.exec(&["--user", "root"], &["true"]).fails(255).contains("UID[:GID]"));
    assert!(bundle.exec(&["--apparmor", "x"], &["true"]).fails(255).contains("not supported"));
    let error = bundle.exec(&["--cwd", "/nowhere"], &["true"]).fails(255);
    assert!(error.contains("/nowhere"), "{error}");
    bundle.kill_and_delete(pid);
}

#[test]
fn a_created_container_takes_execs() {
    let Some(bundle) = Bundle::new("execcreated", &["true"]) else { return };
    let pid = bundle.create();
    assert_eq!(bundle.exec(&[], &["echo", "in"]).ok(), "in\n");
    bundle.kill_and_delete(pid);
}

#[test]
fn an_exec_can_wait_for_the_end_of_a_pause() {
    let Some((bundle, pid)) = sleeper("execpaused") else { return };
    bundle.on(&["pause"]).ok();
    let running = bundle.spawn(&["exec", "--ignore-paused", &bundle.id, "echo", "after the pause"]);
    wait_until("frozen exec", || {
        let procs = std::fs::read_to_string(bundle.cgroup().join("cgroup.procs"));
        procs.is_ok_and(|procs| procs.lines().count() == 2)
    });
    bundle.on(&["resume"]).ok();
    assert_eq!(running.wait().ok(), "after the pause\n");
    bundle.kill_and_delete(pid);
}

#[test]
fn an_exec_can_have_a_cgroup_below_the_containers() {
    let Some((bundle, pid)) = sleeper("execcgroup") else { return };
    std::fs::create_dir(bundle.cgroup().join("below")).expect("cgroup");
    let out = bundle.exec(&["--cgroup", "below"], &["grep", "^0:", "/proc/self/cgroup"]).ok();
    assert_eq!(out, format!("0::/{}/below\n", bundle.id));
    let error = bundle.exec(&["--cgroup", "../x"], &["true"]).fails(255);
    assert!(error.contains("no cgroup below"), "{error}");
    let error = bundle.exec(&["--cgroup", "missing"], &["true"]).fails(255);
    assert!(error.contains("missing"), "{error}");
    bundle.kill_and_delete(pid);
}

#[test]
fn the_filter_and_hidden_paths_are_an_execs_too() {
    let Some(mut bundle) = Bundle::new("execseccomp", &["sleep", "1000"]) else { return };
    std::fs::write(bundle.rootfs().join("etc/hidden"), "secret").expect("write");
    bundle.config["linux"]["maskedPaths"] = json!(["/etc/hidden"]);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    });
    let pid = bundle.start();
    let ran = bundle.exec(&[], &["sh", "-c", "cat /etc/hidden; mkdir /tmp/x"]);
    assert_eq!((ran.status, ran.out.as_str()), (1, ""), "{ran:?}");
    assert!(ran.err.contains("Operation not permitted"), "{ran:?}");
    bundle.kill_and_delete(pid);
}

#[test]
fn an_exec_that_is_signalled_passes_it_on() {
    let Some((bundle, pid)) = sleeper("execsignal") else { return };
    let script = "trap 'exit 8' TERM; echo ready; while :; do sleep 0.1; done";
    let running = bundle.spawn(&["exec", &bundle.id, "sh", "-c", script]);
    wait_for_line(&bundle.path("out.2"), "ready");
    // SAFETY: kill() takes no pointers.
    unsafe { libc::kill(running.child.id() as i32, libc::SIGTERM) };
    assert_eq!(running.wait().status, 8);
    bundle.kill_and_delete(pid);
}
