// SPDX-License-Identifier: Apache-2.0

//! The shim's program: what containerd runs before there is a VM, mostly by hand.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageDyn};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use husk_tests::containerd::bundle::{Bundle, run};
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{Running, Size};
use husk_tests::containerd::task::{context, gone, refusal};
use husk_tests::containerd::{CTR_NAMESPACE, HUSK_SHIM, IMAGE, Lab, husk_case};
use husk_tests::temporary;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};

fn pids(program: &str) -> BTreeSet<i32> {
    pids_of(program).into_iter().collect()
}

#[test]
fn mistakes_on_the_command_line() {
    husk_case("a wrong command line fails with a reason on stderr and nothing on stdout", |_| {
        for (words, reason) in [
            (&[][..], "no action given"),
            (&["-namespace", "n", "-id", "c"], "no action given"),
            (&["-namespace", "n", "-id", "c", "stop"], "unknown action \"stop\""),
            (&["-namespace", "n", "-wrong", "x", "-id", "c", "start"], "unknown flag -wrong"),
            (&["-namespace", "n", "start"], "-id is required"),
            (&["-id", "c", "start"], "-namespace is required"),
            (&["-namespace", "n", "-id"], "-id needs a value"),
            (&["-namespace", "n", "-id", "c", "start", "now"], "unexpected argument \"now\""),
        ] {
            let directory = temporary("husk-start");
            let mut command = Command::new(HUSK_SHIM);
            let output = run(command.args(words).current_dir(directory.path()), b"");
            assert_eq!(output.text(), "", "stdout of {}", output.line);
            output.failed_with(reason);
        }
    });
}

#[test]
fn start_answers_before_there_is_a_vm() {
    husk_case("`start` prints one address that answers, and no VM is there yet", |lab| {
        let (vms, daemons) = (pids("husk-vmm"), pids(HUSK_SHIM));
        let bundle = Bundle::new(lab, "early", &["true"]);
        let output = bundle.run("start").ended(0);
        assert_eq!(output.error(), "");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        let digits = said.strip_prefix("unix:///run/containerd/s/").expect("an address");
        assert_eq!(digits.len(), 64, "{said:?}");
        assert!(digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{said:?}");
        let file = fs::read_to_string(bundle.path().join("address")).expect("the bundle's address");
        assert_eq!(file, said);
        let daemon = bundle.daemon() as i32;
        let new: Vec<_> = pids(HUSK_SHIM).difference(&daemons).copied().collect();
        assert_eq!(new, [daemon]);
        assert_eq!(pids("husk-vmm"), vms, "a VM of a task that nobody created");
        bundle.end_shim();
        assert!(!Path::new(said.trim_start_matches("unix://")).exists(), "its socket");
    });
}

#[test]
fn start_twice() {
    husk_case("a second `start` finds the first one's daemon", |lab| {
        let before = pids(HUSK_SHIM);
        let bundle = Bundle::new(lab, "twice", &["true"]);
        let address = bundle.start_shim();
        let daemon = bundle.daemon();
        assert_eq!(bundle.start_shim(), address);
        assert_eq!(bundle.daemon(), daemon);
        assert_eq!(pids(HUSK_SHIM).difference(&before).count(), 1, "daemons");
        bundle.end_shim();
    });
}

#[test]
fn starts_at_once() {
    husk_case("ten `start` of one container at once give one address and one daemon", |lab| {
        let before = pids(HUSK_SHIM);
        let bundle = Bundle::new(lab, "race", &["true"]);
        let start = || {
            let mut running = Running::start(&mut bundle.command("start"));
            running.close_stdin();
            running
        };
        let running: Vec<_> = (0..10).map(|_| start()).collect();
        let said: BTreeSet<_> =
            running.into_iter().map(|running| running.wait().ended(0).text()).collect();
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(pids(HUSK_SHIM).difference(&before).count(), 1, "daemons");
        bundle.end_shim();
    });
}

#[test]
fn stale_socket() {
    husk_case("`start` takes the place of a daemon that was killed and left its socket", |lab| {
        let bundle = Bundle::new(lab, "stale", &["true"]);
        let address = bundle.start_shim();
        let first = bundle.daemon();
        kill(Pid::from_raw(first as i32), Signal::SIGKILL).expect("SIGKILL");
        assert!(gone(first), "it goes on");
        assert!(Path::new(address.trim_start_matches("unix://")).exists(), "no stale socket");
        assert_eq!(bundle.start_shim(), address);
        assert_ne!(bundle.daemon(), first);
        bundle.end_shim();
    });
}

#[test]
fn stdin_of_start() {
    husk_case(
        "`start` answers to nothing, options and garbage with its address, to BootstrapParams \
         with a BootstrapResult",
        |lab| {
            let bundle = Bundle::new(lab, "input", &["true"]);
            let address = bundle.start_shim();
            let options = Any {
                type_url: "runtimeoptions.v1.Options".into(),
                value: b"\x12\x0e/etc/husk.toml".to_vec(),
                ..Default::default()
            };
            let params = |id: &str| BootstrapParams {
                instance_id: id.into(),
                namespace: CTR_NAMESPACE.into(),
                containerd_version: "2.3.0".into(),
                ..Default::default()
            };
            let bytes = |message: &dyn MessageDyn| message.write_to_bytes_dyn().expect("bytes");
            for (what, input) in [
                ("options", bytes(&options)),
                ("garbage", b"garbage\0\xff\xff".to_vec()),
                ("a megabyte", vec![0xa5; 1 << 20]),
                ("BootstrapParams of another", bytes(&params("other"))),
            ] {
                let output = run(&mut bundle.command("start"), &input).ended(0);
                assert_eq!(
                    (output.text(), output.error()),
                    (address.clone(), String::new()),
                    "{what}"
                );
            }
            let output = run(&mut bundle.command("start"), &bytes(&params("input"))).ended(0);
            let result = BootstrapResult::parse_from_bytes(&output.stdout).expect("a result");
            assert_eq!((result.version, result.address), (3, address.clone()));
            assert_eq!(result.protocol, "ttrpc");
            // At a terminal nobody closes stdin.
            let size = Size { rows: 24, columns: 80 };
            let output = Running::start_on_terminal(&mut bundle.command("start"), size).wait();
            assert_eq!(output.ended(0).text(), address);
            bundle.end_shim();
        },
    );
}

#[test]
fn daemon_holds_nothing_of_its_starter() {
    husk_case("the daemon keeps no descriptor, stream or directory of who started it", |lab| {
        const STRAY: i32 = 77;
        let bundle = Bundle::new(lab, "apart", &["true"]);
        let stray = File::open("/etc/passwd").expect("open");
        let fd = stray.as_raw_fd();
        let mut command = bundle.command("start");
        // SAFETY: between fork and exec only a system call is made.
        unsafe {
            command.pre_exec(move || match libc::dup2(fd, STRAY) {
                STRAY => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        run(&mut command, b"").ended(0);
        let daemon = bundle.daemon();
        let process = PathBuf::from(format!("/proc/{daemon}"));
        for fd in 0..3 {
            let target = fs::read_link(process.join("fd").join(fd.to_string())).expect("a stream");
            assert_eq!(target, Path::new("/dev/null"), "descriptor {fd}");
        }
        let strays = open_files(&process).filter(|target| target == Path::new("/etc/passwd"));
        assert_eq!(strays.count(), 0, "an inherited descriptor");
        assert_eq!(fs::read_link(process.join("cwd")).expect("cwd"), Path::new("/"));
        let pid = Pid::from_raw(daemon as i32);
        assert_eq!(getsid(Some(pid)).expect("getsid"), pid, "its session");
        bundle.connect().expect("Connect");
        fs::remove_dir_all(bundle.path()).expect("remove the bundle");
        bundle.end_shim();
    });
}

fn open_files(process: &Path) -> impl Iterator<Item = PathBuf> {
    let list = fs::read_dir(process.join("fd")).expect("descriptors");
    list.flatten().filter_map(|entry| fs::read_link(entry.path()).ok())
}

#[test]
fn longest_names() {
    husk_case(
        "namespace and id of 76 characters: the socket's path fits, a container runs",
        |lab| {
            let (namespace, id) = ("n".repeat(76), "i".repeat(76));
            let bundle = Bundle::with(lab, &namespace, &id, |spec| {
                spec["process"]["args"] = ["sh", "-c", "exit 3"].as_slice().into();
            });
            let address = bundle.start_shim();
            assert!(address.len() - "unix://".len() <= 106, "{address}");
            bundle.calls().create(context(), &bundle.create_request()).expect("Create");
            bundle.start("").expect("Start");
            assert_eq!(bundle.wait("").expect("Wait").exit_status, 3);
            bundle.delete("").expect("Delete");
            bundle.end_shim();
            // What is above a container's cgroup stays, as with every runtime.
            fs::remove_dir(Path::new("/sys/fs/cgroup").join(namespace)).expect("empty");
        },
    );
}

/// A copy of the programs without one of them, and the path of its shim.
fn without(directory: &Path, missing: &str) -> String {
    let shim = which(HUSK_SHIM);
    let parts = shim.parent().expect("a directory");
    for name in [HUSK_SHIM, "husk-vmm", "vmlinux", "guest.img"] {
        if name != missing {
            let part = match name {
                HUSK_SHIM | "husk-vmm" => {
                    fs::copy(parts.join(name), directory.join(name)).map(drop)
                }
                _ => symlink(parts.join(name), directory.join(name)),
            };
            part.expect("copy");
        }
    }
    directory.join(HUSK_SHIM).display().to_string()
}

/// A program on PATH.
fn which(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("PATH");
    let found = std::env::split_paths(&path).map(|directory| directory.join(name));
    found.into_iter().find(|path| path.exists()).expect("on PATH")
}

/// A script that goes by the shim's name and runs it in a mount namespace of its own after
/// `preparation`.
fn shim_after(directory: &Path, preparation: &str) -> String {
    let path = directory.join(HUSK_SHIM);
    let shim = which(HUSK_SHIM).display().to_string();
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c '{preparation} && exec \"$0\" \"$@\"' {shim} \"$@\"\n"
    );
    fs::write(&path, script).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path.display().to_string()
}

#[test]
fn what_is_missing_is_said() {
    husk_case(
        "no guest kernel, no guest image, no KVM, something else as KVM: `ctr run` says so and \
         nothing is left",
        |lab| {
            let fails = |runtime: &str, words: &str| {
                lab.ctr(&["run", "--rm", "--runtime", runtime, IMAGE, "poor", "true"])
                    .failed_with(words);
            };
            for (missing, words) in [
                ("vmlinux", "vmlinux is not installed"),
                ("guest.img", "guest.img is not installed"),
            ] {
                let directory = temporary("husk-parts");
                fails(&without(directory.path(), missing), words);
            }
            let devices = "mount -t tmpfs dev /dev && mknod /dev/null c 1 3 && \
                           mknod /dev/urandom c 1 9";
            let no_kvm = format!("{devices} && ls /dev >/dev/null");
            let other = format!("{devices} && mknod /dev/kvm c 1 3");
            for (preparation, words) in
                [(no_kvm, "cannot open /dev/kvm: No such file or directory"), (other, "/dev/kvm")]
            {
                let directory = temporary("husk-parts");
                fails(&shim_after(directory.path(), &preparation), words);
            }
        },
    );
}

#[test]
fn image_without_an_agent() {
    husk_case("an image whose first program is no agent: the reason is the guest's end", |lab| {
        let directory = temporary("husk-parts");
        let runtime = without(directory.path(), "guest.img");
        // The guest of another suite. It powers off.
        symlink(which("test-guest.img"), directory.path().join("guest.img")).expect("symlink");
        lab.ctr(&["run", "--rm", "--runtime", &runtime, IMAGE, "foreign", "true"])
            .failed_with("the guest powered off");
    });
}

#[test]
fn broken_bundles() {
    husk_case("a config.json that is missing or broken: Create fails, the shim ends", |lab| {
        for (json, words) in [(None, "config.json"), (Some("{"), "config.json"), (Some("{}"), "")] {
            let bundle = Bundle::new(lab, "broken", &["true"]);
            bundle.start_shim();
            let config = bundle.path().join("config.json");
            match json {
                Some(text) => fs::write(config, text).expect("write"),
                None => fs::remove_file(config).expect("remove"),
            }
            let answer = bundle.calls().create(context(), &bundle.create_request());
            let (code, text) = refusal(answer);
            assert!(text.contains(words), "{code:?}: {text}");
            bundle.end_shim();
        }
    });
}

#[test]
fn rank_for_the_oom_killer() {
    husk_case("the shim goes just before containerd when the host is out of memory", |lab| {
        let score = |pid: i32| -> i32 {
            let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("its rank");
            text.trim().parse().expect("a number")
        };
        let before = pids(HUSK_SHIM);
        lab.idle(&[], "ranked");
        let new: Vec<_> = pids(HUSK_SHIM).difference(&before).copied().collect();
        assert_eq!(new.len(), 1, "shims: {new:?}");
        assert_eq!(score(new[0]), score(lab.containerd_pid()) + 1);
        lab.remove("ranked");

        // By hand, from a rank of its own, and with core scheduling asked for.
        for (own, expected) in [(500, 501), (1000, 1000)] {
            let bundle = Bundle::new(lab, "ranked", &["true"]);
            let mut command = Command::new("sh");
            let line = "echo $0 >/proc/self/oom_score_adj && exec \"$@\"";
            command.args(["-c", line, &own.to_string()]);
            let start = bundle.command("start");
            command.arg(start.get_program()).args(start.get_args()).current_dir(bundle.path());
            run(command.env("SCHED_CORE", "1"), b"").ended(0);
            assert_eq!(score(bundle.daemon() as i32), expected);
            bundle.end_shim();
        }
    });
}

#[test]
fn version_and_info_for_anybody() {
    husk_case("-v and -info answer to a user without rights, KVM or containerd", |_: &Lab| {
        let directory = temporary("husk-info");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let shim = directory.path().join(HUSK_SHIM);
        fs::copy(which(HUSK_SHIM), &shim).expect("copy");
        let ask = |word: &str| {
            let mut command = Command::new(&shim);
            run(command.arg(word).env_clear().current_dir("/").uid(65534).gid(65534), b"").ended(0)
        };
        for word in ["-v", "--version"] {
            let said = ask(word).text();
            assert!(said.starts_with("containerd-shim-husk-v2 ") && said.contains('.'), "{said}");
        }
        let info = RuntimeInfo::parse_from_bytes(&ask("-info").stdout).expect("a RuntimeInfo");
        assert_eq!(info.name, "io.containerd.husk.v2");
        assert!(!info.version.version.is_empty());
    });
}
