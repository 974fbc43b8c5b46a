// SPDX-License-Identifier: Apache-2.0

//! Create: the VM boots while the root file system is mounted; then the guest makes the
//! container. A create that fails anywhere, or whose caller is gone, leaves nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api::CreateTaskRequest;
use husk_sandbox::mount::{Mount, Mounted};
use husk_sandbox::{
    Code, Disk, Error, IoContext, PodNetwork, Sandbox, SharedContainer, Spec, guest_share,
};
use tokio::sync::oneshot;

use crate::address::read_config;
use crate::container::Container;
use crate::events::Events;
use crate::io::{Io, Owner};
use crate::pod::Pod;
use crate::process::Input;
use crate::stand_in::StandIn;
use crate::{log, options, remove, update};

/// What is to be created.
pub struct Order {
    pub request: CreateTaskRequest,
    pub spec: Spec,
    /// husk's settings, for a pod's first container.
    pub config_file: PathBuf,
    /// Where its life is told.
    pub events: Events,
}

/// Creates the container of a bundle; its pid.
pub async fn create(pod: Arc<Pod>, request: CreateTaskRequest) -> Result<u32, Error> {
    if !request.checkpoint.is_empty() {
        return Err(Error::new(Code::Unimplemented, "husk cannot restore a checkpoint"));
    }
    let config_file = options::config_file(request.options.as_ref())?;
    let json = read_config(Path::new(&request.bundle)).map_err(|error| {
        Error::invalid(format!("cannot read {}/config.json: {error}", request.bundle))
    })?;
    let mut spec = Spec::parse(&json)?;
    if let Some(files) = pod.files() {
        spec.join_pod(files.places());
    }
    let events = pod.events.clone();
    carry_out(pod, Order { request, spec, config_file, events }).await
}

/// Creates a container; its pid. Runs to its end even when the caller goes away.
pub async fn carry_out(pod: Arc<Pod>, order: Order) -> Result<u32, Error> {
    let (mut answer, answered) = oneshot::channel();
    tokio::spawn(async move {
        let done = make(&pod, order, &mut answer).await;
        let made = done.as_ref().ok().cloned();
        let sent = answer.send(done.map(|container| container.pid));
        if let (Some(container), Err(_)) = (made, sent) {
            log::warn(&format!("container {}: its create was given up", container.id));
            roll_back(&pod, &container).await;
        }
    });
    answered.await.unwrap_or_else(|_| Err(Error::internal("the create was given up")))
}

async fn make(
    pod: &Arc<Pod>,
    order: Order,
    answer: &mut oneshot::Sender<Result<u32, Error>>,
) -> Result<Arc<Container>, Error> {
    let received_ns = husk_sandbox::clock::monotonic_ns();
    let Order { request, spec, config_file, events } = order;
    spec.check()?;
    if pod.has(&request.id) {
        return Err(Error::new(
            Code::AlreadyExists,
            format!("container {} exists already", request.id),
        ));
    }
    let (sandbox, launched) = pod.sandbox_for(&request.id, &spec, &config_file)?;
    let hooks = spec.host_hooks(&request.id, Path::new(&request.bundle));
    let stand_in = match request.id == pod.id {
        true => None,
        false => Some(StandIn::in_network_of(sandbox.pid())?),
    };
    let pid = stand_in.as_ref().map_or(sandbox.pid(), StandIn::pid);
    let container = Container::new(&request, pid, stand_in, hooks, events);
    let container = Arc::new(container);
    if launched {
        container.phases.reach_at("shim_start", pod.started_ns);
    }
    container.phases.reach_at("create_received", received_ns);
    container.inner().limits = spec.own_limits();
    pod.add(container.clone())?;
    let filled = tokio::select! {
        filled = fill(pod, &sandbox, &container, spec, &request) => filled,
        // Its caller is gone: nobody would delete it. Blocking steps are not cut short;
        // what they make is undone when it is dropped.
        () = answer.closed() => Err(Error::unavailable("the create was given up")),
    };
    match filled {
        Ok(()) => {
            container.phases.reach("container_created");
            Ok(container)
        }
        Err(error) => {
            roll_back(pod, &container).await;
            Err(error)
        }
    }
}

/// Mounts, opens streams and has the guest make the container.
async fn fill(
    pod: &Pod,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    mut spec: Spec,
    request: &CreateTaskRequest,
) -> Result<(), Error> {
    let rootfs = match request.rootfs.is_empty() {
        true => spec.rootfs(&container.bundle)?,
        false => Pod::rootfs_target(&container.bundle),
    };
    if let Some(wanted) = spec.oom_score_adj() {
        sandbox.raise_oom_score_adj(wanted)?;
    }
    // Devices are plugged while the VM boots.
    let network = pod_network(pod, sandbox, container);
    let joining = network.map(PodNetwork::update);
    if container.id == pod.id {
        spec.use_guest_network();
    }
    let console_size = spec.console_size();
    let share = guest_share(&container.id);
    let in_guest = pod.pids_in_guest(&spec.namespace_pids())?;
    let guest = spec.for_guest(&container.id, &share, request.terminal, &in_guest);
    if !guest.dropped_devices.is_empty() {
        log::info(&format!(
            "container {}: the guest does not have these devices of the host: {}",
            container.id,
            guest.dropped_devices.join(" ")
        ));
    }
    let mounts = container.mounts.iter().map(to_mount).collect();
    let stdio = container.inner().init.stdio.clone();
    let owner = Owner { container: &container.id, namespace: &pod.namespace };
    let (mounted, opened, grown) = tokio::join!(
        mount(sandbox.clone(), container.clone(), mounts, rootfs, guest.binds.clone()),
        Io::open(&stdio, owner, || sandbox.expect_stream()),
        update::make_room(pod, sandbox),
    );
    let (mut io, mut terminal) = opened?;
    let (rootfs, shared) = mounted?;
    let huge_pages = shared.huge_pages().to_vec();
    {
        let mut inner = container.inner();
        (inner.rootfs, inner.shared) = (rootfs, Some(shared));
        if inner.init.stdin_closed {
            io.close_stdin();
        }
        inner.init.io = Some(io);
        terminal.size = inner.init.size.take().or(console_size);
    }
    grown?;
    run_hooks(sandbox, container).await?;
    if let (Some(network), Some(joining)) = (network, joining) {
        joining.await?;
        // Hooks may have set more of it up.
        network.update().await?;
    }
    let disks = sandbox.add_disks(guest.disks).await?;
    let told = disks.iter().map(Disk::for_guest).collect();
    container.inner().disks = disks;
    let guest_pid = sandbox.create(&container.id, guest.json, terminal, told, huge_pages).await?;
    container.inner().init.guest_pid = Some(guest_pid);
    container.apply("", Input::Made)
}

/// The pod's network, if the container is the pod's own: what others find is there already.
pub fn pod_network<'a>(
    pod: &Pod,
    sandbox: &'a Sandbox,
    container: &Container,
) -> Option<&'a Arc<PodNetwork>> {
    sandbox.network().filter(|_| container.id == pod.id)
}

/// Runs the hooks that come before the guest makes the container, while it still boots. From
/// here on the container's end has hooks, too.
async fn run_hooks(sandbox: &Sandbox, container: &Container) -> Result<(), Error> {
    if let Some(poststop) = container.hooks.poststop() {
        sandbox.record_poststop(&poststop)?;
        container.inner().poststop = Some(poststop);
    }
    container.hooks.before_create(container.pid).await
}

/// The slow calls, on a thread of their own.
async fn mount(
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
    mounts: Vec<Mount>,
    rootfs: PathBuf,
    binds: Vec<husk_sandbox::BindSource>,
) -> Result<(Option<Mounted>, SharedContainer), Error> {
    let turn = container.mounting.clone().lock_owned().await;
    let work = move || {
        let make = || {
            let mounted = match mounts.is_empty() {
                true => None,
                false => Some(mount_rootfs(&sandbox, &mounts, &rootfs)?),
            };
            let shared = sandbox.share_container(&container.id, &rootfs, &binds)?;
            if let Some(error) = sandbox.unwatched() {
                log::warn(&format!("container {}: {error}", container.id));
            }
            Ok((mounted, shared))
        };
        // In this order: if nobody waits for them any more, what was made is undone first.
        (make(), turn)
    };
    let (made, _turn) = tokio::task::spawn_blocking(work)
        .await
        .context(|| "the mounting thread died".to_owned())?;
    made
}

fn mount_rootfs(sandbox: &Sandbox, mounts: &[Mount], target: &Path) -> Result<Mounted, Error> {
    match std::fs::create_dir(target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::internal(format!("cannot make {}: {error}", target.display())));
        }
        _ => {}
    }
    sandbox.mount_rootfs(mounts, target)
}

fn to_mount(mount: &containerd_shim_protos::types::mount::Mount) -> Mount {
    Mount {
        kind: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    }
}

/// Undoes a create: for the pod's own container that is the VM, for another its part of it.
async fn roll_back(pod: &Arc<Pod>, container: &Container) {
    let own = container.id == pod.id;
    let sandbox = if own { pod.take_sandbox() } else { pod.sandbox().ok() };
    if let (Some(sandbox), false) = (&sandbox, own) {
        // The guest removes what it has of it; that may be nothing.
        remove::ask_guest(sandbox, &container.id, "").await;
    }
    let undone = {
        let mut inner = container.inner();
        let disks = std::mem::take(&mut inner.disks);
        (inner.init.io.take(), inner.shared.take(), inner.rootfs.take(), disks)
    };
    if let (Some(sandbox), true) = (&sandbox, own) {
        sandbox.kill("its container could not be created");
        sandbox.ended().await;
    }
    drop(undone);
    // A create that was given up may still be mounting, and undoes it by itself. Until then the
    // container's name is taken.
    drop(container.mounting.lock().await);
    remove::poststop(sandbox.as_deref(), container).await;
    if let (Some(sandbox), true) = (&sandbox, own)
        && let Err(error) = sandbox.stop("its container could not be created").await
    {
        log::error(&format!("cleaning up after a failed create: {error}"));
    }
    pod.remove(&container.id);
    update::after_end(pod, container);
}
