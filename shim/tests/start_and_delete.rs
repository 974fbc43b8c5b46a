// SPDX-License-Identifier: Apache-2.0

//! The program as containerd runs it: `start`, `delete`, `-v`, `-info`, and the daemon over
//! its socket, with the client of containerd's own protocol. None of it needs KVM. Needs
//! root, for the sockets' directory; does nothing without.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CheckpointTaskRequest, ConnectRequest, CreateTaskRequest, DeleteRequest, DeleteResponse,
    KillRequest, PidsRequest, ShutdownRequest, StateRequest, WaitRequest,
};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::Message;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-husk-v2");

/// A bundle in a directory of its own; the directory's name makes the addresses unique.
struct Bundle {
    dir: tempfile::TempDir,
    id: String,
}

impl Bundle {
    fn new() -> Option<Bundle> {
        if !nix::unistd::Uid::effective().is_root() {
            return None;
        }
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("rootfs")).expect("rootfs");
        let bundle = Bundle { dir, id: "c1".into() };
        bundle.config(r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#);
        Some(bundle)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn config(&self, json: &str) {
        fs::write(self.path().join("config.json"), json).expect("config");
    }

    fn containerd(&self) -> String {
        self.path().join("containerd.sock").display().to_string()
    }

    /// The program with containerd's flags and this action.
    fn command(&self, action: &[&str]) -> Command {
        let mut command = Command::new(SHIM);
        command
            .args(["-namespace", "test", "-address", &self.containerd()])
            .args(["-publish-binary", "/usr/bin/containerd", "-id", &self.id])
            .args(action)
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", self.containerd()))
            .env("PATH", "/nonexistent")
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self) -> String {
        let output = self.command(&["start"]).output().expect("start");
        self.address_of(&output)
    }

    /// The one thing that a start may print.
    fn address_of(&self, output: &Output) -> String {
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        let address = String::from_utf8(output.stdout.clone()).expect("text");
        assert!(address.starts_with("unix:///run/containerd/s/"), "{address}");
        assert_eq!(address.len(), "unix:///run/containerd/s/".len() + 64, "{address}");
        let file = fs::read_to_string(self.path().join("address")).expect("address file");
        assert_eq!(file, address);
        address
    }

    fn daemon(&self) -> u32 {
        let text = fs::read_to_string(self.path().join("shim.pid")).expect("shim.pid");
        text.split(' ').next().and_then(|pid| pid.parse().ok()).expect("pid")
    }

    fn delete(&self) -> DeleteResponse {
        let output = self
            .command(&["-bundle", &self.path().display().to_string(), "delete"])
            .current_dir("/")
            .output()
            .expect("delete");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        DeleteResponse::parse_from_bytes(&output.stdout).expect("response")
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if let Ok(text) = fs::read_to_string(self.path().join("shim.pid")) {
            let pid = text.split(' ').next().and_then(|pid| pid.parse().ok()).unwrap_or(i32::MAX);
            kill(pid as u32);
        }
        let _ = self.command(&["delete"]).output();
    }
}

fn kill(pid: u32) {
    let _ = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid as i32),
        nix::sys::signal::Signal::SIGKILL,
    );
}

fn socket_of(address: &str) -> PathBuf {
    PathBuf::from(address.strip_prefix("unix://").expect("scheme"))
}

/// Whether the process is gone within a while; a zombie that our parent has not reaped
/// counts as gone.
fn is_gone(pid: u32) -> bool {
    let Some(pidfd) = husk_sandbox::Pidfd::open(pid).ok() else { return true };
    pidfd.wait(Duration::from_secs(5))
}

async fn client(address: &str) -> TaskClient {
    TaskClient::new(Client::connect(address).await.expect("connect"))
}

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(20))
}

/// Code and text of a refusal.
fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match answer.expect_err("refused") {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("not a status: {other:?}"),
    }
}

#[test]
fn mistakes_go_to_stderr_and_nothing_to_stdout() {
    for arguments in [&[][..], &["-wrong", "start"], &["-namespace", "n", "-id", "i", "stop"]] {
        let output = Command::new(SHIM).args(arguments).output().expect("run");
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        assert!(!output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn version_and_info_are_printed() {
    let output = Command::new(SHIM).arg("-v").output().expect("run");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")));
    let output = Command::new(SHIM).arg("-info").output().expect("run");
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).expect("info");
    assert_eq!(info.name, "io.containerd.husk.v2");
    assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
    let features: serde_json::Value = serde_json::from_slice(&info.features.value).expect("JSON");
    assert!(info.features.type_url.ends_with("/runtime-spec/1/features/Features"), "{info:?}");
    assert_eq!(features, husk_protocol::features::features());
}

#[test]
fn a_start_is_quick_and_a_second_finds_the_first() {
    let Some(bundle) = Bundle::new() else { return };
    let started = Instant::now();
    let address = bundle.start();
    // Generous: the machine may be busy.
    assert!(started.elapsed() < Duration::from_secs(5));
    let daemon = bundle.daemon();
    assert_eq!(bundle.start(), address);
    assert_eq!(bundle.daemon(), daemon);
    // It has let go of the bundle and of everything that it was started with.
    let fds = fs::read_dir(format!("/proc/{daemon}/fd")).expect("fds").flatten();
    for fd in fds {
        let number: u32 = fd.file_name().to_string_lossy().parse().expect("number");
        let target = fs::read_link(fd.path()).unwrap_or_default();
        if number < 3 {
            assert_eq!(target, Path::new("/dev/null"), "{number}");
        }
        assert!(!target.starts_with(bundle.path()), "{number}: {}", target.display());
    }
    // SAFETY: getsid takes no pointers.
    assert_eq!(unsafe { libc::getsid(daemon as i32) }, daemon as i32);
    kill(daemon);
}

#[test]
fn parallel_starts_make_one_daemon() {
    let Some(bundle) = Bundle::new() else { return };
    let starts: Vec<Child> =
        (0..8).map(|_| bundle.command(&["start"]).spawn().expect("start")).collect();
    let outputs: Vec<Output> =
        starts.into_iter().map(|child| child.wait_with_output().expect("output")).collect();
    let addresses: Vec<String> = outputs.iter().map(|output| bundle.address_of(output)).collect();
    assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]), "{addresses:?}");
    let daemons = fs::read_dir("/proc").expect("proc").flatten().filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(&bundle.containerd()) && line.contains("daemon")
    });
    assert_eq!(daemons.count(), 1);
}

#[test]
fn a_stale_socket_is_replaced_and_delete_removes_it() {
    let Some(bundle) = Bundle::new() else { return };
    let address = bundle.start();
    let first = bundle.daemon();
    kill(first);
    assert!(is_gone(first));
    assert!(socket_of(&address).exists());
    assert_eq!(bundle.start(), address);
    let second = bundle.daemon();
    assert_ne!(first, second);
    kill(second);
    assert!(is_gone(second));
    for _ in 0..2 {
        let response = bundle.delete();
        assert_eq!(response.exit_status, 137);
        assert!(response.exited_at.seconds > 0);
    }
    assert!(!socket_of(&address).exists());
    fs::remove_file(bundle.path().join("config.json")).expect("remove");
    fs::remove_dir(bundle.path().join("rootfs")).expect("remove");
    bundle.delete();
}

#[test]
fn a_pods_container_needs_its_sandbox_and_gets_its_address() {
    let (Some(sandbox), Some(mut member)) = (Bundle::new(), Bundle::new()) else { return };
    member.id = "member".into();
    member.config(
        r#"{"annotations":{"io.kubernetes.cri.container-type":"container",
            "io.kubernetes.cri.sandbox-id":"c1"}}"#,
    );
    let start_member = || {
        let mut command = Command::new(SHIM);
        command
            .args([
                "-namespace",
                "test",
                "-address",
                &sandbox.containerd(),
                "-id",
                "member",
                "start",
            ])
            .current_dir(member.path())
            .stdin(Stdio::null());
        command.output().expect("start")
    };
    let output = start_member();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("sandbox"), "{output:?}");
    let address = sandbox.start();
    assert_eq!(member.address_of(&start_member()), address);
    assert!(!member.path().join("shim.pid").exists());
}

#[test]
fn options_on_stdin_do_not_change_the_answer_and_bootstrap_params_do() {
    let Some(bundle) = Bundle::new() else { return };
    let with_input = |input: &[u8]| {
        let mut child = bundle.command(&["start"]).stdin(Stdio::piped()).spawn().expect("start");
        child.stdin.take().expect("stdin").write_all(input).expect("write");
        child.wait_with_output().expect("output")
    };
    let address =
        bundle.address_of(&with_input(b"\n\x19runtimeoptions.v1.Options\x12\x02\x12\x00"));
    let params = containerd_shim_protos::bootstrap_api::BootstrapParams {
        instance_id: "c1".into(),
        namespace: "test".into(),
        ..Default::default()
    };
    let output = with_input(&params.write_to_bytes().expect("bytes"));
    let result =
        containerd_shim_protos::bootstrap_api::BootstrapResult::parse_from_bytes(&output.stdout)
            .expect("result");
    assert_eq!((result.version, result.address), (3, address));
}

#[tokio::test]
async fn the_daemon_answers_and_shuts_down() {
    let Some(bundle) = Bundle::new() else { return };
    let address = bundle.start();
    let daemon = bundle.daemon();
    let task = client(&address).await;
    let request = ConnectRequest { id: "c1".into(), ..Default::default() };
    let connected = task.connect(context(), &request).await.expect("connect");
    assert_eq!((connected.shim_pid, connected.task_pid), (daemon, 0));
    let id = || "c1".to_owned();
    let state = StateRequest { id: id(), ..Default::default() };
    assert_eq!(refusal(task.state(context(), &state).await).0, ttrpc::Code::NOT_FOUND);
    let wait = WaitRequest { id: id(), ..Default::default() };
    assert_eq!(refusal(task.wait(context(), &wait).await).0, ttrpc::Code::NOT_FOUND);
    let kill = KillRequest { id: id(), signal: 9, ..Default::default() };
    assert_eq!(refusal(task.kill(context(), &kill).await).0, ttrpc::Code::NOT_FOUND);
    let pids = PidsRequest { id: id(), ..Default::default() };
    assert_eq!(refusal(task.pids(context(), &pids).await).0, ttrpc::Code::NOT_FOUND);
    let delete = DeleteRequest { id: id(), ..Default::default() };
    assert_eq!(refusal(task.delete(context(), &delete).await).0, ttrpc::Code::NOT_FOUND);
    let checkpoint = CheckpointTaskRequest { id: id(), ..Default::default() };
    let refused = refusal(task.checkpoint(context(), &checkpoint).await);
    assert_eq!(refused.0, ttrpc::Code::UNIMPLEMENTED);
    let shutdown = ShutdownRequest { id: id(), ..Default::default() };
    task.shutdown(context(), &shutdown).await.expect("answered before the end");
    assert!(is_gone(daemon));
    assert!(!socket_of(&address).exists());
}

#[tokio::test]
async fn containerd_before_2_0_calls_the_same_service_by_its_older_name() {
    let Some(bundle) = Bundle::new() else { return };
    let address = bundle.start();
    let connection = Client::connect(&address).await.expect("connect");
    for version in ["v2", "v3"] {
        let request = ConnectRequest { id: "c1".into(), ..Default::default() };
        let response = connection
            .request(ttrpc::Request {
                service: format!("containerd.task.{version}.Task"),
                method: "Connect".into(),
                payload: request.write_to_bytes().expect("bytes"),
                timeout_nano: 20_000_000_000,
                ..Default::default()
            })
            .await
            .expect(version);
        assert!(!response.payload.is_empty(), "{version}");
    }
}

#[tokio::test]
async fn a_create_that_fails_says_why_and_leaves_nothing() {
    let Some(bundle) = Bundle::new() else { return };
    let address = bundle.start();
    let daemon = bundle.daemon();
    let task = client(&address).await;
    let request = |bundle: &Path| CreateTaskRequest {
        id: "c1".into(),
        bundle: bundle.display().to_string(),
        ..Default::default()
    };
    // The program's directory holds no guest in a build's tests, and PATH is empty.
    let refused = refusal(task.create(context(), &request(bundle.path())).await);
    assert!(refused.1.contains("make install") || refused.1.contains("kvm"), "{refused:?}");
    let refused = refusal(task.create(context(), &request(Path::new("/nonexistent"))).await);
    assert!(refused.1.contains("/nonexistent/config.json"), "{refused:?}");
    bundle.config("{");
    let refused = refusal(task.create(context(), &request(bundle.path())).await);
    assert_eq!(refused.0, ttrpc::Code::INVALID_ARGUMENT);
    let shutdown = ShutdownRequest { id: "c1".into(), ..Default::default() };
    task.shutdown(context(), &shutdown).await.expect("shutdown");
    assert!(is_gone(daemon));
    assert!(!Path::new("/run/husk/test/c1").exists());
}
