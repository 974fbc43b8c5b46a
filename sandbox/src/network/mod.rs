// SPDX-License-Identifier: Apache-2.0

//! A pod's network on the host. Each Ethernet interface of its namespace is joined to a tap,
//! whose other end is a device that is plugged into the running VM, and the guest is told
//! name, addresses and routes. [`PodNetwork::update`] does whatever is left to do of that, so
//! it is called whenever something may have changed. All work in the namespace is done by
//! threads that enter it and end.

mod bandwidth;
mod namespace;
mod redirect;
mod survey;
mod tap;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use husk_netlink::Socket;
use husk_protocol::agent::SetNetwork;
use husk_protocol::agent::request::Verb;
use husk_vmm::config::{MAX_QUEUE_PAIRS, NetConfig, Plug};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

pub use bandwidth::Bandwidth;
pub use namespace::{Namespace, Netns, Network};
pub use redirect::{Redirected, undo};

use crate::agent::{Agent, done};
use crate::error::{Error, IoContext};
use crate::reactor;
use crate::run_dir::StateFile;
use crate::vm::Vm;
use redirect::Redirect;
use survey::{Link, Survey};

/// What may change a pod's network, as rtnetlink(7) groups it: links, addresses, routes.
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// How a pod's network is made, as node and pod want it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    pub bandwidth: Bandwidth,
    /// Whether the host's kernel may do the work of the device, where it can.
    pub vhost: bool,
}

/// The network of one pod.
#[derive(Debug)]
pub struct PodNetwork {
    namespace: Namespace,
    changes: AsyncFd<OwnedFd>,
    queue_pairs: usize,
    settings: NetworkSettings,
    vm: Vm,
    agent: Agent,
    notes: StateFile,
    note: fn(&str),
    /// One update at a time.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    joined: Vec<Joined>,
    /// What the guest knows.
    told: SetNetwork,
    /// The pod is being removed.
    left: bool,
}

/// An interface of the namespace that is a device of the VM.
#[derive(Debug)]
struct Joined {
    index: u32,
    slot: u8,
    _redirect: Redirect,
}

/// An interface with all that the VM needs for its part.
struct Ready {
    link: Link,
    queues: Vec<OwnedFd>,
    redirect: Redirect,
}

impl PodNetwork {
    /// Begins to follow a namespace; joins nothing yet. `note` takes sentences for the node's
    /// log.
    pub fn new(
        namespace: Namespace,
        vcpus: u8,
        settings: NetworkSettings,
        vm: Vm,
        agent: Agent,
        notes: StateFile,
        note: fn(&str),
    ) -> Result<PodNetwork, Error> {
        let changes = namespace.within(|| {
            Socket::watch(GROUPS as u32).context(|| "cannot watch the pod's network".to_owned())
        })?;
        let changes = reactor::watch(changes, Interest::READABLE)
            .context(|| "cannot watch the pod's network".to_owned())?;
        let queue_pairs = usize::from(vcpus).min(MAX_QUEUE_PAIRS);
        let state = Mutex::default();
        Ok(PodNetwork { namespace, changes, queue_pairs, settings, vm, agent, notes, note, state })
    }

    /// Where it is on the host.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Waits until something has changed in the namespace since the last time.
    pub async fn changed(&self) {
        let Ok(mut ready) = self.changes.readable().await else {
            return std::future::pending().await;
        };
        // What it was, the update finds out.
        while !matches!(
            nix::unistd::read(ready.get_inner(), &mut [0; 64]),
            Err(Errno::EAGAIN) | Ok(0)
        ) {}
        ready.clear_ready();
    }

    /// Makes the guest's network that of the namespace. Begins at once and runs to its end
    /// even when the caller goes away. Waits for the guest, if there is something to tell.
    pub fn update(self: &Arc<Self>) -> impl Future<Output = Result<(), Error>> + use<> {
        let network = self.clone();
        let work = tokio::spawn(async move { network.follow().await });
        async { work.await.context(|| "cannot set up the pod's network".to_owned())? }
    }

    /// Takes back what was done to the interfaces. There is no update afterwards.
    pub async fn leave(&self) {
        let mut state = self.state.lock().await;
        state.left = true;
        let joined = std::mem::take(&mut state.joined);
        let _ = tokio::task::spawn_blocking(move || drop(joined)).await;
    }

    async fn follow(self: &Arc<Self>) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if state.left {
            return Err(Error::unavailable("the pod is being removed"));
        }
        let network = self.clone();
        let known: Vec<u32> = state.joined.iter().map(|joined| joined.index).collect();
        let look = tokio::task::spawn_blocking(move || network.look(&known));
        let (survey, ready) = look.await.context(|| "cannot read the network".to_owned())??;
        for Ready { link, queues, redirect } in ready {
            let slot = self.plug(&link, queues).await?;
            state.joined.push(Joined { index: link.index, slot, _redirect: redirect });
        }
        let there = |joined: &Joined| survey.links.iter().any(|link| link.index == joined.index);
        let slots: Vec<(u32, u8)> =
            state.joined.iter().filter(|j| there(j)).map(|j| (j.index, j.slot)).collect();
        let wanted = survey.for_guest(&slots);
        if wanted != state.told {
            done(self.agent.call(Verb::SetNetwork(wanted.clone())).await?)
                .map_err(|error| error.context("the guest's network"))?;
            state.told = wanted;
        }
        // The guest has let go of these.
        while let Some(gone) = state.joined.iter().position(|joined| !there(joined)) {
            self.vm.unplug(state.joined[gone].slot).await?;
            state.joined.remove(gone);
        }
        Ok(())
    }

    /// Reads the namespace and joins to taps what is to be joined and is not known. Blocks.
    fn look(&self, known: &[u32]) -> Result<(Survey, Vec<Ready>), Error> {
        self.namespace.within(|| {
            let socket = Socket::open().context(|| "cannot open a netlink socket".to_owned())?;
            let survey = Survey::read(&socket)
                .context(|| format!("cannot read the network of {}", self.namespace))?;
            // One that is not up is still being made, or not wanted.
            let new = survey.links.iter().filter(|link| link.up && !known.contains(&link.index));
            let ready: Result<_, Error> = new.map(|link| self.join(&socket, link)).collect();
            Ok((survey, ready?))
        })
    }

    fn join(&self, socket: &Socket, link: &Link) -> Result<Ready, Error> {
        let failed = |error: Error| {
            error.context(format!("cannot join {} of {} to the VM", link.name, self.namespace))
        };
        link.check().map_err(failed)?;
        redirect::check_free(socket, link.index).map_err(failed)?;
        let (tap, queues) = tap::open(socket, self.queue_pairs, link.mtu).map_err(failed)?;
        let redirect = Redirect::new(socket, &self.namespace, link.index, tap, &self.notes);
        let redirect = redirect.map_err(failed)?;
        redirect.limit(socket, self.settings.bandwidth).map_err(failed)?;
        Ok(Ready { link: link.clone(), queues, redirect })
    }

    /// The slot that the device is in.
    async fn plug(&self, link: &Link, queues: Vec<OwnedFd>) -> Result<u8, Error> {
        // Without an MTU, so that it can change later; the guest is told it.
        let mut files = queues;
        let pairs = files.len();
        if self.settings.vhost {
            match tap::vhost(pairs) {
                Ok(vhost) => files.extend(vhost),
                Err(error) => (self.note)(&format!("{} is served by husk-vmm: {error}", link.name)),
            }
        }
        let config = NetConfig {
            queues: (0..pairs).collect(),
            vhost: (pairs..files.len()).collect(),
            mac: link.mac,
            mtu: None,
        };
        self.vm
            .plug(Plug::Net(config), files)
            .await
            .map_err(|error| error.context(format!("cannot give the VM {}", link.name)))
    }
}
