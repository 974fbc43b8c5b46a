// SPDX-License-Identifier: Apache-2.0

//! A guest without a VM: the agent as the first process of its own namespaces, with the
//! host's ports as Unix sockets. Needs root, cgroup v2, unshare, and a static busybox.
//!
//! With HUSK_AGENT_IMAGE naming a guest image, the same in a VM: husk-vmm, which has to be
//! on PATH, and HUSK_AGENT_KERNEL. What is left behind cannot be seen from outside then.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use husk_protocol::agent::frame::Body;
use husk_protocol::agent::log::Level;
use husk_protocol::agent::request::Verb;
use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::{
    Create, Delete, Event, Exec, Exit, Frame, Request, Response, Setup, Share, Start, Stdio,
    event::Kind,
};
use husk_protocol::{
    CONTROL_PORT, FIRST_STREAM_PORT, PROTOCOL_VERSION, SHARE_PATH, SHARE_TAG, read_frame,
    write_frame,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

pub struct Guest {
    /// unshare, or husk-vmm.
    place: Child,
    image: Option<String>,
    pub directory: PathBuf,
    /// How many mounts and descriptors the agent has while there are no containers.
    mounts: usize,
    descriptors: usize,
    stream: Option<UnixStream>,
    last_id: u64,
    last_port: u32,
    responses: HashMap<u64, Response>,
    pub events: Vec<Event>,
    /// What came, in order: `response 3`, `exit c1`, `exit c1/e1`, `oom c1`.
    pub order: Vec<String>,
}

/// The host's side of a process's streams.
pub struct Streams {
    pub stdin: UnixListener,
    pub stdout: UnixListener,
    pub stderr: UnixListener,
    pub stdio: Stdio,
}

impl Guest {
    /// Starts an agent and sets it up.
    pub async fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("husk-{name}-{}", std::process::id()));
        make_root(&directory.join("share/rootfs"));
        let image = std::env::var("HUSK_AGENT_IMAGE").ok();
        let control = UnixListener::bind(port(&directory, CONTROL_PORT)).expect("bind");
        let mut command = match &image {
            Some(image) => in_vm(image, &directory),
            None => in_namespaces(&directory),
        };
        let place = command.spawn().expect("start the guest");
        let accepted = timeout(PATIENCE, control.accept()).await;
        let (stream, _) = accepted.expect("the agent does not come").expect("accept");
        let mut guest = Self {
            place,
            image,
            directory,
            mounts: 0,
            descriptors: 0,
            stream: Some(stream),
            last_id: 0,
            last_port: FIRST_STREAM_PORT,
            responses: HashMap::new(),
            events: Vec::new(),
            order: Vec::new(),
        };
        let hello = read_frame(guest.stream()).await.expect("hello").expect("a frame");
        assert_eq!(hello.hello().version, PROTOCOL_VERSION);
        assert!(hello.hello().started_ns <= hello.hello().sent_ns);
        let share = Share { tag: SHARE_TAG.into(), path: SHARE_PATH.into(), ..Default::default() };
        let setup = Setup {
            shares: guest.image.iter().map(|_| share.clone()).collect(),
            version: PROTOCOL_VERSION,
            entropy: vec![7; 64],
            hostname: "guest".into(),
            ..Default::default()
        };
        let id = guest.send(Body::Setup(setup)).await;
        assert_eq!(guest.answer(id).await, Ok(Outcome::Done(Default::default())));
        if guest.image.is_none() {
            let mounts = std::fs::read_to_string(guest.agent().join("mounts")).expect("mounts");
            guest.mounts = mounts.lines().count();
            guest.descriptors = guest.descriptors().len();
        }
        guest
    }

    fn stream(&mut self) -> &mut UnixStream {
        self.stream.as_mut().expect("the control connection")
    }

    async fn send(&mut self, body: Body) -> u64 {
        self.last_id += 1;
        let frame = Frame { id: self.last_id, body: Some(body), ..Default::default() };
        write_frame(self.stream(), &frame).await.expect("send");
        self.last_id
    }

    /// Sends a request without waiting for the answer.
    pub async fn ask(&mut self, verb: Verb) -> u64 {
        self.send(Body::Request(Request { verb: Some(verb), ..Default::default() })).await
    }

    /// Waits for the answer to a request.
    pub async fn answer(&mut self, id: u64) -> Result<Outcome, String> {
        while !self.responses.contains_key(&id) {
            self.receive().await;
        }
        match self.responses.remove(&id).and_then(|response| response.result) {
            Some(Outcome::Error(error)) => {
                Err(format!("{:?}: {}", error.code.enum_value(), error.message))
            }
            Some(outcome) => Ok(outcome),
            None => panic!("an empty response"),
        }
    }

    pub async fn call(&mut self, verb: Verb) -> Result<Outcome, String> {
        let id = self.ask(verb).await;
        self.answer(id).await
    }

    async fn receive(&mut self) {
        let frame = timeout(PATIENCE, read_frame(self.stream())).await;
        let frame = frame.expect("the agent says nothing").expect("frame").expect("a frame");
        match frame.body {
            Some(Body::Response(response)) => {
                self.order.push(format!("response {}", frame.id));
                self.responses.insert(frame.id, response);
            }
            Some(Body::Event(event)) => {
                match &event.kind {
                    Some(Kind::Exit(exit)) => self.order.push(format!("exit {}", name(exit))),
                    Some(Kind::Oom(oom)) => self.order.push(format!("oom {}", oom.container)),
                    Some(Kind::Log(log)) => {
                        assert_ne!(log.level.enum_value(), Ok(Level::ERROR), "{}", log.message);
                        eprintln!("agent: {}", log.message);
                    }
                    other => panic!("an unknown event: {other:?}"),
                }
                self.events.push(event);
            }
            other => panic!("an unexpected frame: {other:?}"),
        }
    }

    /// Waits for the Exit of `container`, or of `container/exec`.
    pub async fn exit(&mut self, process: &str) -> Exit {
        loop {
            let exits = self.events.iter().filter(|event| event.has_exit());
            if let Some(event) = exits.clone().find(|event| name(event.exit()) == process) {
                assert_eq!(exits.filter(|event| name(event.exit()) == process).count(), 1);
                return event.exit().clone();
            }
            self.receive().await;
        }
    }

    /// Listens for the streams of a process.
    pub fn streams(&mut self) -> Streams {
        let mut listen = || {
            self.last_port += 1;
            let path = port(&self.directory, self.last_port);
            (self.last_port, UnixListener::bind(path).expect("bind"))
        };
        let (stdin_port, stdin) = listen();
        let (stdout_port, stdout) = listen();
        let (stderr_port, stderr) = listen();
        let stdio = Stdio { stdin_port, stdout_port, stderr_port, ..Default::default() };
        Streams { stdin, stdout, stderr, stdio }
    }

    /// An OCI configuration that runs `args`.
    pub fn spec(&self, args: &[&str]) -> Value {
        let kinds = ["pid", "mount", "ipc", "uts", "cgroup"];
        json!({
            "ociVersion": "1.0.2",
            "hostname": "inside",
            "root": {"path": self.root()},
            "process": process(args),
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["ro", "nosuid", "noexec", "nodev"]},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            ],
            "linux": {
                "cgroupsPath": "/default/c1",
                "namespaces": kinds.map(|kind| json!({"type": kind})),
                "maskedPaths": ["/proc/kcore", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/irq", "/proc/bus"],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [
                        {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"},
                        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
                    ],
                },
            },
        })
    }

    /// The containers' root file system, as the guest sees it.
    fn root(&self) -> PathBuf {
        match self.image {
            Some(_) => Path::new(SHARE_PATH).join("rootfs"),
            None => self.directory.join("share/rootfs"),
        }
    }

    pub async fn create(
        &mut self,
        id: &str,
        spec: &Value,
        stdio: Stdio,
    ) -> Result<Outcome, String> {
        self.call(Verb::Create(Create {
            container: id.into(),
            spec: spec.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            ..Default::default()
        }))
        .await
    }

    pub async fn start_container(&mut self, id: &str) -> Result<Outcome, String> {
        self.call(Verb::Start(Start { container: id.into(), ..Default::default() })).await
    }

    pub async fn exec(
        &mut self,
        id: &str,
        exec: &str,
        process: &Value,
        stdio: Stdio,
    ) -> Result<Outcome, String> {
        self.call(Verb::Exec(Exec {
            container: id.into(),
            exec: exec.into(),
            process: process.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            ..Default::default()
        }))
        .await
    }

    pub async fn delete(&mut self, id: &str, exec: &str) -> Result<Outcome, String> {
        let delete = Delete { container: id.into(), exec: exec.into(), ..Default::default() };
        self.call(Verb::Delete(delete)).await
    }

    /// Runs a command in a running container and returns its output and exit status.
    pub async fn output(&mut self, id: &str, exec: &str, process: &Value) -> (String, u32) {
        let streams = self.streams();
        let started = self.exec(id, exec, process, streams.stdio.clone()).await;
        let text = streams.stdout_text().await;
        started.expect("exec");
        let status = self.exit(&format!("{id}/{exec}")).await.status;
        self.delete(id, exec).await.expect("delete");
        (text, status)
    }

    /// The agent's own directory in /proc.
    fn agent(&self) -> PathBuf {
        // unshare is the agent's parent.
        let agent = children(self.place.id());
        Path::new("/proc").join(agent.split_whitespace().next().expect("the agent"))
    }

    /// Puts a directory in the place of another one in the agent's namespace, if that can be
    /// reached, or takes it away again.
    pub fn mount_over(&self, directory: Option<&Path>, place: &str) -> bool {
        if self.image.is_some() {
            return false;
        }
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount={}", self.agent().join("ns/mnt").display()));
        match directory {
            Some(directory) => command.args(["mount", "--bind"]).arg(directory).arg(place),
            None => command.args(["umount", place]),
        };
        assert!(command.status().expect("nsenter").success(), "{command:?}");
        true
    }

    /// What the agent has open.
    fn descriptors(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.agent().join("fd")).expect("fd").flatten();
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        targets.map(|target| target.to_string_lossy().into_owned()).collect()
    }

    /// Nothing of any container is left: no process, cgroup or mount, and no descriptor once
    /// the streams have ended, which may take a moment.
    pub async fn assert_clean(&mut self) {
        if self.image.is_some() {
            return;
        }
        let agent = self.agent();
        let cgroups = agent.join("root/sys/fs/cgroup/husk");
        let cgroups = std::fs::read_dir(cgroups).expect("cgroups").flatten();
        assert_eq!(cgroups.filter(|entry| entry.path().is_dir()).count(), 0);
        let mounts = std::fs::read_to_string(agent.join("mounts")).expect("mounts");
        assert_eq!(mounts.lines().count(), self.mounts, "{mounts}");
        let pid = agent.file_name().and_then(|pid| pid.to_str()?.parse().ok()).expect("pid");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (children, descriptors) = (children(pid), self.descriptors());
            if children.is_empty() && descriptors.len() == self.descriptors {
                return;
            }
            let left = format!("children {children:?}, descriptors {descriptors:?}");
            assert!(tokio::time::Instant::now() < deadline, "{left}");
            // The agent answers only after what it had to do before.
            let ended = Verb::Pids(husk_protocol::agent::Pids::new());
            self.call(ended).await.expect_err("there is no container without a name");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // An agent without a host ends, and everything in its PID namespace with it.
        self.stream = None;
        let _ = self.place.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
        // The cgroup tree is the machine's, unlike everything else; a test that failed has
        // left something there.
        let husk = Path::new("/sys/fs/cgroup/husk");
        for entry in std::fs::read_dir(husk).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_dir(husk);
    }
}

impl Streams {
    /// Accepts all three: stdin, stdout, stderr.
    pub async fn accept(self) -> (UnixStream, UnixStream, UnixStream) {
        let accept = |listener: UnixListener| async move {
            timeout(PATIENCE, listener.accept()).await.expect("no stream").expect("accept").0
        };
        (accept(self.stdin).await, accept(self.stdout).await, accept(self.stderr).await)
    }

    /// Ends stdin and reads stdout to its end.
    pub async fn stdout_text(self) -> String {
        let (mut stdin, mut stdout, _stderr) = self.accept().await;
        stdin.shutdown().await.expect("shutdown");
        text(&mut stdout).await
    }
}

/// Reads to the end of a stream.
pub async fn text(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut text)).await;
    read.expect("the stream does not end").expect("read");
    String::from_utf8_lossy(&text).into_owned()
}

/// An OCI process that runs `args` with the capabilities that containers have by default.
pub fn process(args: &[&str]) -> Value {
    let capabilities = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin", "TERM=xterm", "FIRST=1", "SECOND=2"],
        "cwd": "/",
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1000, "soft": 900}],
        "noNewPrivileges": true,
    })
}

fn in_namespaces(directory: &Path) -> Command {
    let script = "test -e /sys/fs/cgroup/cgroup.controllers || \
                  mount -t cgroup2 none /sys/fs/cgroup && mount -t tmpfs none /run && \
                  exec \"$0\" --host-directory \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "-p", "-u", "-i", "-f", "--mount-proc", "sh", "-c", script]);
    command.arg(env!("CARGO_BIN_EXE_husk-agent")).arg(directory);
    command
}

fn in_vm(image: &str, directory: &Path) -> Command {
    let kernel = std::env::var("HUSK_AGENT_KERNEL").expect("HUSK_AGENT_KERNEL");
    let mut command = Command::new("husk-vmm");
    command.args(["--kernel", &kernel, "--initramfs", image]);
    command.arg("--share").arg(directory.join("share")).arg("--vsock").arg(directory.join("port"));
    command
}

/// The socket that stands for a port of the host, by husk-vmm's rule for names.
fn port(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("port_{number}"))
}

fn children(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children")
}

fn name(exit: &Exit) -> String {
    if exit.exec.is_empty() {
        exit.container.clone()
    } else {
        format!("{}/{}", exit.container, exit.exec)
    }
}

fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
        std::fs::create_dir_all(root.join(directory)).expect("create");
    }
    let busybox = root.join("bin/busybox");
    std::fs::copy("/bin/busybox", &busybox).expect("/bin/busybox, which has to be static");
    let status = Command::new(&busybox).args(["--install", "-s"]).arg(root.join("bin")).status();
    assert!(status.expect("busybox").success());
    for link in std::fs::read_dir(root.join("bin")).expect("bin").flatten() {
        if link.file_type().expect("type").is_symlink() {
            std::fs::remove_file(link.path()).expect("remove");
            std::os::unix::fs::symlink("busybox", link.path()).expect("link");
        }
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
    std::fs::write(root.join("etc/passwd"), users).expect("passwd");
    std::fs::write(root.join("etc/plain"), "not a program").expect("plain");
}
