// SPDX-License-Identifier: Apache-2.0

//! OCI hooks, and the network namespace in which those of the host find the pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, Output, Running, eventually};
use husk_tests::containerd::{Lab, case, husk_case};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A directory of the host for what hooks write, and a spec of a container that stays.
struct Place {
    directory: tempfile::TempDir,
    id: &'static str,
    spec: Value,
}

impl Place {
    fn new(lab: &Lab, id: &'static str) -> Place {
        let mut spec = lab.spec();
        spec["root"] = json!({"path": lab.rootfs(), "readonly": true});
        spec["process"]["args"] = json!(["sleep", "100000"]);
        spec["linux"]["cgroupsPath"] = format!("/default/{id}").into();
        spec["annotations"] = json!({"husk.test": "told"});
        Place { directory: husk_tests::temporary("husk-hooks"), id, spec }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// What a hook was told on stdin.
    fn state(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).expect("a state is JSON")
    }

    /// A hook that runs a line of shell on the host, in this directory.
    fn hook(&self, line: &str) -> Value {
        let line = format!("cd {} && {line}", self.directory.path().display());
        json!({"path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/bin:/bin"]})
    }

    /// Runs a container of the spec by itself.
    fn run(&self, lab: &Lab) -> Output {
        let config = self.path("config.json");
        fs::write(&config, self.spec.to_string()).expect("write the spec");
        let config = config.display().to_string();
        lab.ctr(&["run", "-d", "--runtime", lab.runtime(), "--config", &config, self.id])
    }

    /// Runs a container that cannot be made, and says so by these words.
    #[track_caller]
    fn run_fails_with(&self, lab: &Lab, words: &str) {
        let failed = self.run(lab);
        // ctr leaves its entry.
        lab.ctr(&["containers", "rm", self.id]).ended(0);
        failed.failed_with(words);
    }
}

fn network_of(pid: u64) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/net")).expect("a process's network namespace")
}

#[test]
fn hooks_of_the_host() {
    case(
        "hooks of the host run in their order, in the bundle, with the container's state",
        |lab| {
            let mut place = Place::new(lab, "hooked");
            let hook = |name: &str| {
                place.hook(&format!("cat >{name} && echo {name} >>order && [ -z \"$HOME\" ]"))
            };
            place.spec["hooks"] = json!({
                "prestart": [hook("prestart")],
                "createRuntime": [hook("createRuntime"), place.hook("echo second >>order")],
                "poststart": [place.hook("cat >poststart && echo poststart >>order")],
                "poststop": [hook("poststop")],
            });
            place.run(lab).ended(0);
            assert_eq!(place.read("order"), "prestart\ncreateRuntime\nsecond\npoststart\n");
            let pid = place.state("createRuntime")["pid"].as_u64().expect("a pid");
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "the pid is of a live process");
            for (name, status) in [("prestart", "creating"), ("poststart", "running")] {
                let state = place.state(name);
                assert_eq!(
                    (&state["id"], &state["status"], &state["pid"]),
                    (&json!("hooked"), &json!(status), &json!(pid)),
                    "{name}: {state}"
                );
                assert_eq!(state["annotations"]["husk.test"], "told", "{name}");
                assert!(state["ociVersion"].as_str().is_some_and(|v| v.starts_with("1.")));
                let bundle = lab.bundle_path("default", "hooked");
                assert_eq!(state["bundle"], json!(bundle), "{name}");
            }
            lab.remove("hooked");
            assert!(place.read("order").ends_with("poststop\n"), "{}", place.read("order"));
            let state = place.state("poststop");
            assert_eq!((&state["id"], &state["status"]), (&json!("hooked"), &json!("stopped")));
        },
    );
}

#[test]
fn hooks_of_the_guest() {
    husk_case(
        "createContainer hooks run from the host's file, startContainer hooks from the \
         container's, both in the guest",
        |lab| {
            let mut place = Place::new(lab, "inside");
            let rootfs = place.path("rootfs");
            let copied = Command::new("cp").arg("-a").arg(lab.rootfs()).arg(&rootfs).status();
            assert!(copied.expect("cp").success());
            place.spec["root"] = json!({"path": rootfs});
            // A static program, under a name that it has nowhere else.
            fs::copy("/bin/busybox", place.path("busybox")).expect("copy busybox");
            let order = "/run/husk/share/inside/rootfs/order";
            let line = format!("echo createContainer $0 $WORD >>{order}; uname -r >>{order}");
            place.spec["hooks"] = json!({
                "createContainer": [{
                    "path": place.path("busybox"), "args": ["sh", "-c", line], "env": ["WORD=w"],
                }],
                "startContainer": [{
                    "path": "/bin/busybox", "args": ["sh", "-c", "echo startContainer >>/order"],
                }],
            });
            place.run(lab).ended(0);
            lab.remove("inside");
            let said = place.read("rootfs/order");
            let lines: Vec<_> = said.lines().collect();
            assert_eq!((lines[0], lines[2]), ("createContainer sh w", "startContainer"), "{said}");
            let host = fs::read_to_string("/proc/sys/kernel/osrelease").expect("release");
            assert_ne!(lines[1], host.trim(), "the kernel is the guest's");
        },
    );
}

#[test]
fn failures() {
    husk_case(
        "a hook that fails before the start fails the create by its own words, one that takes \
         too long is killed, a later one is logged",
        |lab| {
            let mut place = Place::new(lab, "failed");
            place.spec["hooks"] = json!({
                "createRuntime": [place.hook("echo no luck today >&2; exit 3")],
                "poststop": [place.hook("cat >poststop")],
            });
            place.run_fails_with(lab, "it exited with status 3: no luck today");
            assert_eq!(place.state("poststop")["status"], "stopped");

            let mut slow = place.hook("echo waiting; sleep 100000 & wait");
            slow["timeout"] = 1.into();
            place.spec["hooks"] = json!({"prestart": [slow]});
            place.run_fails_with(lab, "within 1 s: waiting");

            place.spec["hooks"] = json!({"createRuntime": [{"path": "/nowhere/hook"}]});
            place.run_fails_with(lab, "/nowhere/hook");
            place.spec["hooks"] = json!({"createContainer": [{"path": "/nowhere/inside"}]});
            place.run_fails_with(lab, "/nowhere/inside");
            place.spec["hooks"] = json!({"poststop": [{"path": "relative"}]});
            place.run_fails_with(lab, "not absolute");

            place.spec["hooks"] = json!({
                "poststart": [place.hook("echo not so bad; exit 4"), place.hook("echo >second")],
                "poststop": [place.hook("exit 5")],
            });
            place.run(lab).ended(0);
            assert!(place.path("second").exists(), "the hook after the one that failed");
            assert_eq!(lab.status("failed").as_deref(), Some("RUNNING"));
            lab.remove("failed");
            for words in ["not so bad", "status 5"] {
                let said = eventually(LIMIT, || lab.log().contains(words));
                assert!(said, "{words:?} is not in the log");
            }
        },
    );
}

#[test]
fn after_a_crash() {
    husk_case("poststop hooks run even if the shim was killed, and once", |lab| {
        let mut place = Place::new(lab, "crashed");
        place.spec["hooks"] = json!({"poststop": [place.hook("cat >>ran; echo >>ran")]});
        let before = pids_of(&lab.shim());
        place.run(lab).ended(0);
        let shims = pids_of(&lab.shim());
        let shim = shims.iter().find(|pid| !before.contains(pid)).expect("a new shim");
        kill(Pid::from_raw(*shim), Signal::SIGKILL).expect("kill the shim");
        assert!(eventually(LIMIT, || lab.status("crashed").is_none()), "the task is still listed");
        lab.ctr(&["containers", "rm", "crashed"]).ended(0);
        let ran = place.read("ran");
        assert_eq!(ran.lines().count(), 1, "{ran}");
        assert_eq!(place.state("ran")["status"], "stopped");
    });
}

#[test]
fn network_namespace() {
    husk_case(
        "the pid that hooks are told is in the network namespace that the spec names, in a new \
         one, or in the host's",
        |lab| {
            let mut place = Place::new(lab, "networked");
            let tell = place.hook("cat >state");
            place.spec["hooks"] = json!({"createRuntime": [tell]});
            let network = |place: &Place, lab: &Lab| {
                place.run(lab).ended(0);
                let pid = place.state("state")["pid"].as_u64().expect("a pid");
                let network = network_of(pid);
                lab.remove("networked");
                network
            };
            let host = network_of(std::process::id().into());

            let new = network(&place, lab);
            assert_ne!(new, host, "a namespace without a path is a new one");

            let holder = Running::start(Command::new("unshare").args(["-n", "sleep", "100000"]));
            let path = format!("/proc/{}/ns/net", holder.pid());
            let unshared = || fs::read_link(&path).is_ok_and(|link| link != host);
            assert!(eventually(LIMIT, unshared), "unshare has a namespace of its own");
            let index = place.spec["linux"]["namespaces"]
                .as_array()
                .and_then(|all| all.iter().position(|one| one["type"] == "network"))
                .expect("containerd's spec has a network namespace");
            place.spec["linux"]["namespaces"][index]["path"] = path.clone().into();
            assert_eq!(network(&place, lab), fs::read_link(&path).expect("link"));

            place.spec["linux"]["namespaces"][index]["path"] = "/proc/self/ns/uts".into();
            place.run_fails_with(lab, "/proc/self/ns/uts");

            place.spec["linux"]["namespaces"].as_array_mut().expect("a list").remove(index);
            assert_eq!(network(&place, lab), host, "without one, it is the host's");
        },
    );
}
