// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::Code;

/// A directory with these files, and the path of its config.toml.
fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("directory");
    fs::create_dir(folder.path().join("config.toml.d")).expect("directory");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("file");
    }
    let path = folder.path().join("config.toml");
    (folder, path)
}

fn refused(text: &str) -> String {
    let (_folder, path) = node(&[("config.toml", text)]);
    let error = Config::load(&path).expect_err(text);
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains("config.toml"), "{error}");
    error.message
}

#[test]
fn a_node_without_files_has_the_defaults() {
    let missing = Path::new("/nonexistent/config.toml");
    assert_eq!(Config::load(missing).expect("defaults"), Config::default());
    let (_folder, path) = node(&[("config.toml", "# nothing\n[vm]\n")]);
    assert_eq!(Config::load(&path).expect("defaults"), Config::default());
}

#[test]
fn drop_ins_come_after_the_file_in_the_order_of_their_names() {
    let (_folder, path) = node(&[
        ("config.toml", "[vm]\nvcpus = 2\nmemory_mib = 300\n"),
        ("config.toml.d/20.toml", "[vm]\nmemory_mib = 500\n"),
        ("config.toml.d/10.toml", "vm.memory_mib = 400\nvm.kernel_args = \"quiet\"\n"),
        ("config.toml.d/30.toml.disabled", "nonsense"),
    ]);
    let config = Config::load(&path).expect("config");
    assert_eq!((config.vm.vcpus, config.vm.memory_mib), (2, 500));
    assert_eq!(config.vm.kernel_args, "quiet");
    assert_eq!(config.annotations, Annotations::default());
}

#[test]
fn an_unknown_key_is_an_error_with_the_nearest_known() {
    assert!(refused("[vm]\nmemroy_mib = 1\n").contains("vm.memroy_mib; vm.memory_mib is known"));
    assert!(refused("[vn]\nvcpus = 1\n").contains("unknown key vn; vm is known"));
    assert!(refused("[annotations]\nallowed = [\"io.husk.vcpu\"]").contains("io.husk.vcpus is"));
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    assert!(refused("[vm]\nvcpus = 0\n").contains("vm.vcpus is 0; 1 to 32"));
    assert!(refused("[vm]\nmemory_mib = 3\n").contains("vm.memory_mib is 3"));
    assert!(refused("[vm]\nvcpus = \"two\"\n").contains("line 2"));
    assert!(refused("[vm\n").contains("line 1"));
    assert!(refused("vm = 3\n").contains("line 1"));
    assert!(refused("[vm]\nkernel = \"vmlinux\"\n").contains("vm.kernel is vmlinux"));
    assert!(refused("[vm]\nkernel_args = \"a\\nb\"\n").contains("printable"));
}

#[test]
fn what_is_wrong_in_a_drop_in_is_blamed_on_it() {
    let (_folder, path) = node(&[("config.toml.d/x.toml", "[vm]\nvcpus = 99\n")]);
    let error = Config::load(&path).expect_err("99");
    assert!(error.message.contains("config.toml.d/x.toml: vm.vcpus is 99"), "{error}");
}

/// Settings whose files exist, for a pod with these annotations.
fn pod(allowed: &[&str], annotations: &str) -> Result<PodSettings, Error> {
    pod_of(allowed, &format!(r#"{{"annotations":{annotations}}}"#))
}

/// The same, for this config.json.
fn pod_of(allowed: &[&str], spec: &str) -> Result<PodSettings, Error> {
    let file = || Some(PathBuf::from("/proc/self/exe"));
    let config = Config {
        vm: VmSettings {
            kernel_args: "quiet".into(),
            vmm: file(),
            kernel: file(),
            image: file(),
            ..Default::default()
        },
        annotations: Annotations { allowed: allowed.iter().map(|&name| name.into()).collect() },
    };
    config.for_pod(&Spec::parse(spec.as_bytes()).expect("spec"), 8, 4096)
}

#[test]
fn annotations_change_the_vm_if_the_node_allows_them() {
    let all = annotation::ALL;
    let settings = pod(
        &all,
        r#"{"io.husk.vcpus":"3","io.husk.memory-mib":"1000","io.husk.kernel-args":"loglevel=7"}"#,
    )
    .expect("settings");
    assert_eq!(settings.size, Size { vcpus: 3, memory_mib: 1000 });
    let Growth { least, most, .. } = settings.growth;
    assert_eq!((least, most), (settings.size, settings.size), "what they say stays");
    assert_eq!(settings.kernel_args, "quiet loglevel=7");

    let settings =
        pod(&all, r#"{"io.husk.ingress-bandwidth":"10M","io.husk.egress-bandwidth":"800000"}"#)
            .expect("settings");
    assert_eq!(
        settings.network.bandwidth,
        Bandwidth { ingress: Some(1_250_000), egress: Some(100_000) },
        "in bytes/s"
    );

    let error = pod(&all[..2], r#"{"io.husk.kernel-args":"x"}"#).expect_err("not allowed");
    assert_eq!(error.code, Code::InvalidArgument);
    assert!(error.message.contains("is not allowed on this node"), "{error}");
}

#[test]
fn a_vm_begins_with_room_for_huge_pages() {
    let container = |mib: u64, annotations: &str| {
        let limit = format!(r#"{{"pageSize":"2MB","limit":{}}}"#, mib << 20);
        let resources = format!(r#"{{"resources":{{"hugepageLimits":[{limit}]}}}}"#);
        let spec = format!(r#"{{"linux":{resources},"annotations":{annotations}}}"#);
        pod_of(&annotation::ALL, &spec)
    };
    let settings = container(64, "{}").expect("settings");
    assert_eq!((settings.size.memory_mib, settings.growth.huge_pages), (256 + 64, 0));
    let error = container(4096, "{}").expect_err("as much as the host has");
    assert!(error.message.contains("its VM has room for 3840 MiB"), "{error}");
    let fixed = r#"{"io.husk.memory-mib":"300"}"#;
    assert_eq!(container(44, fixed).expect("settings").size.memory_mib, 300);
    let error = container(46, fixed).expect_err("more than the annotation leaves");
    assert!(error.message.contains("its VM has room for 44 MiB"), "{error}");
}

#[test]
fn annotations_that_cannot_be_are_refused() {
    for (annotations, text) in [
        (r#"{"io.husk.vcpu":"3"}"#, "io.husk.vcpus is"),
        (r#"{"io.husk.vcpus":"33"}"#, "from 1 to 32"),
        (r#"{"io.husk.vcpus":"two"}"#, "from 1 to 32"),
        (r#"{"io.husk.memory-mib":"5000"}"#, "what this host has"),
        (r#"{"io.husk.memory-mib":"512Mi"}"#, "no number of MiB"),
        (r#"{"io.husk.kernel-args":"a\nb"}"#, "printable"),
        (r#"{"io.husk.egress-bandwidth":"10 M"}"#, "no number of bits/s"),
    ] {
        let error = pod(&annotation::ALL, annotations).expect_err(annotations);
        assert!(error.message.contains(text), "{error}");
    }
    pod(&[], r#"{"org.example/io.husk.vcpus":"x"}"#).expect("not ours");
}

#[test]
fn a_sandboxes_annotations_tell_what_its_containers_may_use() {
    let settings = pod(
        &[],
        r#"{"io.kubernetes.cri.container-type":"sandbox",
            "io.kubernetes.cri.sandbox-cpu-quota":"250000",
            "io.kubernetes.cri.sandbox-cpu-period":"100000",
            "io.kubernetes.cri.sandbox-memory":"134217728"}"#,
    )
    .expect("settings");
    assert_eq!(settings.size, Size { vcpus: 3, memory_mib: 256 + 128 });
}
