// SPDX-License-Identifier: Apache-2.0

//! The pod of this daemon: its VM once there is one, its containers, and what the guest
//! reports about them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use husk_protocol::agent::{self as guest, event::Kind, log::Level};
use husk_sandbox::{
    Code, Config, Error, KVM, Launch, Limits, PodNetwork, PortForwarding, Sandbox, Signal, Spec,
    clip, clock, host_capacity, run_dir::RUN_ROOT,
};
use tokio::sync::{mpsc, watch};

use crate::container::{AfterExit, Container, EXECS_END_LIMIT};
use crate::events::Events;
use crate::process::{Exit, LOST_STATUS, State};
use crate::sandbox::PodFiles;
use crate::{log, prometheus};

/// Longest line of the guest that is logged, in bytes.
const MAX_GUEST_LINE: usize = 1024;

/// How long a pod's network is left alone when it could not be followed.
const NETWORK_PAUSE: Duration = Duration::from_secs(30);

/// The pod.
#[derive(Debug)]
pub struct Pod {
    pub namespace: String,
    /// The container that the pod began with, which its VM lives as long as.
    pub id: String,
    pub events: Events,
    /// When `start` was run, host CLOCK_MONOTONIC in ns.
    pub started_ns: u64,
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// What its containers get from it, while the Sandbox API keeps it.
    kept: Mutex<Option<PodFiles>>,
    count: watch::Sender<usize>,
    /// Held while the VM is made to fit its containers.
    pub resizing: tokio::sync::Mutex<()>,
    /// Ends of processes, and strikes of the OOM killer, that the guest has reported.
    exits: AtomicU64,
    ooms: AtomicU64,
}

impl Pod {
    pub fn new(namespace: &str, id: &str, events: Events, started_ns: u64) -> Pod {
        Pod {
            namespace: namespace.into(),
            id: id.into(),
            events,
            started_ns,
            sandbox: Mutex::default(),
            containers: Mutex::default(),
            kept: Mutex::default(),
            count: watch::channel(0).0,
            resizing: tokio::sync::Mutex::default(),
            exits: AtomicU64::new(0),
            ooms: AtomicU64::new(0),
        }
    }

    /// A container that has been created.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.any_container(id)
            .filter(|container| !matches!(container.inner().init.state(), State::Creating(_)))
            .ok_or_else(|| Error::new(Code::NotFound, format!("there is no container {id}")))
    }

    /// A container, even while it is being created.
    fn any_container(&self, id: &str) -> Option<Arc<Container>> {
        lock(&self.containers).get(id).cloned()
    }

    /// Every container of the pod.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    /// What the containers that have not ended may use.
    pub fn limits(&self) -> Vec<Limits> {
        let of = |container: Arc<Container>| {
            let inner = container.inner();
            inner.limits.filter(|_| inner.init.state().exit().is_none())
        };
        self.containers().into_iter().filter_map(of).collect()
    }

    /// Keeps the pod, with containers or without, until it is let go of.
    pub fn keep(&self, files: PodFiles) {
        let containers = lock(&self.containers);
        *lock(&self.kept) = Some(files);
        self.tell_count(&containers);
    }

    pub fn let_go(&self) {
        let containers = lock(&self.containers);
        *lock(&self.kept) = None;
        self.tell_count(&containers);
    }

    /// What containers of a pod without a pause container get from it.
    pub fn files(&self) -> Option<PodFiles> {
        lock(&self.kept).clone()
    }

    fn tell_count(&self, containers: &HashMap<String, Arc<Container>>) {
        self.count.send_replace(containers.len() + usize::from(lock(&self.kept).is_some()));
    }

    /// Number of what keeps the pod, as it changes: its containers, those being created too,
    /// and the Sandbox API.
    pub fn watch_count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// How many ends of processes and how many strikes of the OOM killer were reported.
    pub fn ends(&self) -> (u64, u64) {
        (self.exits.load(Relaxed), self.ooms.load(Relaxed))
    }

    /// The VM, if it has been launched.
    pub fn sandbox(&self) -> Result<Arc<Sandbox>, Error> {
        lock(&self.sandbox)
            .clone()
            .ok_or_else(|| Error::unavailable(format!("pod {} has no VM", self.id)))
    }

    /// Launches the VM for the pod's first container, as the settings in `config_file` and
    /// its spec want it, or returns the running one for a further container. Whether it was
    /// launched now.
    pub fn sandbox_for(
        self: &Arc<Self>,
        id: &str,
        spec: &Spec,
        config_file: &Path,
    ) -> Result<(Arc<Sandbox>, bool), Error> {
        let mut sandbox = lock(&self.sandbox);
        if let Some(running) = &*sandbox {
            return match running.has_ended() {
                false => Ok((running.clone(), false)),
                true => Err(Error::unavailable(format!("the VM of pod {} has ended", self.id))),
            };
        }
        if id != self.id {
            return Err(Error::precondition(format!(
                "pod {} is not running; create its sandbox container first",
                self.id
            )));
        }
        let (cpus, memory_mib) = host_capacity();
        let (launched, events) = Sandbox::launch(Launch {
            run_root: RUN_ROOT.into(),
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            hostname: spec.hostname().into(),
            network: spec.network(),
            cgroups_path: spec.cgroups_path().into(),
            settings: Config::load(config_file)?.for_pod(spec, cpus, memory_mib)?,
            kvm: KVM.into(),
            note: log::info,
        })?;
        let launched = Arc::new(launched);
        log::set_vmm(launched.pid());
        *sandbox = Some(launched.clone());
        prometheus::start(self.clone(), &launched.metrics_socket());
        tokio::spawn(follow(self.clone(), launched.clone(), events));
        match launched.network() {
            Some(network) => {
                tokio::spawn(follow_network(launched.clone(), network.clone()));
                // A pod can do without.
                match launched.port_forwarding(network) {
                    Ok(ports) => drop(tokio::spawn(forward(launched.clone(), ports))),
                    Err(error) => {
                        log::warn(&format!("ports of pod {} cannot be forwarded: {error}", self.id))
                    }
                }
            }
            None => log::warn(&format!(
                "pod {} is to use the host's network, which a VM cannot: it has loopback only",
                self.id
            )),
        }
        Ok((launched, true))
    }

    /// Takes the VM out of the pod, so that it can be stopped.
    pub fn take_sandbox(&self) -> Option<Arc<Sandbox>> {
        lock(&self.sandbox).take()
    }

    /// Adds a container that is being created.
    pub fn add(&self, container: Arc<Container>) -> Result<(), Error> {
        let mut containers = lock(&self.containers);
        if containers.contains_key(&container.id) {
            return Err(Error::new(
                Code::AlreadyExists,
                format!("container {} exists already", container.id),
            ));
        }
        containers.insert(container.id.clone(), container);
        self.tell_count(&containers);
        Ok(())
    }

    pub fn has(&self, id: &str) -> bool {
        lock(&self.containers).contains_key(id)
    }

    /// The numbers in the guest of those processes of the host that stand for containers.
    /// Fails for a container that has ended: its namespaces may be gone.
    pub fn pids_in_guest(&self, pids: &[u32]) -> Result<HashMap<u32, u32>, Error> {
        let mut found = HashMap::new();
        for container in self.containers() {
            if !pids.contains(&container.pid) {
                continue;
            }
            let init = &container.inner().init;
            if init.state().exit().is_some() {
                return Err(Error::precondition(format!(
                    "container {}, whose namespaces are to be shared, has stopped",
                    container.id
                )));
            }
            found.extend(init.guest_pid.map(|pid| (container.pid, pid)));
        }
        Ok(found)
    }

    pub fn remove(&self, id: &str) {
        let mut containers = lock(&self.containers);
        containers.remove(id);
        self.tell_count(&containers);
    }

    /// Where the container's root file system is mounted.
    pub fn rootfs_target(bundle: &Path) -> PathBuf {
        bundle.join("rootfs")
    }

    fn guest_event(self: &Arc<Self>, sandbox: &Arc<Sandbox>, event: guest::Event) {
        match event.kind {
            Some(Kind::Exit(exit)) => {
                self.exits.fetch_add(1, Relaxed);
                let Some(container) = self.any_container(&exit.container) else { return };
                if exit.oom {
                    container.oom();
                }
                // Anything else could not come from wait(2), and 255 is its worst.
                let exited = Exit { status: exit.status.min(255), at: clock::realtime() };
                if container.exited(&exit.exec, exited) == AfterExit::EndExecs {
                    tokio::spawn(end_execs(sandbox.clone(), container));
                }
            }
            Some(Kind::Oom(oom)) => {
                self.ooms.fetch_add(1, Relaxed);
                if let Some(container) = self.any_container(&oom.container) {
                    container.oom();
                }
            }
            Some(Kind::Log(line)) => {
                let text = format!("guest: {}", clip(line.message, MAX_GUEST_LINE));
                match line.level.enum_value_or(Level::INFO) {
                    Level::ERROR => log::error(&text),
                    Level::WARN => log::warn(&text),
                    Level::INFO => log::info(&text),
                    Level::DEBUG => log::debug(&text),
                }
            }
            // Of a kind that this version does not know: there is none, the versions match.
            _ => {}
        }
    }
}

/// Takes in what the guest reports until it is gone, and then ends what it ran.
async fn follow(pod: Arc<Pod>, sandbox: Arc<Sandbox>, mut events: mpsc::Receiver<guest::Event>) {
    while let Some(event) = events.recv().await {
        pod.guest_event(&sandbox, event);
    }
    let ended = sandbox.ended().await;
    let containers = pod.containers();
    let unexpected = containers
        .iter()
        .any(|container| !matches!(container.inner().init.state(), State::Stopped(_)));
    if unexpected {
        log::error(&format!("the VM of pod {} is gone: {}", pod.id, ended.reason));
        for line in ended.console.lines() {
            log::error(&format!("console: {}", clip(line.to_owned(), MAX_GUEST_LINE)));
        }
    }
    let exit = Exit { status: LOST_STATUS, at: clock::realtime() };
    for container in containers {
        if ended.oom && container.inner().init.state().exit().is_none() {
            container.oom();
        }
        container.lost(exit);
    }
}

/// Brings what changes in the pod's network namespace into the guest until that is gone.
async fn follow_network(sandbox: Arc<Sandbox>, network: Arc<PodNetwork>) {
    loop {
        tokio::select! {
            _ = sandbox.ended() => return,
            () = network.changed() => {}
        }
        if let Err(error) = network.update().await
            && !sandbox.has_ended()
        {
            log::warn(&format!("the pod's network has changed: {error}"));
            // What was tried and undone is a change, too.
            let _ = tokio::time::timeout(NETWORK_PAUSE, sandbox.ended()).await;
        }
    }
}

/// Forwards the pod's ports until its VM is gone.
async fn forward(sandbox: Arc<Sandbox>, ports: PortForwarding) {
    tokio::select! {
        _ = sandbox.ended() => {}
        () = ports.run() => {}
    }
}

/// Sees to it that the execs of a container whose first process is gone end too, and makes
/// the exit known in any case.
async fn end_execs(sandbox: Arc<Sandbox>, container: Arc<Container>) {
    let mut exit = container.inner().init.watch_exit();
    let ended = async {
        let signal =
            Signal { container: &container.id, exec: "", signal: libc::SIGKILL as u32, all: true };
        // They are ending already unless they are in another PID namespace.
        let _ = sandbox.signal(signal).await;
        let _ = exit.wait_for(Option::is_some).await;
    };
    let _ = tokio::time::timeout(EXECS_END_LIMIT, ended).await;
    container.release_exit();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds this lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
