// SPDX-License-Identifier: Apache-2.0

//! A bundle as containerd makes it, with husk's shim run by hand in it: for what containerd
//! asks of a shim but `ctr` does not let a user ask of containerd, such as a task that is
//! created and never started. The events go to the real containerd.

use std::fs::{self, DirBuilder};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, Mount};
use containerd_shim_protos::ttrpc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::process::{LIMIT, Output, Running, eventually};
use super::task::{Task, context};
use super::{CTR_NAMESPACE, HUSK_SHIM, Lab};

/// The annotations that make a container one of a pod.
const CRI: &str = "io.kubernetes.cri";

/// A bundle. Dropping it removes its files; if the case failed, all that runs for it too.
pub struct Bundle<'a> {
    lab: &'a Lab,
    namespace: String,
    /// containerd's socket for events.
    events: PathBuf,
    task: Task,
}

impl<'a> Bundle<'a> {
    /// A bundle in the namespace of `ctr`, for a container that runs `args`.
    pub fn new(lab: &'a Lab, id: &str, args: &[&str]) -> Bundle<'a> {
        Bundle::with(lab, CTR_NAMESPACE, id, |spec| spec["process"]["args"] = args.into())
    }

    /// One of a further container in a pod whose shim has been started.
    #[track_caller]
    pub fn in_pod(pod: &Bundle<'a>, id: &str, args: &[&str]) -> Bundle<'a> {
        Bundle::in_pod_of(pod.lab, CTR_NAMESPACE, pod.id(), id, args)
    }

    /// The same for a pod that the CRI plugin has made.
    #[track_caller]
    pub fn in_cri_pod(lab: &'a Lab, pod: &str, id: &str, args: &[&str]) -> Bundle<'a> {
        Bundle::in_pod_of(lab, "k8s.io", pod, id, args)
    }

    #[track_caller]
    fn in_pod_of(lab: &'a Lab, namespace: &str, pod: &str, id: &str, args: &[&str]) -> Bundle<'a> {
        let bundle = Bundle::with(lab, namespace, id, |spec| {
            spec["process"]["args"] = args.into();
            spec["annotations"] = json!({
                format!("{CRI}.container-type"): "container",
                format!("{CRI}.sandbox-id"): pod,
            });
        });
        // What its own `start` would do.
        let address = lab.bundle_path(namespace, pod).join("address");
        fs::copy(address, bundle.path().join("address")).expect("the pod's address");
        bundle
    }

    /// One in any namespace, with containerd's spec as `change` leaves it.
    pub fn with(
        lab: &'a Lab,
        namespace: &str,
        id: &str,
        change: impl FnOnce(&mut Value),
    ) -> Bundle<'a> {
        let mut spec = lab.spec();
        spec["root"] = json!({ "path": "rootfs" });
        spec["linux"]["cgroupsPath"] = format!("/{namespace}/{id}").into();
        change(&mut spec);
        let path = lab.bundle_path(namespace, id);
        let mut directories = DirBuilder::new();
        directories.recursive(true).mode(0o711);
        for name in ["rootfs", "upper", "work"] {
            directories.create(path.join(name)).expect("make the bundle");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("chmod");
        fs::write(path.join("config.json"), spec.to_string()).expect("write config.json");
        // containerd has a FIFO here. Of a file, all can be shown at the end.
        fs::write(path.join("log"), "").expect("make the log");
        let events = lab.containerd_path("containerd.sock.ttrpc");
        Bundle { lab, namespace: namespace.to_owned(), events, task: Task::at(path, id) }
    }

    /// Changes its config.json.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path().join("config.json");
        let config = fs::read(&path).expect("config.json");
        let mut config = serde_json::from_slice(&config).expect("JSON");
        change(&mut config);
        fs::write(path, config.to_string()).expect("write config.json");
    }

    /// Has the shim send its events to another socket than containerd's.
    pub fn send_events_to(&mut self, socket: &Path) {
        self.events = socket.to_owned();
    }

    /// The shim's command line as containerd writes it, in the bundle.
    pub fn command(&self, action: &str) -> Command {
        let socket = self.lab.containerd_path("containerd.sock");
        let mut command = Command::new(HUSK_SHIM);
        command.args(["-namespace", &self.namespace, "-address"]).arg(&socket);
        command.args(["-publish-binary", "containerd", "-id", self.id()]);
        if action == "delete" {
            command.arg("-bundle").arg(self.path());
        }
        command.arg(action).current_dir(self.path()).env("GOMAXPROCS", "2");
        command.env("TTRPC_ADDRESS", &self.events);
        command
    }

    /// Runs it to its end with nothing on stdin.
    #[track_caller]
    pub fn run(&self, action: &str) -> Output {
        run(&mut self.command(action), b"")
    }

    /// Starts the shim; its address.
    #[track_caller]
    pub fn start_shim(&self) -> String {
        self.run("start").ended(0).text()
    }

    /// Creates the container, in the pod's VM if it is in one; its pid.
    #[track_caller]
    pub fn create(&self) -> u32 {
        if !self.path().join("address").exists() {
            self.start_shim();
        }
        self.calls().create(context(), &self.create_request()).expect("Create").pid
    }

    /// The same, and started.
    #[track_caller]
    pub fn launch(&self) -> u32 {
        let pid = self.create();
        self.start("").expect("Start");
        pid
    }

    /// What containerd asks for a container without streams, on an overlay.
    pub fn create_request(&self) -> CreateTaskRequest {
        let overlay = |name: &str, path: PathBuf| format!("{name}={}", path.display());
        let rootfs = Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                overlay("workdir", self.path().join("work")),
                overlay("upperdir", self.path().join("upper")),
                overlay("lowerdir", self.lab.rootfs()),
            ],
            ..Default::default()
        };
        CreateTaskRequest {
            id: self.id().to_owned(),
            bundle: self.path().display().to_string(),
            rootfs: vec![rootfs],
            ..Default::default()
        }
    }

    /// Creates it beside what else is asked, with its output to this URI.
    pub fn create_beside(
        &self,
        stdout: String,
    ) -> thread::JoinHandle<ttrpc::Result<CreateTaskResponse>> {
        let (calls, request) = (self.calls().clone(), self.create_request());
        let request = CreateTaskRequest { stdout, ..request };
        thread::spawn(move || calls.create(context(), &request))
    }

    /// Creates it after a Create that was given up, which may still be being undone, or have
    /// succeeded too late for its caller, who then deletes it as containerd does.
    #[track_caller]
    pub fn create_after_all(&self) {
        let mut answer = None;
        let answered = eventually(LIMIT, || {
            let _ = self.delete("");
            let made = self.calls().create(context(), &self.create_request());
            let in_the_way = matches!(&made, Err(ttrpc::Error::RpcStatus(status))
                if status.code() == ttrpc::Code::ALREADY_EXISTS);
            answer = Some(made);
            !in_the_way
        });
        assert!(answered, "a Create that was given up is still in the way");
        answer.expect("an answer").expect("Create after all");
    }
}

impl Deref for Bundle<'_> {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.task
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.path().join("log")).unwrap_or_default();
            eprintln!("--- the shim's log of {}:\n{log}", self.id());
            let daemon = fs::read_to_string(self.path().join("shim.pid")).unwrap_or_default();
            if let Some(Ok(pid)) = daemon.split(' ').next().map(str::parse) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = self.command("delete").output();
        }
        let _ = fs::remove_dir_all(self.path());
        if self.namespace != CTR_NAMESPACE {
            let _ = self.path().parent().map(fs::remove_dir);
        }
    }
}

/// Runs a command to its end with these bytes on stdin.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut running = Running::start(command);
    running.write_and_close(input.to_owned());
    running.wait()
}
