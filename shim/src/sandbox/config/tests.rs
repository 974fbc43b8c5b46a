// SPDX-License-Identifier: Apache-2.0

use husk_sandbox::Network;
use messages::pod::{
    LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption,
    UserNamespace,
};
use protobuf::MessageField;
use serde_json::Value;

use super::*;

fn config(change: impl FnOnce(&mut NamespaceOption)) -> PodSandboxConfig {
    let mut options =
        NamespaceOption { pid: NamespaceMode::CONTAINER.into(), ..Default::default() };
    change(&mut options);
    let resources = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 150_000,
        memory_limit_in_bytes: 1 << 30,
        ..Default::default()
    };
    PodSandboxConfig {
        hostname: "web-0".into(),
        linux: MessageField::some(LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/pod1".into(),
            security_context: MessageField::some(LinuxSandboxSecurityContext {
                namespace_options: MessageField::some(options),
                ..Default::default()
            }),
            sysctls: [("kernel.shmmax".to_owned(), "7".to_owned())].into(),
            resources: MessageField::some(resources),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn json_of(spec: &Spec) -> Value {
    serde_json::to_value(spec).expect("JSON")
}

fn namespaces(spec: &Spec) -> Vec<String> {
    let json = json_of(spec);
    let list = json["linux"]["namespaces"].as_array().expect("a list");
    list.iter().map(|namespace| namespace["type"].as_str().expect("a type").to_owned()).collect()
}

#[test]
fn the_holder_is_what_a_pause_container_would_be() {
    let spec = holder("p1", &config(|_| {}), "/run/netns/cni-1").expect("a spec");
    spec.check().expect("nothing that a VM cannot do");
    assert_eq!(namespaces(&spec), ["mount", "pid", "ipc", "uts", "network"]);
    assert_eq!(spec.network(), Network::At("/run/netns/cni-1".into()));
    assert_eq!(spec.hostname(), "web-0");
    assert_eq!(spec.cgroups_path(), "/kubepods/pod1/p1");
    assert_eq!(spec.oom_score_adj(), Some(-998));
    let pod = spec.pod().expect("it is a pod's");
    assert!(pod.begins && pod.id == "p1");
    let limits = spec.limits();
    assert_eq!((limits.cpu_quota, limits.cpu_period), (Some(150_000), Some(100_000)));
    assert_eq!(limits.memory, Some(1 << 30));
    let sysctl = &json_of(&spec)["linux"]["sysctl"];
    assert_eq!(sysctl["kernel.shmmax"], "7");
    assert_eq!(sysctl["net.ipv4.ip_unprivileged_port_start"], "0");
}

#[test]
fn a_pod_of_the_hosts_namespaces_has_none_of_its_own() {
    let of_node = config(|options| {
        options.network = NamespaceMode::NODE.into();
        options.pid = NamespaceMode::NODE.into();
        options.ipc = NamespaceMode::NODE.into();
    });
    let spec = holder("p1", &of_node, "").expect("a spec");
    assert_eq!(namespaces(&spec), ["mount"]);
    assert_eq!(spec.network(), Network::Host);
    assert_eq!(json_of(&spec)["linux"]["sysctl"].as_object().map(|all| all.len()), Some(1));
}

#[test]
fn user_namespaces_and_other_options_are_refused() {
    let with_users = config(|options| {
        options.userns_options = MessageField::some(UserNamespace::default());
    });
    let error = holder("p1", &with_users, "").expect_err("a user namespace");
    assert!(error.message.contains("hostUsers"), "{error}");
    let other = Any { type_url: "containerd.runc.v1.Options".into(), ..Default::default() };
    assert!(read(Some(&other)).expect_err("another type").message.contains("runc"));
    let broken = Any { type_url: TYPE.into(), value: b"\x12\xff".to_vec(), ..Default::default() };
    assert!(read(Some(&broken)).expect_err("no message").message.contains(TYPE));
    assert_eq!(read(None).expect("none"), PodSandboxConfig::default());
}

#[test]
fn cgroups_are_named_as_containerd_names_them() {
    for (parent, path) in [
        ("", ""),
        ("/kubepods/pod1", "/kubepods/pod1/p1"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:p1"),
    ] {
        assert_eq!(cgroups_path(parent, "p1"), path);
    }
}

#[test]
fn files_of_a_pod() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let mut config = config(|_| {});
    config.dns_config = MessageField::some(DNSConfig {
        servers: text(&["10.0.0.10", "fd00::10"]),
        searches: text(&["svc.local", "local"]),
        options: text(&["ndots:5"]),
        ..Default::default()
    });
    let files = PodFiles::write(directory.path(), &config).expect("written");
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).expect(name);
    assert_eq!(read("hostname"), "web-0\n");
    assert_eq!(
        read("resolv.conf"),
        "search svc.local local\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n"
    );
    assert_eq!(read("hosts"), fs::read_to_string("/etc/hosts").unwrap_or_default());

    let spec = r#"{"mounts": [
        {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}]}"#;
    let mut spec = Spec::parse(spec.as_bytes()).expect("a spec");
    spec.join_pod(files.places());
    let json = json_of(&spec);
    let sources: Vec<_> = json["mounts"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|mount| (mount["destination"].as_str(), mount["source"].as_str()))
        .collect();
    let file = |name: &str| directory.path().join(name).display().to_string();
    assert_eq!(
        sources,
        [
            (Some("/etc/hosts"), Some("/kubelet/hosts")),
            (Some("/etc/hostname"), Some(file("hostname").as_str())),
            (Some("/etc/resolv.conf"), Some(file("resolv.conf").as_str())),
            (Some("/dev/shm"), Some("/dev/shm")),
        ],
        "what the kubelet gave stays, shared memory becomes the pod's"
    );
}
