// SPDX-License-Identifier: Apache-2.0

//! A task asked by the shim's own socket, past containerd and `ctr`.

use std::cell::OnceCell;
use std::fmt::Debug;
use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, DeleteRequest, DeleteResponse, ExecProcessRequest,
    KillRequest, ShutdownRequest, StartRequest, StateRequest, StateResponse, WaitRequest,
    WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::{Client, TaskClient, ttrpc};
use serde_json::Value;
use ttrpc::context::{Context, with_duration};

use super::leftovers::is_running;
use super::process::{LIMIT, eventually};
pub use super::shim::refusal;
use super::{CTR_NAMESPACE, Lab};

/// A task, known by its bundle. The calls with an `exec` are for any of its processes, the
/// first one if it is empty.
pub struct Task {
    id: String,
    path: PathBuf,
    calls: OnceCell<TaskClient>,
}

impl Task {
    /// A task of `ctr`.
    pub fn of_containerd(lab: &Lab, id: &str) -> Task {
        Task::at(lab.bundle_path(CTR_NAMESPACE, id), id)
    }

    /// The task of a bundle.
    pub fn at(path: PathBuf, id: &str) -> Task {
        Task { id: id.to_owned(), path, calls: OnceCell::new() }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bundle.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection of its own, with what breaks it.
    #[track_caller]
    pub fn breakable_connection(&self) -> (TaskClient, UnixStream) {
        let address = fs::read_to_string(self.path.join("address")).expect("the bundle's address");
        let stream = UnixStream::connect(address.trim_start_matches("unix://")).expect("connect");
        let breaker = stream.try_clone().expect("a second descriptor");
        (TaskClient::new(Client::new(stream.into_raw_fd()).expect("a client")), breaker)
    }

    /// A connection of its own.
    #[track_caller]
    pub fn connection(&self) -> TaskClient {
        let address = fs::read_to_string(self.path.join("address")).expect("the bundle's address");
        TaskClient::new(Client::connect(&address).expect("connect to the shim"))
    }

    /// Any call of the task service.
    #[track_caller]
    pub fn calls(&self) -> &TaskClient {
        self.calls.get_or_init(|| self.connection())
    }

    /// The daemon's pid, asked on a new connection.
    #[track_caller]
    pub fn daemon(&self) -> u32 {
        let request = ConnectRequest { id: self.id.clone(), ..Default::default() };
        self.connection().connect(context(), &request).expect("Connect").shim_pid
    }

    /// Registers an exec without streams and starts it. It is like the first process but for
    /// its arguments.
    #[track_caller]
    pub fn exec(&self, exec: &str, args: &[&str]) {
        self.add_exec(exec, args).expect("Exec");
        self.start(exec).expect("Start of an exec");
    }

    /// Registers it only.
    pub fn add_exec(&self, exec: &str, args: &[&str]) -> ttrpc::Result<()> {
        let config = fs::read(self.path.join("config.json")).expect("config.json");
        let mut config: Value = serde_json::from_slice(&config).expect("JSON");
        config["process"]["args"] = args.into();
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: config["process"].to_string().into_bytes(),
            ..Default::default()
        };
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            spec: MessageField::some(spec),
            ..Default::default()
        };
        self.calls().exec(context(), &request).map(drop)
    }

    pub fn start(&self, exec: &str) -> ttrpc::Result<()> {
        let request =
            StartRequest { id: self.id.clone(), exec_id: exec.into(), ..Default::default() };
        self.calls().start(context(), &request).map(drop)
    }

    pub fn kill(&self, exec: &str, signal: i32) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            signal: signal as u32,
            ..Default::default()
        };
        self.calls().kill(context(), &request).map(drop)
    }

    pub fn wait(&self, exec: &str) -> ttrpc::Result<WaitResponse> {
        let request =
            WaitRequest { id: self.id.clone(), exec_id: exec.into(), ..Default::default() };
        self.calls().wait(context(), &request)
    }

    /// Starts it beside what else is asked.
    pub fn start_beside(&self, exec: &str) -> thread::JoinHandle<ttrpc::Result<()>> {
        let calls = self.calls().clone();
        let request =
            StartRequest { id: self.id.clone(), exec_id: exec.into(), ..Default::default() };
        thread::spawn(move || calls.start(context(), &request).map(drop))
    }

    /// Waits beside what else is asked.
    pub fn wait_beside(&self, exec: &str) -> thread::JoinHandle<ttrpc::Result<WaitResponse>> {
        let (calls, id, exec) = (self.calls().clone(), self.id.clone(), exec.to_owned());
        thread::spawn(move || {
            let request = WaitRequest { id, exec_id: exec, ..Default::default() };
            // All that the case does meanwhile has deadlines of its own.
            calls.wait(Context::default(), &request)
        })
    }

    pub fn state(&self, exec: &str) -> ttrpc::Result<StateResponse> {
        let request =
            StateRequest { id: self.id.clone(), exec_id: exec.into(), ..Default::default() };
        self.calls().state(context(), &request)
    }

    /// The first process's status, such as RUNNING.
    #[track_caller]
    pub fn status(&self) -> String {
        format!("{:?}", self.state("").expect("State").status.unwrap())
    }

    /// State, asked of the task service by this name.
    pub fn state_by(&self, service: &str) -> ttrpc::Result<StateResponse> {
        let request = StateRequest { id: self.id.clone(), ..Default::default() };
        let address = fs::read_to_string(self.path.join("address")).expect("the bundle's address");
        let answer = Client::connect(&address)?.request(ttrpc::Request {
            service: service.into(),
            method: "State".into(),
            payload: request.write_to_bytes().expect("bytes"),
            timeout_nano: LIMIT.as_nanos() as i64,
            ..Default::default()
        })?;
        Ok(StateResponse::parse_from_bytes(&answer.payload).expect("a StateResponse"))
    }

    pub fn delete(&self, exec: &str) -> ttrpc::Result<DeleteResponse> {
        let request =
            DeleteRequest { id: self.id.clone(), exec_id: exec.into(), ..Default::default() };
        self.calls().delete(context(), &request)
    }

    /// Deletes it beside what else is asked.
    pub fn delete_beside(&self, exec: &str) -> thread::JoinHandle<ttrpc::Result<DeleteResponse>> {
        let (calls, id, exec) = (self.calls().clone(), self.id.clone(), exec.to_owned());
        thread::spawn(move || {
            let request = DeleteRequest { id, exec_id: exec, ..Default::default() };
            // As above.
            calls.delete(Context::default(), &request)
        })
    }

    /// A signal for every process of the container.
    pub fn kill_all(&self, signal: i32) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: self.id.clone(),
            signal: signal as u32,
            all: true,
            ..Default::default()
        };
        self.calls().kill(context(), &request).map(drop)
    }

    pub fn connect(&self) -> ttrpc::Result<ConnectResponse> {
        let request = ConnectRequest { id: self.id.clone(), ..Default::default() };
        self.calls().connect(context(), &request)
    }

    pub fn shutdown(&self) -> ttrpc::Result<()> {
        let request = ShutdownRequest { id: self.id.clone(), ..Default::default() };
        self.calls().shutdown(context(), &request).map(drop)
    }

    /// Kills what runs and deletes it.
    #[track_caller]
    pub fn remove(&self) {
        self.kill("", libc::SIGKILL).expect("Kill");
        assert_eq!(self.wait("").expect("Wait").exit_status, 137);
        self.delete("").expect("Delete");
    }

    /// The same, and ends the shim.
    #[track_caller]
    pub fn remove_pod(&self) {
        self.remove();
        self.end_shim();
    }

    /// Asks for the shim's end and waits for it.
    #[track_caller]
    pub fn end_shim(&self) {
        // The bundle may be gone, so on the connection that there is.
        let daemon = self.connect().expect("Connect").shim_pid;
        self.shutdown().expect("Shutdown");
        assert!(gone(daemon), "the shim goes on after Shutdown");
    }
}

/// Waits until a process is gone.
pub fn gone(pid: u32) -> bool {
    eventually(LIMIT, || !is_running(pid as i32))
}

/// The time that any call may take.
pub fn context() -> Context {
    with_duration(LIMIT)
}

/// The code of a refusal, as a word.
#[track_caller]
pub fn code<T: Debug>(answer: ttrpc::Result<T>) -> String {
    format!("{:?}", refusal(answer).0)
}

/// When a process ended, since 1970.
pub fn exited_at(answer: &WaitResponse) -> Duration {
    let at = answer.exited_at.as_ref().expect("exited_at");
    Duration::new(at.seconds as u64, at.nanos as u32)
}
