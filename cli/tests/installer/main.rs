// SPDX-License-Identifier: Apache-2.0

//! deploy/installer/install on a node that is a real containerd with a private root, and a
//! release whose `husk check` says what the case wants. Needs root and containerd, no VM.

mod node;

use std::fs;

use node::Node;

#[test]
fn an_installed_handler_is_known_to_cri_and_the_rest_of_the_configuration_stays() {
    let node = Node::start();
    let before = node.config();
    let pid = node.pid();

    node.install().succeeds();

    assert_ne!(node.pid(), pid, "containerd was not restarted");
    let handlers = node.handlers();
    // By its path, so that containerd's PATH does not matter.
    let husk = format!("husk:{{Type:{} ", node.shim().display());
    assert!(handlers.contains(&husk), "no {husk} in {handlers}");
    // containerd has it built in, but not any more with a table of handlers in its file.
    assert!(handlers.contains("runc:{"), "{handlers}");
    assert!(node.config().starts_with(&before), "{}", node.config());
    assert_eq!(fs::read_to_string(node.backup()).expect("the backup"), before);
    assert!(node.shim().is_file());
}

#[test]
fn installing_again_changes_nothing_and_leaves_containerd_alone() {
    let node = Node::start();
    node.install().succeeds();
    let (pid, config) = (node.pid(), node.config());

    node.install().succeeds();

    assert_eq!(node.pid(), pid, "containerd was restarted");
    assert_eq!(node.config(), config);
    assert_eq!(node.releases().len(), 1);
}

#[test]
fn uninstalling_leaves_what_was_there_before() {
    let node = Node::start();
    let before = node.config();
    node.settings("[vm]\nvcpus = 2\n");
    node.install().succeeds();

    node.run("uninstall").succeeds();

    assert_eq!(node.config(), before);
    assert!(!node.handlers().contains("husk:{"), "{}", node.handlers());
    assert!(!node.prefix().exists());
    assert!(!node.installed_settings().exists());

    let pid = node.pid();
    node.run("uninstall").succeeds();
    assert_eq!(node.pid(), pid, "containerd was restarted for nothing");
}

#[test]
fn uninstalling_is_refused_while_a_pod_runs() {
    let node = Node::start();
    node.install().succeeds();
    let mut pod = node.start_pod();

    let refused = node.run("uninstall");

    pod.kill().expect("end the pod");
    pod.wait().expect("its end");
    refused.fails_with(1, "pods of husk run here");
    assert!(node.handlers().contains("husk:{"));
    node.run("uninstall").succeeds();
}

#[test]
fn a_new_release_takes_over_without_a_restart_and_the_one_before_stays() {
    let node = Node::start();
    node.install().succeeds();
    let pid = node.pid();
    let first = node.releases();

    node.release("share/husk/vmlinux", "second");
    node.install().succeeds();

    assert_eq!(node.pid(), pid, "containerd was restarted");
    assert_eq!(
        fs::read_to_string(node.prefix().join("current/share/husk/vmlinux")).unwrap(),
        "second"
    );
    assert_eq!(node.releases().len(), 2);

    node.release("share/husk/vmlinux", "third");
    node.install().succeeds();
    assert_eq!(node.releases().len(), 2);
    assert!(!node.releases().contains(&first[0]), "the oldest release is still there");
}

#[test]
fn a_handler_that_is_no_toml_is_refused_before_anything_changes() {
    let node = Node::start();
    node.release("containerd/husk.toml", "[plugins.\"io.containerd.grpc.v1.cri\"\n");
    node.unchanged_by(|| node.install().fails_with(1, "does not take the new configuration"));
}

#[test]
fn a_handler_that_is_there_already_is_refused_before_anything_changes() {
    let node = Node::start_with(
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  \
         runtime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]\n  \
         runtime_type = \"io.containerd.other.v2\"\n",
    );
    node.unchanged_by(|| node.install().fails_with(1, "duplicated tables"));
}

#[test]
fn an_import_that_would_hide_the_handler_is_refused_before_anything_changes() {
    let node = Node::start();
    let import = node.path("import.toml");
    let body = node.config().replace("[grpc]", "[stale]");
    fs::write(&import, body).expect("write the import");
    let config = node.config();
    fs::write(node.config_path(), format!("imports = [\"{}\"]\n{config}", import.display()))
        .expect("write the configuration");
    node.unchanged_by(|| node.install().fails_with(1, "imports replaces its CRI tables"));
}

#[test]
fn a_configuration_of_version_1_is_refused() {
    let node = Node::start();
    fs::write(node.config_path(), node.config().replace("version = 2\n", "")).expect("write");
    node.unchanged_by(|| node.install().fails_with(1, "has version 1, which is too old"));
}

#[test]
fn a_handler_that_keeps_cri_from_starting_is_rolled_back() {
    let node = Node::start();
    // Fine as TOML, and for `containerd config dump`.
    node.release(
        "containerd/husk.toml",
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]\n  \
         runtime_type = \"io.containerd.husk.v2\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/nowhere\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"husk.test\"]\n  \
         endpoint = [\"https://husk.test\"]\n",
    );
    let config = node.config();

    node.install_within(10).fails_with(1, "serves CRI again with its old configuration");

    assert_eq!(node.config(), config);
    assert!(!node.handlers().contains("husk:{"), "{}", node.handlers());
    assert!(node.serves_cri());
    assert!(!node.shim().exists());
}

#[test]
fn a_containerd_that_does_not_start_with_the_handler_is_rolled_back() {
    let node = Node::start();
    node.containerd_fails_when_configuration_has("husk");
    let config = node.config();

    node.install_within(10).fails_with(1, "serves CRI again with its old configuration");

    assert_eq!(node.config(), config);
    assert!(node.serves_cri());
    assert!(!node.prefix().join("current").exists());
}

#[test]
fn a_containerd_that_does_not_start_at_all_is_reported_with_the_old_configuration_in_place() {
    let node = Node::start();
    node.containerd_fails_when_configuration_has(".");
    let config = node.config();

    node.install_within(1).fails_with(3, "does not serve CRI with its old configuration");

    assert_eq!(node.config(), config);
}

#[test]
fn an_installer_that_is_ended_undoes_what_it_did() {
    let node = Node::start();
    // So that it has to wait.
    node.containerd_fails_when_configuration_has("husk");
    let config = node.config();

    node.install_and_terminate().fails_with(143, "serves CRI again with its old configuration");

    assert_eq!(node.config(), config);
    assert!(node.serves_cri());
    assert!(!node.shim().exists());
}

#[test]
fn a_restart_that_does_nothing_is_noticed() {
    let node = Node::start();
    let config = node.config();
    let pid = node.pid();
    node.restart_command("true");

    node.install_within(1).fails_with(1, "containerd was not restarted, and serves CRI");

    assert_eq!(node.config(), config);
    assert_eq!(node.pid(), pid);
}

#[test]
fn a_machine_without_kvm_is_refused() {
    let node = Node::start();
    node.findings("MISSING  kvm         there is no /dev/kvm; load kvm_intel or kvm_amd\n");
    node.unchanged_by(|| {
        let refused = node.install();
        refused.fails_with(1, "this machine cannot run husk");
        refused.fails_with(1, "load kvm_intel or kvm_amd");
    });
    node.unchanged_by(|| node.run("check").fails_with(1, "this machine cannot run husk"));
}

#[test]
fn a_husk_that_cannot_even_check_is_refused() {
    let node = Node::start();
    node.findings("");
    node.unchanged_by(|| node.install().fails_with(1, "this machine cannot run husk"));
}

#[test]
fn a_full_disk_is_refused_before_anything_changes() {
    let node = Node::start();
    node.release("share/husk/guest.img", &"x".repeat(1 << 20));
    let _disk = node.mount_small_disk(&node.prefix());
    node.unchanged_by(|| node.install().fails_with(1, "is the disk full, or read-only?"));
    assert!(node.releases().is_empty());
}

#[test]
fn a_configuration_on_a_read_only_disk_is_refused_before_anything_changes() {
    let node = Node::start();
    let _disk = node.mount_read_only(node.config_path().parent().expect("its folder"));
    node.unchanged_by(|| node.install().fails_with(1, "cannot write beside"));
}

#[test]
fn a_node_whose_containerd_does_not_run_is_refused() {
    let node = Node::start();
    node.stop_containerd();
    let config = node.config();
    node.install().fails_with(1, "no running containerd reads");
    assert_eq!(node.config(), config);
}

#[test]
fn settings_are_put_in_place_and_bad_ones_are_rolled_back() {
    let node = Node::start();
    node.settings("[vm]\nvcpus = 2\n");
    node.install().succeeds();
    let installed = || fs::read_to_string(node.installed_settings()).expect("the settings");
    assert_eq!(installed(), "[vm]\nvcpus = 2\n");

    let pid = node.pid();
    node.settings("wrong\n");
    node.install().fails_with(1, "husk does not work with the settings");
    assert_eq!(installed(), "[vm]\nvcpus = 2\n");
    assert_eq!(node.pid(), pid);
}

#[test]
fn a_handler_that_is_configured_already_stays() {
    let node = Node::start_with(
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  \
         runtime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  \
         BinaryName = \"/usr/bin/other-runc\"\n",
    );
    node.install().succeeds();
    let handlers = node.handlers();
    assert!(handlers.contains("husk:{") && handlers.contains("/usr/bin/other-runc"), "{handlers}");
}
