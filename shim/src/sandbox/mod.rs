// SPDX-License-Identifier: Apache-2.0

//! containerd's Sandbox API: a pod that is there without a task. CreateSandbox makes the VM
//! and in it a container that holds the pod's namespaces, whose program is the agent's. To
//! everything else of the shim it is the pod's first container, as a pause container is; only
//! containerd does not hear of it.

mod config;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::{CreateTaskRequest, KillRequest};
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::Sandbox;
use containerd_shim_protos::types::mount::Mount;
use containerd_shim_protos::types::platform::Platform;
use husk_sandbox::{Code, Error, clock};
use protobuf::MessageField;
use tokio::sync::{Notify, watch};
use ttrpc::asynchronous::TtrpcContext;

use crate::create::{self, Order};
use crate::events::Events;
use crate::pod::Pod;
use crate::process::{Exit, State};
use crate::reply::{timestamp, to_ttrpc};
use crate::service::{QUICK, quick};
use crate::{exec, kill, log, metrics, options, remove};
pub use config::PodFiles;

const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// Answers for one pod.
pub struct Service {
    pod: Arc<Pod>,
    /// The file of husk's settings that `start` was told of.
    config_file: Option<PathBuf>,
    /// Told when the daemon should end.
    shutdown: Arc<Notify>,
    created: Mutex<Option<Created>>,
}

/// What is known of the pod once it has been created, until the daemon ends.
#[derive(Clone)]
struct Created {
    at: Duration,
    pid: u32,
    exit: watch::Receiver<Option<Exit>>,
}

impl Service {
    pub fn new(pod: Arc<Pod>, config_file: Option<PathBuf>, shutdown: Arc<Notify>) -> Service {
        Service { pod, config_file, shutdown, created: Mutex::default() }
    }

    fn created(&self) -> MutexGuard<'_, Option<Created>> {
        // Nothing panics while it holds this lock.
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod, if it is the one that is meant and has been created.
    fn find(&self, id: &str) -> Result<Created, Error> {
        let created = self.created().clone().filter(|_| id == self.pod.id);
        created.ok_or_else(|| Error::new(Code::NotFound, format!("there is no sandbox {id}")))
    }

    async fn create(&self, request: CreateSandboxRequest) -> Result<(), Error> {
        let id = request.sandbox_id;
        if id != self.pod.id {
            return Err(Error::invalid(format!(
                "this shim is that of sandbox {}, and not of {id}",
                self.pod.id
            )));
        }
        if self.created().is_some() {
            return Err(Error::new(Code::AlreadyExists, format!("sandbox {id} exists already")));
        }
        let config = config::read(request.options.as_ref())?;
        let spec = config::holder(&id, &config, &request.netns_path)?;
        let bundle = Path::new(&request.bundle_path);
        let files = PodFiles::write(bundle, &config)?;
        // An empty root, which the engine can put the program's mount point into.
        let root = Mount {
            type_: "tmpfs".into(),
            source: "tmpfs".into(),
            options: vec!["size=64k".into(), "mode=755".into()],
            ..Default::default()
        };
        let order = Order {
            request: CreateTaskRequest {
                id: id.clone(),
                bundle: request.bundle_path,
                rootfs: vec![root],
                ..Default::default()
            },
            spec,
            config_file: options::existing(self.config_file.clone())?,
            events: Events::unheard(),
        };
        let pid = create::carry_out(self.pod.clone(), order).await?;
        let exit = self.pod.container(&id)?.inner().watch_exit("")?;
        self.pod.keep(files);
        *self.created() = Some(Created { at: clock::realtime(), pid, exit });
        Ok(())
    }

    /// Ends the pod's VM and with it what still runs there. May be repeated.
    async fn stop(&self) -> Result<(), Error> {
        let Ok(holder) = self.pod.container(&self.pod.id) else { return Ok(()) };
        let running = !matches!(holder.inner().init.state(), State::Stopped(_) | State::Created);
        if running {
            let mut exit = holder.inner().watch_exit("")?;
            let signal = KillRequest {
                id: holder.id.clone(),
                signal: libc::SIGKILL as u32,
                ..Default::default()
            };
            // One that has ended meanwhile needs none.
            let _ = kill::kill(&self.pod, &holder, &signal).await;
            if tokio::time::timeout(QUICK, exit.wait_for(Option::is_some)).await.is_err() {
                log::error(&format!("pod {}: it does not end; killing the VM", self.pod.id));
                self.pod.sandbox()?.kill("the guest did not end the pod");
                let _ = exit.wait_for(Option::is_some).await;
            }
        }
        match remove::container(&self.pod, &holder).await {
            Err(error) if error.code != Code::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn status(&self, request: SandboxStatusRequest) -> Result<SandboxStatusResponse, Error> {
        let created = self.find(&request.sandbox_id)?;
        let exit = *created.exit.borrow();
        let running = self
            .pod
            .container(&self.pod.id)
            .is_ok_and(|holder| holder.inner().init.state() == State::Running);
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: if running { created.pid } else { 0 },
            state: if running { READY } else { NOT_READY }.into(),
            created_at: MessageField::some(timestamp(created.at)),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    /// The sum of what the pod's containers use.
    async fn metrics(&self, id: &str) -> Result<SandboxMetricsResponse, Error> {
        self.find(id)?;
        let sandbox = self.pod.sandbox()?;
        let mut total = husk_protocol::agent::ContainerStats::default();
        for container in self.pod.containers() {
            // One that has just been removed uses nothing.
            match quick(sandbox.stats(&container.id)).await {
                Ok(stats) => metrics::add(&mut total, &stats),
                Err(error) if error.code == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let figures = metrics::to_any(&total)
            .map_err(|error| Error::internal(format!("cannot encode it: {error}")))?;
        let mut response = SandboxMetricsResponse::default();
        let metric = response.metrics.mut_or_insert_default();
        metric.id = id.into();
        metric.timestamp = MessageField::some(timestamp(clock::realtime()));
        metric.data = MessageField::some(figures);
        Ok(response)
    }
}

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl Sandbox for Service {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Answer<CreateSandboxResponse> {
        self.create(request).await.map_err(to_ttrpc)?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> Answer<StartSandboxResponse> {
        let created = self.find(&request.sandbox_id).map_err(to_ttrpc)?;
        let holder = self.pod.container(&self.pod.id).map_err(to_ttrpc)?;
        exec::start(&self.pod, &holder, "").await.map_err(to_ttrpc)?;
        Ok(StartSandboxResponse {
            pid: created.pid,
            created_at: MessageField::some(timestamp(created.at)),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, _: PlatformRequest) -> Answer<PlatformResponse> {
        let platform =
            Platform { os: "linux".into(), architecture: "amd64".into(), ..Default::default() };
        Ok(PlatformResponse { platform: MessageField::some(platform), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> Answer<StopSandboxResponse> {
        self.find(&request.sandbox_id).map_err(to_ttrpc)?;
        self.stop().await.map_err(to_ttrpc)?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> Answer<WaitSandboxResponse> {
        let mut created = self.find(&request.sandbox_id).map_err(to_ttrpc)?;
        let exit = created.exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        let exit =
            exit.ok_or_else(|| to_ttrpc(Error::not_found("the sandbox was never started")))?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> Answer<SandboxStatusResponse> {
        self.status(request).await.map_err(to_ttrpc)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> Answer<PingResponse> {
        self.find(&request.sandbox_id).map_err(to_ttrpc)?;
        match self.pod.sandbox().map_err(to_ttrpc)?.has_ended() {
            false => Ok(PingResponse::default()),
            true => Err(to_ttrpc(Error::unavailable("the pod's VM has ended"))),
        }
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> Answer<ShutdownSandboxResponse> {
        if request.sandbox_id != self.pod.id {
            let text = format!("there is no sandbox {}", request.sandbox_id);
            return Err(to_ttrpc(Error::new(Code::NotFound, text)));
        }
        let stopped = self.stop().await;
        self.pod.let_go();
        self.shutdown.notify_one();
        stopped.map_err(to_ttrpc)?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> Answer<SandboxMetricsResponse> {
        self.metrics(&request.sandbox_id).await.map_err(to_ttrpc)
    }
}
