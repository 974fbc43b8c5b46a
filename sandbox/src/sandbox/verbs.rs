// SPDX-License-Identifier: Apache-2.0

//! What a pod's containers are asked for: one verb of the agent each.

use husk_protocol::agent::{self as guest, request::Verb, response};

use super::Sandbox;
use crate::agent::{done, unexpected};
use crate::error::Error;

/// Streams and terminal of a process, as the guest is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terminal {
    pub stdin_port: u32,
    pub stdout_port: u32,
    pub stderr_port: u32,
    pub terminal: bool,
    /// Rows and columns, where known.
    pub size: Option<(u32, u32)>,
}

/// A further process in a container.
#[derive(Debug, Clone)]
pub struct Exec<'a> {
    pub container: &'a str,
    /// Never empty.
    pub exec: &'a str,
    /// OCI Process, JSON.
    pub process: Vec<u8>,
    pub stdio: Terminal,
}

/// A signal for one process or, with `all`, for every process of the container.
#[derive(Debug, Clone, Copy)]
pub struct Signal<'a> {
    pub container: &'a str,
    /// Empty for the container's first process.
    pub exec: &'a str,
    pub signal: u32,
    pub all: bool,
}

impl Sandbox {
    /// Makes a container from a spec for the guest, with these disks and volumes; its first
    /// process waits for [`Sandbox::start`]. The process's number in the guest.
    pub async fn create(
        &self,
        container: &str,
        spec: Vec<u8>,
        stdio: Terminal,
        disks: Vec<guest::Disk>,
        huge_pages: Vec<guest::HugePages>,
    ) -> Result<u32, Error> {
        process(
            self.agent
                .call(Verb::Create(guest::Create {
                    container: container.into(),
                    spec,
                    stdio: Some(stdio.into()).into(),
                    disks,
                    huge_pages,
                    ..Default::default()
                }))
                .await?,
        )
    }

    pub async fn start(&self, container: &str) -> Result<u32, Error> {
        process(
            self.agent
                .call(Verb::Start(guest::Start {
                    container: container.into(),
                    ..Default::default()
                }))
                .await?,
        )
    }

    pub async fn exec(&self, exec: Exec<'_>) -> Result<u32, Error> {
        process(
            self.agent
                .call(Verb::Exec(guest::Exec {
                    container: exec.container.into(),
                    exec: exec.exec.into(),
                    process: exec.process,
                    stdio: Some(exec.stdio.into()).into(),
                    ..Default::default()
                }))
                .await?,
        )
    }

    pub async fn signal(&self, signal: Signal<'_>) -> Result<(), Error> {
        let scope = match signal.all {
            true => guest::signal::Scope::ALL,
            false => guest::signal::Scope::PROCESS,
        };
        self.ask(Verb::Signal(guest::Signal {
            container: signal.container.into(),
            exec: signal.exec.into(),
            signal: signal.signal,
            scope: scope.into(),
            ..Default::default()
        }))
        .await
    }

    /// Sets the size of a process's terminal.
    pub async fn resize(
        &self,
        container: &str,
        exec: &str,
        (rows, cols): (u32, u32),
    ) -> Result<(), Error> {
        self.ask(Verb::Resize(guest::Resize {
            container: container.into(),
            exec: exec.into(),
            rows,
            cols,
            ..Default::default()
        }))
        .await
    }

    /// `resources` is an OCI LinuxResources, JSON.
    pub async fn update(&self, container: &str, resources: Vec<u8>) -> Result<(), Error> {
        self.ask(Verb::Update(guest::Update {
            container: container.into(),
            resources,
            ..Default::default()
        }))
        .await
    }

    pub async fn pause(&self, container: &str) -> Result<(), Error> {
        self.ask(Verb::Pause(guest::Pause { container: container.into(), ..Default::default() }))
            .await
    }

    pub async fn resume(&self, container: &str) -> Result<(), Error> {
        self.ask(Verb::Resume(guest::Resume { container: container.into(), ..Default::default() }))
            .await?;
        // It goes on in any case, and is told the time again later.
        let _ = self.agent.set_clock().await;
        Ok(())
    }

    /// Removes what is left of a container in the guest, or of an exec if that is not empty.
    pub async fn delete(&self, container: &str, exec: &str) -> Result<(), Error> {
        self.ask(Verb::Delete(guest::Delete {
            container: container.into(),
            exec: exec.into(),
            ..Default::default()
        }))
        .await
    }

    pub async fn pids(&self, container: &str) -> Result<Vec<guest::Pid>, Error> {
        let verb = Verb::Pids(guest::Pids { container: container.into(), ..Default::default() });
        match self.agent.call(verb).await? {
            response::Result::Pids(list) => Ok(list.pids),
            _ => Err(unexpected()),
        }
    }

    pub async fn stats(&self, container: &str) -> Result<guest::ContainerStats, Error> {
        let verb =
            Verb::Stats(guest::Stats { containers: vec![container.into()], ..Default::default() });
        match self.agent.call(verb).await? {
            response::Result::Stats(list) => {
                list.stats.into_iter().find(|stats| stats.container == container).ok_or_else(|| {
                    Error::not_found(format!("no figures for container {container}"))
                })
            }
            _ => Err(unexpected()),
        }
    }

    async fn ask(&self, verb: Verb) -> Result<(), Error> {
        done(self.agent.call(verb).await?)
    }
}

impl From<Terminal> for guest::Stdio {
    fn from(stdio: Terminal) -> guest::Stdio {
        let (rows, cols) = stdio.size.unwrap_or_default();
        guest::Stdio {
            stdin_port: stdio.stdin_port,
            stdout_port: stdio.stdout_port,
            stderr_port: stdio.stderr_port,
            terminal: stdio.terminal,
            rows,
            cols,
            ..Default::default()
        }
    }
}

fn process(result: response::Result) -> Result<u32, Error> {
    match result {
        response::Result::Process(process) => Ok(process.pid),
        _ => Err(unexpected()),
    }
}
