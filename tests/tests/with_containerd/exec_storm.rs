// SPDX-License-Identifier: Apache-2.0

//! Many execs, at once and one after the other.

use std::fs;

use husk_tests::containerd::fifos::Fifos;
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{case, husk_case};

const AT_ONCE: usize = 50;
const IN_A_ROW: usize = 500;

#[test]
fn at_once() {
    case("fifty execs at once, every third on a terminal, keep their output and status", |lab| {
        lab.idle(&[], "busy");
        let shim = lab.shim_of("busy");
        // All are there before the first may end.
        let script = "echo begun; read -r word; seq $1; echo got-$word; exit $1";
        let mut execs = Vec::new();
        for number in 1..=AT_ONCE {
            let exec = format!("storm-{number}");
            let fifos = Fifos::new();
            let stdio = if number % 3 == 0 { fifos.terminal() } else { fifos.stdio() };
            let mut process = shim.process(&["sh", "-c", script, "sh", &number.to_string()]);
            process["terminal"] = stdio.terminal.into();
            let stdout = fifos.read("stdout");
            // Not used, but runc's shim waits for its reader.
            let stderr = (!stdio.terminal).then(|| fifos.read("stderr"));
            shim.exec(&exec, &process, &stdio).expect("exec");
            shim.start(&exec).expect("start");
            execs.push((number, exec, fifos, stdout, stderr));
        }
        for (_, _, fifos, stdout, _) in &mut execs {
            stdout.until_said("begun");
            std::io::Write::write_all(&mut fifos.stdin(), b"word\n").expect("write");
        }
        for (number, exec, _fifos, stdout, _) in execs {
            assert_eq!(shim.wait(&exec).expect("wait"), number as u32, "status of {exec}");
            let said = stdout.text().replace('\r', "");
            // A terminal shows what is typed.
            let said: Vec<_> = said.lines().filter(|line| *line != "word").collect();
            let numbers: Vec<_> = (1..=number).map(|n| n.to_string()).collect();
            assert_eq!(said.join(" "), format!("begun {} got-word", numbers.join(" ")), "{exec}");
            assert_eq!(shim.delete(&exec).expect("delete"), number as u32);
        }
        lab.remove("busy");
    });
}

#[test]
fn in_a_row() {
    husk_case(
        "500 execs of one id in a row, with pipes, a terminal or nothing, leave nothing behind",
        |lab| {
            lab.idle(&[], "long");
            let shim = lab.shim_of("long");
            let one = |round: usize| {
                let fifos = Fifos::new();
                let stdio = match round % 3 {
                    0 => fifos.outputs(),
                    1 => fifos.terminal(),
                    _ => Default::default(),
                };
                let word = format!("round-{round}");
                let mut process = shim.process(&["echo", &word]);
                process["terminal"] = stdio.terminal.into();
                let stdout = (!stdio.stdout.is_empty()).then(|| fifos.read("stdout"));
                shim.exec("again", &process, &stdio).expect("exec");
                shim.start("again").expect("start");
                assert_eq!(shim.wait("again").expect("wait"), 0, "{word}");
                if let Some(stdout) = stdout {
                    assert_eq!(stdout.text(), word);
                }
                shim.delete("again").expect("delete");
            };
            let in_guest = || lab.exec_sh("long", "set -- /proc/[0-9]* /proc/1/fd/*; echo $#");
            (0..6).for_each(one);
            // In this order: what the guest has looked up of its root stays open.
            let seen_before = in_guest();
            let before = descriptors();
            (6..IN_A_ROW).for_each(one);
            // The last connections may still be closing.
            let grown = || {
                let pairs = descriptors().into_iter().zip(&before);
                pairs.filter(|(now, before)| now.1 > before.1).collect::<Vec<_>>()
            };
            assert!(eventually(LIMIT, || grown().is_empty()), "now and before: {:?}", grown());
            assert_eq!(in_guest(), seen_before, "processes and files in the container");
            lab.remove("long");
        },
    );
}

/// Open descriptors of our processes on the host.
fn descriptors() -> Vec<(&'static str, usize)> {
    let count = |pid| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let of = |program| pids_of(program).into_iter().map(move |pid| (program, count(pid)));
    ["husk-vmm", "containerd-shim-husk-v2"].into_iter().flat_map(of).collect()
}
