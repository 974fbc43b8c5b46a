// SPDX-License-Identifier: Apache-2.0

//! Further processes in a running container.

use husk_tests::containerd::case;

#[test]
fn exec_in_a_running_container() {
    case(
        "an exec has the container's view, its own streams, user, directory and exit code",
        |lab| {
            lab.idle(&["--env", "GIVEN=by the container"], "place");

            let script = "echo out; echo err >&2; exit 7";
            let output = lab.exec(&[], "place", &["sh", "-c", script]).ended(7);
            assert_eq!((output.text(), output.error()), ("out".into(), "err".into()));

            let script = "id -u; pwd; echo $GIVEN; tr '\\0' ' ' </proc/1/cmdline; cmp /proc/1/cgroup /proc/self/cgroup";
            let flags = ["--user", "65534", "--cwd", "/tmp"];
            let said = lab.exec(&flags, "place", &["sh", "-c", script]).ended(0).text();
            assert_eq!(said, "65534\n/tmp\nby the container\nsleep 100000");

            // The end of stdin reaches it.
            let mut cat = lab.exec_start(&[], "place", &["sh", "-c", "cat; echo end"]);
            cat.write(b"to and fro\n");
            cat.until_said("to and fro");
            cat.close_stdin();
            assert_eq!(cat.wait().ended(0).text(), "to and fro\nend");

            // Signals 15 and 11: 128 more.
            lab.exec(&[], "place", &["sh", "-c", "kill -TERM $$"]).ended(143);
            lab.exec(&[], "place", &["sh", "-c", "kill -SEGV $$"]).ended(139);

            // 100 KB in one argument.
            let long = "x".repeat(100_000);
            let said =
                lab.exec(&[], "place", &["sh", "-c", "echo ${#1}", "sh", &long]).ended(0).text();
            assert_eq!(said, "100000");

            lab.remove("place");
        },
    );
}

#[test]
fn execs_at_once() {
    case("eight execs at once each get their own output and exit code", |lab| {
        lab.idle(&[], "busy");
        let script = "for i in 1 2 3 4 5 6 7 8 9; do echo $1; done; exit $1";
        let numbers: Vec<String> = (1..=8).map(|number| number.to_string()).collect();
        let start = |number| lab.exec_start(&[], "busy", &["sh", "-c", script, "sh", number]);
        let running: Vec<_> = numbers.iter().map(|number| start(number.as_str())).collect();
        for (running, number) in running.into_iter().zip(1..) {
            assert_eq!(
                running.wait().ended(number).text(),
                [number.to_string().as_str(); 9].join("\n")
            );
        }
        lab.remove("busy");
    });
}

#[test]
fn exec_that_stays() {
    case("a detached exec is listed, its id is taken, and it can be killed alone", |lab| {
        lab.idle(&[], "home");
        let exec = ["tasks", "exec", "-d", "--exec-id", "guest", "home", "sleep", "5000"];
        lab.ctr(&exec).ended(0);
        let list = lab.ctr(&["tasks", "ps", "home"]).ended(0).text();
        assert_eq!(list.lines().count(), 3, "a heading and two processes:\n{list}");
        lab.ctr(&exec).failed_with("already exists");

        lab.ctr(&["tasks", "kill", "-s", "KILL", "--exec-id", "guest", "home"]).ended(0);
        // The exec's status is 137, so is ctr's.
        let removed = husk_tests::containerd::process::eventually(
            husk_tests::containerd::process::LIMIT,
            || lab.ctr(&["tasks", "rm", "--exec-id", "guest", "home"]).code == 137,
        );
        assert!(removed, "the killed exec cannot be removed");
        assert_eq!(lab.status("home").as_deref(), Some("RUNNING"));
        // Its id is free again.
        let exec = ["tasks", "exec", "--exec-id", "guest", "home", "true"];
        lab.ctr(&exec).ended(0);
        lab.remove("home");
    });
}

#[test]
fn exec_without_a_running_container() {
    case("no exec in a container that has ended", |lab| {
        lab.detached(&[], "ended", &["true"]);
        lab.until_status("ended", "STOPPED");
        let output = lab.exec(&[], "ended", &["true"]);
        assert_ne!(output.code, 0, "{}", output.line);
        lab.remove("ended");
    });
}
