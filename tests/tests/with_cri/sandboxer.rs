// SPDX-License-Identifier: Apache-2.0

//! Pods without a pause image, which containerd 2 has husk's shim make by its Sandbox API.

use husk_tests::containerd::HUSK_SHIM;
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::api::NamespaceMode;
use husk_tests::cri::pod::{Pod, namespaces};
use husk_tests::cri::{Cri, api, sandboxer_case};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A pod on the bridge: containerd 2.1 itself crashes over one that is to use the host's network
/// and that a shim makes.
fn pod<'a>(
    cri: &'a Cri<'a>,
    name: &str,
    change: impl FnOnce(&mut api::PodSandboxConfig),
) -> Pod<'a> {
    cri.pod(name, |config| {
        namespaces(config).network = NamespaceMode::POD.into();
        change(config);
    })
}

#[test]
fn a_pod_without_a_pause_container() {
    let subject = "two containers of a pod without a pause image share its VM, names, files, \
                   memory, processes and network, and it is stopped and removed, each twice";
    sandboxer_case(subject, |cri| {
        let pod = pod(cri, "bare", |config| {
            namespaces(config).pid = NamespaceMode::POD.into();
            config.hostname = "web-0".to_owned();
            config.dns_config.mut_or_insert_default().servers = vec!["10.88.0.99".to_owned()];
            let linux = config.linux.mut_or_insert_default();
            linux.sysctls.insert("kernel.shmmax".to_owned(), "123456".to_owned());
        });
        assert!(pod.is_ready());
        let [a, b] = ["a", "b"].map(|name| pod.idle(name));
        let list = cri.lab.ctr(&["containers", "ls", "-q"]).ended(0).text();
        let mut listed: Vec<_> = list.lines().collect();
        listed.sort_unstable();
        let mut made = [a.id.as_str(), b.id.as_str()];
        made.sort_unstable();
        assert_eq!(listed, made, "there is no container for the pod itself");
        assert_eq!(pids_of("husk-vmm").len(), 1);

        a.exec_sh("echo of a >/dev/shm/file; >/dev/mqueue/queue");
        let said = b.exec_sh("cat /dev/shm/file; ls /dev/mqueue; cat /proc/sys/kernel/shmmax");
        assert_eq!(said, "of a\nqueue\n123456", "shared memory and its limit");
        assert_eq!(b.exec_sh("df -k /dev/shm | awk 'NR == 2 { print $2 }'"), "65536");
        for container in [&a, &b] {
            let said = container.exec_sh("hostname; cat /etc/hostname /etc/resolv.conf");
            assert_eq!(said, "web-0\nweb-0\nnameserver 10.88.0.99");
            let first = container.exec_sh("cat /proc/1/cmdline | tr '\\0' ' '");
            assert_eq!(first, "/husk-agent hold", "the first process of the pod");
            let all = container.exec_sh("ps | grep -c '[s]leep 100000'");
            assert_eq!(all, "2", "both containers' processes");
        }
        // One that ends as an orphan leaves no zombie with the pod's first process.
        a.exec_sh("(sleep 0.01 &)");
        a.until_sh("! cat /proc/[0-9]*/stat 2>/dev/null | grep -q ') Z '");

        let address = pod.status().network.unwrap_or_default().ip;
        assert!(address.starts_with("10.88."), "{address:?}");
        let web = pod.sh("web", "echo served >/index.html; exec httpd -f -p 80 -h /");
        b.until_sh(&format!("test \"$(wget -q -O - http://{address}/)\" = served"));
        a.exec_sh("ping -c 1 -w 5 10.88.0.1");
        web.remove_running();

        pod.stop();
        assert!(!pod.is_ready());
        assert!(pids_of("husk-vmm").is_empty(), "its VM goes on");
        pod.stop();
        pod.remove_only();
        pod.remove_only();
    });
}

#[test]
fn containers_come_and_go() {
    let subject = "a pod without a pause image outlives its containers, and containerd";
    sandboxer_case(subject, |cri| {
        let pod = pod(cri, "bare", |_| {});
        let first = pod.sh("first", "exit 7");
        assert_eq!(first.exit_code(), 7);
        first.remove();
        assert!(pod.is_ready(), "a pod without containers");
        let second = pod.idle("second");
        assert_eq!(second.exec_sh("cat /proc/1/comm"), "sleep", "its own processes");
        cri.lab.end_containerd(Signal::SIGKILL);
        cri.lab.start_containerd();
        cri.until_ready();
        assert!(pod.is_ready());
        assert_eq!(second.exec_sh("echo here"), "here");
        assert_eq!(pod.sh("third", "exit 6").exit_code(), 6);
        pod.remove();
    });
}

/// Kills one of the pod's processes and looks at what becomes of it.
fn pod_without(cri: &Cri, program: &str) {
    let pod = pod(cri, "struck", |_| {});
    let containers = ["a", "b"].map(|name| pod.idle(name));
    kill(Pid::from_raw(pids_of(program)[0]), Signal::SIGKILL).expect("kill");
    for container in &containers {
        assert_ne!(container.exit_code(), 0);
    }
    assert!(eventually(LIMIT, || !pod.is_ready()), "the pod stays ready without {program}");
    pod.remove();
}

#[test]
fn vmm_killed() {
    let subject = "husk-vmm of a pod without a pause image killed: the pod is not ready, its \
                   containers have ended, it can be removed";
    sandboxer_case(subject, |cri| pod_without(cri, "husk-vmm"));
}

#[test]
fn shim_killed() {
    let subject = "the shim of a pod without a pause image killed: the same";
    sandboxer_case(subject, |cri| pod_without(cri, HUSK_SHIM));
}
