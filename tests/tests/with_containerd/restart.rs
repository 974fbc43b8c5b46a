// SPDX-License-Identifier: Apache-2.0

//! containerd ends, by itself or by SIGKILL, under tasks in every state, and starts again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::events::{Events, topics};
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::logger::SlowLogger;
use husk_tests::containerd::process::{LIMIT, Running, eventually};
use husk_tests::containerd::sink::Sink;
use husk_tests::containerd::task::{Task, gone};
use husk_tests::containerd::{HUSK_SHIM, IMAGE, case, husk_case};
use husk_tests::temporary;
use nix::sys::signal::Signal;

/// The numbers that a counter has said, but for lines that may not be whole.
fn numbers(said: &str) -> Vec<u64> {
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    whole.lines().skip(1).map(|line| line.trim().parse().expect("a number")).collect()
}

/// Waits until an attached counter has said a number beyond this one; the last it has said.
fn until_beyond(counter: &Running, least: u64) -> u64 {
    counter.until("more numbers", |said| numbers(said).last().copied().filter(|&n| n > least))
}

#[test]
fn containers_outlive_containerd() {
    case(
        "containerd ended and killed under a container: it is listed, its output goes on without \
         a gap, it can be entered and killed",
        |lab| {
            let script = "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done";
            lab.detached(&[], "lasting", &["sh", "-c", script]);
            let attach = || lab.ctr_start(&["tasks", "attach", "lasting"]);
            let mut last = until_beyond(&attach(), 3);
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                lab.end_containerd(signal);
                lab.start_containerd();
                assert_eq!(lab.status("lasting").as_deref(), Some("RUNNING"), "{signal}");
                let attached = attach();
                last = until_beyond(&attached, last + 3);
                let said = numbers(&attached.stdout());
                let expected = said[0]..=said[said.len() - 1];
                assert!(said.iter().copied().eq(expected), "numbers are missing: {said:?}");
                assert_eq!(lab.exec_sh("lasting", "echo within"), "within");
            }
            let events = Events::listen(lab);
            lab.kill("KILL", "lasting");
            lab.until_status("lasting", "STOPPED");
            lab.remove("lasting");
            let heard = events.until("lasting", "/tasks/delete");
            let ended: Vec<_> =
                heard.iter().filter(|e| !e.topic.contains("exec-")).cloned().collect();
            assert_eq!(topics(&ended), "exit delete");
            assert_eq!(ended[0].number("exit_status"), 137);
        },
    );
}

#[test]
fn exit_while_containerd_is_away() {
    husk_case("a container that ends while containerd is away is found with its status", |lab| {
        let gate = temporary("husk-gate");
        let mount = format!("type=bind,src={},dst=/gate,options=rbind:ro", gate.path().display());
        let script = "until test -e /gate/open; do usleep 20000; done; exit 7";
        lab.detached(&["--mount", &mount], "alone", &["sh", "-c", script]);
        let calls = Task::of_containerd(lab, "alone");
        lab.end_containerd(Signal::SIGKILL);
        fs::write(gate.path().join("open"), "").expect("open the gate");
        assert_eq!(calls.wait("").expect("Wait").exit_status, 7);
        lab.start_containerd();
        assert_eq!(lab.status("alone").as_deref(), Some("STOPPED"));
        let removed = lab.ctr(&["tasks", "rm", "alone"]).ended(0);
        assert!(removed.error().contains("exit code 7"), "{}", removed.error());
        lab.ctr(&["containers", "rm", "alone"]).ended(0);
    });
}

#[test]
fn events_wait_for_containerd() {
    husk_case(
        "what happens while containerd is away it is told later, each event once and in order",
        |lab| {
            let directory = temporary("husk-events");
            let socket = directory.path().join("events.sock");
            let sink = Sink::listen(&socket);
            let mut bundle = Bundle::new(lab, "told", &["sleep", "100000"]);
            bundle.send_events_to(&socket);
            bundle.launch();
            bundle.exec("inner", &["sleep", "100000"]);
            let created = ["create", "start", "exec-added", "exec-started"];
            assert_eq!(sink.until(4), created);
            drop(sink);

            bundle.kill("", libc::SIGKILL).expect("Kill");
            bundle.wait("").expect("Wait");
            bundle.delete("").expect("Delete");
            let sink = Sink::listen(&socket);
            assert_eq!(sink.until(3), ["exit inner", "exit told", "delete"]);
            bundle.end_shim();
            assert_eq!(sink.until(3).len(), 3, "an event came twice");
        },
    );
}

#[test]
fn killed_after_create() {
    husk_case("containerd killed between Create and Start: the task is there and starts", |lab| {
        // Its pid cannot be written: ctr leaves the task as it is, created.
        let words =
            lab.run_words(&["-d", "--pid-file", "/nowhere/pid"], "half", &["sleep", "10000"]);
        lab.ctr(&words).failed_with("/nowhere");
        assert_eq!(lab.status("half").as_deref(), Some("CREATED"));
        lab.end_containerd(Signal::SIGKILL);
        lab.start_containerd();
        assert_eq!(lab.status("half").as_deref(), Some("CREATED"));
        Task::of_containerd(lab, "half").start("").expect("Start");
        assert_eq!(lab.status("half").as_deref(), Some("RUNNING"));
        assert_eq!(lab.exec_sh("half", "echo whole"), "whole");
        lab.remove("half");
    });
}

#[test]
fn killed_before_and_during_create() {
    husk_case(
        "containerd killed after `start`, and during Create: no VM stays, and the shims that \
         nobody asks for anything end by themselves",
        |lab| {
            let vms = pids_of("husk-vmm");
            let shims = || pids_of(HUSK_SHIM);
            let before = shims();

            // One that was deleted and never told to end.
            let bundle = Bundle::new(lab, "forgotten", &["true"]);
            bundle.launch();
            bundle.wait("").expect("Wait");
            bundle.delete("").expect("Delete");
            let forgotten = bundle.daemon();

            let directory = temporary("husk-killer");
            let runtime = killer_of_containerd(directory.path());
            let output = lab.ctr(&["run", "--runtime", &runtime, IMAGE, "begun", "true"]);
            assert_ne!(output.code, 0, "a container without containerd");
            lab.until_containerd_ended();
            lab.start_containerd();

            let logger = SlowLogger::new();
            let uri = logger.uri();
            let words = lab.run_words(&["-d", "--log-uri", &uri], "cut", &["sleep", "10000"]);
            let run = lab.ctr_start(&words);
            logger.until_it_waits();
            lab.end_containerd(Signal::SIGKILL);
            assert_ne!(run.wait().code, 0, "a container without containerd");
            assert!(eventually(LIMIT, || pids_of("husk-vmm") == vms), "a VM is still there");
            lab.start_containerd();

            assert!(gone(forgotten), "a shim without a task goes on");
            assert!(eventually(LIMIT, || shims() == before), "shims: {:?}", shims());
            drop(bundle);
            for id in ["begun", "cut"] {
                assert!(eventually(LIMIT, || lab.status(id).is_none()), "{id} is listed");
                lab.ctr(&["containers", "rm", id]).ended(0);
            }
        },
    );
}

/// A script that goes by the shim's name, and kills containerd when the shim has been
/// started for the first time, before containerd knows.
fn killer_of_containerd(directory: &Path) -> String {
    let path = directory.join(HUSK_SHIM);
    let once = directory.join("once").display().to_string();
    let script = format!(
        "#!/bin/sh
for last; do :; done
[ \"$last\" = start ] && mkdir {once} || exec {HUSK_SHIM} \"$@\"
{HUSK_SHIM} \"$@\" >/dev/null
kill -9 $PPID
"
    );
    fs::write(&path, script).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path.display().to_string()
}
