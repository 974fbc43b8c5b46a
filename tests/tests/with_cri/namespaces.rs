// SPDX-License-Identifier: Apache-2.0

//! What the containers of a pod have in common, and what each has to itself.

use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::api::NamespaceMode;
use husk_tests::cri::container::{Container, security};
use husk_tests::cri::pod::namespaces;
use husk_tests::cri::{api, case};

/// Whether a process of that command line is among those that a container sees.
fn sees(container: &Container, command: &str) -> bool {
    container.command_lines().contains(command)
}

/// Waits until it is.
#[track_caller]
fn until_seen(container: &Container, command: &str) {
    assert!(eventually(LIMIT, || sees(container, command)), "{command} is not seen");
}

fn may_administrate(config: &mut api::ContainerConfig) {
    security(config).capabilities.mut_or_insert_default().add_capabilities =
        vec!["SYS_ADMIN".to_owned()];
}

#[test]
fn ipc() {
    case("containers of a pod share message queues, shared memory and its limits", |cri| {
        let pod = cri.pod("talk", |config| {
            let linux = config.linux.mut_or_insert_default();
            linux.sysctls.insert("kernel.shmmax".to_owned(), "123456".to_owned());
        });
        let [a, b] = ["a", "b"].map(|name| pod.idle(name));
        a.exec_sh("echo of a >/dev/shm/file; >/dev/mqueue/queue");
        assert_eq!(b.exec_sh("cat /dev/shm/file; ls /dev/mqueue"), "of a\nqueue");
        for container in [&a, &b] {
            assert_eq!(
                container.exec_sh("stat -f -c %T /dev/shm; cat /proc/sys/kernel/shmmax"),
                "tmpfs\n123456"
            );
        }
        let size = a.exec_sh("df -k /dev/shm | awk 'NR == 2 { print $2 }'");
        assert_eq!(size, "65536", "KiB of shared memory");
        pod.remove();
    });
}

#[test]
fn uts() {
    case("a name that one container gives the pod is the others' name", |cri| {
        let pod = cri.pod("renamed", |config| {
            namespaces(config).network = NamespaceMode::POD.into();
            config.hostname = "old".to_owned();
        });
        let a = pod.start("a", &["sleep", "100000"], may_administrate);
        let b = pod.idle("b");
        assert_eq!(b.exec_sh("hostname"), "old");
        a.exec_sh("hostname new");
        assert_eq!(b.exec_sh("hostname"), "new");
        assert_eq!(pod.idle("c").exec_sh("hostname"), "new");
        pod.remove();
    });
}

#[test]
fn processes_of_its_own() {
    case("a container sees its own processes and is process 1", |cri| {
        let pod = cri.pod("private", |_| {});
        let [a, b] = ["a", "b"].map(|name| pod.sh(name, "sleep 1000001; true"));
        let stranger = pod.sh("stranger", "sleep 1000002; true");
        until_seen(&stranger, "sleep 1000002");
        for container in [&a, &b] {
            until_seen(container, "sleep 1000001");
            assert_eq!(container.exec_sh("cat /proc/1/comm"), "sh");
            assert!(!sees(container, "sleep 1000002"), "another container's process");
        }
        pod.remove();
    });
}

#[test]
fn processes_of_the_pod() {
    case(
        "with shareProcessNamespace containers see each other's processes, and process 1 is the pod's",
        |cri| {
            let pod = cri.pod("open", |config| namespaces(config).pid = NamespaceMode::POD.into());
            let a = pod.sh("a", "sleep 1000001 & echo $$ >/dev/shm/pid; exec sleep 1000002");
            let b = pod.sh("b", "sleep 1000003; true");
            for container in [&a, &b] {
                until_seen(container, "sleep 1000001");
                until_seen(container, "sleep 1000003");
                let said = container.exec_sh("cat /proc/1/cmdline | tr '\\0' ' '");
                assert_eq!(said, "sleep 2147483647", "the pause container's");
            }
            b.exec_sh("kill -9 $(cat /dev/shm/pid)");
            assert_eq!(a.exit_code(), 137);
            let gone = eventually(LIMIT, || !sees(&b, "sleep 1000001"));
            assert!(gone, "a process of the container outlives its first");
            b.remove_running();
            let again = pod.idle("again");
            assert!(sees(&again, "sleep 2147483647"), "the pause container");
            pod.remove();
        },
    );
}

#[test]
fn processes_of_a_target() {
    case("a debug container sees the processes and files of its target, and of no other", |cri| {
        let pod = cri.pod("debugged", |_| {});
        let target = pod.sh("target", ">/marker; sleep 1000001; true");
        pod.sh("other", "sleep 1000002; true");
        until_seen(&target, "sleep 1000001");
        let debug = pod.start("debug", &["sleep", "100000"], |config| {
            let security = security(config);
            let namespaces = security.namespace_options.mut_or_insert_default();
            namespaces.pid = NamespaceMode::TARGET.into();
            namespaces.target_id = target.id.clone();
            security.capabilities.mut_or_insert_default().add_capabilities =
                vec!["SYS_PTRACE".to_owned()];
        });
        let seen = debug.command_lines();
        assert!(seen.contains("sleep 1000001"), "{seen}");
        assert!(!seen.contains("sleep 1000002") && !seen.contains("2147483647"), "{seen}");
        debug.exec_sh("test -e /proc/1/root/marker && test ! -e /marker");
        target.stop(0);
        assert_eq!(debug.exit_code(), 137);
        pod.remove();
    });
}
