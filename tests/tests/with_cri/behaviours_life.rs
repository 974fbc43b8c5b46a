// SPDX-License-Identifier: Apache-2.0

//! What Kubernetes does with the lives of containers: jobs, probes, hooks, graceful ends.
//! docs/kubernetes.md lists these behaviours with the cases that prove them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::api::NamespaceMode;
use husk_tests::cri::container::{Container, mount};
use husk_tests::cri::pod::namespaces;
use husk_tests::cri::{api, case, grpc};
use husk_tests::temporary;

#[test]
fn jobs() {
    case(
        "jobs end with their codes and reasons, in turn and at once, and a pod of the same name comes after another",
        |cri| {
            for attempt in 0..2 {
                let pod = cri.pod("jobs", |config| {
                    config.metadata.mut_or_insert_default().uid = "uid-of-the-job".to_owned();
                    config.metadata.mut_or_insert_default().attempt = attempt;
                    // Only process 1 of a namespace is spared by the signals it does not handle.
                    namespaces(config).pid = NamespaceMode::POD.into();
                });
                let jobs = [
                    ("done", "exit 0", 0, "Completed"),
                    ("failed", "exit 1", 1, "Error"),
                    ("beyond", "exit 255", 255, "Error"),
                    ("faulty", "kill -SEGV $$", 139, "Error"),
                    ("killed", "kill -KILL $$", 137, "Error"),
                ];
                let due = if attempt == 0 { &jobs[..] } else { &jobs[..1] };
                let running: Vec<_> =
                    due.iter().map(|(name, line, ..)| pod.sh(name, line)).collect();
                for (job, &(name, _, code, reason)) in running.iter().zip(due) {
                    assert_eq!(job.exit_code(), code, "{name}");
                    let status = job.status();
                    assert_eq!(status.reason, reason, "{name}");
                    let times = [status.created_at, status.started_at, status.finished_at];
                    assert!(times[0] > 0 && times.is_sorted(), "{name}: {times:?}");
                }
                assert!(pod.is_ready(), "the pod goes on without its jobs");
                pod.remove();
            }
        },
    );
}

#[test]
fn hooks_and_grace() {
    case(
        "postStart and preStop, SIGTERM once and to the first process alone, the grace period, and the end of all the others",
        |cri| {
            let pod =
                cri.pod("graceful", |config| namespaces(config).pid = NamespaceMode::POD.into());
            let volume = pod.volume("v");
            let with_volume =
                |config: &mut api::ContainerConfig| mount(config, &volume, "/v", false);
            let said = |name: &str| fs::read_to_string(volume.join(name)).unwrap_or_default();
            let hook = |container: &Container, name: &str| {
                container.exec_sh(&format!("echo {name} >>/v/hooks"));
            };

            let line = "trap 'echo term >>/v/first; exit 3' TERM
                (trap 'echo term >>/v/other' TERM; while :; do usleep 10000; done) &
                echo up >/v/up; while :; do usleep 10000; done";
            let willing = pod.start("willing", &["sh", "-c", line], with_volume);
            hook(&willing, "postStart");
            assert!(eventually(LIMIT, || volume.join("up").exists()), "it does not come up");
            hook(&willing, "preStop");
            willing.stop(60);
            assert_eq!(willing.status().exit_code, 3);
            assert_eq!((said("first"), said("other")), ("term\n".into(), String::new()));
            assert_eq!(said("hooks"), "postStart\npreStop\n");

            // Neither the first process nor those that left its session go by themselves.
            let line = "trap 'echo term >>/v/deaf' TERM
                setsid sh -c 'trap : TERM; while :; do sleep 1000001; done' &
                sleep 1000002 & >/v/ready; while :; do usleep 10000; done";
            let deaf = pod.start("deaf", &["sh", "-c", line], with_volume);
            let watcher = pod.idle("watcher");
            assert!(eventually(LIMIT, || volume.join("ready").exists()), "it does not come up");
            watcher.until_sh("grep -q 1000001 /proc/[0-9]*/cmdline");
            deaf.stop(1);
            assert_eq!(deaf.status().exit_code, 137);
            assert_eq!(said("deaf"), "term\n", "SIGTERM comes once");
            let left = || watcher.command_lines().matches("sleep 100000").count();
            assert!(eventually(LIMIT, || left() == 1), "{}", watcher.command_lines());
            pod.remove();
        },
    );
}

/// The first line of a server's answer; empty without one.
fn status_line(address: &str, path: &str) -> String {
    let mut answer = String::new();
    let asked = TcpStream::connect((address, 80)).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        stream.read_to_string(&mut answer)
    });
    match asked {
        Ok(_) => answer.lines().next().unwrap_or_default().to_owned(),
        Err(_) => String::new(),
    }
}

#[test]
fn probes() {
    case(
        "probes by exec, HTTP and TCP: well, failing, too slow, and well again after the restart they lead to",
        |cri| {
            let pod =
                cri.pod("probed", |config| namespaces(config).network = NamespaceMode::POD.into());
            let address = pod.status().network.unwrap_or_default().ip;
            let serve = |attempt| {
                let line = "mkdir /www; >/www/health; exec httpd -f -p 80 -h /www";
                pod.start("web", &["sh", "-c", line], |config| {
                    config.metadata.mut_or_insert_default().attempt = attempt;
                })
            };
            let probe = ["test", "-e", "/www/health"];
            let web = serve(0);
            web.until_sh("test -e /www/health");
            let well = || status_line(&address, "/health").contains("200");
            assert!(eventually(LIMIT, well), "{:?}", status_line(&address, "/health"));
            assert_eq!(web.exec(&probe, 1).expect("ExecSync").exit_code, 0);
            let slow = web.exec(&["sleep", "100"], 1).expect_err("a probe that takes too long");
            assert_eq!(slow.code, grpc::DEADLINE_EXCEEDED, "{slow}");

            web.exec_sh("rm /www/health");
            assert_eq!(web.exec(&probe, 0).expect("ExecSync").exit_code, 1);
            assert!(status_line(&address, "/health").contains("404"));
            // What a kubelet does about it.
            web.stop(1);
            assert_eq!(status_line(&address, "/health"), "", "nobody listens");
            let again = serve(1);
            assert!(eventually(LIMIT, well), "{:?}", status_line(&address, "/health"));
            assert_eq!(again.exec(&probe, 0).expect("ExecSync").exit_code, 0);
            pod.remove();
        },
    );
}

#[test]
fn images() {
    case(
        "the image's own command runs without another, an image that is not there is refused, and so is a program in an empty one",
        |cri| {
            let pod = cri.pod("images", |_| {});
            // A shell without input ends.
            assert_eq!(pod.start("own", &[], |_| {}).exit_code(), 0);
            let missing = Container::create(&pod, "missing", &["true"], |config| {
                config.image.mut_or_insert_default().image = "husk.test/none:latest".to_owned();
            });
            let missing = missing.err().expect("there is no such image");
            assert!(missing.message.contains("husk.test/none"), "{missing}");
            let empty = temporary("husk-empty");
            let root = empty.path().display().to_string();
            let words = ["run", "--rm", "--runtime", cri.lab.runtime(), "--rootfs", &root];
            let words = [&words[..], &["empty", "/bin/true"]].concat();
            cri.lab.ctr(&words).failed_with("/bin/true");
            assert!(pod.is_ready());
            pod.remove();
        },
    );
}
