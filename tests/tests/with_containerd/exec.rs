// SPDX-License-Identifier: Apache-2.0

//! Further processes in a running container.

use containerd_shim_protos::ttrpc::Code;
use husk_tests::containerd::fifos::Fifos;
use husk_tests::containerd::shim::{Stdio, refusal};
use husk_tests::containerd::{case, husk_case};
use nix::sys::signal::Signal;
use serde_json::json;

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

#[test]
fn exec_ids_and_states() {
    husk_case("what an exec's state forbids is refused with the code for it", |lab| {
        lab.idle(&[], "home");
        let shim = lab.shim_of("home");
        let process = shim.process(&["sleep", "5000"]);
        let none = Stdio::default();

        shim.exec("one", &process, &none).expect("exec");
        assert_eq!(refusal(shim.exec("one", &process, &none)).0, Code::ALREADY_EXISTS);
        assert_eq!(shim.delete("one").expect("delete of a created exec"), 0);
        assert_eq!(refusal(shim.start("one")).0, Code::NOT_FOUND);
        assert_eq!(refusal(shim.delete("one")).0, Code::NOT_FOUND);

        // Its id is free again.
        shim.exec("one", &process, &none).expect("exec");
        shim.start("one").expect("start");
        assert_eq!(refusal(shim.start("one")).0, Code::FAILED_PRECONDITION);
        assert_eq!(refusal(shim.delete("one")).0, Code::FAILED_PRECONDITION);
        shim.kill("one", Signal::SIGKILL as u32).expect("kill");
        assert_eq!(shim.wait("one").expect("wait"), 137);
        assert_eq!(refusal(shim.kill("one", Signal::SIGKILL as u32)).0, Code::NOT_FOUND);
        assert_eq!(shim.delete("one").expect("delete"), 137);
        assert_eq!(lab.status("home").as_deref(), Some("RUNNING"));

        shim.exec("late", &process, &none).expect("exec");
        lab.kill("KILL", "home");
        lab.until_status("home", "STOPPED");
        assert_eq!(refusal(shim.start("late")).0, Code::FAILED_PRECONDITION);
        assert_eq!(refusal(shim.exec("later", &process, &none)).0, Code::FAILED_PRECONDITION);
        shim.delete("late").expect("delete");
        lab.remove("home");
    });
}

#[test]
fn exec_that_leaves_a_child() {
    case("an exec whose child holds its output can be deleted, and the child lives on", |lab| {
        lab.idle(&[], "home");
        let shim = lab.shim_of("home");
        let fifos = Fifos::new();
        let (mut out, _err) = (fifos.read("stdout"), fifos.read("stderr"));
        let script = "sleep 5000 & echo child-$!-";
        let process = shim.process(&["sh", "-c", script]);
        shim.exec("parent", &process, &fifos.outputs()).expect("exec");
        shim.start("parent").expect("start");
        assert_eq!(shim.wait("parent").expect("wait"), 0);
        shim.delete("parent").expect("delete");
        let said = out.until_said("-\n");
        let child = said.split('-').nth(1).expect("a pid").to_owned();
        let line = lab.exec_sh("home", &format!("tr '\\0' ' ' </proc/{child}/cmdline"));
        assert_eq!(line, "sleep 5000");
        lab.remove("home");
    });
}

#[test]
fn exec_is_as_its_process_says() {
    case("an exec has the user, groups, capabilities and limits of its own Process", |lab| {
        lab.idle(&["--seccomp"], "home");
        let shim = lab.shim_of("home");
        let mut process = shim.process(&["sh", "-c", "cat /proc/self/status; ulimit -n; umask"]);
        process["user"] =
            json!({"uid": 1234, "gid": 2345, "additionalGids": [3456, 4567], "umask": 0o27});
        process["noNewPrivileges"] = true.into();
        let some = json!(["CAP_CHOWN", "CAP_NET_RAW"]);
        process["capabilities"] = json!({
            "bounding": some, "permitted": some, "effective": some, "inheritable": some,
            "ambient": some,
        });
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
        let ran = shim.run("other", &process);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        let field = |name: &str| {
            let line = ran.stdout.lines().find_map(|line| line.strip_prefix(name));
            let words = line.unwrap_or_else(|| panic!("no {name} in:\n{}", ran.stdout));
            words.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(field("Uid:"), "1234 1234 1234 1234");
        assert_eq!(field("Gid:"), "2345 2345 2345 2345");
        assert_eq!(field("Groups:"), "3456 4567");
        assert_eq!(field("NoNewPrivs:"), "1");
        // CAP_CHOWN is bit 0, CAP_NET_RAW bit 13.
        for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(name), "0000000000002001", "{name}");
        }
        assert_eq!(field("Seccomp:"), "2", "the container's filter");
        let last: Vec<_> = ran.stdout.lines().rev().take(2).collect();
        assert_eq!(last, ["0027", "77"], "umask and limit of files");

        let script = "for n in /proc/self/ns/*; do readlink $n /proc/1/ns/${n##*/}; done | \
            uniq -u; cat /proc/self/cgroup /proc/1/cgroup | uniq -u";
        let ran = shim.run("same", &shim.process(&["sh", "-c", script]));
        assert_eq!((ran.status, ran.stdout.as_str()), (0, ""), "namespaces or cgroups that differ");
        lab.remove("home");
    });
}

#[test]
fn exec_in_a_missing_directory() {
    case("an exec in a directory that is missing is refused by its name", |lab| {
        lab.idle(&[], "home");
        let missing = lab.exec(&["--cwd", "/nosuch/place"], "home", &["true"]);
        missing.failed_with("/nosuch/place");
        assert_eq!(lab.exec_sh("home", "echo still here"), "still here");
        lab.remove("home");
    });
}
