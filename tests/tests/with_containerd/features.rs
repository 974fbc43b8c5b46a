// SPDX-License-Identifier: Apache-2.0

//! What `-info` claims is true: a container is made with all of it at once.

use std::fs;
use std::process::Command;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use husk_tests::containerd::{HUSK_SHIM, Lab, husk_case};
use serde_json::{Value, json};

/// The OCI structure that the shim prints.
fn features() -> Value {
    let output = Command::new(HUSK_SHIM).arg("-info").output().expect("the shim");
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).expect("RuntimeInfo");
    serde_json::from_slice(&info.features.value).expect("features are JSON")
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|name| name.as_str().expect("a name")).collect()
}

/// Runs the program of the spec and returns what it said.
#[track_caller]
fn run(lab: &Lab, spec: &Value) -> String {
    let directory = husk_tests::temporary("husk-features");
    let config = directory.path().join("config.json");
    fs::write(&config, spec.to_string()).expect("write the spec");
    let config = config.display().to_string();
    lab.ctr(&["run", "--rm", "--runtime", lab.runtime(), "--config", &config, "able"])
        .ended(0)
        .text()
}

fn spec(lab: &Lab, script: &str) -> Value {
    let mut spec = lab.spec();
    spec["root"] = json!({"path": lab.rootfs(), "readonly": true});
    spec["process"]["args"] = json!(["sh", "-c", script]);
    spec["process"]["terminal"] = false.into();
    spec["linux"]["cgroupsPath"] = "/default/able".into();
    spec
}

#[test]
fn mount_options() {
    husk_case("every option of mounts that -info names can be used", |lab| {
        let features = features();
        // Of a mount that is there already, which these are not.
        let options = names(&features["mountOptions"]).into_iter().filter(|o| *o != "remount");
        let options: Vec<_> = options.collect();
        // A volume of the pod's own, which can be shared in both directions.
        let directory = husk_tests::temporary("husk-source");
        let source = directory.path().join("kubernetes.io~empty-dir/volume");
        fs::create_dir_all(&source).expect("directory");
        fs::write(source.join("file"), "x").expect("write");
        let mut spec = spec(lab, "cat /tmp/*/file | wc -c; grep ' /tmp/' /proc/mounts");
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
        for option in &options {
            mounts.push(json!({
                "destination": format!("/tmp/{option}"), "type": "bind",
                "source": &source, "options": ["bind", option],
            }));
        }
        let said = run(lab, &spec);
        assert_eq!(said.lines().next(), Some(options.len().to_string().as_str()), "{said}");
        for (option, flag) in [
            ("ro", "ro"),
            ("rro", "ro"),
            ("rnosuid", "nosuid"),
            ("rnodev", "nodev"),
            ("noexec", "noexec"),
            ("rnoexec", "noexec"),
            ("rnoatime", "noatime"),
            ("rnosymfollow", "nosymfollow"),
        ] {
            let line = said.lines().find(|line| line.contains(&format!(" /tmp/{option} ")));
            let flags = line.and_then(|line| line.split(' ').nth(3)).unwrap_or_default();
            assert!(flags.split(',').any(|f| f == flag), "{option}: {line:?}");
        }
    });
}

#[test]
fn namespaces_and_capabilities() {
    husk_case("all namespaces and capabilities that -info names can be given", |lab| {
        let features = features();
        let mut spec = spec(lab, "grep CapEff /proc/self/status; ls -l /proc/self/ns");
        let capabilities = &features["linux"]["capabilities"];
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            spec["process"]["capabilities"][set] = capabilities.clone();
        }
        let kinds = names(&features["linux"]["namespaces"]);
        let all = kinds.iter().map(|kind| json!({"type": kind}));
        spec["linux"]["namespaces"] = all.collect();
        let mapping = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        spec["linux"]["uidMappings"] = mapping.clone();
        spec["linux"]["gidMappings"] = mapping;
        let said = run(lab, &spec);
        let count = names(capabilities).len();
        assert!(said.contains(&format!("CapEff:\t{:016x}", (1_u64 << count) - 1)), "{said}");
        assert!(kinds.len() == 8 && said.contains("user:[") && said.contains("time:["), "{said}");
    });
}

#[test]
fn seccomp() {
    husk_case("a seccomp filter may have all that -info names", |lab| {
        let features = features();
        let known = &features["linux"]["seccomp"];
        let mut spec = spec(lab, "mkdir /tmp/x 2>&1; echo ran");
        // An action, or a comparison, for each of some calls that a shell does not make.
        let mut rules = vec![json!({
            "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
        })];
        for (action, name) in names(&known["actions"]).iter().zip([
            "acct",
            "swapon",
            "swapoff",
            "reboot",
            "sethostname",
            "vhangup",
            "pivot_root",
            "init_module",
        ]) {
            if *action != "SCMP_ACT_ALLOW" {
                rules.push(json!({"names": [name], "action": action}));
            }
        }
        for (operator, name) in names(&known["operators"]).iter().zip([
            "kexec_load",
            "delete_module",
            "iopl",
            "ioperm",
            "quotactl",
            "nfsservctl",
            "setns",
        ]) {
            rules.push(json!({"names": [name], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 1, "valueTwo": 1, "op": operator}]}));
        }
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": known["archs"],
            "flags": known["supportedFlags"],
            "syscalls": rules,
        });
        let said = run(lab, &spec);
        assert!(said.contains("Operation not supported") && said.ends_with("ran"), "{said}");
    });
}
