// SPDX-License-Identifier: Apache-2.0

use super::*;
use serde_json::json;

fn translate(spec: Value) -> (Value, GuestSpec) {
    translate_in_pod(spec, &HashMap::new())
}

fn translate_in_pod(spec: Value, in_guest: &HashMap<u32, u32>) -> (Value, GuestSpec) {
    let bytes = serde_json::to_vec(&spec).expect("json");
    let spec = Spec::parse(&bytes).expect("spec");
    let guest = spec.for_guest("c1", "/run/husk/share/c1", false, in_guest);
    (serde_json::from_slice(&guest.json).expect("json"), guest)
}

#[test]
fn the_root_moves_to_the_share_and_keeps_its_flags() {
    let (guest, _) = translate(json!({"root": {"path": "rootfs", "readonly": true}}));
    assert_eq!(guest["root"], json!({"path": "/run/husk/share/c1/rootfs", "readonly": true}));
}

#[test]
fn bind_sources_are_numbered_and_other_mounts_stay() {
    let (guest, spec) = translate(json!({"mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/etc/hosts", "type": "bind", "source": "/etc//./hosts", "options": ["rbind", "ro"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
        {"destination": "/data", "type": "none", "source": "/srv/x/../data", "options": ["bind", "ro", "rw"]},
        {"destination": "/new", "type": "bind", "source": "/srv/new", "options": ["rbind", "rprivate"]},
    ]}));
    assert_eq!(guest["mounts"][0]["source"], "proc");
    assert_eq!(guest["mounts"][1]["source"], "/run/husk/share/c1/mounts/0");
    assert_eq!(guest["mounts"][1]["options"], json!(["rbind", "ro"]));
    assert_eq!(guest["mounts"][2]["options"], json!(["size=1m"]));
    assert_eq!(guest["mounts"][3]["source"], "/run/husk/share/c1/mounts/1");
    assert_eq!(
        spec.binds,
        [
            BindSource {
                source: "/etc/hosts".into(),
                recursive: true,
                read_only: true,
                follows: true
            },
            BindSource {
                source: "/srv/data".into(),
                recursive: false,
                read_only: false,
                follows: true
            },
            BindSource {
                source: "/srv/new".into(),
                recursive: true,
                read_only: false,
                follows: false
            },
        ]
    );
}

#[test]
fn a_mount_without_a_source_gets_its_type_as_one() {
    let (guest, spec) = translate(json!({"mounts": [
        {"destination": "/m", "type": "tmpfs", "options": ["size=64k"]},
    ]}));
    assert_eq!(guest["mounts"][0]["source"], "tmpfs");
    assert!(spec.binds.is_empty());
}

#[test]
fn binds_of_the_kernels_own_files_mean_the_guests() {
    let (guest, spec) = translate(json!({"mounts": [
        {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]},
        {"destination": "/x", "type": "bind", "source": "/srv/../proc/sys", "options": ["bind"]},
        {"destination": "/dev/null2", "type": "bind", "source": "/dev/null"},
        {"destination": "/device", "type": "bind", "source": "/devices"},
    ]}));
    assert_eq!(guest["mounts"][0]["source"], "/sys");
    assert_eq!(spec.binds.len(), 1);
    assert_eq!(spec.binds[0].source, Path::new("/devices"));
}

#[test]
fn host_namespaces_and_cgroups_do_not_reach_the_guest() {
    let (guest, _) = translate(json!({"linux": {
        "cgroupsPath": "system.slice:cri-containerd:abc",
        "mountLabel": "l",
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
        "namespaces": [
            {"type": "pid"},
            {"type": "network", "path": "/proc/17/ns/net"},
            {"type": "ipc", "path": "/proc/17/ns/ipc"},
            {"type": "mount", "path": "/proc/17/ns/mnt"},
            {"type": "uts"},
        ],
    }}));
    assert_eq!(guest["linux"]["cgroupsPath"], "/husk/c1");
    assert_eq!(guest["linux"]["seccomp"], json!({"defaultAction": "SCMP_ACT_ERRNO"}));
    assert_eq!(guest["linux"].get("mountLabel"), None);
    assert_eq!(
        guest["linux"]["namespaces"],
        json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}])
    );
}

#[test]
fn labels_go_and_the_rest_of_the_process_stays() {
    let (guest, _) = translate(json!({
        "ociVersion": "1.0.2",
        "process": {"args": ["a"], "apparmorProfile": "p", "selinuxLabel": "s", "terminal": true,
                    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": u64::MAX, "soft": 1}]},
        "unknown": {"kept": 1.5},
    }));
    assert_eq!(guest["unknown"], json!({"kept": 1.5}));
    assert_eq!(guest["ociVersion"], "1.0.2");
    assert_eq!(
        guest["process"],
        json!({"args": ["a"], "terminal": false,
               "rlimits": [{"type": "RLIMIT_NOFILE", "hard": u64::MAX, "soft": 1}]})
    );
}

#[test]
fn hooks_of_the_host_stay_there_and_others_go_to_the_guest() {
    let (guest, spec) = translate(json!({
        "mounts": [{"destination": "/m", "type": "bind", "source": "/srv"}],
        "hooks": {
            "prestart": [{"path": "/x"}], "createRuntime": [{"path": "/x"}],
            "poststart": [{"path": "/x"}], "poststop": [{"path": "/x"}],
            "createContainer": [{"path": "/opt/hook"}, {"path": "/opt/b", "args": ["a", "b"]}],
            "startContainer": [{"path": "/in/it", "env": ["A=b"], "timeout": 3}],
        },
    }));
    assert_eq!(
        guest["hooks"],
        json!({
            "createContainer": [
                {"path": "/run/husk/share/c1/mounts/1", "args": ["/opt/hook"]},
                {"path": "/run/husk/share/c1/mounts/2", "args": ["a", "b"]},
            ],
            "startContainer": [{"path": "/in/it", "env": ["A=b"], "timeout": 3}],
        })
    );
    let hook = BindSource {
        source: "/opt/hook".into(),
        recursive: false,
        read_only: true,
        follows: false,
    };
    assert_eq!((spec.binds.len(), &spec.binds[1]), (3, &hook));
    let (guest, _) = translate(json!({"hooks": {"prestart": [{"path": "/x"}]}}));
    assert_eq!(guest.get("hooks"), None);
}

#[test]
fn the_network_is_told_from_the_namespaces() {
    let network = |linux: Value| {
        let json = json!({"linux": linux}).to_string();
        Spec::parse(json.as_bytes()).expect("spec").network()
    };
    assert_eq!(network(json!({})), Network::Host);
    assert_eq!(network(json!({"namespaces": [{"type": "pid"}]})), Network::Host);
    assert_eq!(network(json!({"namespaces": [{"type": "network"}]})), Network::New);
    assert_eq!(
        network(json!({"namespaces": [{"type": "network", "path": "/run/netns/a"}]})),
        Network::At("/run/netns/a".into())
    );
    assert_eq!(Spec::parse(b"{}").expect("spec").network(), Network::Host);
}

#[test]
fn what_no_guest_can_do_is_refused_by_its_name() {
    let sda = json!({"type": "b", "path": "/dev/sda", "major": 8, "minor": 0});
    let other = json!({"allow": true, "type": "b", "major": 8, "minor": 1, "access": "rwm"});
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    let bind = |source: &str, options: &[&str]| json!({"mounts": [{"destination": "/m", "type": "bind", "source": source, "options": options}]});
    for (spec, part) in [
        (json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}}}), "SCMP_ACT_NOTIFY"),
        (
            json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}}}),
            "SCMP_ACT_NOTIFY",
        ),
        (json!({"linux": {"seccomp": {"listenerPath": "/run/listener"}}}), "/run/listener"),
        (json!({"linux": {"intelRdt": {"closID": "a"}}}), "linux.intelRdt"),
        (json!({"linux": {"netDevices": {"eth1": {}}}}), "linux.netDevices"),
        (json!({"linux": {"devices": [sda]}}), "/dev/sda (b 8:0)"),
        (json!({"linux": {"devices": [sda], "resources": {"devices": [other]}}}), "/dev/sda"),
        (
            json!({"mounts": [{"destination": "/m", "type": "bind", "source": "/s",
                "uidMappings": mapping, "gidMappings": mapping}]}),
            "/m",
        ),
        (json!({"mounts": [{"destination": "/n", "options": ["bind", "ridmap"]}]}), "/n"),
        (bind("/srv/plugins", &["rslave", "rshared"]), "Bidirectional"),
        (bind("/srv/plugins", &["shared"]), "HostToContainer"),
        (json!({"hooks": {"poststop": [{"path": "x"}]}}), "poststop"),
    ] {
        let error =
            Spec::parse(spec.to_string().as_bytes()).expect("spec").check().expect_err(part);
        assert!(error.message.contains(part), "{error}");
        assert_eq!(error.code, crate::Code::InvalidArgument);
    }
    let fine = json!({
        "mounts": [{"destination": "/m", "type": "bind", "source": "/s", "uidMappings": []}],
        "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"}]}, "intelRdt": {}},
    });
    let own = "/pods/p/volumes/kubernetes.io~empty-dir/v";
    for fine in [
        fine,
        bind("/srv/plugins", &["rshared", "rslave"]),
        bind(own, &["rshared"]),
        bind("/sys/fs/bpf", &["rshared"]),
    ] {
        Spec::parse(fine.to_string().as_bytes()).expect("spec").check().expect("fine");
    }
}

#[test]
fn devices_are_the_guests() {
    let device = |kind: &str, path: &str, major: i64, minor: i64| json!({"type": kind, "path": path, "major": major, "minor": minor, "fileMode": 438});
    let sink = device("c", "/dev/null", 1, 3);
    let tun = device("c", "/dev/net/tun", 10, 200);
    let renamed = device("u", "/dev/mine", 10, 229);
    let looped = device("b", "/dev/loop9", 7, 9);
    let pipe = json!({"type": "p", "path": "/dev/pipe"});
    let kvm = device("c", "/dev/kvm", 10, 232);
    let disk = device("b", "/dev/nvme0n1", 259, 0);
    // As a privileged container has them.
    let spec = json!({"linux": {
        "devices": [sink, disk, tun, renamed, kvm, looped, pipe],
        "resources": {"devices": [{"allow": true, "access": "rwm"}]},
    }});
    Spec::parse(spec.to_string().as_bytes()).expect("spec").check().expect("allowed");
    let (guest, spec) = translate(spec);
    assert_eq!(guest["linux"]["devices"], json!([sink, tun, renamed, looped, pipe]));
    assert_eq!(spec.dropped_devices, ["/dev/nvme0n1", "/dev/kvm"]);
}

#[test]
fn block_devices_that_are_allowed_by_name_are_disks() {
    let device = |path: &str, major: i64, minor: i64| json!({"type": "b", "path": path, "major": major, "minor": minor});
    let rule = |major: i64, minor: i64, access: &str| json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access});
    let all = [
        device("/dev/xvda", 8, 0),
        device("/dev/again", 8, 0),
        device("/dev/fixed", 8, 16),
        device("/dev/loop3", 7, 3),
        device("/dev/loop4", 7, 4),
    ];
    let rules = [rule(8, 0, "rwm"), rule(8, 16, "rm"), rule(7, 3, "rw")];
    let spec = json!({"linux": {"devices": all, "resources": {"devices": rules}}});
    Spec::parse(spec.to_string().as_bytes()).expect("spec").check().expect("allowed");
    let (guest, spec) = translate(spec);
    assert_eq!(guest["linux"]["devices"], json!(all));
    let disk = |major, minor, read_only| BlockDevice { major, minor, read_only };
    assert_eq!(spec.disks, [disk(8, 0, false), disk(8, 16, true), disk(7, 3, false)]);
    assert!(spec.dropped_devices.is_empty());
}

#[test]
fn block_devices_of_a_container_that_may_use_any_are_disks_if_named() {
    let device = |kind: &str, path: &str, major: i64, minor: i64| json!({"type": kind, "path": path, "major": major, "minor": minor});
    let (disk, looped) = (device("b", "/dev/xvda", 8, 0), device("b", "/dev/data", 7, 3));
    let spec = |devices: &[&Value]| {
        json!({"linux": {
            "devices": devices, "resources": {"devices": [{"allow": true, "access": "rwm"}]},
        }})
    };
    let (guest, named) = translate(spec(&[&disk, &looped]));
    assert_eq!(guest["linux"]["devices"], json!([disk, looped]));
    let is = |major, minor| BlockDevice { major, minor, read_only: false };
    assert_eq!(named.disks, [is(8, 0), is(7, 3)]);
    // The host's whole /dev.
    let (_, whole) = translate(spec(&[&disk, &looped, &device("c", "/dev/null", 1, 3)]));
    assert_eq!((whole.disks, whole.dropped_devices), (Vec::new(), vec!["/dev/xvda".to_owned()]));
}

#[test]
fn what_holds_a_pod_is_never_killed_in_the_guest() {
    for (kind, wanted) in [("sandbox", -1000), ("container", -998)] {
        let (guest, _) = translate(json!({
            "process": {"oomScoreAdj": -998},
            "annotations": {
                "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "p",
            },
        }));
        assert_eq!(guest["process"]["oomScoreAdj"], wanted, "{kind}");
    }
}

#[test]
fn what_the_host_needs_can_be_asked_for() {
    let spec = Spec::parse(
        json!({
            "hostname": "h",
            "root": {"path": "rootfs"},
            "annotations": {"a": "b"},
            "process": {"consoleSize": {"height": 24, "width": 80}},
            "linux": {"resources": {"memory": {"limit": 5}}},
        })
        .to_string()
        .as_bytes(),
    )
    .expect("spec");
    assert_eq!(spec.hostname(), "h");
    assert_eq!(spec.annotation("a"), Some("b"));
    assert_eq!(spec.console_size(), Some((24, 80)));
    assert_eq!(spec.limits().memory, Some(5));
    assert_eq!(spec.rootfs(Path::new("/b")).expect("root"), Path::new("/b/rootfs"));
}

#[test]
fn limits_of_huge_pages_are_of_the_size_that_the_guest_has() {
    let limit = |size: &str, bytes: u64| json!({"pageSize": size, "limit": bytes});
    let of = |limits: Value| {
        let json = json!({"linux": {"resources": {"hugepageLimits": limits}}}).to_string();
        let spec = Spec::parse(json.as_bytes()).expect("spec");
        spec.check().map(|()| spec.limits().huge_pages)
    };
    assert_eq!(of(json!([])), Ok(None));
    assert_eq!(of(json!([limit("2MB", 6 << 20), limit("1GB", 0)])), Ok(Some(6 << 20)));
    assert_eq!(of(json!([limit("1GB", 0)])), Ok(None));
    assert_eq!(of(json!([limit("2MB", 0)])), Ok(Some(0)));
    for (size, bytes, wanted) in [
        ("1GB", 1 << 30, "1073741824 bytes in huge pages of 1GB in linux.resources cannot be had"),
        ("2MB", 3 << 20, "2MB in linux.resources is no multiple of the page's size"),
    ] {
        let error = of(json!([limit(size, bytes)])).expect_err("refused");
        assert!(error.message.contains(wanted), "{error}");
        let json = json!({"hugepageLimits": [limit(size, bytes)]}).to_string();
        assert_eq!(Limits::of_resources(json.as_bytes()), Err(error), "and in an update");
    }
}

#[test]
fn garbage_is_refused_with_its_name() {
    for bad in ["", "[]", "{\"mounts\": 3}", "{\"linux\": {\"namespaces\": [{}]}}"] {
        let error = Spec::parse(bad.as_bytes()).expect_err("refused");
        assert!(error.message.contains("config.json"), "{error}");
    }
    let spec = Spec::parse(b"{}").expect("empty");
    assert!(spec.rootfs(Path::new("/b")).expect_err("no root").message.contains("root.path"));
}

#[test]
fn an_exec_process_is_fitted_too() {
    let process = GuestProcess::parse(
        br#"{"args":["sh"],"apparmorProfile":"p","consoleSize":{"height":1,"width":2}}"#,
        true,
    )
    .expect("process");
    let json: Value = serde_json::from_slice(&process.json).expect("json");
    assert_eq!(json["terminal"], true);
    assert_eq!(json.get("apparmorProfile"), None);
    assert_eq!(process.console_size, Some((1, 2)));
    assert!(GuestProcess::parse(b"null", false).is_err());
}

#[test]
fn namespaces_of_the_pods_processes_are_found_in_the_guest() {
    let namespace = |kind: &str, path: &str| json!({"type": kind, "path": path});
    let spec = json!({"linux": {"namespaces": [
        namespace("network", "/proc/70/ns/net"),
        namespace("ipc", "/proc/70/ns/ipc"),
        namespace("uts", "/proc/99/ns/uts"),
        namespace("pid", "/proc/71/ns/pid"),
        namespace("user", "/proc/70/ns/user"),
        {"type": "mount"},
    ]}});
    let parsed = Spec::parse(spec.to_string().as_bytes()).expect("spec");
    assert_eq!(parsed.namespace_pids(), [70, 99, 71]);
    let (guest, _) = translate_in_pod(spec, &HashMap::from([(70, 12), (71, 30)]));
    assert_eq!(
        guest["linux"]["namespaces"],
        json!([
            namespace("ipc", "/proc/12/ns/ipc"),
            namespace("pid", "/proc/30/ns/pid"),
            {"type": "user"},
            {"type": "mount"},
        ])
    );
}

#[test]
fn what_a_pod_has_to_itself_is_shared_as_such() {
    let volume = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/v";
    let (guest, spec) = translate(json!({
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "s1",
        },
        "mounts": [
            {"destination": "/dev/shm", "type": "bind", "source": "/run/cri/sandboxes/s1/shm", "options": ["rbind"]},
            {"destination": "/v", "type": "bind", "source": volume, "options": ["rbind", "ro"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/srv/shm", "options": ["rbind"]},
        ],
    }));
    assert_eq!(guest["mounts"][0]["source"], "/dev/shm");
    assert_eq!(guest["mounts"][1]["options"], json!(["rbind", "ro"]), "the guest enforces it");
    assert_eq!(
        spec.binds,
        [
            BindSource { source: volume.into(), recursive: true, read_only: false, follows: true },
            BindSource {
                source: "/srv/shm".into(),
                recursive: true,
                read_only: false,
                follows: true
            },
        ]
    );
}

#[test]
fn the_guests_network_takes_the_place_of_a_new_one() {
    let left = |kinds: &[&str]| {
        let list: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
        let json = json!({"linux": {"namespaces": list}}).to_string();
        let mut spec = Spec::parse(json.as_bytes()).expect("spec");
        spec.use_guest_network();
        let linux = spec.linux.expect("linux");
        linux.namespaces.into_iter().map(|namespace| namespace.kind).collect::<Vec<_>>()
    };
    assert_eq!(left(&["pid", "network", "mount"]), ["pid", "mount"]);
    assert_eq!(left(&["user", "network"]), ["user", "network"], "/sys needs an owner");
}
