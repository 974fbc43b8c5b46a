// SPDX-License-Identifier: Apache-2.0

//! Pause and resume.

use husk_tests::containerd::case;
use husk_tests::containerd::process::{LIMIT, eventually};

#[test]
fn pause_and_resume() {
    case("a paused container stands still and goes on when resumed", |lab| {
        let script = "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done";
        let counter = lab.attached(&[], "counter", &["sh", "-c", script]);
        let lines = || counter.stdout().lines().count();
        counter.until("a count", |said| (said.lines().count() > 3).then_some(()));

        lab.ctr(&["tasks", "pause", "counter"]).ended(0);
        assert_eq!(lab.status("counter").as_deref(), Some("PAUSED"));
        // What was said before may still be on its way: wait until no more comes while ctr
        // runs once, which takes far longer than counting does.
        let settled = eventually(LIMIT, || {
            let before = lines();
            lab.status("counter");
            lines() == before
        });
        assert!(settled, "the counter goes on");
        let stopped_at = lines();
        for _ in 0..3 {
            assert_eq!(lab.status("counter").as_deref(), Some("PAUSED"));
        }
        assert_eq!(lines(), stopped_at, "lines while paused");

        lab.ctr(&["tasks", "resume", "counter"]).ended(0);
        counter.until("more", |said| (said.lines().count() > stopped_at + 3).then_some(()));
        lab.kill("KILL", "counter");
        let text = counter.wait().ended(137).text();
        let expected = (1..=text.lines().count()).map(|number| number.to_string());
        assert!(text.lines().eq(expected), "no number is lost:\n{text}");
    });
}
