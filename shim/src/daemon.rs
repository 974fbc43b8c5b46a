// SPDX-License-Identifier: Apache-2.0

//! The daemon: serves one pod on the socket that `start` bound, until it is shut down.
//!
//! One thread runs everything that does not block. It lives as long as the process, which
//! is what husk-vmm's parent-death signal depends on.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use husk_sandbox::clock;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::close;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::address::SOCKET_DIR;
use crate::args::Args;
use crate::events::Events;
use crate::pod::Pod;
use crate::service::Service;
use crate::start::{self, CONFIG_ENV, LISTENER_FD, STARTED_ENV};
use crate::{log, sandbox};

/// How long a daemon waits for its first container: containerd may have died between `start`
/// and Create, or be slow.
const FIRST_LIMIT: Duration = Duration::from_secs(60);

/// How long it goes on when its last container is gone: containerd asks for Shutdown at once
/// after Delete, but may have died, or have given up the only Create.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);

/// How long the end waits for containerd to take the last events, and the last answer.
/// containerd gives Shutdown 3 s.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// How many descriptors a usual pod's daemon has at most.
const DESCRIPTORS: i32 = 512;

pub fn run(args: &Args) -> Result<(), String> {
    // SAFETY: `start` has put the listening socket there, and nobody else owns it.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(LISTENER_FD) });
    // Hooks and logging programs do not inherit it.
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|error| format!("the socket: {error}"))?;
    // As husk-vmm does: with several threads each doubling of the table of descriptors costs
    // an RCU grace period. A lower limit makes it fail, and then the table grows later.
    if let Ok(highest) = fcntl(&listener, FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTORS - 1)) {
        let _ = close(highest);
    }
    let path = listener
        .local_addr()
        .ok()
        .and_then(|address| address.as_pathname().map(Path::to_owned))
        .ok_or("descriptor 3 is not a listening socket; only `start` runs the daemon")?;
    let bundle = std::env::current_dir().map_err(|error| format!("no bundle: {error}"))?;
    log::open(bundle.join("log"), args.debug, &args.namespace, &args.id);
    // The bundle is removed while we run.
    std::env::set_current_dir("/").map_err(|error| format!("cannot leave the bundle: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let served = runtime.block_on(serve(args, listener, Socket::new(path)));
    // What still runs on other threads, such as the end of a logging program, may finish.
    runtime.shutdown_timeout(FLUSH_LIMIT);
    served
}

async fn serve(args: &Args, listener: UnixListener, socket: Socket) -> Result<(), String> {
    let started_ns = std::env::var(STARTED_ENV)
        .ok()
        .and_then(|ns| ns.parse().ok())
        .unwrap_or_else(clock::monotonic_ns);
    let containerd = std::env::var("TTRPC_ADDRESS")
        .ok()
        .filter(|address| !address.is_empty())
        .unwrap_or_else(|| format!("{}.ttrpc", args.address));
    let events = Events::start(&args.namespace, &containerd);
    let pod = Arc::new(Pod::new(&args.namespace, &args.id, events.clone(), started_ns));
    let shutdown = Arc::new(Notify::new());
    let service = Service { pod: pod.clone(), shutdown: shutdown.clone() };
    let config_file = std::env::var_os(CONFIG_ENV).map(PathBuf::from);
    let sandbox = sandbox::Service::new(pod.clone(), config_file, shutdown.clone());
    let listener = Listener::try_from(listener).map_err(|error| format!("the socket: {error}"))?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(create_sandbox(Arc::new(sandbox)))
        .register_service(create_task(Arc::new(service.clone())))
        .register_service(
            create_task(Arc::new(service))
                .into_iter()
                // containerd before 2.0 calls the same service by its older name.
                .map(|(name, service)| (name.replace(".v3.", ".v2."), service))
                .collect(),
        );
    server.start().await.map_err(|error| format!("cannot serve: {error}"))?;
    tokio::select! {
        () = shutdown.notified() => {}
        () = idle(pod.watch_count()) => log::info("no container is left; ending"),
    }
    // First, so that a new start does not find a daemon that is about to go.
    socket.remove();
    if let Some(sandbox) = pod.take_sandbox()
        && let Err(error) = sandbox.stop("the shim ends").await
    {
        log::error(&format!("pod {}: {error}", pod.id));
    }
    events.flush(FLUSH_LIMIT).await;
    // Lets the answer to Shutdown out.
    let _ = timeout(FLUSH_LIMIT, server.shutdown()).await;
    Ok(())
}

/// Resolves when no container has come, or none is left and no other comes.
async fn idle(mut count: watch::Receiver<usize>) {
    let mut limit = FIRST_LIMIT;
    loop {
        let busy = count.wait_for(|&count| count > 0);
        if timeout(limit, busy).await.is_err() || count.wait_for(|&count| count == 0).await.is_err()
        {
            return;
        }
        limit = EMPTY_LIMIT;
    }
}

/// The socket of this daemon.
struct Socket {
    path: PathBuf,
    /// Device and inode, by which it differs from another daemon's at the same path.
    identity: Option<(u64, u64)>,
}

impl Socket {
    fn new(path: PathBuf) -> Socket {
        let identity = identity(&path);
        Socket { path, identity }
    }

    /// Removes it, unless another daemon has put its own in the place.
    fn remove(&self) {
        // Kept until the end of this function.
        let lock = start::lock(Path::new(SOCKET_DIR));
        if self.identity.is_some()
            && identity(&self.path) == self.identity
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::error(&format!("cannot remove {}: {error}", self.path.display()));
        }
        drop(lock);
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn without_a_first_container_it_waits_longer_than_without_another() {
        let (count, watched) = watch::channel(0);
        let began = Instant::now();
        idle(watched).await;
        assert_eq!(began.elapsed().as_secs(), FIRST_LIMIT.as_secs());

        let ended = tokio::spawn(idle(count.subscribe()));
        let second = Duration::from_secs(1);
        for containers in [1, 0, 2, 1, 0, 1] {
            sleep(second).await;
            count.send_replace(containers);
        }
        sleep(2 * FIRST_LIMIT).await;
        assert!(!ended.is_finished(), "there is a container");
        count.send_replace(0);
        let began = Instant::now();
        ended.await.expect("no panic");
        assert_eq!(began.elapsed().as_secs(), EMPTY_LIMIT.as_secs());
    }
}
