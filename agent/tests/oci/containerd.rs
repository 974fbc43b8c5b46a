// SPDX-License-Identifier: Apache-2.0

//! containerd's runc shim with this runtime in runc's place.

use std::path::Path;
use std::process::{Command, Output};

use crate::bundle::Bundle;

const IMAGE: &str = "husk.test/busybox:latest";

fn ctr(args: &[&str]) -> Output {
    Command::new("timeout").args(["60", "ctr"]).args(args).output().expect("timeout")
}

/// The output of a ctr that must end with `status`.
fn ends(status: i32, args: &[&str]) -> String {
    let output = ctr(args);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a ctr that must fail said.
fn fails(args: &[&str]) -> String {
    let output = ctr(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
#[ignore = "needs the lab's containerd"]
fn containerds_shim_takes_it_for_runc() {
    let Some(bundle) = Bundle::new("containerd", &["true"]) else { return };
    let link = bundle.path("husk-oci");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_husk-agent"), &link).expect("link");
    let link = link.to_str().expect("UTF-8");
    let id = bundle.id.as_str();
    let runtime = ["run", "--runtime", "io.containerd.runc.v2", "--runc-binary", link];
    let image = [IMAGE, id];
    let run = |options, args| [&runtime[..], options, &image, args].concat();
    assert_eq!(ends(5, &run(&["--rm"], &["sh", "-c", "echo in; exit 5"])), "in\n");

    let words = r#"exec: "nope": executable file not found in $PATH"#;
    let error = fails(&run(&["--rm"], &["nope"]));
    // Without runc's name: it is not runc that was called.
    assert!(error.contains("OCI runtime create failed: unable to start"), "{error}");
    assert!(error.contains(words), "{error}");

    ends(0, &run(&["--detach", "--memory-limit", "50331648"], &["sleep", "1000"]));
    let script = "cat /proc/self/cgroup; exit 6";
    let out = ends(6, &["task", "exec", "--exec-id", "e1", id, "sh", "-c", script]);
    assert_eq!(out, format!("0::/default/{id}\n"));
    let error = fails(&["task", "exec", "--exec-id", "e2", id, "nope"]);
    assert!(error.contains(words), "{error}");
    let task = || {
        let tasks = ends(0, &["task", "ls"]);
        let line = tasks.lines().find(|line| line.starts_with(id)).unwrap_or_default();
        line.split_whitespace().nth(2).map(str::to_owned)
    };
    ends(0, &["task", "pause", id]);
    assert_eq!(task().as_deref(), Some("PAUSED"));
    ends(0, &["task", "resume", id]);
    assert_eq!(task().as_deref(), Some("RUNNING"));
    let metrics = ends(0, &["task", "metrics", id]);
    let limit = metrics.lines().find(|line| line.starts_with("memory.usage_limit"));
    assert_eq!(limit.and_then(|line| line.split_whitespace().nth(1)), Some("50331648"));
    ctr(&["task", "rm", "--force", id]);
    assert_eq!(task(), None);
    ends(0, &["container", "rm", id]);
    assert!(!Path::new("/sys/fs/cgroup/default").join(id).exists());
}
