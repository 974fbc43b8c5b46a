// SPDX-License-Identifier: Apache-2.0

//! What cannot be: said in words that callers of runc know, and undone.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::bundle::{Bundle, ended};

#[test]
fn programs_that_cannot_be_executed() {
    let Some(mut bundle) = Bundle::new("programs", &[]) else { return };
    std::fs::write(bundle.rootfs().join("bin/plain"), "x").expect("write");
    for (program, words) in [
        ("nope", r#"exec: "nope": executable file not found in $PATH"#),
        ("plain", r#"exec: "plain": executable file not found in $PATH"#),
        ("/bin/nope", r#"exec: "/bin/nope": stat /bin/nope: no such file or directory"#),
        ("/bin/plain", r#"exec: "/bin/plain": permission denied"#),
        ("/etc", r#"exec: "/etc": is a directory"#),
    ] {
        bundle.config["process"]["args"] = json!([program]);
        let expected = format!("unable to start container process: {words}\n");
        for command in ["create", "run"] {
            assert_eq!(bundle.on(&[command]).fails(1), expected, "{command}");
        }
    }
    // What only the kernel can tell is told by start.
    let foreign = bundle.rootfs().join("bin/foreign");
    let mut elf = std::fs::read("/bin/busybox").expect("busybox");
    const MACHINE: usize = 18;
    elf[MACHINE] = 0xb7;
    std::fs::write(&foreign, elf).expect("write");
    std::fs::set_permissions(&foreign, PermissionsExt::from_mode(0o755)).expect("chmod");
    bundle.config["process"]["args"] = json!(["/bin/foreign"]);
    let expected = "unable to start container process: exec /bin/foreign: exec format error\n";
    let pid = bundle.create();
    assert_eq!(bundle.on(&["start"]).fails(1), expected);
    assert_ne!(ended(pid), 0);
    assert_eq!(bundle.status(), "stopped");
    bundle.on(&["delete"]).ok();
    assert_eq!(bundle.run().fails(1), expected);
}

#[test]
fn bundles_that_are_none() {
    let Some(mut bundle) = Bundle::new("bundles", &["true"]) else { return };
    let error = bundle.on(&["create", "--bundle", "/nowhere"]).fails(1);
    assert!(error.contains("cannot find the bundle \"/nowhere\""), "{error}");
    std::fs::create_dir(bundle.path("empty")).expect("create");
    let error = bundle.on(&["create", "--bundle", "empty"]).fails(1);
    assert!(error.contains("config.json") && error.contains("No such file"), "{error}");
    std::fs::write(bundle.path("empty/config.json"), "{\"ociVersion\":").expect("write");
    let error = bundle.on(&["create", "-b", "empty"]).fails(1);
    assert!(error.contains("cannot make sense of") && error.contains("line 1"), "{error}");

    bundle.config["root"]["path"] = "missing".into();
    let error = bundle.run().fails(1);
    assert!(error.contains("invalid rootfs") && error.contains("missing"), "{error}");
    bundle.config["root"]["path"] = "config.json".into();
    assert!(bundle.run().fails(1).contains("is not a directory"));
    bundle.config["root"]["path"] = "rootfs".into();

    let good = bundle.config.clone();
    for (pointer, value, words) in [
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/process/args", json!([]), "process.args"),
        ("/process/cwd", json!("here"), "not absolute"),
        ("/process/user/uid", json!(-1), "cannot make sense of"),
        ("/linux/namespaces/0/type", json!("none"), "cannot make sense of"),
        ("/process", Value::Null, "no process"),
        ("/linux", Value::Null, "no linux"),
        ("/root", Value::Null, "no root"),
    ] {
        bundle.config = good.clone();
        *bundle.config.pointer_mut(pointer).expect(pointer) = value;
        let error = bundle.run().fails(1);
        assert!(error.contains(words), "{pointer}: {error}");
    }
}

#[test]
fn command_lines_that_make_no_sense() {
    let Some(bundle) = Bundle::new("lines", &["true"]) else { return };
    for (line, words) in [
        (&[][..], "a command is missing"),
        (&["frob"], "no command \"frob\""),
        (&["create"], "id is missing"),
        (&["create", "a", "b"], "unexpected argument \"b\""),
        (&["create", "--frob", "a"], "invalid option '--frob'"),
        (&["create", "--keep", "a"], "invalid option '--keep'"),
        (&["create", "--preserve-fds", "x", "a"], "cannot parse"),
        (&["create", "../a"], "invalid container ID format"),
        (&["state", "."], "invalid container ID format"),
        (&["delete", "--force", "a/b"], "invalid container ID format"),
        (&["--systemd-cgroup", "list"], "--systemd-cgroup is not supported"),
        (&["--log-format", "xml", "list"], "--log-format"),
        (&["list", "--format", "xml"], "--format"),
        (&["events", "a"], "--stats"),
    ] {
        let error = bundle.oci(line).fails(1);
        assert!(error.contains(words), "{line:?}: {error}");
    }
    for line in [&["--debug", "list"][..], &["--rootless", "auto", "--criu", "criu", "list"]] {
        bundle.oci(line).ok();
    }
}

#[test]
fn errors_are_logged_for_the_caller() {
    let Some(bundle) = Bundle::new("log", &["true"]) else { return };
    let words = "container does not exist";
    let line = ["--log", "log.json", "--log-format", "json", "state", "none"];
    for _ in 0..2 {
        assert_eq!(bundle.oci(&line).fails(1), format!("{words}\n"));
    }
    let log = std::fs::read_to_string(bundle.path("log.json")).expect("log");
    assert_eq!(log.lines().count(), 2);
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&entry["level"], &entry["msg"]), (&json!("error"), &json!(words)));
        assert!(entry["time"].as_str().is_some_and(|time| time.contains('T')), "{line}");
    }
    bundle.oci(&["--log", "log.text", "state", "none"]).fails(1);
    let log = std::fs::read_to_string(bundle.path("log.text")).expect("log");
    assert!(log.ends_with(" level=error msg=\"container does not exist\"\n"), "{log}");
}

#[test]
fn a_pid_file_that_cannot_be_written_undoes_the_container() {
    let Some(bundle) = Bundle::new("pidfile", &["sleep", "1000"]) else { return };
    let error = bundle.on(&["create", "--pid-file", "/nowhere/pid"]).fails(1);
    assert!(error.contains("/nowhere/pid"), "{error}");
    let error = bundle.on(&["run", "--detach", "--pid-file", "/nowhere/pid"]).fails(1);
    assert!(error.contains("/nowhere/pid"), "{error}");
}

#[test]
fn what_a_killed_create_leaves_can_be_deleted() {
    let Some(mut bundle) = Bundle::new("halfway", &["true"]) else { return };
    let blocked = bundle.path("blocked");
    let script = format!("echo $$ > {}; exec sleep 1000", blocked.display());
    bundle.config["hooks"] =
        json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    let mut running = bundle.spawn(&["create", &bundle.id]);
    crate::bundle::wait_until("hook", || {
        std::fs::read_to_string(&blocked).is_ok_and(|pid| pid.ends_with('\n'))
    });
    assert_eq!(bundle.status(), "creating");
    assert!(bundle.on(&["start"]).fails(1).contains("creating"));
    assert!(bundle.exec(&[], &["true"]).fails(255).contains("creating"));
    running.child.kill().expect("kill");
    running.child.wait().expect("wait");
    bundle.on(&["delete", "--force"]).ok();
    // The hook is nobody's but its own.
    let hook = std::fs::read_to_string(blocked).expect("pid").trim().parse().expect("a pid");
    // SAFETY: kill() takes no pointers.
    assert_eq!(unsafe { libc::kill(hook, libc::SIGKILL) }, 0);
}
