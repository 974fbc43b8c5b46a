// SPDX-License-Identifier: Apache-2.0

//! Exec and Attach as `kubectl` has them: over a WebSocket to containerd's streaming server.

use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::case;
use husk_tests::cri::streaming::{Channels, STATUS, STDERR, STDIN, STDOUT, Wants};

const OUTPUT_ONLY: Wants = Wants { stdin: false, tty: false };
const INPUT: Wants = Wants { stdin: true, tty: false };
const TERMINAL: Wants = Wants { stdin: true, tty: true };

/// Waits for a size that was asked for, and then says so.
const UNTIL_SIZED: &str =
    "until test \"$(stty size)\" = '33 91'; do usleep 10000; done; echo sized";

#[test]
fn exec() {
    case(
        "Exec: streams apart, stdin, exit code; a megabyte; a client that leaves ends stdin",
        |cri| {
            let pod = cri.pod("streamed", |_| {});
            let container = pod.idle("main");
            let line = "read line; echo got $line; echo err >&2; exit 7";
            let exec = container.exec_stream(&["sh", "-c", line], INPUT);
            exec.send(STDIN, b"hello\n");
            assert_eq!(exec.exit_code(), 7);
            assert_eq!(
                (exec.said(STDOUT), exec.said(STDERR)),
                ("got hello\n".into(), "err\n".into())
            );

            let exec = container.exec_stream(&["true"], OUTPUT_ONLY);
            assert_eq!(exec.exit_code(), 0);

            let exec = container.exec_stream(&["sh", "-c", "yes | head -c 1000000"], OUTPUT_ONLY);
            assert_eq!(exec.to_its_end(STDOUT).len(), 1_000_000);

            let exec = container.exec_stream(&["/no/such/program"], OUTPUT_ONLY);
            let said = exec.to_its_end(STATUS);
            assert!(said.contains("/no/such/program"), "{said}");

            let exec = container.exec_stream(&["sh", "-c", "echo on; cat >/read; >/ended"], INPUT);
            exec.until_said(STDOUT, "on");
            exec.send(STDIN, b"all of it");
            container.until_sh("grep -q 'all of it' /read");
            assert!(
                container.exec(&["test", "-e", "/ended"], 0).is_ok_and(|done| done.exit_code == 1)
            );
            drop(exec);
            container.until_sh("test -e /ended");
            pod.remove();
        },
    );
}

#[test]
fn exec_on_a_terminal() {
    case("Exec with a terminal: echo, size, one output, Ctrl-C, exit code", |cri| {
        let pod = cri.pod("typing", |_| {});
        let container = pod.idle("main");
        let shell = container.exec_stream(&["sh"], TERMINAL);
        shell.send(STDIN, b"tty; echo err >&2; echo $((6 * 7))\n");
        shell.until_said(STDOUT, "/dev/pts/");
        shell.until_said(STDOUT, "err\r\n");
        shell.until_said(STDOUT, "42\r\n");
        shell.resize(33, 91);
        shell.send(STDIN, format!("{UNTIL_SIZED}\n").as_bytes());
        shell.until_said(STDOUT, "\nsized\r\n");
        shell.send(STDIN, b"echo go; sleep 4242\n");
        shell.until_said(STDOUT, "\ngo\r\n");
        let sleeps = || container.command_lines().contains("sleep 4242");
        assert!(eventually(LIMIT, sleeps), "it does not sleep");
        shell.send(STDIN, b"\x03");
        assert!(eventually(LIMIT, || !sleeps()), "Ctrl-C does not end it");
        shell.send(STDIN, b"exit 5\n");
        assert_eq!(shell.exit_code(), 5);
        assert_eq!(shell.said(STDERR), "");
        pod.remove();
    });
}

/// Attaches, says a word and hears it.
fn say(attached: &Channels, word: &str) {
    attached.send(STDIN, format!("{word}\n").as_bytes());
    attached.until_said(STDOUT, &format!("heard {word}"));
}

#[test]
fn attach() {
    case(
        "Attach: input and both outputs of a running container, left and attached again, two at a time; the log has all; with stdin_once the first client's end is the input's",
        |cri| {
            let pod = cri.pod("attached", |_| {});
            let line = "while read word; do test $word = end && exit 6; echo heard $word; echo err $word >&2; done; exit 1";
            let talking = pod.start("talking", &["sh", "-c", line], |config| config.stdin = true);
            let first = talking.attach(INPUT);
            say(&first, "one");
            first.until_said(STDERR, "err one");
            drop(first);
            let again = talking.attach(INPUT);
            say(&again, "two");
            // containerd lets go of one that wants no stdin where there is one.
            let watching = talking.attach(INPUT);
            let mut round = 0;
            let watches = eventually(LIMIT, || {
                round += 1;
                say(&again, &format!("round-{round}"));
                !watching.said(STDOUT).is_empty()
            });
            assert!(watches, "the second client hears nothing");
            assert!(!again.said(STDOUT).contains("heard one"), "what was said before it came");
            again.send(STDIN, b"end\n");
            assert_eq!(talking.exit_code(), 6);
            again.to_its_end(STDOUT);
            watching.to_its_end(STDOUT);
            talking.until_logged("heard two");
            assert!(talking.logged("stdout").starts_with("heard one\nheard two\n"));

            let once = pod.start("once", &["sh", "-c", "cat; exit 4"], |config| {
                config.stdin = true;
                config.stdin_once = true;
            });
            let attached = once.attach(INPUT);
            attached.send(STDIN, b"words");
            attached.until_said(STDOUT, "words");
            drop(attached);
            assert_eq!(once.exit_code(), 4);
            pod.remove();
        },
    );
}

#[test]
fn attach_to_a_terminal() {
    case(
        "Attach to a container with a terminal: input, size, and again after it was left",
        |cri| {
            let pod = cri.pod("screen", |_| {});
            let container = pod.start("main", &["sh"], |config| {
                config.stdin = true;
                config.tty = true;
            });
            let attached = container.attach(TERMINAL);
            attached.resize(33, 91);
            attached.send(STDIN, format!("{UNTIL_SIZED}\n").as_bytes());
            attached.until_said(STDOUT, "\nsized\r\n");
            drop(attached);
            assert!(container.is_running());
            let attached = container.attach(TERMINAL);
            attached.send(STDIN, b"echo $((6 * 7)); exit 3\n");
            assert_eq!(container.exit_code(), 3);
            assert!(attached.to_its_end(STDOUT).contains("42\r\n"));
            pod.remove();
        },
    );
}
