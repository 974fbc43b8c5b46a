// SPDX-License-Identifier: Apache-2.0

//! One container, started and ended.

use std::path::Path;
use std::process::Command;

use husk_tests::containerd::process::Running;
use husk_tests::containerd::{case, husk_case};

#[test]
fn exit_codes() {
    case("a container's exit code is that of `ctr run`: 7 and 255", |lab| {
        lab.sh("seven", "exit 7").ended(7);
        lab.sh("most", "exit 255").ended(255);
    });
}

#[test]
fn process_as_asked() {
    case("arguments, environment, directory, user and limits are as asked", |lab| {
        let flags = ["--env", "GREETING=hello  there", "--cwd", "/tmp"];
        let script =
            r#"printf '<%s>' "$@"; echo; echo "$GREETING"; pwd; id -u; ulimit -n; echo $$"#;
        let words = ["sh", "-c", script, "name", "a b", "", "'quoted\"", "line\nbreak", "$HOME"];
        let said = lab.run(&flags, "asked", &words).ended(0).text();
        let expected = "<a b><><'quoted\"><line\nbreak><$HOME>\nhello  there\n/tmp\n0\n1024\n1";
        assert_eq!(said, expected);
    });
}

#[test]
fn namespaces_and_confinement() {
    case("a container has its own namespaces, few rights and a masked /proc", |lab| {
        let script = "
            echo processes $(ls /proc | grep -c '^[0-9]')
            grep -E '^(NoNewPrivs|CapEff)' /proc/self/status
            echo kcore $(head -c 1 /proc/kcore | wc -c)
            echo sysctl $( (echo 1 >/proc/sys/kernel/panic) 2>&1 | grep -c 'Read-only')
            echo mqueue $(grep -c ' /dev/mqueue mqueue' /proc/mounts)
            echo shm $(grep -c ' /dev/shm tmpfs' /proc/mounts)
            echo devices $(ls -d /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty)
            echo null >/dev/null && head -c 3 /dev/zero | od -An -tx1
            (head -c 1 /dev/mem || cat /dev/kmsg) 2>/dev/null; echo";
        let said = lab.sh("confined", script).ended(0).text();
        let has = |line: &str| assert!(said.contains(line), "no '{line}' in:\n{said}");
        // The shell, that of the substitution, ls; grep may not be up yet.
        assert!(
            ["processes 3\n", "processes 4\n"].iter().any(|line| said.starts_with(line)),
            "{said}"
        );
        has("NoNewPrivs:\t1");
        // The 14 capabilities that containerd gives.
        has("CapEff:\t00000000a80425fb");
        has("kcore 0");
        has("sysctl 1");
        has("mqueue 1");
        has("shm 1");
        has("devices /dev/full /dev/null /dev/random /dev/tty /dev/urandom /dev/zero");
        has(" 00 00 00");
    });
}

#[test]
fn start_again() {
    case("a container that was kept can be started again, by its id, with what it wrote", |lab| {
        let script = "cat /kept 2>/dev/null || echo first; echo second >/kept";
        let words = lab.run_words(&[], "again", &["sh", "-c", script]);
        assert_eq!(lab.ctr(&words).ended(0).text(), "first");
        assert_eq!(lab.ctr(&["tasks", "start", "again"]).ended(0).text(), "second");
        lab.ctr(&["containers", "rm", "again"]).ended(0);
    });
}

#[test]
fn demo() {
    husk_case("what `make run` shows: another kernel than the host's, a limit, a PID 1", |lab| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/demo");
        let demo = Running::start(Command::new(script).env("HUSK_DEMO_RUNTIME", lab.runtime()));
        let said = demo.wait().ended(0).text();
        let value = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no '{name}' in:\n{said}")).trim().to_owned()
        };
        let (host, guest) = (value("host kernel:"), value("guest kernel:"));
        assert!(
            host.starts_with("Linux ") && guest.starts_with("Linux ") && host != guest,
            "{said}"
        );
        assert_eq!(value("greeting:"), "Hello from a container in a microVM");
        assert_eq!(value("memory limit:"), "67108864 bytes");
        let (_, processes) = said.split_once("as PID 1 sees them:").expect("a list of processes");
        assert!(processes.lines().any(|line| line.trim().starts_with("1 root ")), "{said}");
    });
}
