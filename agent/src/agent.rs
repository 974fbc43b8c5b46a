// SPDX-License-Identifier: Apache-2.0

//! What all requests share, and the table of verbs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use husk_protocol::agent::request::Verb;
use husk_protocol::agent::{Request, SetNetwork};
use tokio::sync::Mutex;

use crate::container::Container;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::outbox::{Outbox, Reply};
use crate::pci::Pci;
use crate::reaper::Reaper;
use crate::verbs;

/// Longest id. It becomes a directory's name; containerd's own limit is 76.
const MAX_ID: usize = 200;

pub struct Agent {
    pub host: Host,
    pub outbox: Outbox,
    pub reaper: Reaper,
    pub containers: RefCell<HashMap<String, Rc<Container>>>,
    /// What the guest was last told of it. Locked while it is being changed.
    pub network: Mutex<SetNetwork>,
    pub pci: Pci,
    /// Held while CPUs and memory come or go.
    pub resizing: Mutex<()>,
}

impl Agent {
    pub fn new(host: Host, outbox: Outbox) -> Self {
        Self {
            host,
            outbox,
            reaper: Reaper::default(),
            containers: RefCell::default(),
            network: Mutex::default(),
            pci: Pci::default(),
            resizing: Mutex::default(),
        }
    }

    /// Does what a request asks for and answers it. Verbs that start a process answer
    /// themselves, because what they do next depends on the answer being on its way.
    pub async fn answer(self: &Rc<Self>, request: Request, reply: Reply) {
        match request.verb {
            Some(Verb::Create(create)) => verbs::create::create(self, create, reply).await,
            Some(Verb::Start(start)) => verbs::start::start(self, start, reply).await,
            Some(Verb::Exec(exec)) => verbs::exec::exec(self, exec, reply).await,
            Some(Verb::Signal(signal)) => reply.send(verbs::signal::signal(self, &signal)),
            Some(Verb::Resize(resize)) => reply.send(verbs::resize::resize(self, &resize)),
            Some(Verb::Update(update)) => reply.send(verbs::update::update(self, &update)),
            Some(Verb::Pause(pause)) => reply.send(verbs::pause::pause(self, &pause).await),
            Some(Verb::Resume(resume)) => reply.send(verbs::pause::resume(self, &resume).await),
            Some(Verb::Delete(delete)) => reply.send(verbs::delete::delete(self, &delete).await),
            Some(Verb::Pids(pids)) => reply.send(verbs::pids::pids(self, &pids)),
            Some(Verb::Stats(stats)) => reply.send(verbs::stats::stats(self, &stats)),
            Some(Verb::SetClock(clock)) => reply.send(verbs::clock::set_clock(&clock)),
            Some(Verb::SetNetwork(network)) => {
                reply.send(verbs::network::set_network(self, network).await);
            }
            Some(Verb::RemoveDisk(disk)) => reply.send(verbs::disk::remove(self, &disk).await),
            Some(Verb::Wake(wake)) => reply.send(verbs::wake::wake(&wake).await),
            Some(Verb::Dial(dial)) => reply.send(verbs::dial::dial(self, &dial).await),
            Some(Verb::SetHugePages(pages)) => {
                reply.send(verbs::huge_pages::set_huge_pages(self, &pages).await);
            }
            Some(Verb::SetSize(size)) => reply.send(verbs::size::set_size(self, &size).await),
            _ => reply.send(Err(Error::new(
                husk_protocol::agent::error::Code::UNIMPLEMENTED,
                "this guest does not know the request",
            ))),
        }
    }

    /// The container of that id.
    pub fn container(&self, id: &str) -> Result<Rc<Container>> {
        let found = self.containers.borrow().get(id).cloned();
        found.ok_or_else(|| Error::not_found(format!("container {id:?} does not exist")))
    }
}

/// Refuses ids that are no single name of a directory.
pub fn check_id(id: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | ':');
    if id.is_empty() || id.len() > MAX_ID || id.starts_with('.') || !id.chars().all(allowed) {
        return Err(Error::invalid(format!("{id:?} is no valid id")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_single_names() {
        for good in ["a", "c1", "web.1_2-3", &"x".repeat(MAX_ID)] {
            assert_eq!(check_id(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/", ".hidden", "a b", "a\0", "ü"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_id(&"x".repeat(MAX_ID + 1)).is_err());
    }
}
