// SPDX-License-Identifier: Apache-2.0

//! What the process sees of files, devices and system calls (runtime-spec, config.md
//! "Mounts", config-linux.md). The engine's own tests know more about mounts.

use serde_json::json;

use crate::bundle::Bundle;

#[test]
fn mounts_of_each_kind() {
    let script = "cat /data/file; echo changed > /data/file; cat /fixed/file; \
                  echo no > /fixed/file; grep ' /mnt/' /proc/mounts; echo end";
    let Some(mut bundle) = Bundle::script("mounts", script) else { return };
    std::fs::create_dir(bundle.path("data")).expect("create");
    std::fs::write(bundle.path("data/file"), "original\n").expect("write");
    for mount in [
        // A relative source begins at the bundle.
        json!({"destination": "/data", "source": "data", "options": ["rbind"]}),
        json!({"destination": "/fixed", "source": bundle.path("data"), "options": ["bind", "ro"]}),
        json!({"destination": "/mnt/new", "type": "tmpfs", "source": "scratch",
               "options": ["nosuid", "noexec", "size=64k", "mode=700"]}),
    ] {
        bundle.push("/mounts", mount);
    }
    let ran = bundle.run();
    assert!(ran.err.contains("/fixed/file: Read-only file system"), "{ran:?}");
    let out = ran.ok();
    assert!(out.starts_with("original\nchanged\nscratch /mnt/new tmpfs "), "{out}");
    for option in ["nosuid", "noexec", "size=64k", "mode=700"] {
        assert!(out.contains(option), "no {option} in {out}");
    }
    assert_eq!(std::fs::read_to_string(bundle.path("data/file")).expect("file"), "changed\n");
}

#[test]
fn a_mount_that_cannot_be_made_is_named() {
    let Some(mut bundle) = Bundle::new("badmount", &["true"]) else { return };
    bundle.push("/mounts", json!({"destination": "/mnt", "type": "nofs", "source": "none"}));
    let error = bundle.run().fails(1);
    assert!(error.contains("/mnt") && error.contains("nofs"), "{error}");
    bundle.config["mounts"][4] =
        json!({"destination": "/mnt", "source": "/nowhere", "options": ["bind"]});
    let error = bundle.run().fails(1);
    assert!(error.contains("/nowhere"), "{error}");
}

#[test]
fn the_root_can_be_read_only() {
    let Some(mut bundle) = Bundle::new("readonly", &["touch", "/here"]) else { return };
    assert_eq!(bundle.output(), "");
    assert!(bundle.rootfs().join("here").exists());
    bundle.config["root"]["readonly"] = true.into();
    let error = bundle.run().fails(1);
    assert!(error.contains("Read-only file system"), "{error}");
}

#[test]
fn a_root_can_be_taken_without_pivot_root() {
    let Some(bundle) = Bundle::script("nopivot", "ls /; ls /proc/1/root") else { return };
    let out = bundle.on(&["run", "--no-pivot"]).ok();
    let (mine, first) = out.split_at(out.len() / 2);
    assert!(mine.contains("bin\n") && !mine.contains("config.json") && mine == first, "{out}");
}

#[test]
fn paths_are_masked_and_read_only() {
    let script = "cat /etc/hidden; ls /mnt; echo no > /etc/fixed; mkdir /tmp/no";
    let Some(mut bundle) = Bundle::script("masked", script) else { return };
    let root = bundle.rootfs();
    for file in ["etc/hidden", "etc/fixed", "mnt/hidden"] {
        std::fs::write(root.join(file), "secret").expect(file);
    }
    bundle.config["linux"]["maskedPaths"] = json!(["/etc/hidden", "/mnt", "/not/there"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/etc/fixed", "/tmp", "/not/there"]);
    let ran = bundle.run();
    assert_eq!((ran.status, ran.out.as_str()), (1, ""), "{ran:?}");
    assert!(ran.err.contains("/etc/fixed: Read-only file system"), "{ran:?}");
    assert!(ran.err.contains("'/tmp/no': Read-only file system"), "{ran:?}");
}

#[test]
fn devices_are_made() {
    let script = "stat -c '%n %F %t:%T %a %u:%g' /dev/husk /dev/loop-husk /dev/null; \
                  echo > /dev/null && readlink /dev/stdin && readlink /dev/ptmx";
    let Some(mut bundle) = Bundle::script("devices", script) else { return };
    bundle.config["linux"]["devices"] = json!([
        {"path": "/dev/husk", "type": "c", "major": 240, "minor": 77, "fileMode": 0o640,
         "uid": 5, "gid": 6},
        {"path": "/dev/loop-husk", "type": "b", "major": 7, "minor": 0, "fileMode": 0o600},
    ]);
    assert_eq!(
        bundle.output(),
        "/dev/husk character special file f0:4d 640 5:6\n\
         /dev/loop-husk block special file 7:0 600 0:0\n\
         /dev/null character special file 1:3 666 0:0\n\
         /proc/self/fd/0\npts/ptmx\n"
    );
}

#[test]
fn devices_are_used_as_the_rules_allow() {
    let script = "cat /dev/husk; echo > /dev/null && echo end";
    let Some(mut bundle) = Bundle::script("rules", script) else { return };
    bundle.config["linux"]["devices"] =
        json!([{"path": "/dev/husk", "type": "c", "major": 240, "minor": 77}]);
    let deny = json!({"allow": false, "access": "rwm"});
    bundle.config["linux"]["resources"] = json!({"devices": [deny]});
    let ran = bundle.run();
    assert_eq!(ran.out, "end\n", "{ran:?}");
    assert!(ran.err.contains("'/dev/husk': Operation not permitted"), "{ran:?}");

    bundle.config["linux"]["resources"] = json!({"devices": [
        deny,
        {"allow": true, "type": "c", "major": 240, "minor": 77, "access": "r"},
    ]});
    let ran = bundle.run();
    assert_eq!(ran.out, "end\n", "{ran:?}");
    // There is no driver of that number, but that is not for the rules to say.
    assert!(ran.err.contains("'/dev/husk': No such device or address"), "{ran:?}");
}

#[test]
fn system_calls_are_filtered() {
    let script = "mkdir /tmp/made; hostname other; echo end; sync; echo not here";
    let Some(mut bundle) = Bundle::script("seccomp", script) else { return };
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV},
            {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    });
    // The shell runs sync itself, or in a child: either way that is killed.
    bundle.config["process"]["args"] =
        json!(["sh", "-c", "mkdir /tmp/made; sync && echo not here"]);
    for confined in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = confined.into();
        let ran = bundle.run();
        assert_eq!((ran.status, ran.out.as_str()), (128 + libc::SIGSYS, ""), "{ran:?}");
        assert!(
            ran.err.contains("Cross-device link") || ran.err.contains("cross-device"),
            "{ran:?}"
        );
    }
    bundle.config["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["no_such_call"]);
    bundle.config["process"]["args"] = json!(["mkdir", "/tmp/made"]);
    assert_eq!(bundle.output(), "");
}
