// SPDX-License-Identifier: Apache-2.0

//! The same bundle with runc, where that is installed: a process cannot tell the difference.

use std::process::Command;

use serde_json::json;

use crate::bundle::Bundle;

/// What a process can see of itself and its surroundings, but for what differs each time.
const LOOK: &str = "env | sort; id; pwd; umask; hostname; ulimit -a; ls -A /sys; \
     ls -l / | awk '{print $1,$3,$4,$NF}'; ls -l /dev | awk '{print $1,$3,$4,$5,$6,$NF}'; \
     grep -E '^(Umask|Uid|Gid|Groups|Sig...|Cap...|NoNewPrivs|Seccomp):' /proc/self/status; \
     cat /proc/self/limits /proc/self/oom_score_adj /proc/self/personality; \
     cut -d' ' -f5,6 /proc/self/mountinfo | sort; cat /proc/sys/net/ipv4/ip_default_ttl; \
     touch /proc/sys/kernel/panic /fixed/x /sys/x; cat /proc/kcore; mount -t tmpfs x /mnt; \
     mkdir /tmp/x; chown 1 /tmp; kill -0 1; ls /proc/self/fd; echo $$";

/// What runc makes of a bundle; None where there is none, or it cannot work.
fn runc(bundle: &Bundle) -> Option<(i32, String, String)> {
    let mut runc = Command::new("runc");
    runc.arg("--root").arg(bundle.path("runc")).args(["--log", "/dev/null", "run", &bundle.id]);
    runc.current_dir(&bundle.directory).stdin(std::process::Stdio::null());
    let output = runc.output().ok()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Some((output.status.code()?, text(&output.stdout), text(&output.stderr)))
}

#[test]
fn a_process_sees_what_it_sees_with_runc() {
    let Some(mut bundle) = Bundle::script("parity", &format!("({LOOK}) 2>&1; exit 9")) else {
        return;
    };
    bundle.config["ociVersion"] = "1.0.2".into();
    bundle.config["hostname"] = "inside".into();
    bundle.config["root"]["readonly"] = true.into();
    bundle.config["process"]["env"] = json!(["PATH=/bin", "A=b", "TERM=xterm"]);
    bundle.config["process"]["oomScoreAdj"] = 7.into();
    bundle.config["process"]["rlimits"] =
        json!([{"type": "RLIMIT_NOFILE", "soft": 900, "hard": 1000}]);
    bundle.push(
        "/mounts",
        json!({"destination": "/fixed", "source": "/etc", "options": ["rbind", "ro", "nosuid"]}),
    );
    bundle.push("/mounts", json!({"destination": "/tmp", "type": "tmpfs", "source": "x"}));
    bundle.config["linux"]["maskedPaths"] = json!(["/proc/kcore", "/sys/firmware"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/irq"]);
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "17"});
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}],
    });
    for user in [json!({"uid": 0, "gid": 0}), json!({"uid": 1000, "gid": 7, "additionalGids": [9]})]
    {
        bundle.config["process"]["user"] = user;
        let ran = bundle.run();
        assert_eq!(ran.status, 9, "{ran:?}");
        match runc(&bundle) {
            Some((9, out, _)) => assert_eq!(ran.out, out, "husk on the left, runc on the right"),
            other => println!("not compared, runc cannot do it here: {other:?}"),
        }
    }
}

#[test]
fn what_cannot_be_is_said_in_runcs_words() {
    let Some(bundle) = Bundle::new("words", &["true"]) else { return };
    match runc(&bundle) {
        Some((0, ..)) => {}
        other => return println!("not compared, runc cannot do it here: {other:?}"),
    }
    let good = bundle.config.clone();
    let mut bundle = bundle;
    for (pointer, value) in [
        ("/process/args/0", json!("nope")),
        ("/process/args/0", json!("/nope")),
        ("/process/args/0", json!("/etc/passwd")),
        ("/root/path", json!("nope")),
        ("/linux/sysctl", json!({"kernel.panic": "1"})),
    ] {
        bundle.config = good.clone();
        bundle.config["linux"]["sysctl"] = json!({});
        *bundle.config.pointer_mut(pointer).expect(pointer) = value;
        let ours = bundle.run().fails(1);
        let (_, _, theirs) = runc(&bundle).expect("as before");
        assert_eq!(ours, theirs.trim_start_matches("runc run failed: "));
    }
}
