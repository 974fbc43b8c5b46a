// SPDX-License-Identifier: Apache-2.0

//! containerd's events, in order.

use std::fs;

use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::events::{Event, Events, topics};
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{Lab, case, husk_case};

/// Rounds of a storm; HUSK_TEST_ROUNDS asks for another number.
fn rounds() -> usize {
    std::env::var("HUSK_TEST_ROUNDS").map_or(200, |text| text.parse().expect("a number of rounds"))
}

/// Whole containers take their time: so many for each round of a storm in one VM.
const ROUNDS_FOR_ONE: usize = 10;

/// How many containers come and go at once.
const AT_ONCE: usize = 4;

#[test]
fn containers_that_end_at_once() {
    let ids: Vec<_> = (0..rounds() / ROUNDS_FOR_ONE).map(|n| format!("round-{n}")).collect();
    let subject = format!(
        "{} containers that end at once, {AT_ONCE} at a time: create, start, exit, delete each, \
         nothing left",
        ids.len()
    );
    case(&subject, |lab| {
        let events = Events::listen(lab);
        for wave in ids.chunks(AT_ONCE) {
            let running = wave.iter().map(|id| lab.attached(&[], id, &["true"]));
            for running in running.collect::<Vec<_>>() {
                assert_eq!(running.wait().ended(0).error(), "");
            }
        }
        for id in &ids {
            let heard = events.until(id, "/tasks/delete");
            assert_eq!(topics(&heard), "create start exit delete", "{id}");
            assert!(heard.iter().all(|event| event.number("exit_status") == 0));
            let pids: Vec<_> = heard.iter().map(|event| event.number("pid")).collect();
            assert!(pids[1] > 0 && pids[1..].iter().all(|&pid| pid == pids[1]), "{heard:?}");
        }
    });
}

#[test]
fn exec_exits_before_its_container() {
    case("an exec's events come in order, its exit before that of the container", |lab| {
        let events = Events::listen(lab);
        lab.idle(&[], "both");
        let exec = ["tasks", "exec", "-d", "--exec-id", "inner", "both", "sleep", "5000"];
        lab.ctr(&exec).ended(0);
        lab.kill("KILL", "both");
        lab.until_status("both", "STOPPED");
        lab.remove("both");
        let heard = events.until("both", "/tasks/delete");
        assert_eq!(topics(&heard), "create start exec-added exec-started exit exit delete");
        let exits: Vec<_> = heard.iter().filter(|event| event.topic == "/tasks/exit").collect();
        let ids: Vec<_> = exits.iter().map(|event| event.text("id")).collect();
        assert_eq!(ids, ["inner", "both"]);
        assert!(exits.iter().all(|event| event.number("exit_status") == 137), "{exits:?}");
    });
}

/// Descriptors that the pod's daemon and its VM's process have open.
fn descriptors(pod: &Bundle) -> [usize; 2] {
    let pids = [pod.daemon(), pod.state("").expect("State").pid];
    pids.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").count())
}

/// Runs a round many times with a pod's first container beside it: no descriptor may be left
/// in the pod's processes.
fn storm(lab: &Lab, round: impl Fn(&Bundle, usize)) {
    let pod = Bundle::new(lab, "storm", &["sleep", "100000"]);
    pod.launch();
    round(&pod, 0);
    let before = descriptors(&pod);
    for number in 1..=rounds() {
        round(&pod, number);
    }
    let mut after = before;
    let same = eventually(LIMIT, || {
        after = descriptors(&pod);
        after == before
    });
    assert!(same, "descriptors of shim and VMM: {before:?}, later {after:?}");
    pod.remove_pod();
}

#[test]
fn storm_of_short_containers() {
    let subject = format!("{} containers of a pod that end at once: events in order", rounds());
    husk_case(&subject, |lab| {
        let events = Events::listen(lab);
        storm(lab, |pod, number| {
            let short = Bundle::in_pod(pod, &format!("short-{number}"), &["true"]);
            short.launch();
            assert_eq!(short.wait("").expect("Wait").exit_status, 0, "round {number}");
            short.delete("").expect("Delete");
        });
        events.until("storm", "/tasks/delete");
        for number in 0..=rounds() {
            let heard = events.of(&format!("short-{number}"));
            assert_eq!(topics(&heard), "create start exit delete", "round {number}");
        }
    });
}

#[test]
fn storm_of_kills_and_execs() {
    let subject = format!(
        "{} containers killed under execs that run, end and start: one exit for each process, \
         after its start, the container's last",
        rounds()
    );
    husk_case(&subject, |lab| {
        let events = Events::listen(lab);
        storm(lab, |pod, number| {
            let victim = Bundle::in_pod(pod, &format!("victim-{number}"), &["sleep", "100000"]);
            victim.launch();
            victim.exec("long", &["sleep", "100000"]);
            victim.exec("short", &["true"]);
            victim.add_exec("late", &["sleep", "100000"]).expect("Exec");
            let late = victim.start_beside("late");
            victim.kill("", libc::SIGKILL).expect("Kill");
            assert_eq!(victim.wait("").expect("Wait").exit_status, 137, "round {number}");
            // It came before the kill or after it.
            let _ = late.join().expect("a thread");
            victim.delete("").expect("Delete");
        });
        events.until("storm", "/tasks/delete");
        for number in 0..=rounds() {
            check_order(&events.of(&format!("victim-{number}")));
        }
    });
}

/// One container's events: nothing before it was created, nothing after its exit but its
/// delete, each process one exit and not before its start.
fn check_order(events: &[Event]) {
    let of = |event: &Event| match event.topic.as_str() {
        "/tasks/exit" => event.text("id").to_owned(),
        _ => event.text("exec_id").to_owned(),
    };
    let all = topics(events);
    assert!(all.starts_with("create start ") && all.ends_with(" exit delete"), "{events:#?}");
    assert_eq!(of(&events[events.len() - 2]), events[0].container(), "{events:#?}");
    for exec in ["long", "short", "late"] {
        let own: Vec<_> = events.iter().filter(|event| of(event) == exec).cloned().collect();
        let own = topics(&own);
        let whole = "exec-added exec-started exit";
        assert!(own == whole || exec == "late" && own == "exec-added", "{exec}: {events:#?}");
    }
    let exits = events.iter().filter(|event| event.topic == "/tasks/exit");
    let own = exits.filter(|event| of(event) == events[0].container());
    assert_eq!(own.count(), 1, "exits of the container: {events:#?}");
}
