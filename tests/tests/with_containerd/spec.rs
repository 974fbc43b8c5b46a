// SPDX-License-Identifier: Apache-2.0

//! What config.json and the options may say of the host, and what becomes of it.

use std::fs;
use std::path::Path;

use husk_tests::containerd::events::Events;
use husk_tests::containerd::process::{LIMIT, Output, eventually};
use husk_tests::containerd::{Lab, husk_case};
use serde_json::{Value, json};

/// Runs a container of this spec to its end.
fn run(lab: &Lab, spec: &Value) -> Output {
    let directory = husk_tests::temporary("husk-spec");
    let config = directory.path().join("config.json");
    fs::write(&config, spec.to_string()).expect("write the spec");
    let config = config.display().to_string();
    lab.ctr(&["run", "--rm", "--runtime", lab.runtime(), "--config", &config, "told"])
}

fn spec(lab: &Lab, script: &str) -> Value {
    let mut spec = lab.spec();
    spec["root"] = json!({"path": lab.rootfs(), "readonly": true});
    spec["process"]["args"] = json!(["sh", "-c", script]);
    spec["process"]["terminal"] = false.into();
    spec["linux"]["cgroupsPath"] = "/default/told".into();
    spec
}

#[test]
fn what_cannot_be() {
    husk_case("what no guest can do is refused by its name, before a VM is started", |lab| {
        let plain = spec(lab, "true");
        for (pointer, value, words) in [
            ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY"),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/listener"}),
                "/run/listener",
            ),
            ("/linux/intelRdt", json!({"closID": "guaranteed"}), "linux.intelRdt"),
            (
                "/linux/devices",
                json!([{"type": "b", "path": "/dev/sda", "major": 8, "minor": 0}]),
                "/dev/sda (b 8:0)",
            ),
        ] {
            let mut spec = plain.clone();
            let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
            spec.pointer_mut(parent).expect("there is one")[name] = value;
            let refused = run(lab, &spec).failed_with(words);
            assert!(refused.error().contains("invalid argument"), "{}", refused.error());
        }
        assert!(!lab.log().contains("phases"), "a VM was started");
    });
}

#[test]
fn devices() {
    husk_case(
        "devices without hardware are the guest's, and those of the host are left out",
        |lab| {
            let mut spec = spec(lab, "ls /dev /dev/net; exec 3<>/dev/fuse && echo fuse is there");
            spec["linux"]["devices"] = json!([
                {"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 438},
                {"type": "c", "path": "/dev/net/tun", "major": 10, "minor": 200, "fileMode": 438},
            ]);
            spec["linux"]["resources"]["devices"].as_array_mut().expect("rules").push(json!(
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}
            ));
            let said = run(lab, &spec).ended(0).text();
            assert!(said.contains("tun") && said.ends_with("fuse is there"), "{said}");

            // With all devices of the host in its spec, as ctr has it.
            assert!(
                Path::new("/dev/kvm").exists(),
                "the machine has a device that a guest has not"
            );
            let said = lab.run(&["--privileged"], "all", &["ls", "/dev"]).ended(0).text();
            let has = |name: &str| said.lines().any(|line| line == name);
            assert!(has("null") && !has("kvm") && !has("vda"), "{said}");
            let logged = || lab.log().contains("does not have these devices of the host");
            assert!(eventually(LIMIT, logged), "nothing in the log");
        },
    );
}

#[test]
fn options() {
    husk_case(
        "a configuration file that is missing or none is refused, options of others are not",
        |lab| {
            let missing = ["--runtime-config-path", "/nowhere/husk.toml"];
            lab.run(&missing, "configured", &["true"]).failed_with("/nowhere/husk.toml");
            let another = ["--runtime-config-path", "/etc/passwd"];
            lab.run(&another, "configured", &["true"]).failed_with("cannot use /etc/passwd");
            // containerd.runc.v1.Options.
            let other = ["--runc-root", "/nowhere"];
            lab.run(&other, "configured", &["echo", "ran"]).ended(0);
        },
    );
}

#[test]
fn create_event() {
    husk_case("the event of a create has the mounts of the root file system", |lab| {
        let events = Events::listen(lab);
        lab.run(&[], "mounted", &["true"]).ended(0);
        let heard = events.until("mounted", "/tasks/create");
        let create = &heard[0].content;
        assert_eq!(create["rootfs"][0]["type"], "overlay", "{create}");
        let bundle = lab.bundle_path("default", "mounted");
        assert_eq!(create["bundle"], json!(bundle), "{create}");
        assert!(create["pid"].as_u64().is_some_and(|pid| pid > 0), "{create}");
    });
}
