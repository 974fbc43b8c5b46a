// SPDX-License-Identifier: Apache-2.0

//! Namespaces, made and joined, and what belongs to them (runtime-spec, config-linux.md).

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use crate::bundle::{Bundle, cgroup_mount};

const KINDS: [(&str, &str); 6] = [
    ("cgroup", "cgroup"),
    ("ipc", "ipc"),
    ("mount", "mnt"),
    ("network", "net"),
    ("pid", "pid"),
    ("uts", "uts"),
];

fn namespace(process: &str, file: &str) -> String {
    let link = std::fs::read_link(format!("/proc/{process}/ns/{file}")).expect(file);
    link.to_string_lossy().into_owned()
}

#[test]
fn namespaces_are_made() {
    let script = "echo $$; for kind in cgroup ipc mnt net pid uts; do \
                  readlink /proc/self/ns/$kind; done; ifconfig lo";
    let Some(mut bundle) = Bundle::script("made", script) else { return };
    bundle.push("/linux/namespaces", json!({"type": "cgroup"}));
    let out = bundle.output();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "1");
    for ((_, file), line) in KINDS.iter().zip(&lines[1..]) {
        let own = namespace("thread-self", file);
        assert!(line.starts_with(file) && *line != own, "{file}: {line} here, {own} there");
    }
    assert!(out.contains("UP LOOPBACK RUNNING"), "loopback is down:\n{out}");
}

#[test]
fn what_is_not_listed_is_shared() {
    let script = "for kind in cgroup ipc net pid uts; do readlink /proc/self/ns/$kind; done";
    let Some(mut bundle) = Bundle::script("shared", script) else { return };
    bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
    let out = bundle.output();
    let own = KINDS.iter().filter(|(_, file)| *file != "mnt");
    let own: Vec<String> = own.map(|(_, file)| namespace("thread-self", file)).collect();
    assert_eq!(out.lines().collect::<Vec<_>>(), own);
}

#[test]
fn namespaces_are_joined_by_path() {
    let Some(holder) = Bundle::new("holder", &["sleep", "1000"]) else { return };
    let pid = holder.start();
    let script = "for kind in ipc net pid uts; do readlink /proc/self/ns/$kind; done; ps -o args";
    let mut bundle = Bundle::script("joining", script).expect("as before");
    let shared = [("ipc", "ipc"), ("network", "net"), ("pid", "pid"), ("uts", "uts")];
    let mut namespaces = vec![json!({"type": "mount"})];
    namespaces.extend(
        shared.map(|(kind, file)| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")})),
    );
    bundle.config["linux"]["namespaces"] = json!(namespaces);
    let out = bundle.output();
    for (line, (_, file)) in out.lines().zip(shared) {
        assert_eq!(line, namespace(&pid.to_string(), file));
    }
    assert!(out.lines().any(|line| line == "sleep 1000"), "it does not see the other:\n{out}");
    bundle.config["linux"]["namespaces"][1]["path"] = "/nowhere".into();
    assert!(bundle.run().fails(1).contains("/nowhere"));
    drop(bundle);
    holder.kill_and_delete(pid);
}

#[test]
fn names_of_the_host_and_domain() {
    let script = "hostname; cat /proc/sys/kernel/domainname";
    let Some(mut bundle) = Bundle::script("names", script) else { return };
    bundle.config["hostname"] = "inside".into();
    bundle.config["domainname"] = "example.org".into();
    assert_eq!(bundle.output(), "inside\nexample.org\n");
    bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
    assert!(bundle.run().fails(1).contains("UTS namespace"));
}

#[test]
fn users_are_mapped() {
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; touch /tmp/mine; \
                  exec sleep 1000";
    let Some(mut bundle) = Bundle::script("mapped", script) else { return };
    bundle.push("/linux/namespaces", json!({"type": "user"}));
    bundle.config["linux"]["uidMappings"] =
        json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    bundle.config["linux"]["gidMappings"] =
        json!([{"containerID": 0, "hostID": 200_000, "size": 1000}]);
    let tmp = bundle.rootfs().join("tmp");
    std::fs::set_permissions(&tmp, PermissionsExt::from_mode(0o777)).expect("chmod");
    let pid = bundle.start();
    crate::bundle::wait_until("file", || tmp.join("mine").exists());
    let file = std::fs::metadata(tmp.join("mine")).expect("file");
    assert_eq!((file.uid(), file.gid()), (100_000, 200_000));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let maps = ["0", "100000", "1000", "0", "200000", "1000", "0"];
    assert_eq!(words(&bundle.output_of(0)), maps);
    let inside = namespace(&pid.to_string(), "user");
    assert_ne!(inside, namespace("self", "user"));

    let exec = "readlink /proc/self/ns/user; id -u; id -g; touch /tmp/yours";
    let out = bundle.exec(&["--user", "5:6"], &["sh", "-c", exec]).ok();
    assert_eq!(out, format!("{inside}\n5\n6\n"));
    let file = std::fs::metadata(tmp.join("yours")).expect("file");
    assert_eq!((file.uid(), file.gid()), (100_005, 200_006));
    bundle.kill_and_delete(pid);
}

#[test]
fn clocks_have_offsets() {
    let script = "cat /proc/uptime; cat /proc/self/timens_offsets";
    let Some(mut bundle) = Bundle::script("clocks", script) else { return };
    bundle.push("/linux/namespaces", json!({"type": "time"}));
    bundle.config["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 1_000_000_000}, "monotonic": {"secs": 5, "nanosecs": 7}});
    let out = bundle.output();
    let uptime: f64 = out.split(' ').next().and_then(|n| n.parse().ok()).expect("uptime");
    assert!(uptime > 1e9, "{out}");
    let words: Vec<&str> = out.lines().nth(1).expect("offsets").split_whitespace().collect();
    assert_eq!(words, ["monotonic", "5", "7"]);
}

#[test]
fn kernel_parameters_are_the_namespaces() {
    let files = ["/proc/sys/net/ipv4/ip_default_ttl", "/proc/sys/kernel/msgmax"];
    let Some(mut bundle) = Bundle::new("sysctl", &["cat", files[0], files[1]]) else { return };
    let before = files.map(|file| std::fs::read_to_string(file).expect(file));
    bundle.config["linux"]["sysctl"] =
        json!({"net.ipv4.ip_default_ttl": "17", "kernel.msgmax": "4321"});
    assert_eq!(bundle.output(), "17\n4321\n");
    assert_eq!(files.map(|file| std::fs::read_to_string(file).expect(file)), before);
    bundle.config["linux"]["sysctl"] = json!({"kernel.panic": "1"});
    assert!(bundle.run().fails(1).contains("kernel.panic"));
    bundle.config["linux"]["sysctl"] = json!({"kernel.msgmax": "1"});
    bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
    assert!(bundle.run().fails(1).contains("kernel.msgmax"));
}

#[test]
fn cgroups_are_made_where_the_path_says() {
    let Some(mut bundle) = Bundle::new("cgroups", &["cat", "/proc/self/cgroup"]) else { return };
    let own = |out: String| out.lines().find(|l| l.starts_with("0::")).map(str::to_owned);
    let path = format!("/{}", bundle.id);
    assert_eq!(own(bundle.output()), Some(format!("0::{path}")));

    bundle.config["linux"]["cgroupsPath"] = format!("{path}/below/it").into();
    assert_eq!(own(bundle.output()), Some(format!("0::{path}/below/it")));
    // What is above is not the runtime's to remove.
    for directory in ["below", ""] {
        std::fs::remove_dir(bundle.cgroup().join(directory)).expect("the cgroup above");
    }

    // Nothing is above the root.
    bundle.config["linux"]["cgroupsPath"] = format!("../..{path}").into();
    bundle.push("/linux/namespaces", json!({"type": "cgroup"}));
    assert_eq!(own(bundle.output()).as_deref(), Some("0::/"));

    bundle.config["linux"]["cgroupsPath"] = "/..".into();
    assert!(bundle.run().fails(1).contains("is the root, which is everybody's"));
    bundle.config["linux"].as_object_mut().expect("linux").remove("cgroupsPath");
    bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
    assert_eq!(own(bundle.output()), Some(format!("0::/husk/{}", bundle.id)));
    let husk = cgroup_mount().join("husk");
    assert!(!husk.join(&bundle.id).exists());
    // Another test's container may be there.
    let _ = std::fs::remove_dir(husk);
}

#[test]
fn a_cgroup_that_has_processes_is_not_shared() {
    let Some(bundle) = Bundle::new("taken", &["sleep", "1000"]) else { return };
    let pid = bundle.start();
    let mut other = Bundle::new("taking", &["true"]).expect("as before");
    other.config["linux"]["cgroupsPath"] = bundle.config["linux"]["cgroupsPath"].clone();
    let error = other.run().fails(1);
    assert!(error.contains("has processes already"), "{error}");
    assert_eq!(bundle.status(), "running", "the failed create has killed the other's processes");
    drop(other);
    bundle.kill_and_delete(pid);
}
