// SPDX-License-Identifier: Apache-2.0

//! A container's shim, asked directly over its ttrpc socket, past containerd: for what `ctr`
//! cannot ask for, and for what its own work would blur. Any shim of the Task API v2 answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::{
    CloseIORequest, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    ResizePtyRequest, StartRequest, StartResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::{Client, protobuf, ttrpc};
use protobuf::Message;
use serde_json::Value;

use super::Lab;
use super::fifos::Fifos;
use super::process::{LIMIT, Size};

/// The Task API as every shim for containerd 1.6 has it.
const SERVICE: &str = "containerd.task.v2.Task";

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// The shim of a container that containerd runs.
pub struct Shim {
    client: Client,
    container: String,
    bundle: PathBuf,
    limit: Duration,
}

/// Paths or URIs of a process's streams; empty is none.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

impl Shim {
    /// Connects. `directory` is containerd's own, with its state in it.
    pub fn of(directory: &Path, container: &str) -> Result<Shim, String> {
        let bundle = directory
            .join("state/io.containerd.runtime.v2.task")
            .join(super::CTR_NAMESPACE)
            .join(container);
        let address = fs::read_to_string(bundle.join("address"))
            .map_err(|error| format!("the address of {container}'s shim: {error}"))?;
        let client = Client::connect(address.trim())
            .map_err(|error| format!("cannot connect to {address}: {error}"))?;
        Ok(Shim { client, container: container.to_owned(), bundle, limit: LIMIT })
    }

    /// With another limit for each request than what a case waits for anything.
    pub fn within(self, limit: Duration) -> Shim {
        Shim { limit, ..self }
    }

    /// The Process of the container's first process with other arguments, to be changed
    /// further and given to [`Shim::exec`].
    pub fn process(&self, args: &[&str]) -> Value {
        let config = fs::read(self.bundle.join("config.json")).expect("the bundle's config.json");
        let mut config: Value = serde_json::from_slice(&config).expect("config.json is JSON");
        let mut process = config["process"].take();
        process["args"] = args.into();
        process["terminal"] = false.into();
        process
    }

    /// Registers an exec.
    pub fn exec(&self, exec: &str, process: &Value, stdio: &Stdio) -> ttrpc::Result<()> {
        let spec = protobuf::well_known_types::any::Any {
            type_url: PROCESS_TYPE.to_owned(),
            value: process.to_string().into_bytes(),
            ..Default::default()
        };
        let request = ExecProcessRequest {
            id: self.container.clone(),
            exec_id: exec.to_owned(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: protobuf::MessageField::some(spec),
            ..Default::default()
        };
        self.call::<_, Empty>("Exec", &request).map(drop)
    }

    /// Starts an exec.
    pub fn start(&self, exec: &str) -> ttrpc::Result<()> {
        let (id, exec_id) = self.names(exec);
        let request = StartRequest { id, exec_id, ..Default::default() };
        self.call::<_, StartResponse>("Start", &request).map(drop)
    }

    /// Waits for the end of a process, the container's own for an empty `exec`; its status.
    pub fn wait(&self, exec: &str) -> ttrpc::Result<u32> {
        let (id, exec_id) = self.names(exec);
        let request = WaitRequest { id, exec_id, ..Default::default() };
        self.call("Wait", &request).map(|answer: WaitResponse| answer.exit_status)
    }

    /// Sends a signal to a process.
    pub fn kill(&self, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let (id, exec_id) = self.names(exec);
        let request = KillRequest { id, exec_id, signal, ..Default::default() };
        self.call::<_, Empty>("Kill", &request).map(drop)
    }

    /// Sets the size of a process's terminal.
    pub fn resize(&self, exec: &str, size: Size) -> ttrpc::Result<()> {
        let (id, exec_id) = self.names(exec);
        let (width, height) = (size.columns.into(), size.rows.into());
        let request = ResizePtyRequest { id, exec_id, width, height, ..Default::default() };
        self.call::<_, Empty>("ResizePty", &request).map(drop)
    }

    /// Says that nothing more will be written to a process's stdin.
    pub fn close_stdin(&self, exec: &str) -> ttrpc::Result<()> {
        let (id, exec_id) = self.names(exec);
        let request = CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
        self.call::<_, Empty>("CloseIO", &request).map(drop)
    }

    /// Gives the container other limits: an OCI LinuxResources.
    pub fn update(&self, resources: &Value) -> ttrpc::Result<()> {
        let resources = protobuf::well_known_types::any::Any {
            type_url: RESOURCES_TYPE.to_owned(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        };
        let request = UpdateTaskRequest {
            id: self.container.clone(),
            resources: protobuf::MessageField::some(resources),
            ..Default::default()
        };
        self.call("Update", &request).map(|_: Empty| ())
    }

    /// Takes an exec that has ended, or was never started, away; its status.
    pub fn delete(&self, exec: &str) -> ttrpc::Result<u32> {
        let (id, exec_id) = self.names(exec);
        let request = DeleteRequest { id, exec_id, ..Default::default() };
        self.call("Delete", &request).map(|answer: DeleteResponse| answer.exit_status)
    }

    fn names(&self, exec: &str) -> (String, String) {
        (self.container.clone(), exec.to_owned())
    }

    /// Not by the generated client, which knows the API by its newer name only.
    fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> ttrpc::Result<A> {
        let unreadable = |error: protobuf::Error| ttrpc::Error::Others(error.to_string());
        let answer = self.client.request(ttrpc::Request {
            service: SERVICE.to_owned(),
            method: method.to_owned(),
            payload: request.write_to_bytes().map_err(unreadable)?,
            timeout_nano: self.limit.as_nanos() as i64,
            ..Default::default()
        })?;
        A::parse_from_bytes(&answer.payload).map_err(unreadable)
    }
}

/// How an exec ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    pub status: u32,
    pub stdout: String,
    pub stderr: String,
}

impl Shim {
    /// Runs an exec from its registration to its delete.
    #[track_caller]
    pub fn run(&self, exec: &str, process: &Value) -> Ran {
        let fifos = Fifos::new();
        let (stdout, stderr) = (fifos.read("stdout"), fifos.read("stderr"));
        self.exec(exec, process, &fifos.outputs()).expect("exec");
        self.start(exec).expect("start");
        let status = self.wait(exec).expect("wait");
        // Before the delete, which would end them in any case.
        let (stdout, stderr) = (stdout.text(), stderr.text());
        assert_eq!(self.delete(exec).expect("delete"), status, "status of the delete");
        Ran { status, stdout, stderr }
    }
}

impl Lab {
    /// A connection to a container's shim.
    #[track_caller]
    pub fn shim_of(&self, id: &str) -> Shim {
        Shim::of(&self.directory, id).expect("shim")
    }
}

/// The code and text of a refusal.
#[track_caller]
pub fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        other => panic!("expected a refusal: {other:?}"),
    }
}
