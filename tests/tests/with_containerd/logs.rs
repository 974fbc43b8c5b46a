// SPDX-License-Identifier: Apache-2.0

//! Output that goes to a log file or to a logging program instead of a client.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{case, husk_case};
use tempfile::TempDir;

/// A logging program: keeps what it is given, and says how it ended.
const LOGGER: &str = "#!/bin/sh
directory=$2
{ echo \"$CONTAINER_NAMESPACE $CONTAINER_ID\"; printf '<%s>' \"$@\"; } >$directory/given
ls /proc/self/fd >$directory/descriptors
exec 5>&-
cat <&4 >$directory/stderr &
cat <&3 >$directory/stdout
wait
echo whole >$directory/end
";

fn program(script: &str) -> (TempDir, PathBuf) {
    let directory = husk_tests::temporary("husk-logs");
    let path = directory.path().join("logger");
    fs::write(&path, script).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    (directory, path)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn to_a_file() {
    case("file:// makes a log with both outputs, and appends to one that is there", |lab| {
        let directory = husk_tests::temporary("husk-logs");
        let log = directory.path().join("new/log");
        let uri = format!("file://{}", log.display());
        for round in ["first", "second"] {
            let script = format!("echo {round}; echo more >&2; printf end");
            lab.detached(&["--log-uri", &uri], "logged", &["sh", "-c", &script]);
            lab.until_status("logged", "STOPPED");
            lab.remove("logged");
        }
        // Each stream keeps its order; between the two there is none.
        let text = text(&log);
        for (part, count) in [("first\n", 1), ("second\n", 1), ("more\n", 2), ("end", 2)] {
            assert_eq!(text.matches(part).count(), count, "{part:?} in {text:?}");
        }
        assert_eq!(text.len(), "first\nmore\nendsecond\nmore\nend".len());
    });
}

#[test]
fn to_a_program() {
    case(
        "binary:// runs a program with arguments, names and descriptors 3 to 5, to its end",
        |lab| {
            let (directory, path) = program(LOGGER);
            let of = |name: &str| directory.path().join(name);
            let uri = format!(
                "binary://{}?directory={}&flag=",
                path.display(),
                directory.path().display()
            );
            let script = "cat /bin/busybox; printf tail; echo bad >&2";
            lab.detached(&["--log-uri", &uri], "logged", &["sh", "-c", script]);
            lab.until_status("logged", "STOPPED");
            lab.remove("logged");
            assert!(eventually(LIMIT, || of("end").exists()), "the logging program did not end");

            assert_eq!(
                text(&of("given")),
                format!("default logged\n<directory><{}><flag><>", directory.path().display())
            );
            let descriptors = text(&of("descriptors"));
            // The last is that of `ls` itself.
            assert_eq!(
                descriptors.lines().collect::<Vec<_>>(),
                ["0", "1", "2", "3", "4", "5", "6"]
            );
            let stdout = fs::read(of("stdout")).expect("stdout");
            let whole = stdout.strip_suffix(b"tail").expect("the last bytes of stdout");
            assert!(whole == super::streams::busybox(), "{} bytes", whole.len());
            assert_eq!(text(&of("stderr")), "bad\n");
        },
    );
}

#[test]
fn program_that_goes() {
    case("a logging program that ends early takes only the output with it", |lab| {
        let (_directory, path) = program("#!/bin/sh\nexit 0\n");
        let uri = format!("binary://{}", path.display());
        let script = "trap '' PIPE; until ! echo on 2>/dev/null; do :; done; exec sleep 100000";
        lab.detached(&["--log-uri", &uri], "bereft", &["sh", "-c", script]);
        // The write has failed, and not the container.
        let sleeps = || lab.exec_sh("bereft", "tr '\\0' ' ' </proc/1/cmdline") == "sleep 100000";
        assert!(eventually(LIMIT, sleeps), "no write of the container has failed");
        lab.remove("bereft");
    });
}

#[test]
fn program_that_cannot_run() {
    case("a logging program that is missing is named, and nothing is left", |lab| {
        let run = lab.run(&["--log-uri", "binary:///nosuch/logger"], "unlogged", &["true"]);
        run.failed_with("/nosuch/logger");
    });
}

#[test]
fn unknown_scheme() {
    husk_case("an output to a scheme that nobody knows is refused by its name", |lab| {
        let run = lab.run(&["--log-uri", "gopher:///tmp/log"], "unlogged", &["true"]);
        run.failed_with("gopher:// is not supported");
    });
}
