// SPDX-License-Identifier: Apache-2.0

//! A container's life: its states, what each allows, and how it is shown.

use std::os::unix::net::UnixDatagram;

use serde_json::{Value, json};

use crate::bundle::{Bundle, ended, wait_for_line, wait_until};

#[test]
fn a_container_lives_from_create_to_delete() {
    let Some(mut bundle) = Bundle::script("life", "echo alive; exec sleep 1000") else { return };
    bundle.config["annotations"] = json!({"some.key": "value"});
    let pid = bundle.create();
    let state = bundle.state();
    assert_eq!(state["ociVersion"], "1.2.0");
    assert_eq!(state["id"], bundle.id);
    assert_eq!(state["pid"], pid);
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], json!(bundle.directory));
    assert_eq!(state["rootfs"], json!(bundle.rootfs()));
    assert_eq!(state["annotations"]["some.key"], "value");
    assert_eq!(state["owner"], "root");
    assert!(state["created"].as_str().is_some_and(|time| time.ends_with('Z')), "{state}");
    assert_eq!(bundle.output_of(0), "", "it ran before it was started");

    bundle.on(&["start"]).ok();
    assert_eq!(bundle.status(), "running");
    wait_for_line(&bundle.path("out.0"), "alive");
    bundle.on(&["kill"]).ok();
    // The first process of a PID namespace does not get signals that it has no handler for.
    assert_eq!(bundle.status(), "running");
    bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
    assert_eq!(ended(pid), 137);
    assert_eq!(bundle.status(), "stopped");
    assert_eq!(bundle.state()["pid"], 0);
    bundle.on(&["delete"]).ok();
    assert_eq!(bundle.on(&["state"]).fails(1), "container does not exist\n");
}

#[test]
fn what_a_state_does_not_allow_is_refused_in_runcs_words() {
    let Some(bundle) = Bundle::new("states", &["sleep", "1000"]) else { return };
    for command in ["state", "start", "kill", "delete", "pause", "resume", "update"] {
        assert_eq!(bundle.on(&[command]).fails(1), "container does not exist\n", "{command}");
    }
    bundle.on(&["delete", "--force"]).ok();
    let error = bundle.exec(&[], &["true"]).fails(255);
    assert_eq!(error, "exec failed: container does not exist\n");

    let pid = bundle.create();
    let error = bundle.on(&["create"]).fails(1);
    assert_eq!(error, "container with given ID already exists\n");
    assert!(bundle.on(&["resume"]).fails(1).starts_with("container not paused"));
    bundle.on(&["start"]).ok();
    let error = bundle.on(&["start"]).fails(1);
    assert_eq!(error, "cannot start an already running container\n");
    let error = bundle.on(&["delete"]).fails(1);
    let words = format!("cannot delete container {} that is not stopped: running\n", bundle.id);
    assert_eq!(error, words);
    assert!(bundle.oci(&["kill", &bundle.id, "NONE"]).fails(1).contains("unknown signal"));

    bundle.oci(&["kill", &bundle.id, "9"]).ok();
    ended(pid);
    assert_eq!(bundle.oci(&["kill", &bundle.id, "9"]).fails(1), "container not running\n");
    bundle.oci(&["kill", "--all", &bundle.id, "9"]).ok();
    assert_eq!(bundle.on(&["start"]).fails(1), "cannot start a container that has stopped\n");
    let error = bundle.exec(&[], &["true"]).fails(255);
    assert_eq!(error, "exec failed: cannot exec in a stopped container\n");
    for command in ["pause", "update"] {
        let error = bundle.on(&[command]).fails(1);
        assert!(error.starts_with("container not running"), "{command}: {error}");
    }
    bundle.on(&["delete"]).ok();
}

#[test]
fn a_created_container_can_be_deleted_or_killed() {
    let Some(bundle) = Bundle::new("unstarted", &["true"]) else { return };
    let pid = bundle.create();
    bundle.on(&["delete"]).ok();
    assert_eq!(ended(pid), 137);
    let pid = bundle.create();
    bundle.oci(&["kill", &bundle.id, "SIGKILL"]).ok();
    assert_eq!(ended(pid), 137);
    assert_eq!(bundle.on(&["start"]).fails(1), "cannot start a container that has stopped\n");
    bundle.on(&["delete"]).ok();
}

#[test]
fn run_ends_as_its_container_does() {
    let Some(mut bundle) = Bundle::script("run", "cat; echo err >&2; exit 7") else { return };
    let ran = bundle.run();
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (7, "", "err\n"));
    // Not the first process itself, which is safe from its own signals.
    bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
    bundle.config["process"]["args"] = json!(["sh", "-c", "kill -TERM $$"]);
    assert_eq!(bundle.run().status, 143);
}

#[test]
fn signals_to_run_are_the_containers() {
    let script = "trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.1; done";
    let Some(bundle) = Bundle::script("forward", script) else { return };
    let running = bundle.spawn(&["run", &bundle.id]);
    wait_for_line(&bundle.path("out.0"), "ready");
    // SAFETY: kill() takes no pointers.
    unsafe { libc::kill(running.child.id() as i32, libc::SIGUSR1) };
    let ran = running.wait();
    assert_eq!((ran.status, ran.out.as_str()), (3, "ready\ngot it\n"));
}

#[test]
fn run_can_detach_and_keep() {
    let Some(bundle) = Bundle::script("keep", "exit 5") else { return };
    assert_eq!(bundle.on(&["run", "--keep"]).status, 5);
    assert_eq!(bundle.status(), "stopped");
    bundle.on(&["delete"]).ok();

    crate::bundle::become_reaper();
    bundle.on(&["run", "--detach", "--pid-file", "pid"]).ok();
    let pid = std::fs::read_to_string(bundle.path("pid")).expect("pid").parse().expect("a pid");
    assert_eq!(ended(pid), 5);
    bundle.on(&["delete"]).ok();
}

#[test]
fn all_processes_can_be_signalled() {
    let script = "trap '' TERM; (trap 'echo child; exit' TERM; echo ready; while :; do sleep 0.1; \
                  done) & wait; exit 4";
    let Some(bundle) = Bundle::script("all", script) else { return };
    let pid = bundle.start();
    wait_for_line(&bundle.path("out.0"), "ready");
    bundle.oci(&["kill", "--all", &bundle.id, "TERM"]).ok();
    assert_eq!(ended(pid), 4);
    assert_eq!(bundle.output_of(0), "ready\nchild\n");
    bundle.on(&["delete"]).ok();
}

#[test]
fn delete_kills_what_outlives_the_first_process() {
    let Some(mut bundle) = Bundle::script("outlive", "sleep 1000 & exit 0") else { return };
    bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
    let pid = bundle.start();
    assert_eq!(ended(pid), 0);
    assert_eq!(bundle.status(), "stopped");
    let left = std::fs::read_to_string(bundle.cgroup().join("cgroup.procs")).expect("procs");
    let left: i32 = left.trim().parse().expect("one process is left");
    bundle.on(&["delete"]).ok();
    assert_eq!(ended(left), 137);
}

#[test]
fn a_container_can_be_paused() {
    let script = "while :; do echo tick; sleep 0.01; done";
    let Some(bundle) = Bundle::script("pause", script) else { return };
    let pid = bundle.start();
    wait_for_line(&bundle.path("out.0"), "tick");
    bundle.on(&["pause"]).ok();
    assert_eq!(bundle.status(), "paused");
    let events = std::fs::read_to_string(bundle.cgroup().join("cgroup.events")).expect("events");
    assert!(events.contains("frozen 1"), "{events}");
    let so_far = bundle.output_of(0).len();
    let error = bundle.exec(&[], &["true"]).fails(255);
    assert!(error.contains("cannot exec in a paused container"), "{error}");
    assert!(bundle.on(&["pause"]).fails(1).starts_with("container not running"));
    assert_eq!(bundle.output_of(0).len(), so_far, "it went on during the pause");
    bundle.on(&["resume"]).ok();
    assert_eq!(bundle.status(), "running");
    wait_until("tick after the pause", || bundle.output_of(0).len() > so_far);
    bundle.on(&["pause"]).ok();
    bundle.kill_and_delete(pid);
}

#[test]
fn containers_and_their_processes_are_listed() {
    let Some(bundle) = Bundle::new("list", &["sleep", "1000"]) else { return };
    assert_eq!(bundle.oci(&["list", "-f", "json"]).ok(), "[]\n");
    let pid = bundle.start();
    let list: Value =
        serde_json::from_str(&bundle.oci(&["list", "-f", "json"]).ok()).expect("JSON");
    assert_eq!(list[0], bundle.state());
    assert_eq!(bundle.oci(&["list", "--quiet"]).ok(), format!("{}\n", bundle.id));
    let table = bundle.oci(&["list"]).ok();
    let cells: Vec<&str> = table.lines().nth(1).expect("a line").split_whitespace().collect();
    assert_eq!(cells[..3], [bundle.id.as_str(), &pid.to_string(), "running"]);

    let ps = bundle.on(&["ps", "--format", "json"]).ok();
    assert_eq!(serde_json::from_str::<Vec<i32>>(&ps).expect("JSON"), [pid]);
    let ps = bundle.oci(&["ps", &bundle.id, "-o", "pid,comm"]);
    // The machine may have no ps(1), or busybox's.
    if ps.status == 0 {
        let words: Vec<&str> = ps.out.split_whitespace().collect();
        assert_eq!(words[2..], [pid.to_string().as_str(), "sleep"]);
    }
    bundle.kill_and_delete(pid);
}

#[test]
fn the_directory_of_containers_may_have_a_long_path_and_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let Some(mut bundle) = Bundle::script("long", "echo ran") else { return };
    bundle.root = bundle.root.join("x".repeat(120));
    let pid = bundle.create();
    let mode = std::fs::metadata(bundle.root.join(&bundle.id)).expect("state").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    bundle.on(&["start"]).ok();
    assert_eq!(ended(pid), 0);
    assert_eq!(bundle.output_of(0), "ran\n");
    bundle.on(&["delete"]).ok();
}

#[test]
fn the_example_of_a_config_runs() {
    let Some(mut bundle) = Bundle::script("example", "") else { return };
    let id = bundle.config["linux"]["cgroupsPath"].clone();
    std::fs::create_dir(bundle.path("new")).expect("create");
    bundle.oci(&["spec", "--bundle", "new"]).ok();
    assert!(bundle.oci(&["spec", "-b", "new"]).fails(1).contains("exists"));
    let config = std::fs::read(bundle.path("new/config.json")).expect("config.json");
    bundle.config = serde_json::from_slice(&config).expect("JSON");
    assert_eq!(bundle.config["process"]["terminal"], true);
    bundle.config["process"]["terminal"] = false.into();
    bundle.config["linux"]["cgroupsPath"] = id;
    bundle.config["process"]["args"] = json!(["sh", "-c", "hostname; touch /here"]);
    let ran = bundle.run();
    assert_eq!((ran.status, ran.out.as_str()), (1, "husk\n"));
    assert!(ran.err.contains("Read-only file system"), "{ran:?}");
}

#[test]
fn features_and_version_are_shown() {
    let Some(bundle) = Bundle::new("features", &["true"]) else { return };
    let features: Value = serde_json::from_str(&bundle.oci(&["features"]).ok()).expect("JSON");
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
    let options = features["mountOptions"].as_array().expect("mountOptions");
    for option in ["ro", "rbind", "rprivate", "rro", "tmpcopyup"] {
        assert!(options.contains(&json!(option)), "{option}");
    }
    assert!(bundle.oci(&["--version"]).ok().starts_with("husk-oci version "));
    assert!(bundle.oci(&["--help"]).ok().contains("usage: husk-agent oci"));
}

#[test]
fn a_link_called_husk_oci_is_the_runtime() {
    let Some(bundle) = Bundle::new("link", &["true"]) else { return };
    let link = bundle.path("husk-oci");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_husk-agent"), &link).expect("link");
    let output = std::process::Command::new(link).arg("--version").output().expect("run");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("husk-oci version "));
}

#[test]
fn descriptors_are_passed_on_only_if_asked_for() {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    let script = "ls /proc/self/fd; echo to the socket >&3";
    let Some(bundle) = Bundle::script("fds", script) else { return };
    let (ours, theirs) = UnixDatagram::pair().expect("pair");
    let theirs = theirs.as_raw_fd();
    let run = |options: &[&str], environment: &str| {
        let (mut command, out, err) = bundle.command(&[&["run"], options, &[&bundle.id]].concat());
        let script = format!("{environment} exec \"$0\" \"$@\"");
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
        shell.current_dir(&bundle.directory);
        shell.stdout(std::fs::File::create(&out).expect("out"));
        shell.stderr(std::fs::File::create(&err).expect("err"));
        // SAFETY: dup2() is safe between fork and exec, and the descriptor is open.
        unsafe {
            shell.pre_exec(move || match libc::dup2(theirs, 3) {
                3 if theirs != 3 || libc::fcntl(3, libc::F_SETFD, 0) == 0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        command.stdin(std::process::Stdio::null());
        let status = shell.status().expect("run").code();
        (status, std::fs::read_to_string(out).expect("out"))
    };
    let receive = || {
        let mut buffer = [0; 64];
        let length = ours.recv(&mut buffer).expect("receive");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    ours.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("timeout");
    assert_eq!(run(&["--preserve-fds", "1"], ""), (Some(0), "0\n1\n2\n3\n4\n".to_owned()));
    assert_eq!(receive(), "to the socket\n");
    assert_eq!(run(&[], "LISTEN_FDS=1 LISTEN_PID=$$").0, Some(0));
    assert_eq!(receive(), "to the socket\n");
    // ls has one for the directory; the shell has nothing to write to.
    let (status, out) = run(&[], "");
    assert_eq!((status == Some(0), out.as_str()), (false, "0\n1\n2\n3\n"));
    let ran = bundle.on(&["run", "--preserve-fds", "90"]);
    assert!(ran.fails(1).contains("is to be preserved, but it is not open"));
}

#[test]
fn of_many_that_want_the_same_one_succeeds() {
    let Some(bundle) = Bundle::new("same", &["sleep", "1000"]) else { return };
    crate::bundle::become_reaper();
    let at_once = |line: &[&str], words: &str| {
        let all: Vec<_> = (0..8).map(|_| bundle.spawn(line)).collect();
        let all: Vec<_> = all.into_iter().map(crate::bundle::Running::wait).collect();
        let (good, bad): (Vec<_>, Vec<_>) = all.iter().partition(|ran| ran.status == 0);
        assert_eq!(good.len(), 1, "{all:?}");
        assert!(bad.iter().all(|ran| ran.err == words), "{all:?}");
    };
    let create = ["create", "--pid-file", "pid", &bundle.id];
    at_once(&create, "container with given ID already exists\n");
    at_once(&["start", &bundle.id], "cannot start an already running container\n");
    assert_eq!(bundle.status(), "running");
    let pid = std::fs::read_to_string(bundle.path("pid")).expect("pid").parse().expect("a pid");
    bundle.kill_and_delete(pid);
}

#[test]
fn a_container_has_a_keyring_unless_it_is_to_share_the_callers() {
    let Some(bundle) = Bundle::new("keyring", &["cat", "/proc/keys"]) else { return };
    if !std::path::Path::new("/proc/keys").exists() {
        return println!("keyring: not run, this kernel has no keys");
    }
    let name = format!("_ses.{}", bundle.id);
    // First, for a keyring may be listed for a while after its container.
    assert!(!bundle.on(&["run", "--no-new-keyring"]).ok().contains(&name));
    assert!(bundle.output().contains(&name));
}
