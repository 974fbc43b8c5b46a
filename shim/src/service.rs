// SPDX-License-Identifier: Apache-2.0

//! containerd's task service: finds what a request is about and hands it on.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::types::task::Status;
use husk_sandbox::{Code, Error};
use protobuf::MessageField;
use tokio::sync::Notify;
use ttrpc::asynchronous::TtrpcContext;

use crate::pod::Pod;
use crate::process::{Exit, State};
use crate::reply::{timestamp, to_ttrpc};
use crate::{create, exec, kill, metrics, pids, remove, update};

/// Answers for one pod.
#[derive(Clone)]
pub struct Service {
    pub pod: Arc<Pod>,
    /// Told when the daemon should end.
    pub shutdown: Arc<Notify>,
}

/// How long the guest may take for a request that is quick in any guest that lives.
pub const QUICK: Duration = Duration::from_secs(10);

/// Fails with UNAVAILABLE when the guest does not answer in time.
pub async fn quick<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(QUICK, call).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!("the guest did not answer within {} s", QUICK.as_secs())))
    })
}

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl Task for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> Answer<CreateTaskResponse> {
        let pid = create::create(self.pod.clone(), request).await.map_err(to_ttrpc)?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Answer<StartResponse> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        exec::start(&self.pod, &container, &request.exec_id).await.map_err(to_ttrpc)?;
        Ok(StartResponse { pid: container.pid, ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Answer<StateResponse> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        let mut inner = container.inner();
        let status = inner.status(&request.exec_id).map_err(to_ttrpc)?;
        let process = inner.process(&request.exec_id).map_err(to_ttrpc)?;
        let exit = process.state().exit();
        let stdio = process.stdio.clone();
        Ok(StateResponse {
            id: request.id,
            bundle: container.bundle.display().to_string(),
            pid: container.pid,
            status: status.into(),
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal: stdio.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Answer<WaitResponse> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        let mut exited = container.inner().watch_exit(&request.exec_id).map_err(to_ttrpc)?;
        drop(container);
        let exit = exited.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        let exit = exit.ok_or_else(|| {
            to_ttrpc(Error::not_found("the process was deleted before it was started"))
        })?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        kill::kill(&self.pod, &container, &request).await.map_err(to_ttrpc)?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Answer<DeleteResponse> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        let done = match request.exec_id.is_empty() {
            true => remove::container(&self.pod, &container).await,
            false => remove::exec(&self.pod, &container, &request.exec_id).await,
        };
        let Exit { status, at } = done.map_err(to_ttrpc)?;
        Ok(DeleteResponse {
            pid: container.pid,
            exit_status: status,
            exited_at: (at != Duration::ZERO).then(|| timestamp(at)).into(),
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        exec::add(&container, request).map_err(to_ttrpc)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        let size = (request.height, request.width);
        let running = {
            let mut inner = container.inner();
            let process = inner.process(&request.exec_id).map_err(to_ttrpc)?;
            match process.state() {
                _ if !process.stdio.terminal => false,
                State::Running => true,
                State::Stopped(_) => false,
                // Kept for the start.
                State::Creating(_) | State::Created | State::Starting(_) => {
                    process.size = Some(size);
                    false
                }
            }
        };
        if running {
            let sandbox = self.pod.sandbox().map_err(to_ttrpc)?;
            quick(sandbox.resize(&request.id, &request.exec_id, size)).await.map_err(to_ttrpc)?;
        }
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        if request.stdin {
            let mut inner = container.inner();
            let process = inner.process(&request.exec_id).map_err(to_ttrpc)?;
            process.stdin_closed = true;
            if let Some(io) = &mut process.io {
                io.close_stdin();
            }
        }
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Answer<PidsResponse> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        let processes = pids::list(&self.pod, &container).await;
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        let status = container.inner().status("").map_err(to_ttrpc)?;
        if status != Status::RUNNING {
            let error = Error::precondition(format!("container {} is not running", request.id));
            return Err(to_ttrpc(error));
        }
        let sandbox = self.pod.sandbox().map_err(to_ttrpc)?;
        quick(sandbox.pause(&request.id)).await.map_err(to_ttrpc)?;
        container.set_paused(true);
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        let status = container.inner().status("").map_err(to_ttrpc)?;
        if status != Status::PAUSED {
            let error = Error::precondition(format!("container {} is not paused", request.id));
            return Err(to_ttrpc(error));
        }
        let sandbox = self.pod.sandbox().map_err(to_ttrpc)?;
        quick(sandbox.resume(&request.id)).await.map_err(to_ttrpc)?;
        container.set_paused(false);
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        if container.inner().init.state().exit().is_some() {
            let error = Error::not_found(format!("container {} has stopped", request.id));
            return Err(to_ttrpc(error));
        }
        let sandbox = self.pod.sandbox().map_err(to_ttrpc)?;
        let stats = quick(sandbox.stats(&request.id)).await.map_err(to_ttrpc)?;
        let any = metrics::to_any(&stats)
            .map_err(|error| to_ttrpc(Error::internal(format!("cannot encode it: {error}"))))?;
        Ok(StatsResponse { stats: MessageField::some(any), ..Default::default() })
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id).map_err(to_ttrpc)?;
        let resources = request.resources.into_option().map(|any| any.value).unwrap_or_default();
        update::update(&self.pod, &container, resources).await.map_err(to_ttrpc)?;
        Ok(Empty::new())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Answer<ConnectResponse> {
        // A probe of this daemon: it succeeds for a container that is not there, too.
        let task_pid = self.pod.container(&request.id).map_or(0, |container| container.pid);
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Answer<Empty> {
        if *self.pod.watch_count().borrow() == 0 {
            self.shutdown.notify_one();
        }
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Answer<Empty> {
        Err(to_ttrpc(Error::new(Code::Unimplemented, "husk cannot make checkpoints")))
    }
}
