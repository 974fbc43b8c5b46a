// SPDX-License-Identifier: Apache-2.0

//! Containers through the real containerd, driven by its own client `ctr` as a user would.
//!
//! A case gets a [`Lab`]: short verbs for `ctr`, and after it the check that nothing is left
//! behind on the host. What a failed case shows is all that is needed to find out why: the
//! commands with their output, containerd's log with the shim's lines in it, the guest's
//! console, and what was left behind.
//!
//! The cases need a containerd of their own, so they run by `tests/lab/run` only; its session
//! sets HUSK_CONTAINERD_LOG. HUSK_TEST_RUNTIME names another runtime to run them with, such as
//! io.containerd.runc.v2, which tells a fault of a case from one of husk.

pub mod bundle;
pub mod cni;
pub mod config;
mod daemon;
pub mod events;
pub mod fifos;
pub mod leftovers;
pub mod logger;
pub mod network;
pub mod process;
mod report;
pub mod shim;
pub mod sink;
pub mod task;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use leftovers::Host;
use process::{Output, Running, Size, Trace};
use serde_json::Value;

/// The image of all containers: busybox.
pub const IMAGE: &str = "husk.test/busybox:latest";

/// Flags for the container's cgroup, which ctr's own spec leaves out.
pub const CGROUP: [&str; 2] =
    ["--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:nodev:noexec"];

/// Shell: goes to the container's own cgroup. Without a cgroup namespace, which ctr's spec
/// lacks too, it may be anywhere below the mount.
pub const CD_CGROUP: &str = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup) 2>/dev/null || \
                             cd /sys/fs/cgroup; ";

const HUSK: &str = "io.containerd.husk.v2";

/// The shim of that runtime, on PATH.
pub const HUSK_SHIM: &str = "containerd-shim-husk-v2";

/// The namespace of `ctr`.
pub const CTR_NAMESPACE: &str = "default";

/// Cases run one at a time, or they would find each other's things left behind. Holds the
/// host as the case before left it.
static TURN: Mutex<Option<Host>> = Mutex::new(None);

/// What a case works with.
pub struct Lab {
    runtime: String,
    /// containerd's root, state and socket are in it.
    directory: PathBuf,
    log: PathBuf,
    /// Length of containerd's log when the case began.
    log_start: u64,
    traces: Mutex<Vec<Trace>>,
    execs: AtomicU32,
}

/// Runs a case: the body, then the check that it left nothing behind. `subject` is the line
/// that says what was checked.
pub fn case(subject: &str, body: impl FnOnce(&Lab)) {
    let Some(log) = env::var_os("HUSK_CONTAINERD_LOG").map(PathBuf::from) else {
        println!("not run, needs tests/lab/run: {subject}");
        return;
    };
    let mut turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let started = Instant::now();
    let lab = Lab::new(log);
    let before = turn.take().unwrap_or_else(|| lab.look());

    let done = catch_unwind(AssertUnwindSafe(|| body(&lab)));
    // What the case could not remove itself goes before the check, for the next case's sake.
    if done.is_err() {
        report::print(&lab, subject);
        lab.remove_all(&before);
    }
    let after = lab.until_clean(&before);
    match (done, after) {
        (Ok(()), Ok(after)) => *turn = Some(after),
        (Ok(()), Err(left)) => {
            report::print(&lab, subject);
            lab.remove_all(&before);
            panic!("{subject}: passed, but\n{left}");
        }
        (Err(panic), after) => {
            if let Err(left) = after {
                eprintln!("{left}");
            }
            resume_unwind(panic);
        }
    }
    println!("{subject}: {:.1} s", started.elapsed().as_secs_f32());
}

/// Runs a case of behaviour that only husk has. With another runtime it says so.
pub fn husk_case(subject: &str, body: impl FnOnce(&Lab)) {
    match runtime() {
        name if name == HUSK => case(subject, body),
        name => println!("not run, {name} is not husk: {subject}"),
    }
}

fn runtime() -> String {
    env::var("HUSK_TEST_RUNTIME").unwrap_or_else(|_| HUSK.to_owned())
}

impl Lab {
    fn new(log: PathBuf) -> Lab {
        let socket = env::var("CONTAINERD_ADDRESS").expect("CONTAINERD_ADDRESS is set");
        let directory = Path::new(&socket).parent().expect("the socket's directory").to_owned();
        let log_start = log.metadata().map_or(0, |file| file.len());
        let runtime = runtime();
        let (traces, execs) = (Mutex::default(), AtomicU32::new(0));
        Lab { runtime, directory, log, log_start, traces, execs }
    }

    /// Whether it is husk, and not what husk is compared with.
    pub fn is_husk(&self) -> bool {
        self.runtime == HUSK
    }

    /// The runtime's name, for `--runtime`.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// The name of the runtime's shim: the name's last two words.
    pub fn shim(&self) -> String {
        let words: Vec<_> = self.runtime.rsplit('.').take(2).collect();
        format!("containerd-shim-{}-{}", words[1], words[0])
    }

    /// What containerd and its shims have logged since the case began.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).expect("containerd's log");
        let start = (self.log_start as usize).min(bytes.len());
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// Starts `ctr` with these words.
    pub fn ctr_start(&self, words: &[&str]) -> Running {
        let running = Running::start(Command::new("ctr").args(words));
        self.traces().push(running.trace());
        running
    }

    /// Runs `ctr` to its end, with nothing on stdin.
    #[track_caller]
    pub fn ctr(&self, words: &[&str]) -> Output {
        let mut running = self.ctr_start(words);
        running.close_stdin();
        running.wait()
    }

    /// Starts `ctr` on a terminal.
    pub fn ctr_on_terminal(&self, size: Size, words: &[&str]) -> Running {
        let running = Running::start_on_terminal(Command::new("ctr").args(words), size);
        self.traces().push(running.trace());
        running
    }

    /// The words of `ctr run` for a container of the sample image.
    pub fn run_words<'a>(
        &'a self,
        flags: &[&'a str],
        id: &'a str,
        command: &[&'a str],
    ) -> Vec<&'a str> {
        let mut words = vec!["run", "--runtime", &self.runtime];
        words.extend_from_slice(flags);
        words.extend([IMAGE, id]);
        words.extend_from_slice(command);
        words
    }

    /// Runs a container to its end and removes it.
    #[track_caller]
    pub fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Output {
        self.ctr(&self.run_words(&[&["--rm"], flags].concat(), id, command))
    }

    /// The same by a line for the container's shell.
    #[track_caller]
    pub fn sh(&self, id: &str, line: &str) -> Output {
        self.run(&[], id, &["sh", "-c", line])
    }

    /// Starts a container that is removed at its end, and stays beside it.
    pub fn attached(&self, flags: &[&str], id: &str, command: &[&str]) -> Running {
        self.ctr_start(&self.run_words(&[&["--rm"], flags].concat(), id, command))
    }

    /// Starts a container that runs by itself until [`Lab::remove`].
    #[track_caller]
    pub fn detached(&self, flags: &[&str], id: &str, command: &[&str]) {
        self.ctr(&self.run_words(&[&["-d"], flags].concat(), id, command)).ended(0);
    }

    /// A detached container that does nothing: a place for execs.
    #[track_caller]
    pub fn idle(&self, flags: &[&str], id: &str) {
        self.detached(flags, id, &["sleep", "100000"]);
    }

    /// The words of `ctr tasks exec`, with an exec id that was not used before.
    pub fn exec_words(&self, flags: &[&str], id: &str, command: &[&str]) -> Vec<String> {
        let exec = format!("exec-{}", self.execs.fetch_add(1, Ordering::Relaxed) + 1);
        let words = [&["tasks", "exec", "--exec-id", &exec], flags, &[id], command].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    /// Starts one more process in a container.
    pub fn exec_start(&self, flags: &[&str], id: &str, command: &[&str]) -> Running {
        let words = self.exec_words(flags, id, command);
        self.ctr_start(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs one more process in a container to its end.
    #[track_caller]
    pub fn exec(&self, flags: &[&str], id: &str, command: &[&str]) -> Output {
        let mut running = self.exec_start(flags, id, command);
        running.close_stdin();
        running.wait()
    }

    /// The output of a line for a shell in a container, which has to succeed.
    #[track_caller]
    pub fn exec_sh(&self, id: &str, line: &str) -> String {
        self.exec(&[], id, &["sh", "-c", line]).ended(0).text()
    }

    /// Sends a signal to a container's first process.
    #[track_caller]
    pub fn kill(&self, signal: &str, id: &str) {
        self.ctr(&["tasks", "kill", "-s", signal, id]).ended(0);
    }

    /// How `ctr tasks ls` describes a task: RUNNING, STOPPED, PAUSED; none if it is unknown.
    pub fn status(&self, id: &str) -> Option<String> {
        let list = self.ctr(&["tasks", "ls"]).ended(0).text();
        list.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(id)).then(|| words.last().unwrap_or_default().to_owned())
        })
    }

    /// Waits until a task has this status.
    #[track_caller]
    pub fn until_status(&self, id: &str, wanted: &str) {
        let reached =
            process::eventually(process::LIMIT, || self.status(id).as_deref() == Some(wanted));
        assert!(reached, "the task {id} did not become {wanted}: {:?}", self.status(id));
    }

    /// Kills a detached container and removes it with its snapshot.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        self.remove_task(id);
        self.ctr(&["containers", "rm", id]).ended(0);
    }

    /// Kills a detached container; container and snapshot stay.
    #[track_caller]
    pub fn remove_task(&self, id: &str) {
        // Its status is the process's, which was killed.
        let removed = self.ctr(&["tasks", "rm", "-f", id]);
        assert!(!removed.error().contains("ctr:"), "{}", removed.error());
    }

    /// The file of containerd's own that has this name.
    pub fn containerd_path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory that a task has in containerd's state.
    pub fn bundle_path(&self, namespace: &str, id: &str) -> PathBuf {
        self.directory.join("state/io.containerd.runtime.v2.task").join(namespace).join(id)
    }

    /// The spec that containerd makes.
    pub fn spec(&self) -> Value {
        static SPEC: OnceLock<Value> = OnceLock::new();
        let ask = || serde_json::from_str(&self.ctr(&["oci", "spec"]).ended(0).text());
        SPEC.get_or_init(|| ask().expect("a spec")).clone()
    }

    /// A root file system of its own, of busybox, that a case must not change.
    pub fn rootfs(&self) -> PathBuf {
        let rootfs = self.directory.join("rootfs");
        if !rootfs.exists() {
            let script = "set -eu; cd \"$1\"; umask 022; mkdir -p new/bin new/etc new/proc new/sys \
                new/dev new/tmp new/run; cp /bin/busybox new/bin/; \
                for name in $(busybox --list); do ln -s busybox new/bin/$name 2>/dev/null || :; \
                done; echo root:x:0:0::/root:/bin/sh >new/etc/passwd; mv new rootfs";
            let made = Command::new("sh").args(["-c", script, "sh"]).arg(&self.directory).status();
            assert!(made.expect("sh").success(), "cannot make a root file system");
        }
        rootfs
    }

    /// What is on the host now, for [`Lab::until_clean`].
    pub fn look(&self) -> Host {
        Host::look(&self.directory, &|kind| self.names(kind))
    }

    /// Waits until nothing is left of what came after `before`; the host as it is then, or
    /// what is left.
    pub fn until_clean(&self, before: &Host) -> Result<Host, String> {
        before.wait_until_clean(&self.directory, &|kind| self.names(kind))
    }

    fn traces(&self) -> MutexGuard<'_, Vec<Trace>> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of what containerd keeps.
    fn names(&self, kind: &'static str) -> Vec<String> {
        let (words, skip): (&[&str], _) = match kind {
            "container" => (&["containers", "ls", "-q"], 0),
            "lease" => (&["leases", "ls", "-q"], 0),
            // A table with a heading.
            _ => (&["snapshots", "ls"], 1),
        };
        let mut running = Running::start(Command::new("ctr").args(words));
        running.close_stdin();
        let output = running.wait();
        let text = output.text();
        let names = text.lines().skip(skip).filter_map(|line| line.split_whitespace().next());
        names.map(str::to_owned).collect()
    }

    /// Removes all containers by force: what a failed case may have left.
    fn remove_all(&self, before: &Host) {
        if env::var("HUSK_LAB_CRI").is_ok_and(|on| !on.is_empty()) {
            crate::cri::remove_all();
        }
        let quiet = |words: &[&str]| {
            let mut running = Running::start(Command::new("ctr").args(words));
            running.close_stdin();
            let _ = catch_unwind(AssertUnwindSafe(|| running.wait()));
        };
        for id in self.names("container") {
            quiet(&["tasks", "rm", "-f", &id]);
            quiet(&["containers", "rm", &id]);
        }
        before.kill_new_processes();
    }
}
