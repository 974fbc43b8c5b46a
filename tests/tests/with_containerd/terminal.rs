// SPDX-License-Identifier: Apache-2.0

//! Containers on a terminal. What is typed is echoed, so the words that are waited for never
//! stand in what was typed.

use std::io::Write;

use husk_tests::containerd::case;
use husk_tests::containerd::fifos::Fifos;
use husk_tests::containerd::process::{LIMIT, Running, Size, eventually};

const SIZE: Size = Size { rows: 40, columns: 100 };

/// Types the question until the answer comes: a size reaches the container on a path of its
/// own, and may be later than what was typed.
#[track_caller]
fn ask_size_until(shell: &mut Running, answer: &str) {
    let reached = eventually(LIMIT, || {
        let count = |said: &str| said.matches("size=<").count() - said.matches("size=<$").count();
        let before = count(&shell.stdout());
        shell.write(b"echo \"size=<$(stty size)>\"\n");
        shell.until("an answer to stty size", |said| (count(said) > before).then_some(()));
        shell.stdout().contains(&format!("size=<{answer}>"))
    });
    assert!(reached, "the terminal's size did not become {answer}:\n{}", shell.stdout());
}

#[test]
fn shell_on_a_terminal() {
    case(
        "a terminal has its size, follows a resize, interrupts by ^C and keeps all output",
        |lab| {
            let words = lab.run_words(&["--rm", "-t"], "shell", &["sh"]);
            let mut shell = lab.ctr_on_terminal(SIZE, &words);
            ask_size_until(&mut shell, "40 100");
            shell.resize(Size { rows: 50, columns: 132 });
            ask_size_until(&mut shell, "50 132");

            shell.write(
                b"tty; test -t 0 && test -t 1 && test -t 2 && echo all-$((1+1))-terminals\n",
            );
            shell.until_said("all-2-terminals");

            shell.write(b"echo go-$((1+1)); sleep 100000\n");
            shell.until_said("go-2");
            // The shell may not have started sleep yet; ^C at its prompt does no harm.
            let interrupted = eventually(LIMIT, || {
                shell.write(b"\x03");
                shell.write(b"echo status-$?-$((1+1))\n");
                eventually(std::time::Duration::from_secs(2), || {
                    shell.stdout().contains("status-130-2")
                })
            });
            assert!(interrupted, "^C did not end sleep:\n{}", shell.stdout());

            // The last of it must not be lost with the process.
            shell.write(b"echo from-$((1+1)); seq 10001 15000; exit 5\n");
            // Each of the two terminals adds its own carriage returns.
            let text = shell.wait().ended(5).text().replace('\r', "");
            let numbers = text.split("from-2\n").nth(1).expect("numbers");
            assert!(
                numbers.lines().eq((10001..=15000).map(|number| number.to_string())),
                "not all the numbers:\n{numbers}"
            );
        },
    );
}

#[test]
fn exec_on_a_terminal() {
    case("an exec has a terminal of its own with its size; its exit code comes back", |lab| {
        lab.idle(&[], "place");
        let words = lab.exec_words(&["-t"], "place", &["sh"]);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut shell = lab.ctr_on_terminal(SIZE, &words);
        ask_size_until(&mut shell, "40 100");
        shell.write(b"exit 9\n");
        shell.wait().ended(9);
        lab.remove("place");
    });
}

#[test]
fn terminal_resized_before_its_start() {
    case("a size set before the start is there from the first instruction on", |lab| {
        lab.idle(&[], "early");
        let shim = lab.shim_of("early");
        let fifos = Fifos::new();
        let out = fifos.read("stdout");
        let mut process = shim.process(&["stty", "size"]);
        process["terminal"] = true.into();
        shim.exec("sized", &process, &fifos.terminal()).expect("exec");
        shim.resize("sized", Size { rows: 33, columns: 77 }).expect("resize");
        shim.start("sized").expect("start");
        assert_eq!(shim.wait("sized").expect("wait"), 0);
        assert_eq!(out.text(), "33 77");
        shim.delete("sized").expect("delete");
        lab.remove("early");
    });
}

#[test]
fn end_of_a_terminal() {
    case(
        "a terminal's output comes whole and ends by itself; ^D ends the input, a hang-up all",
        |lab| {
            lab.idle(&[], "talk");
            let shim = lab.shim_of("talk");
            let start = |exec: &str, args: &[&str]| {
                let fifos = Fifos::new();
                let out = fifos.read("stdout");
                let mut process = shim.process(args);
                process["terminal"] = true.into();
                shim.exec(exec, &process, &fifos.terminal()).expect("exec");
                shim.start(exec).expect("start");
                (fifos, out)
            };
            // More than pipe, connection and FIFO hold. The output ends before the delete.
            let (_fifos, out) = start("large", &["seq", "200000"]);
            let said = out.text();
            let numbers = (1..=200_000).map(|number| number.to_string());
            assert!(said.lines().eq(numbers), "{} lines", said.lines().count());
            assert_eq!(shim.wait("large").expect("wait"), 0);
            shim.delete("large").expect("delete");

            let (fifos, mut out) = start("typed", &["cat"]);
            fifos.stdin().write_all(b"word\n").expect("write");
            // Once as echo, once from cat.
            out.until_said("word\r\nword\r\n");
            fifos.stdin().write_all(b"\x04").expect("write");
            assert_eq!(shim.wait("typed").expect("wait"), 0);
            shim.delete("typed").expect("delete");

            // What is left behind holds the terminal no longer.
            let left = "mkfifo /tmp/ready; (trap '' HUP; echo left >/tmp/ready; exec sleep 100000) & \
                        cat /tmp/ready; exit 4";
            let (_fifos, out) = start("left", &["sh", "-c", left]);
            assert_eq!(shim.wait("left").expect("wait"), 4);
            assert_eq!(out.text(), "left");
            shim.delete("left").expect("delete");
            lab.remove("talk");
        },
    );
}
