// SPDX-License-Identifier: Apache-2.0

//! Our processes killed with SIGKILL under a running container.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::events::{Events, topics};
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::task::gone;
use husk_tests::containerd::{CTR_NAMESPACE, Lab, husk_case};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs an idle container and returns the one process of that program that came with it.
fn process_of_new(lab: &Lab, id: &str, program: &str) -> i32 {
    let before: BTreeSet<_> = pids_of(program).into_iter().collect();
    lab.idle(&[], id);
    let after: BTreeSet<_> = pids_of(program).into_iter().collect();
    let new: Vec<_> = after.difference(&before).copied().collect();
    assert_eq!(new.len(), 1, "processes {program} of one container: {new:?}");
    new[0]
}

fn kill_now(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("SIGKILL");
}

#[test]
fn vmm_killed() {
    husk_case(
        "the VMM killed: `ctr run` ends with 137, exec and task too, all can be deleted",
        |lab| {
            let events = Events::listen(lab);
            let vmm = process_of_new(lab, "orphan", "husk-vmm");
            let exec = ["tasks", "exec", "-d", "--exec-id", "inner", "orphan", "sleep", "5000"];
            lab.ctr(&exec).ended(0);
            kill_now(vmm);
            lab.until_status("orphan", "STOPPED");
            lab.ctr(&["tasks", "kill", "orphan"]).failed_with("already finished");
            let output = lab.exec(&[], "orphan", &["true"]);
            assert_ne!(output.code, 0, "an exec without a VM");
            let removed = lab.ctr(&["tasks", "rm", "orphan"]).ended(0);
            assert!(removed.error().contains("137"), "{}", removed.error());
            lab.ctr(&["containers", "rm", "orphan"]).ended(0);
            let heard = events.until("orphan", "/tasks/delete");
            let order = topics(&heard);
            assert!(order.starts_with("create start exec-added exec-started exit exit"), "{order}");
            let exits: Vec<_> = heard.iter().filter(|event| event.topic == "/tasks/exit").collect();
            assert_eq!(exits.iter().map(|e| e.text("id")).collect::<Vec<_>>(), ["inner", "orphan"]);
            assert!(exits.iter().all(|event| event.number("exit_status") == 137), "{exits:?}");
        },
    );
}

#[test]
fn vmm_killed_beside_its_client() {
    husk_case("the VMM killed: a client that waits is told 137 at once", |lab| {
        let before = pids_of("husk-vmm");
        let running = lab.attached(&[], "watched", &["sh", "-c", "echo up; sleep 100000"]);
        running.until_said("up");
        let new: Vec<_> =
            pids_of("husk-vmm").into_iter().filter(|pid| !before.contains(pid)).collect();
        assert_eq!(new.len(), 1, "VMMs of one container: {new:?}");
        kill_now(new[0]);
        assert_eq!(running.wait().ended(137).text(), "up");
    });
}

#[test]
fn guest_kernel_panics() {
    husk_case(
        "a panic of the guest kernel: 137 at once, and the log says why, with the console",
        |lab| {
            let line = "echo 2 > /proc/sys/vm/panic_on_oom && exec tail /dev/zero";
            let flags = ["--privileged", "--memory-limit", "33554432"];
            lab.run(&flags, "doomed", &["sh", "-c", line]).ended(137);
            let said = |words: &'static str| eventually(LIMIT, || lab.log().contains(words));
            assert!(said("the guest kernel panicked"), "no reason in the log");
            assert!(said("panic_on_oom"), "no console in the log");
        },
    );
}

#[test]
fn shim_killed() {
    // runc's shim leaves its socket.
    husk_case(
        "the shim killed: containerd notices, exit 137 is told, the container can be deleted",
        |lab| {
            let events = Events::listen(lab);
            let shim = process_of_new(lab, "bereft", &lab.shim());
            kill_now(shim);
            let heard = events.until("bereft", "/tasks/delete");
            assert_eq!(topics(&heard), "create start exit delete");
            assert_eq!(heard[2].number("exit_status"), 137);
            let gone = eventually(LIMIT, || lab.status("bereft").is_none());
            assert!(gone, "the task is still listed");
            lab.ctr(&["containers", "rm", "bereft"]).ended(0);
        },
    );
}

/// What is mounted at or below a path.
fn mounts_below(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(path)).count()
}

/// Runs `delete`, twice: it answers as for a process that was killed, and says nothing else.
#[track_caller]
fn check_delete(bundle: &Bundle) {
    for _ in 0..2 {
        let output = bundle.run("delete").ended(0);
        assert_eq!(output.error(), "");
        let answer = DeleteResponse::parse_from_bytes(&output.stdout).expect("a DeleteResponse");
        assert_eq!(answer.exit_status, 137);
        assert!(answer.exited_at.seconds > 0, "no time");
    }
}

#[test]
fn delete_after_a_crash() {
    husk_case(
        "`delete` of a bundle that was never started, and after the shim was killed, however \
         little is left of the bundle: mounts, socket and files go",
        |lab| {
            check_delete(&Bundle::new(lab, "wreck", &["true"]));
            for missing in [
                &[][..],
                &["address"],
                &["config.json"],
                &["address", "config.json", "shim.pid", "log"],
            ] {
                let bundle = Bundle::new(lab, "wreck", &["sleep", "100000"]);
                let (vmm, daemon) = (bundle.launch(), bundle.daemon());
                let address = fs::read_to_string(bundle.path().join("address")).expect("address");
                let socket = Path::new(address.trim_start_matches("unix://"));
                kill_now(daemon as i32);
                assert!(gone(daemon) && gone(vmm), "the VM outlives its shim");
                assert_eq!(mounts_below(bundle.path()), 1, "the root file system");
                assert!(socket.exists() && Path::new("/run/husk/default/wreck").exists());
                for name in missing {
                    fs::remove_file(bundle.path().join(name)).expect("remove");
                }
                check_delete(&bundle);
                assert_eq!(mounts_below(bundle.path()), 0, "the root file system");
                assert!(!socket.exists(), "its socket");
                assert!(!Path::new("/run/husk/default/wreck").exists(), "its directory");
            }
        },
    );
}

#[test]
fn delete_of_one_of_a_pod() {
    husk_case("`delete` for a container of a living pod leaves the pod alone", |lab| {
        let pod = Bundle::new(lab, "whole", &["sleep", "100000"]);
        pod.launch();
        let member = Bundle::in_pod(&pod, "part", &["sleep", "100000"]);
        member.launch();
        member.remove();
        check_delete(&member);
        pod.exec("inner", &["sh", "-c", "exit 6"]);
        assert_eq!(pod.wait("inner").expect("Wait").exit_status, 6);
        pod.remove_pod();
    });
}

#[test]
fn agent_attacked_from_inside() {
    husk_case(
        "a privileged container that sees the agent cannot kill it by signals; if it destroys \
         its memory, the container ends with 137 and the log says why",
        |lab| {
            let bundle = Bundle::with(lab, CTR_NAMESPACE, "insider", |spec| {
                spec["process"]["args"] = ["sleep", "100000"].as_slice().into();
                let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
                namespaces.retain(|namespace| namespace["type"] != "pid");
                for set in ["bounding", "effective", "permitted"] {
                    let set = spec["process"]["capabilities"][set].as_array_mut().expect("a set");
                    set.push("CAP_SYS_PTRACE".into());
                }
            });
            bundle.launch();
            let script = "grep -q sleep /proc/1/cmdline && exit 9
                for signal in KILL SEGV ABRT TERM INT HUP STOP QUIT; do kill -$signal 1; done";
            bundle.exec("signals", &["sh", "-c", script]);
            assert_eq!(bundle.wait("signals").expect("Wait").exit_status, 0);
            bundle.exec("after", &["sh", "-c", "exit 5"]);
            assert_eq!(bundle.wait("after").expect("Wait").exit_status, 5, "the agent is alive");

            let script = "range=$(grep -m 1 ' r-xp ' /proc/1/maps | cut -d' ' -f1)
                first=$((0x${range%-*} >> 12)) last=$((0x${range#*-} >> 12))
                dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$first count=$((last - first)) \
                    conv=notrunc";
            bundle.add_exec("destroy", &["sh", "-c", script]).expect("Exec");
            // The agent may not live to answer.
            let _ = bundle.start("destroy");
            assert_eq!(bundle.wait("").expect("Wait").exit_status, 137);
            let log = || fs::read_to_string(bundle.path().join("log")).expect("the log");
            let said = eventually(LIMIT, || log().contains("Attempted to kill init"));
            assert!(said && log().contains("the guest kernel panicked"), "{}", log());
            bundle.delete("").expect("Delete");
            bundle.end_shim();
        },
    );
}
