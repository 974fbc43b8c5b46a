// SPDX-License-Identifier: Apache-2.0

//! A node for the installer: containerd with root, state, socket and configuration in a
//! temporary folder, and a release to install. Dropping it ends containerd.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// For what has to happen on a slow machine.
const LIMIT: Duration = Duration::from_secs(60);

/// All that `husk check` finds on a good machine, as it prints it.
const GOOD: &str = "\
ok       kvm         a test guest ran, 1.0 ns an instruction
MISSING  overlayfs   not in this kernel; choose another snapshotter
ok       files       husk-vmm, and vmlinux and guest.img
";

/// Stands for `husk check`: findings of the case, and settings that are wrong.
const HUSK: &str = r#"#!/bin/sh
cat "ROOT/findings"
! grep -qs wrong "ROOT/etc/husk/config.toml.d/50-installer.toml" || echo "MISSING  files  wrong"
"#;

/// Starts containerd again, unless its configuration has what ROOT/fatal says.
const RESTART: &str = r#"#!/bin/sh
pid=$(cat "ROOT/pid" 2>/dev/null)
if [ -n "$pid" ]; then
    kill "$pid" 2>/dev/null
    while tr '\0' '\n' <"/proc/$pid/cmdline" | grep -q .; do sleep 0.1; done 2>/dev/null
fi
[ ! -e "ROOT/fatal" ] || ! grep -q "$(cat "ROOT/fatal")" "ROOT/etc/containerd/config.toml" || exit 0
echo "--- start ---" >>"ROOT/log"
containerd --config "ROOT/etc/containerd/config.toml" >>"ROOT/log" 2>&1 </dev/null &
echo $! >"ROOT/pid"
"#;

pub struct Node {
    root: TempDir,
}

impl Node {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// A node whose containerd has `extra` at its configuration's end.
    pub fn start_with(extra: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests start containerd: run them as root");
        let node = Self { root: tempfile::tempdir().expect("a folder") };
        let root = node.root.path().display();
        let config = format!(
            "version = 2\n\
             root = \"{root}/root\"\n\
             state = \"{root}/state\"\n\
             [grpc]\n  address = \"{root}/sock\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{root}/opt\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  conf_dir = \"{root}/cni\"\n\
             # This machine may have no overlayfs.\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"native\"\n{extra}"
        );
        node.write("etc/containerd/config.toml", &config, 0o600);
        node.write("restart", &RESTART.replace("ROOT", &root.to_string()), 0o755);
        node.findings(GOOD);

        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        node.copy(&deploy.join("installer/install"), "release/install");
        for name in ["husk.toml", "husk-v3.toml"] {
            node.copy(&deploy.join("containerd").join(name), &format!("release/containerd/{name}"));
        }
        node.write("release/bin/husk", &HUSK.replace("ROOT", &root.to_string()), 0o755);
        node.copy(Path::new("/bin/sleep"), "release/bin/containerd-shim-husk-v2");
        for name in ["bin/husk-vmm", "share/husk/vmlinux", "share/husk/guest.img"] {
            node.release(name, name);
        }

        let started = Command::new(node.path("restart")).status().expect("start containerd");
        assert!(started.success());
        node.eventually("containerd serves CRI", || node.serves_cri());
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn prefix(&self) -> PathBuf {
        self.path("husk")
    }

    pub fn shim(&self) -> PathBuf {
        self.prefix().join("current/bin/containerd-shim-husk-v2")
    }

    pub fn config_path(&self) -> PathBuf {
        self.path("etc/containerd/config.toml")
    }

    pub fn backup(&self) -> PathBuf {
        self.path("etc/containerd/config.toml.before-husk")
    }

    pub fn installed_settings(&self) -> PathBuf {
        self.path("etc/husk/config.toml.d/50-installer.toml")
    }

    pub fn config(&self) -> String {
        fs::read_to_string(self.config_path()).expect("containerd's configuration")
    }

    /// Names of what is in the folder of releases, sorted.
    pub fn releases(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.prefix().join("releases")) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        names
    }

    // What the case makes of the node.

    /// Writes a file of the release.
    pub fn release(&self, name: &str, content: &str) {
        self.write(&format!("release/{name}"), content, 0o644);
    }

    /// What the release's `husk check` prints.
    pub fn findings(&self, text: &str) {
        self.write("findings", text, 0o644);
    }

    /// The settings that the next installation brings.
    pub fn settings(&self, text: &str) {
        self.write("settings", text, 0o644);
    }

    pub fn restart_command(&self, command: &str) {
        self.write("restart", &format!("#!/bin/sh\n{command}\n"), 0o755);
    }

    pub fn containerd_fails_when_configuration_has(&self, word: &str) {
        self.write("fatal", word, 0o644);
    }

    /// A process of the shim's program.
    pub fn start_pod(&self) -> Child {
        Command::new(self.shim()).arg("600").spawn().expect("a pod")
    }

    #[must_use]
    pub fn mount_small_disk(&self, at: &Path) -> Mounted {
        fs::create_dir_all(at).expect("a folder");
        mount(Some("disk"), at, Some("tmpfs"), MsFlags::empty(), Some("size=256k")).expect("mount");
        Mounted(at.to_owned())
    }

    #[must_use]
    pub fn mount_read_only(&self, at: &Path) -> Mounted {
        mount(Some(at), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let mounted = Mounted(at.to_owned());
        mount(None::<&str>, at, None::<&str>, flags, None::<&str>).expect("remount");
        mounted
    }

    // The installer.

    pub fn install(&self) -> Outcome {
        self.install_within(LIMIT.as_secs())
    }

    /// Installs, with `seconds` for containerd to come back.
    pub fn install_within(&self, seconds: u64) -> Outcome {
        self.outcome(self.installer("install", seconds))
    }

    pub fn run(&self, verb: &str) -> Outcome {
        self.outcome(self.installer(verb, LIMIT.as_secs()))
    }

    /// Starts an installation, and sends it SIGTERM while it waits for containerd.
    pub fn install_and_terminate(&self) -> Outcome {
        let mut command = self.installer("install", LIMIT.as_secs());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.expect("start the installer");
        self.eventually("containerd is being restarted", || !self.serves_cri());
        let pid = Pid::from_raw(child.id().try_into().expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("signal to the installer");
        let output = child.wait_with_output().expect("wait for the installer");
        Outcome { output, log: self.log() }
    }

    fn outcome(&self, mut installer: Command) -> Outcome {
        let output = installer.output().expect("run the installer");
        Outcome { output, log: self.log() }
    }

    fn installer(&self, verb: &str, seconds: u64) -> Command {
        let mut command = Command::new(self.path("release/install"));
        command.arg(verb).arg("--prefix").arg(self.prefix());
        command.arg("--config").arg(self.config_path()).arg("--address").arg(self.path("sock"));
        command.arg("--restart").arg(self.path("restart")).arg("--etc").arg(self.path("etc/husk"));
        command.arg("--timeout").arg(seconds.to_string());
        if self.path("settings").exists() {
            command.arg("--settings").arg(self.path("settings"));
        }
        command
    }

    /// Runs `action`, after which configuration and containerd are what they were.
    #[track_caller]
    pub fn unchanged_by(&self, action: impl FnOnce()) {
        let (config, pid) = (self.config(), self.pid());
        action();
        assert_eq!(self.config(), config);
        assert_eq!(self.pid(), pid, "containerd was restarted");
        assert!(self.serves_cri());
        assert!(!self.prefix().join("current").exists(), "husk is there");
        assert!(!self.path("etc/containerd/config.toml.husk-new").exists());
    }

    // containerd.

    pub fn pid(&self) -> String {
        fs::read_to_string(self.path("pid")).expect("containerd's pid").trim().to_owned()
    }

    pub fn serves_cri(&self) -> bool {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.path("sock")).args(["plugins", "ls"]);
        let output = ctr.output().expect("run ctr");
        String::from_utf8_lossy(&output.stdout).lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            matches!(words[..], ["io.containerd.grpc.v1", "cri", .., "ok"])
        })
    }

    /// What the CRI plugin of the containerd that runs said of its runtimes when it started.
    pub fn handlers(&self) -> String {
        const HEAD: &str = "Start cri plugin with config ";
        let said = || {
            let log = self.log();
            let latest = log.rsplit("--- start ---").next().unwrap_or_default();
            let line = latest.lines().find(|line| line.contains(HEAD))?;
            Some(line.split_once("Runtimes:map[")?.1.to_owned())
        };
        self.eventually("CRI tells its configuration", || said().is_some());
        said().expect("its configuration")
    }

    pub fn stop_containerd(&self) {
        self.containerd_fails_when_configuration_has(".");
        let stopped = Command::new(self.path("restart")).status().expect("stop containerd");
        assert!(stopped.success());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    #[track_caller]
    fn eventually(&self, what: &str, mut happens: impl FnMut() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !happens() {
            assert!(
                Instant::now() < deadline,
                "not within {LIMIT:?}: {what}; log:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn write(&self, name: &str, content: &str, mode: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make its folder");
        fs::write(&path, content).expect("write a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
    }

    fn copy(&self, from: &Path, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make its folder");
        fs::copy(from, path).expect("copy a file");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.write(
            "restart",
            &RESTART.replace("ROOT", &self.root.path().display().to_string()),
            0o755,
        );
        self.stop_containerd();
    }
}

/// A mount that goes when it is dropped.
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("unmount");
    }
}

/// What the installer said, and containerd's log for whoever reads a failure.
pub struct Outcome {
    output: Output,
    log: String,
}

impl Outcome {
    #[track_caller]
    pub fn succeeds(&self) {
        assert!(self.output.status.success(), "{}", self.text());
    }

    #[track_caller]
    pub fn fails_with(&self, status: i32, text: &str) {
        assert_eq!(self.output.status.code(), Some(status), "{}", self.text());
        assert!(self.text().contains(text), "no '{text}' in: {}", self.text());
    }

    fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.output.stdout).into_owned();
        text += &String::from_utf8_lossy(&self.output.stderr);
        if !self.output.status.success() {
            let tail: Vec<&str> = self.log.lines().rev().take(20).collect();
            for line in tail.into_iter().rev() {
                let _ = write!(text, "\n  containerd: {line}");
            }
        }
        text
    }
}
