// SPDX-License-Identifier: Apache-2.0

//! Signals to containers.

use husk_tests::containerd::case;

/// A first process that a signal reaches while it waits.
const TRAP: &str = "trap 'echo caught; exit 42' TERM; echo ready; while :; do sleep 1 & wait; done";

#[test]
fn signal_that_is_handled() {
    case("SIGTERM reaches the container's handler, whose exit code comes back", |lab| {
        let running = lab.attached(&[], "polite", &["sh", "-c", TRAP]);
        running.until_said("ready");
        lab.kill("TERM", "polite");
        assert_eq!(running.wait().ended(42).text(), "ready\ncaught");
    });
}

#[test]
fn kill_and_afterwards() {
    case("SIGKILL gives 137; a finished task can be asked and deleted once, not killed", |lab| {
        lab.detached(&[], "stubborn", &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]);
        lab.kill("TERM", "stubborn");
        lab.ctr(&["tasks", "rm", "stubborn"]).failed_with("stopped");
        assert_eq!(lab.status("stubborn").as_deref(), Some("RUNNING"));
        lab.kill("KILL", "stubborn");
        lab.until_status("stubborn", "STOPPED");
        lab.ctr(&["tasks", "kill", "stubborn"]).failed_with("already finished");
        let removed = lab.ctr(&["tasks", "rm", "stubborn"]).ended(0);
        assert!(removed.error().contains("137"), "{}", removed.error());
        lab.ctr(&["tasks", "rm", "stubborn"]).failed_with("not found");
        lab.ctr(&["tasks", "kill", "stubborn"]).failed_with("not found");
        lab.ctr(&["containers", "rm", "stubborn"]).ended(0);
    });
}

#[test]
fn kill_all() {
    case("kill --all reaches every process of the container", |lab| {
        let script = "
            (trap 'echo child; exit' USR1; echo up; while :; do sleep 1 & wait $!; done) &
            trap 'echo parent; wait; exit 3' USR1
            echo up; while :; do wait; done";
        let running = lab.attached(&[], "family", &["sh", "-c", script]);
        running.until("both to be up", |said| (said.matches("up").count() == 2).then_some(()));
        lab.ctr(&["tasks", "kill", "--all", "-s", "USR1", "family"]).ended(0);
        let said = running.wait().ended(3).text();
        assert!(said.contains("parent") && said.contains("child"), "{said}");
    });
}
