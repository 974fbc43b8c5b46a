// SPDX-License-Identifier: Apache-2.0

//! Files that the containers of a pod have in common.

use std::fs;

use husk_tests::cri::container::{mount, security};
use husk_tests::cri::{api, case};

#[test]
fn empty_dir() {
    case(
        "in a volume containers see each other's files at once, and meet at a FIFO and a socket, read-only or not",
        |cri| {
            let pod = cri.pod("sharing", |_| {});
            let volume = pod.volume("v");
            let [a, b] = [("a", false), ("b", true)].map(|(name, read_only)| {
                pod.start(name, &["sleep", "100000"], |config| {
                    mount(config, &volume, "/v", read_only)
                })
            });
            a.exec_sh("echo one >/v/file");
            assert_eq!(b.exec_sh("cat /v/file"), "one");
            a.exec_sh("echo two >>/v/file");
            assert_eq!(b.exec_sh("cat /v/file"), "one\ntwo");
            assert_eq!(
                fs::read_to_string(volume.join("file")).expect("the host's view"),
                "one\ntwo\n"
            );
            assert_ne!(
                b.exec(&["touch", "/v/new"], 0).expect("ExecSync").exit_code,
                0,
                "it is read-only"
            );

            a.exec_sh("mkfifo /v/fifo; (cat /v/fifo >/got) >/dev/null 2>&1 &");
            b.exec_sh("echo through >/v/fifo");
            a.until_sh("test \"$(cat /got)\" = through");

            a.exec_sh("ln -s /v/log /dev/log; syslogd -O /v/messages >/dev/null 2>&1");
            a.until_sh("test -S /v/log");
            b.exec_sh("ln -s /v/log /dev/log; logger from b");
            a.until_sh("grep 'from b' /v/messages");
            pod.remove();
        },
    );
}

#[test]
fn containers_come_and_go() {
    case(
        "a volume stays for the others when a container that has it goes, and comes to a new one",
        |cri| {
            let pod = cri.pod("handing", |_| {});
            let volume = pod.volume("v");
            let with_volume =
                |config: &mut api::ContainerConfig| mount(config, &volume, "/v", false);
            let keeper = pod.start("keeper", &["sleep", "100000"], with_volume);
            for round in 0..3 {
                let line = format!("echo {round} >>/v/file");
                let guest = pod.start(&format!("guest-{round}"), &["sh", "-c", &line], with_volume);
                assert_eq!(guest.exit_code(), 0);
                guest.remove();
            }
            assert_eq!(keeper.exec_sh("cat /v/file"), "0\n1\n2");
            pod.remove();
        },
    );
}

#[test]
fn read_only_root() {
    case("a read-only root can be read only, and a volume in it written", |cri| {
        let pod = cri.pod("sealed", |_| {});
        let volume = pod.volume("v");
        let container = pod.start("main", &["sleep", "100000"], |config| {
            security(config).readonly_rootfs = true;
            mount(config, &volume, "/v", false);
        });
        let refused = container.exec(&["touch", "/file"], 0).expect("ExecSync");
        assert_ne!(refused.exit_code, 0);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only"), "{refused:?}");
        container.exec_sh("echo x >/v/file");
        pod.remove();
    });
}
