// SPDX-License-Identifier: Apache-2.0

//! stdin, stdout and stderr on pipes, byte for byte.

use std::fs::{self, File};
use std::io::{Read, Write};

use husk_tests::bench::memory;
use husk_tests::containerd::fifos::Fifos;
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::shim::Stdio;
use husk_tests::containerd::{Lab, case, husk_case};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};

const LEN: usize = 10 << 20;

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("random");
    bytes
}

/// The busybox that the sample image was made from.
pub fn busybox() -> Vec<u8> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok())
        .expect("busybox")
}

#[test]
fn stdout_and_stderr() {
    case(
        "10 MB each to stdout and stderr at once arrive whole and apart, to the last byte",
        |lab| {
            let program = busybox();
            let rounds = LEN.div_ceil(program.len());
            let script = format!(
                "s=$(seq {rounds}); for i in $s; do cat /bin/busybox; done & \
             for i in $s; do tail -c +4098 /bin/busybox; done >&2; \
             wait; printf 'no newline'; printf 'nor here' >&2"
            );
            let output = lab.sh("loud", &script).ended(0);
            let expected = [program.repeat(rounds), b"no newline".to_vec()].concat();
            assert_eq!(output.stdout.len(), expected.len(), "bytes of stdout");
            assert_eq!(hash(&output.stdout), hash(&expected), "stdout");
            let expected = [program[4097..].repeat(rounds), b"nor here".to_vec()].concat();
            assert_eq!(output.stderr.len(), expected.len(), "bytes of stderr");
            assert_eq!(hash(&output.stderr), hash(&expected), "stderr");
        },
    );
}

#[test]
fn stdout_of_100_mb() {
    case("100 MB of stdout arrive whole, to a last byte that is no newline", |lab| {
        let program = busybox();
        let rounds = (100usize << 20).div_ceil(program.len());
        let script = format!("for i in $(seq {rounds}); do cat /bin/busybox; done; printf .");
        let said = lab.sh("louder", &script).ended(0).stdout;
        assert_eq!(said.len(), rounds * program.len() + 1, "bytes of stdout");
        let (last, whole) = said.split_last().expect("stdout");
        let wrong = whole.chunks(program.len()).position(|chunk| chunk != program);
        assert_eq!((wrong, *last), (None, b'.'), "the first round that differs; the last byte");
    });
}

#[test]
fn stdin_to_its_end() {
    case("10 MB of stdin go through `cat` and back, and the end of stdin ends it", |lab| {
        let sent = random(LEN);
        let mut cat = lab.attached(&[], "cat", &["cat"]);
        cat.write_and_close(sent.clone());
        let output = cat.wait().ended(0);
        assert_eq!(output.stdout.len(), sent.len(), "bytes of stdout");
        assert_eq!(hash(&output.stdout), hash(&sent));
    });
}

#[test]
fn streams_are_files_in_the_container() {
    case("/dev/stdout and /dev/stderr can be opened in a container", |lab| {
        let output = lab.sh("opened", "echo out >/dev/stdout; echo err >/dev/stderr").ended(0);
        assert_eq!((output.text(), output.error()), ("out".into(), "err".into()));
    });
}

#[test]
fn no_streams() {
    case("a container without streams runs, reads nothing and says nothing", |lab| {
        let output = lab.run(&["--null-io"], "mute", &["sh", "-c", "echo x; cat; exit 3"]).ended(3);
        assert_eq!(output.text(), "");
    });
}

#[test]
fn streams_in_part() {
    case("an exec with only some of the streams has /dev/null for the others", |lab| {
        lab.idle(&[], "part");
        let shim = lab.shim_of("part");
        let process = shim.process(&["sh", "-c", "cat; echo out; echo err >&2; exit 3"]);
        let fifos = Fifos::new();
        let of = |stdin: bool, stdout: bool, stderr: bool| {
            let all = fifos.stdio();
            let keep = |wanted, path| if wanted { path } else { String::new() };
            Stdio {
                stdin: keep(stdin, all.stdin),
                stdout: keep(stdout, all.stdout),
                stderr: keep(stderr, all.stderr),
                terminal: false,
            }
        };
        for (index, wanted) in [(false, true, true), (false, true, false), (false, false, true)]
            .into_iter()
            .enumerate()
        {
            let exec = format!("part-{index}");
            let out = wanted.1.then(|| fifos.read("stdout"));
            let err = wanted.2.then(|| fifos.read("stderr"));
            shim.exec(&exec, &process, &of(wanted.0, wanted.1, wanted.2)).expect("exec");
            shim.start(&exec).expect("start");
            assert_eq!(shim.wait(&exec).expect("wait"), 3);
            assert_eq!(out.map(|out| out.text()), wanted.1.then(|| "out".to_owned()));
            assert_eq!(err.map(|err| err.text()), wanted.2.then(|| "err".to_owned()));
            shim.delete(&exec).expect("delete");
        }
        // Only stdin: it is read to its end.
        let process = shim.process(&["sh", "-c", "read -r word; cat; test \"$word\" = given"]);
        shim.exec("input", &process, &of(true, false, false)).expect("exec");
        shim.start("input").expect("start");
        fifos.stdin().write_all(b"given\nand more").expect("write");
        shim.close_stdin("input").expect("CloseIO");
        assert_eq!(shim.wait("input").expect("wait"), 0, "status of `test`");
        shim.delete("input").expect("delete");
        lab.remove("part");
    });
}

#[test]
fn stdin_ends_by_close_io() {
    case("stdin ends by CloseIO, early or late, and not when a client goes", |lab| {
        lab.idle(&[], "fed");
        let shim = lab.shim_of("fed");
        let cat = shim.process(&["cat"]);

        let fifos = Fifos::new();
        let (mut out, _err) = (fifos.read("stdout"), fifos.read("stderr"));
        shim.exec("late", &cat, &fifos.stdio()).expect("exec");
        shim.start("late").expect("start");
        for word in ["one", "two"] {
            // Each is a client that comes, writes and goes.
            fifos.stdin().write_all(format!("{word}\n").as_bytes()).expect("write");
            out.until_said(word);
        }
        shim.close_stdin("late").expect("CloseIO");
        assert_eq!(shim.wait("late").expect("wait"), 0);
        assert_eq!(out.text(), "one\ntwo");
        shim.delete("late").expect("delete");

        lab.remove("fed");
    });
}

#[test]
fn close_io_before_there_is_stdin() {
    husk_case("CloseIO before a start is not lost, and after a failed start does no harm", |lab| {
        lab.idle(&[], "fed");
        let shim = lab.shim_of("fed");
        let fifos = Fifos::new();
        let (out, _err) = (fifos.read("stdout"), fifos.read("stderr"));
        shim.exec("early", &shim.process(&["cat"]), &fifos.stdio()).expect("exec");
        shim.close_stdin("early").expect("CloseIO");
        shim.start("early").expect("start");
        assert_eq!(shim.wait("early").expect("wait"), 0);
        assert_eq!(out.text(), "");
        shim.delete("early").expect("delete");

        let fifos = Fifos::new();
        let _readers = [fifos.read("stdout"), fifos.read("stderr")];
        shim.exec("failed", &shim.process(&["/bin/nosuch"]), &fifos.stdio()).expect("exec");
        shim.start("failed").expect_err("a start of nothing");
        shim.close_stdin("failed").expect("CloseIO");
        shim.delete("failed").expect("delete");
        lab.remove("fed");
    });
}

#[test]
fn attach_twice() {
    case(
        "a task goes on when its client goes; the next finds what was said, and is heard",
        |lab| {
            let script = "while read -r word; do echo \"<$word>\"; done";
            let words = lab.run_words(&["-d"], "shared", &["sh", "-c", script]);
            // Its stdin stays open, or it would be closed for the task too.
            let starter = lab.ctr_start(&words);
            starter.wait().ended(0);
            for round in ["first", "second"] {
                let mut client = lab.ctr_start(&["tasks", "attach", "shared"]);
                client.write(format!("{round}\n").as_bytes());
                client.until_said(&format!("<{round}>"));
                // It cannot tell anybody that it goes.
                client.signal(Signal::SIGKILL);
                assert_eq!(client.wait().code, 137);
                assert_eq!(lab.status("shared").as_deref(), Some("RUNNING"));
            }
            lab.remove("shared");
        },
    );
}

#[test]
fn output_that_nobody_reads() {
    case("a container whose output nobody reads is killed and removed all the same", |lab| {
        // ctr goes and leaves the FIFOs behind it without a reader.
        lab.detached(&[], "unread", &["sh", "-c", "yes & yes >&2 & wait"]);
        lab.kill("KILL", "unread");
        lab.until_status("unread", "STOPPED");
        lab.remove("unread");
    });
}

/// Most memory of its own that a stream may cost a process of ours: what the vsock device
/// holds of a connection, with room for what an allocator rounds up.
const MEMORY_OF_STREAM: u64 = 384 << 10;

#[test]
fn memory_of_output_that_nobody_reads() {
    husk_case(
        "eight execs write for ever and nobody reads: memory stays bounded, all else goes on",
        |lab| {
            lab.idle(&[], "flood");
            let shim = lab.shim_of("flood");
            let before = own_memory();
            let execs: Vec<_> = (1..=8).map(|number| format!("flood-{number}")).collect();
            let fifos: Vec<_> = execs.iter().map(|_| Fifos::new()).collect();
            for (exec, fifos) in execs.iter().zip(&fifos) {
                shim.exec(exec, &shim.process(&["yes"]), &fifos.outputs()).expect("exec");
                shim.start(exec).expect("start");
            }
            until_blocked(lab, "flood", "yes", execs.len());
            let after = own_memory();
            for ((program, before), (_, after)) in before.iter().zip(&after) {
                let grown = after.saturating_sub(*before);
                println!("{program}: {} KiB more with {} streams", grown >> 10, execs.len());
                assert!(grown < execs.len() as u64 * MEMORY_OF_STREAM, "{program}: {grown} bytes");
            }

            // Kill, Wait and Delete are answered. One delete waits for a reader while it may
            // come; the others come all at once, with the container's.
            for exec in &execs {
                shim.kill(exec, Signal::SIGKILL as u32).expect("kill");
                assert_eq!(shim.wait(exec).expect("wait"), 137);
            }
            assert_eq!(shim.delete(&execs[0]).expect("delete"), 137);
            assert_eq!(lab.exec_sh("flood", "echo still here"), "still here");
            lab.remove("flood");
        },
    );
}

/// Memory that husk-vmm, without guest RAM, and the shim have for themselves, in bytes.
fn own_memory() -> Vec<(&'static str, u64)> {
    let of = |program| match pids_of(program)[..] {
        [pid] => (program, memory::of_process(pid).expect("smaps").anonymous),
        ref pids => panic!("{} processes {program}", pids.len()),
    };
    ["husk-vmm", "containerd-shim-husk-v2"].map(of).to_vec()
}

/// Waits until so many processes of a program sleep and have had no processor between two
/// looks: each waits for room in its pipe.
#[track_caller]
fn until_blocked(lab: &Lab, id: &str, program: &str, count: usize) {
    let script =
        format!("for p in $(pidof {program}); do cut -d' ' -f1,3,14,15 /proc/$p/stat; done");
    let mut before = String::new();
    let blocked = eventually(LIMIT, || {
        let now = lab.exec_sh(id, &script);
        let still =
            now == before && now.lines().filter(|line| line.contains(" S ")).count() == count;
        before = now;
        still
    });
    assert!(blocked, "{count} processes {program} are not blocked:\n{before}");
}
