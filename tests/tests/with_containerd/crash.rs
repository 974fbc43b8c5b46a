// SPDX-License-Identifier: Apache-2.0

//! Our processes killed with SIGKILL under a running container.

use std::collections::BTreeSet;

use husk_tests::containerd::events::{Events, topics};
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{Lab, husk_case};
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
