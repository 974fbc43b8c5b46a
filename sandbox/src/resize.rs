// SPDX-License-Identifier: Apache-2.0

//! A VM that follows what its containers may use while it runs. To grow is done before they may
//! use more, and fails if the guest does not take it; to shrink is done after, and what a guest
//! does not give back it keeps until it can.

use std::time::Duration;

use husk_protocol::agent::{SetHugePages, SetSize, request::Verb};
use tokio::sync::{Mutex, oneshot};

use crate::agent::{Agent, done};
use crate::error::Error;
use crate::size::Size;
use crate::vm::Vm;

/// How long a guest may take to bring CPUs up or down and to take or give back memory.
const LIMIT: Duration = Duration::from_secs(20);

/// The size of a running VM.
#[derive(Debug)]
pub struct Machine {
    vm: Vm,
    agent: Agent,
    /// What the guest was last led to. Locked while it is.
    size: Mutex<Size>,
    huge_pages: Mutex<u64>,
}

impl Machine {
    /// A VM that has this size now.
    pub fn new(vm: Vm, agent: Agent, size: Size) -> Machine {
        Machine { vm, agent, size: Mutex::new(size), huge_pages: Mutex::new(0) }
    }

    /// Has the guest keep so many huge pages or more. The memory has to be there.
    pub async fn reserve_huge_pages(&self, wanted: u64) -> Result<(), Error> {
        let mut pages = self.huge_pages.lock().await;
        if wanted > *pages {
            self.set_huge_pages(wanted).await?;
            *pages = wanted;
        }
        Ok(())
    }

    /// Has the guest give up huge pages that are more than so many.
    pub async fn release_huge_pages(&self, wanted: u64) -> Result<(), Error> {
        let mut pages = self.huge_pages.lock().await;
        if wanted < *pages {
            self.set_huge_pages(wanted).await?;
            *pages = wanted;
        }
        Ok(())
    }

    async fn set_huge_pages(&self, pages: u64) -> Result<(), Error> {
        let verb = Verb::SetHugePages(SetHugePages { pages, ..Default::default() });
        // The guest may still boot, and gives up by itself.
        let set = async { done(self.agent.call(verb).await?) };
        set.await
            .map_err(|error| error.context(format!("the VM does not come to {pages} huge pages")))
    }

    /// Makes it as large as this in both respects, if it is not.
    pub async fn grow(&self, wanted: Size) -> Result<(), Error> {
        let mut size = self.size.lock().await;
        let next = Size {
            vcpus: wanted.vcpus.max(size.vcpus),
            memory_mib: wanted.memory_mib.max(size.memory_mib),
        };
        if next == *size {
            return Ok(());
        }
        let led = async {
            let reached = self.lead(next).await?;
            // A guest that still gives memory back is not waited for.
            if next.memory_mib > size.memory_mib {
                reached.await.map_err(|_| Error::unavailable("the VM is gone"))?;
            }
            Ok(())
        };
        if let Err(error) = within_limit(led).await {
            // What it has not taken yet it is not to take later.
            let _ = within_limit(self.vm.resize(*size)).await;
            return Err(error.context(format!("the VM cannot grow from {size} to {next}")));
        }
        *size = next;
        Ok(())
    }

    /// Makes it no larger than this. What is returned resolves when the guest has given the
    /// memory back, which may never be.
    pub async fn shrink(
        &self,
        wanted: Size,
    ) -> Result<impl Future<Output = Result<(), Error>> + use<>, Error> {
        let mut size = self.size.lock().await;
        let next = Size {
            vcpus: wanted.vcpus.min(size.vcpus),
            memory_mib: wanted.memory_mib.min(size.memory_mib),
        };
        let mut reached = None;
        if next != *size {
            let explain = |error: Error| {
                error.context(format!("the VM does not shrink from {size} to {next}"))
            };
            reached = Some(within_limit(self.lead(next)).await.map_err(explain)?);
            // Whatever it gives back, to grow means to ask again.
            *size = next;
        }
        Ok(async move {
            let Some(reached) = reached else { return Ok(()) };
            let answered = async { Ok(reached.await) };
            match within_limit(answered).await {
                // Something else was asked for before, or the VM is gone.
                Ok(_) => Ok(()),
                Err(error) => Err(error.context(format!("the VM keeps more than {next}"))),
            }
        })
    }

    /// Has the host do its part and then the guest; what is returned resolves when the guest
    /// has as much memory.
    async fn lead(&self, size: Size) -> Result<oneshot::Receiver<()>, Error> {
        let (slot, reached) = self.vm.resize(size).await?;
        let verb = Verb::SetSize(SetSize {
            cpus: size.vcpus.into(),
            memory_slot: slot.into(),
            ..Default::default()
        });
        done(self.agent.call(verb).await?)?;
        Ok(reached)
    }
}

async fn within_limit<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!("the guest did not do it within {} s", LIMIT.as_secs())))
    })
}
