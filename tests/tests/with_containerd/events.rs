// SPDX-License-Identifier: Apache-2.0

//! containerd's events, in order.

use husk_tests::containerd::case;
use husk_tests::containerd::events::{Events, topics};

#[test]
fn twenty_rounds() {
    case("20 containers that end at once: create, start, exit, delete each, nothing left", |lab| {
        let events = Events::listen(lab);
        for round in 1..=20 {
            let id = format!("round-{round}");
            let output = lab.run(&[], &id, &["true"]).ended(0);
            assert_eq!(output.error(), "");
            let heard = events.until(&id, "/tasks/delete");
            assert_eq!(topics(&heard), "create start exit delete", "round {round}");
            assert!(heard.iter().all(|event| event.number("exit_status") == 0));
            let pids: Vec<_> = heard.iter().map(|event| event.number("pid")).collect();
            assert!(pids[1] > 0 && pids[1..].iter().all(|&pid| pid == pids[1]), "{heard:?}");
        }
        for round in 1..=20 {
            let heard = events.of(&format!("round-{round}"));
            assert_eq!(topics(&heard), "create start exit delete", "at the end, of {round}");
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
