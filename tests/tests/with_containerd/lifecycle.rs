// SPDX-License-Identifier: Apache-2.0

//! A task's life as the shim's calls see it, in states and in an order that `ctr` does not
//! let a user come to.

use std::fs;
use std::net::Shutdown;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, CreateTaskRequest, PauseRequest, PidsRequest,
    ResizePtyRequest, ResumeRequest, StatsRequest, UpdateTaskRequest,
};
use containerd_shim_protos::ttrpc::context::with_duration;
use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::events::{Events, topics};
use husk_tests::containerd::husk_case;
use husk_tests::containerd::leftovers::{is_running, pids_of};
use husk_tests::containerd::logger::SlowLogger;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::task::{code, context, exited_at};

const IDLE: [&str; 2] = ["sleep", "100000"];

#[test]
fn exit_codes_of_wait() {
    husk_case(
        "Wait gives each exit code, 128 + n for signals, and the time of the end by the host's \
         clock, the same before and after it",
        |lab| {
            let script = "trap 'exit 77' USR1; while :; do sleep 1 & wait; done";
            let bundle = Bundle::new(lab, "codes", &["sh", "-c", script]);
            bundle.launch();
            let before = bundle.wait_beside("");
            let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            let check = |exec: &str, expected: u32, begun| {
                let answer = bundle.wait(exec).expect("Wait");
                assert_eq!(answer.exit_status, expected, "{exec}");
                let at = exited_at(&answer);
                assert!((begun..=now()).contains(&at), "{exec} ended at {at:?}");
                assert_eq!(bundle.wait(exec).expect("Wait again"), answer, "{exec}");
                let state = bundle.state(exec).expect("State");
                assert_eq!(
                    (state.exit_status, state.exited_at),
                    (expected, answer.exited_at.clone())
                );
                if exec.is_empty() {
                    return answer;
                }
                let deleted = bundle.delete(exec).expect("Delete of an exec");
                assert_eq!(
                    (deleted.exit_status, &deleted.exited_at),
                    (expected, &answer.exited_at)
                );
                answer
            };
            // Sixteen at a time.
            let all: Vec<u32> = (0..256).collect();
            for batch in all.chunks(16) {
                let begun = now();
                for number in batch {
                    bundle
                        .exec(&format!("exit-{number}"), &["sh", "-c", &format!("exit {number}")]);
                }
                for &number in batch {
                    check(&format!("exit-{number}"), number, begun);
                }
            }
            // Those that end a process which does not handle them.
            let harmless = [17, 18, 19, 20, 21, 22, 23, 28];
            for signal in (1..=31).filter(|signal| !harmless.contains(signal)) {
                let (begun, exec) = (now(), format!("signal-{signal}"));
                bundle.exec(&exec, &IDLE);
                bundle.kill(&exec, signal).expect("Kill");
                check(&exec, 128 + signal as u32, begun);
            }
            assert!(!before.is_finished(), "the first process ended by itself");
            let begun = now();
            bundle.kill("", libc::SIGUSR1).expect("Kill");
            let answer = check("", 77, begun);
            assert_eq!(before.join().expect("a thread").expect("Wait"), answer);
            let deleted = bundle.delete("").expect("Delete");
            assert_eq!((deleted.exit_status, deleted.exited_at), (77, answer.exited_at));
            bundle.end_shim();
        },
    );
}

#[test]
fn unknown_ids_for_each_call() {
    husk_case(
        "each call about an unknown container or exec is NOT_FOUND, Connect answers; a second \
         Create is ALREADY_EXISTS",
        |lab| {
            let bundle = Bundle::new(lab, "known", &IDLE);
            bundle.create();
            let again = bundle.calls().create(context(), &bundle.create_request());
            assert_eq!(code(again), "ALREADY_EXISTS");
            bundle.start("").expect("Start");
            let again = bundle.calls().create(context(), &bundle.create_request());
            assert_eq!(code(again), "ALREADY_EXISTS");

            let nobody = Bundle::new(lab, "nobody", &IDLE);
            fs::copy(bundle.path().join("address"), nobody.path().join("address")).expect("copy");
            for (unknown, exec) in [(&nobody, ""), (&nobody, "e"), (&bundle, "e")] {
                let (id, exec_id) = (unknown.id().to_owned(), exec.to_owned());
                let calls = unknown.calls();
                let close = CloseIORequest {
                    id: id.clone(),
                    exec_id: exec_id.clone(),
                    stdin: true,
                    ..Default::default()
                };
                let resize =
                    ResizePtyRequest { id, exec_id, width: 80, height: 24, ..Default::default() };
                let codes = [
                    ("State", code(unknown.state(exec))),
                    ("Start", code(unknown.start(exec))),
                    ("Kill", code(unknown.kill(exec, libc::SIGKILL))),
                    ("Wait", code(unknown.wait(exec))),
                    ("Delete", code(unknown.delete(exec))),
                    ("CloseIO", code(calls.close_io(context(), &close))),
                    ("ResizePty", code(calls.resize_pty(context(), &resize))),
                ];
                for (call, code) in codes {
                    assert_eq!(code, "NOT_FOUND", "{call} of {} {exec:?}", unknown.id());
                }
            }
            macro_rules! of_nobody {
                ($call:ident, $request:ident) => {{
                    let request = $request { id: "nobody".into(), ..Default::default() };
                    (stringify!($call), code(nobody.calls().$call(context(), &request)))
                }};
            }
            for (call, code) in [
                of_nobody!(pids, PidsRequest),
                of_nobody!(pause, PauseRequest),
                of_nobody!(resume, ResumeRequest),
                of_nobody!(stats, StatsRequest),
                of_nobody!(update, UpdateTaskRequest),
            ] {
                assert_eq!(code, "NOT_FOUND", "{call} of nobody");
            }
            assert_eq!(nobody.connect().expect("Connect of nobody").task_pid, 0);
            assert_eq!(bundle.connect().expect("Connect").shim_pid, bundle.daemon());
            bundle.remove_pod();
        },
    );
}

#[test]
fn checkpoints_are_not_implemented() {
    husk_case("Checkpoint, and Create from one, are UNIMPLEMENTED", |lab| {
        let bundle = Bundle::new(lab, "whole", &IDLE);
        bundle.start_shim();
        let mut request = bundle.create_request();
        request.checkpoint = "sha256:0".into();
        assert_eq!(code(bundle.calls().create(context(), &request)), "UNIMPLEMENTED");
        bundle.calls().create(context(), &bundle.create_request()).expect("Create");
        bundle.start("").expect("Start");
        let request = CheckpointTaskRequest { id: "whole".into(), ..Default::default() };
        assert_eq!(code(bundle.calls().checkpoint(context(), &request)), "UNIMPLEMENTED");
        bundle.remove_pod();
    });
}

#[test]
fn created_and_never_started() {
    husk_case(
        "a task that was never started can be deleted, or killed and waited for, with its events",
        |lab| {
            let events = Events::listen(lab);
            let bundle = Bundle::new(lab, "unborn", &IDLE);
            bundle.create();
            let wait = bundle.wait_beside("");
            bundle.delete("").expect("Delete of a created task");
            assert_eq!(wait.join().expect("a thread").expect("Wait").exit_status, 137);
            assert_eq!(code(bundle.delete("")), "NOT_FOUND");
            assert_eq!(topics(&events.until("unborn", "/tasks/delete")), "create exit delete");
            bundle.end_shim();
            drop(bundle);

            let bundle = Bundle::new(lab, "stillborn", &IDLE);
            bundle.create();
            let wait = bundle.wait_beside("");
            bundle.kill("", libc::SIGKILL).expect("Kill of a created task");
            assert_eq!(wait.join().expect("a thread").expect("Wait").exit_status, 137);
            assert_eq!(code(bundle.start("")), "FAILED_PRECONDITION", "start after its end");
            assert_eq!(bundle.delete("").expect("Delete").exit_status, 137);
            let heard = events.until("stillborn", "/tasks/delete");
            assert_eq!(topics(&heard), "create exit delete");
            assert_eq!(heard[1].number("exit_status"), 137);
            bundle.end_shim();
        },
    );
}

#[test]
fn deletes() {
    husk_case(
        "Delete and Kill: of what runs, of what has ended, twice; Shutdown waits for the last",
        |lab| {
            let bundle = Bundle::new(lab, "ending", &IDLE);
            let vmm = bundle.launch();
            bundle.exec("inner", &IDLE);
            assert_eq!(code(bundle.delete("")), "FAILED_PRECONDITION", "while it runs");
            assert_eq!(code(bundle.delete("inner")), "FAILED_PRECONDITION", "while it runs");
            bundle.shutdown().expect("Shutdown with a live container");
            bundle.state("").expect("the shim is still there");
            bundle.kill("inner", libc::SIGTERM).expect("Kill");
            assert_eq!(bundle.wait("inner").expect("Wait").exit_status, 143);
            assert_eq!(code(bundle.kill("inner", libc::SIGTERM)), "NOT_FOUND", "it has ended");
            bundle.delete("inner").expect("Delete of an exec");
            assert_eq!(code(bundle.delete("inner")), "NOT_FOUND", "twice");
            bundle.kill("", libc::SIGKILL).expect("Kill");
            assert_eq!(bundle.wait("").expect("Wait").exit_status, 137);
            for signal in [libc::SIGTERM, libc::SIGKILL] {
                assert_eq!(code(bundle.kill("", signal)), "NOT_FOUND", "it has ended");
            }
            bundle.shutdown().expect("Shutdown with a container that has ended");
            assert_eq!(bundle.delete("").expect("Delete").exit_status, 137);
            assert_eq!(code(bundle.delete("")), "NOT_FOUND", "twice");
            // The host is clean before Shutdown: containerd 2 may not ask for it.
            assert!(!is_running(vmm as i32), "the VM outlives its container");
            let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
            for place in [bundle.path(), Path::new("/run/husk")] {
                let place = place.display().to_string();
                assert!(!mounts.contains(&place), "mounts below {place}:\n{mounts}");
            }
            assert!(!Path::new("/run/husk/default/ending").exists(), "the pod's directory");
            bundle.end_shim();
            let address = fs::read_to_string(bundle.path().join("address")).expect("address");
            assert!(!Path::new(address.trim_start_matches("unix://")).exists(), "its socket");
        },
    );
}

#[test]
fn kill_all_reaches_other_sessions() {
    husk_case("Kill of all reaches processes in sessions of their own, and no other", |lab| {
        let script = "trap : TERM; setsid sleep 5000 & setsid sh -c 'sleep 5000 & sleep 5000' &
            (setsid sleep 5000 &) ; while :; do sleep 1; done";
        let bundle = Bundle::new(lab, "clan", &["sh", "-c", script]);
        bundle.launch();
        let member = Bundle::in_pod(&bundle, "stranger", &IDLE);
        member.launch();
        let sleepers = |number: usize| {
            let line = "n=$(grep -l '^sleep.5000' /proc/[0-9]*/cmdline | wc -l); exit $n";
            eventually(LIMIT, || {
                bundle.exec("count", &["sh", "-c", line]);
                let count = bundle.wait("count").expect("Wait").exit_status;
                bundle.delete("count").expect("Delete of an exec");
                count as usize == number
            })
        };
        assert!(sleepers(4), "its processes");
        bundle.kill_all(libc::SIGTERM).expect("Kill of all");
        assert!(sleepers(0), "some live on");
        assert_eq!(member.status(), "RUNNING", "another container");
        member.remove();
        bundle.remove_pod();
    });
}

#[test]
fn both_service_names() {
    husk_case("the task service answers by its names of containerd 1 and 2", |lab| {
        let bundle = Bundle::new(lab, "named", &IDLE);
        bundle.launch();
        for version in ["v2", "v3"] {
            let state = bundle.state_by(&format!("containerd.task.{version}.Task")).expect(version);
            assert_eq!(
                (state.id.as_str(), state.pid),
                ("named", bundle.state("").expect("State").pid)
            );
        }
        bundle.remove_pod();
    });
}

#[test]
fn pod_ends_under_its_containers() {
    husk_case(
        "a pod's first container deleted before the others: the VM goes, they report 137 and can \
         be deleted",
        |lab| {
            let events = Events::listen(lab);
            let pod = Bundle::new(lab, "pause", &IDLE);
            let vmm = pod.launch();
            let members = ["left", "right"].map(|name| Bundle::in_pod(&pod, name, &IDLE));
            for member in &members {
                assert_ne!(member.launch(), vmm, "a number of its own");
            }
            members[0].exec("inner", &IDLE);
            pod.kill("", libc::SIGKILL).expect("Kill");
            pod.wait("").expect("Wait");
            for member in &members {
                assert_eq!(member.status(), "RUNNING", "{}", member.id());
            }
            pod.delete("").expect("Delete");
            assert!(!is_running(vmm as i32), "the VM goes on");
            for member in &members {
                assert_eq!(member.wait("").expect("Wait").exit_status, 137);
                assert_eq!(code(member.kill("", libc::SIGKILL)), "NOT_FOUND");
                pod.shutdown().expect("Shutdown while others are there");
                assert_eq!(member.delete("").expect("Delete").exit_status, 137);
            }
            let heard = events.until("left", "/tasks/delete");
            assert_eq!(topics(&heard), "create start exec-added exec-started exit exit delete");
            let exits: Vec<_> = heard.iter().filter(|event| event.topic == "/tasks/exit").collect();
            assert_eq!([exits[0].text("id"), exits[1].text("id")], ["inner", "left"]);
            assert!(exits.iter().all(|event| event.number("exit_status") == 137), "{exits:?}");
            assert_eq!(topics(&events.until("right", "/tasks/delete")), "create start exit delete");
            pod.end_shim();
        },
    );
}

#[test]
fn container_again_in_a_living_pod() {
    husk_case("a container that ended is made again under its name in the same VM", |lab| {
        let pod = Bundle::new(lab, "home", &IDLE);
        pod.launch();
        let vms = pids_of("husk-vmm");
        for round in 0..3 {
            let member = Bundle::in_pod(&pod, "again", &["sh", "-c", "test ! -e /old && >/old"]);
            member.launch();
            assert_eq!(pids_of("husk-vmm"), vms, "the VM of round {round}");
            assert_eq!(member.wait("").expect("Wait").exit_status, 0, "round {round}");
            member.delete("").expect("Delete");
        }
        assert_eq!(pod.status(), "RUNNING");
        pod.remove_pod();
    });
}

#[test]
fn answers_while_a_create_is_under_way() {
    husk_case("State, Stats, Exec and Kill answer while another Create takes its time", |lab| {
        let pod = Bundle::new(lab, "prompt", &IDLE);
        pod.launch();
        let slow = Bundle::in_pod(&pod, "slow", &IDLE);
        let logger = SlowLogger::new();
        let create = slow.create_beside(logger.uri());
        logger.until_it_waits();
        assert_eq!(pod.status(), "RUNNING");
        let request = StatsRequest { id: "prompt".into(), ..Default::default() };
        pod.calls().stats(context(), &request).expect("Stats");
        pod.exec("inner", &["sh", "-c", "exit 5"]);
        assert_eq!(pod.wait("inner").expect("Wait").exit_status, 5);
        // What is not there yet cannot be asked for.
        assert_eq!(code(slow.state("")), "NOT_FOUND");
        pod.exec("other", &IDLE);
        pod.kill("other", libc::SIGKILL).expect("Kill");
        assert_eq!(pod.wait("other").expect("Wait").exit_status, 137);
        assert!(!create.is_finished(), "the other Create did not wait");
        logger.be_ready();
        create.join().expect("a thread").expect("Create");
        slow.start("").expect("Start");
        slow.remove();
        pod.remove_pod();
    });
}

#[test]
fn create_that_is_given_up() {
    husk_case(
        "a Create whose caller is gone or out of patience is undone: the first one of a pod, and \
         another",
        |lab| {
            let vms = pids_of("husk-vmm");
            let pod = Bundle::new(lab, "fickle", &IDLE);
            pod.start_shim();
            for way in [GivenUp::Disconnected, GivenUp::TimedOut] {
                give_up(&pod, way);
                let gone = eventually(LIMIT, || pids_of("husk-vmm") == vms);
                assert!(gone, "the VM of a Create that was given up ({way:?}) is still there");
            }
            pod.create_after_all();
            pod.start("").expect("Start");
            for way in [GivenUp::Disconnected, GivenUp::TimedOut] {
                let member = Bundle::in_pod(&pod, "member", &IDLE);
                give_up(&member, way);
                member.create_after_all();
                member.start("").expect("Start");
                member.remove();
            }
            // At any moment, be it in the guest.
            for limit in [5, 20, 40, 80, 120, 160, 240, 320, 640] {
                let member = Bundle::in_pod(&pod, "hasty", &IDLE);
                let hurry = with_duration(Duration::from_millis(limit));
                if member.calls().create(hurry, &member.create_request()).is_err() {
                    member.create_after_all();
                }
                member.start("").expect("Start");
                member.remove();
            }
            assert_eq!(pod.status(), "RUNNING");
            pod.remove_pod();
        },
    );
}

/// How a caller leaves a Create.
#[derive(Debug, Clone, Copy)]
enum GivenUp {
    Disconnected,
    TimedOut,
}

/// Asks for a Create that takes its time, and gives it up.
fn give_up(bundle: &Bundle, way: GivenUp) {
    let logger = SlowLogger::new();
    let request = CreateTaskRequest { stdout: logger.uri(), ..bundle.create_request() };
    let answer = match way {
        GivenUp::TimedOut => {
            let hurry = with_duration(Duration::from_secs(2));
            bundle.calls().create(hurry, &request)
        }
        GivenUp::Disconnected => {
            let (calls, connection) = bundle.breakable_connection();
            let create = thread::spawn(move || calls.create(context(), &request));
            logger.until_it_waits();
            connection.shutdown(Shutdown::Both).expect("break the connection");
            create.join().expect("a thread")
        }
    };
    answer.expect_err("a Create that was given up");
}
