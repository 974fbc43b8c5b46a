// SPDX-License-Identifier: Apache-2.0

//! A bundle, the commands that act on its container, and the proof that nothing is left.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

/// Longest wait for anything, in milliseconds.
const PATIENCE: u16 = 60_000;

pub struct Bundle {
    pub directory: PathBuf,
    pub config: Value,
    /// The container's.
    pub id: String,
    /// Where the runtime keeps its containers.
    pub root: PathBuf,
    calls: Cell<u32>,
    mounts: String,
}

/// What came of a command.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

/// A command that runs.
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Bundle {
    /// A bundle whose container runs `args`; None where no test can be run.
    pub fn new(name: &str, args: &[&str]) -> Option<Self> {
        let root = nix::unistd::geteuid().is_root();
        let busybox = Path::new("/bin/busybox");
        if !root || !busybox.exists() {
            eprintln!("{name}: not run, this test needs root and a static /bin/busybox");
            return None;
        }
        private_mounts();
        let id = format!("husk-oci-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(&id);
        make_root(&directory.join("rootfs"));
        Some(Self {
            config: config(&id, args),
            root: directory.join("containers"),
            directory,
            id,
            calls: Cell::new(0),
            mounts: mounts(),
        })
    }

    /// A bundle whose container runs a script.
    pub fn script(name: &str, script: &str) -> Option<Self> {
        Self::new(name, &["sh", "-c", script])
    }

    pub fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A command line, with its output in files, which a container may keep.
    pub fn command(&self, args: &[&str]) -> (Command, PathBuf, PathBuf) {
        let (file, config) = (self.path("config.json"), self.config.to_string());
        // Left alone if it is the same: another command may be reading it.
        if std::fs::read_to_string(&file).ok().as_ref() != Some(&config) {
            std::fs::write(file, config).expect("config.json");
        }
        let call = self.calls.replace(self.calls.get() + 1);
        let (out, err) = (self.path(&format!("out.{call}")), self.path(&format!("err.{call}")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_husk-agent"));
        command.arg("oci").arg("--root").arg(&self.root).args(args);
        command.current_dir(&self.directory).stdin(File::open("/dev/null").expect("null"));
        command.stdout(File::create(&out).expect("out")).stderr(File::create(&err).expect("err"));
        (command, out, err)
    }

    pub fn spawn(&self, args: &[&str]) -> Running {
        let (mut command, out, err) = self.command(args);
        Running { child: command.spawn().expect("spawn"), out, err }
    }

    /// Runs a command of the runtime to its end.
    pub fn oci(&self, args: &[&str]) -> Ran {
        self.spawn(args).wait()
    }

    /// The same, with the container's id as last argument.
    pub fn on(&self, args: &[&str]) -> Ran {
        self.oci(&[args, &[&self.id]].concat())
    }

    pub fn run(&self) -> Ran {
        self.on(&["run"])
    }

    /// Runs the container, which must succeed, and returns what it wrote.
    pub fn output(&self) -> String {
        self.run().ok()
    }

    /// Creates the container and returns the pid of its first process.
    pub fn create(&self) -> i32 {
        become_reaper();
        self.on(&["create", "--pid-file", "pid"]).ok();
        std::fs::read_to_string(self.path("pid")).expect("pid").parse().expect("a pid")
    }

    pub fn start(&self) -> i32 {
        let pid = self.create();
        self.on(&["start"]).ok();
        pid
    }

    pub fn exec(&self, options: &[&str], args: &[&str]) -> Ran {
        self.oci(&[&["exec"], options, &[&self.id], args].concat())
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.on(&["state"]).ok()).expect("JSON")
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("a status").to_owned()
    }

    /// What the first process of a container that was created wrote, once it has ended: the
    /// output of the command that created it, which was the `call`th.
    pub fn output_of(&self, call: u32) -> String {
        std::fs::read_to_string(self.path(&format!("out.{call}"))).expect("output")
    }

    pub fn kill_and_delete(&self, pid: i32) {
        self.on(&["delete", "--force"]).ok();
        assert_eq!(ended(pid), 128 + 9, "the first process was not killed");
    }

    pub fn cgroup(&self) -> PathBuf {
        cgroup_mount().join(&self.id)
    }

    /// Adds to a list of the configuration.
    pub fn push(&mut self, pointer: &str, value: Value) {
        let list = self.config.pointer_mut(pointer).expect(pointer);
        list.as_array_mut().expect(pointer).push(value);
    }

    fn assert_clean(&self) {
        let left: Vec<_> = entries(&self.root);
        assert_eq!(left, Vec::<String>::new(), "containers are left in {:?}", self.root);
        assert!(!self.cgroup().exists(), "{:?} is left", self.cgroup());
        // Some may have gone: those of others, whose mount points were removed elsewhere.
        let mounts = mounts();
        let new: Vec<&str> = mounts.lines().filter(|line| !self.mounts.contains(line)).collect();
        assert_eq!(new, Vec::<&str>::new(), "mounts are left");
        let own = self.directory.to_string_lossy();
        for process in entries(Path::new("/proc")) {
            let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            assert!(!line.contains(&*own), "process {process} is left: {line:?}");
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_clean();
            println!("{}: checked, and nothing is left", self.id);
        } else {
            self.spawn(&["delete", "--force", &self.id]).child.wait().expect("delete");
        }
        std::fs::remove_dir_all(&self.directory).expect("remove the bundle");
    }
}

impl Running {
    pub fn wait(mut self) -> Ran {
        let pidfd = pidfd(self.child.id() as i32).expect("a child");
        if !has_ended(&pidfd) {
            let _ = self.child.kill();
            let err = std::fs::read_to_string(&self.err).expect("err");
            panic!("the command does not end; it said {err:?}");
        }
        let status = self.child.wait().expect("wait");
        let read = |path| String::from_utf8_lossy(&std::fs::read(path).expect("out")).into_owned();
        Ran { status: code(status), out: read(&self.out), err: read(&self.err) }
    }
}

impl Ran {
    /// What a command that must succeed wrote.
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{self:?}");
        self.out
    }

    /// What a command that must fail said.
    pub fn fails(self, status: i32) -> String {
        assert_eq!(self.status, status, "{self:?}");
        self.err
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open() takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: the descriptor is new and nobody else's.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(PATIENCE)).expect("poll") == 1
}

/// Waits for the end of a process that was left to this one, and returns its exit status.
pub fn ended(pid: i32) -> i32 {
    assert!(has_ended(&pidfd(pid).expect("a child")), "process {pid} does not end");
    let mut status = 0;
    // SAFETY: waitpid() writes the status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid, "process {pid}");
    code(ExitStatus::from_raw(status))
}

/// Waits until a file has a line that is `line`.
pub fn wait_for_line(path: &Path, line: &str) {
    wait_until(&format!("{line:?} in {path:?}"), || {
        std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(|l| l == line))
    });
}

/// Waits until something that cannot be waited for is so.
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_millis(PATIENCE.into());
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "there is still no {what}");
        std::thread::yield_now();
    }
}

/// Processes whose parents end become this one's, so that their ends can be seen.
pub fn become_reaper() {
    // SAFETY: this prctl() takes no pointers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }, 0);
}

/// Lets this thread have mounts of its own, which nothing that it does can escape.
fn private_mounts() {
    const NONE: Option<&str> = None;
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if DONE.replace(true) {
        return;
    }
    // SAFETY: unshare() takes no pointers.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "unshare");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NONE, "/", NONE, private, NONE).expect("private mounts");
    if find_cgroup_mount().is_none() {
        let place = "/sys/fs/cgroup";
        mount(Some("none"), place, Some("cgroup2"), MsFlags::empty(), NONE).expect("cgroup2");
    }
}

/// The mounts that this thread and its children see.
fn mounts() -> String {
    std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo")
}

fn find_cgroup_mount() -> Option<PathBuf> {
    let mounts = mounts();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    mount.split(' ').nth(4).map(PathBuf::from)
}

pub fn cgroup_mount() -> PathBuf {
    find_cgroup_mount().expect("cgroup2")
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "mnt", "home/user"] {
        std::fs::create_dir_all(root.join(directory)).expect("create");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox");
    let list = Command::new("/bin/busybox").arg("--list").output().expect("busybox");
    for name in String::from_utf8_lossy(&list.stdout).lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("link");
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
    std::fs::write(root.join("etc/passwd"), users).expect("passwd");
}

fn config(id: &str, args: &[&str]) -> Value {
    let capabilities = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
    let namespaces = ["pid", "mount", "ipc", "uts", "network"];
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": namespaces.map(|kind| json!({"type": kind})),
        },
    })
}
