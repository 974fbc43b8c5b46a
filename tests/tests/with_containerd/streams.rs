// SPDX-License-Identifier: Apache-2.0

//! stdin, stdout and stderr on pipes, byte for byte.

use std::fs::{self, File};
use std::io::Read;

use husk_tests::containerd::case;
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
fn busybox() -> Vec<u8> {
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
fn output_that_nobody_reads() {
    case("a container whose output nobody reads is killed and removed all the same", |lab| {
        // ctr goes and leaves the FIFOs behind it without a reader.
        lab.detached(&[], "unread", &["sh", "-c", "yes & yes >&2 & wait"]);
        lab.kill("KILL", "unread");
        lab.until_status("unread", "STOPPED");
        lab.remove("unread");
    });
}
