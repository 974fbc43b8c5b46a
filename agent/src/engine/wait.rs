// SPDX-License-Identifier: Apache-2.0

//! Waiting for the engine without blocking, for the agent.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::channel::{self, Received};
use super::stage::{self, Stage};
use super::{Create, Failure, Join, Progress, Step};
use crate::error::{Doing, Error, Result};

/// A process that exists. It runs, or waits to be started.
pub struct Made {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The master side, if it has a terminal.
    pub terminal: Option<OwnedFd>,
}

/// A first process that waits to be started; it ends if this is dropped.
pub struct Pending(Reports);

struct Reports(AsyncFd<OwnedFd>);

/// Makes a container up to the point where its first process waits for `start`. Calls
/// `on_stage` with what refers to the stage, so that a stuck one can be killed.
pub async fn create(
    create: &Create<'_>,
    on_stage: impl FnOnce(OwnedFd),
) -> Result<(Made, Pending)> {
    let stage = create.start().doing("fork the container's engine")?;
    let reports = Reports::of(stage, on_stage)?;
    let mut progress = Progress::default();
    match reports.until(&mut progress, Step::Ready).await? {
        Step::Ready => Ok((made(progress)?, Pending(reports))),
        _ => Err(error(&mut progress)),
    }
}

/// Makes a process in a container. Returns when it runs its program.
pub async fn join(join: &Join<'_>) -> Result<Made> {
    let stage = join.start().doing("fork the container's engine")?;
    let reports = Reports::of(stage, drop)?;
    let mut progress = Progress::default();
    reports.until(&mut progress, Step::Over).await?;
    match progress.failure() {
        None => made(progress),
        Some(failure) => Err(failure.into()),
    }
}

/// Runs `work` in a fork of this process, which it may block.
pub async fn apart(work: impl FnOnce() -> std::result::Result<(), String>) -> Result<()> {
    let stage = stage::start(&[], |_| Ok(work()?)).doing("fork")?;
    let reports = Reports::of(stage, drop)?;
    let mut progress = Progress::default();
    reports.until(&mut progress, Step::Over).await?;
    progress.failure().map_or(Ok(()), |failure| Err(failure.into()))
}

impl Pending {
    /// Lets the process run its program. Returns when it does, or says why it cannot.
    pub async fn start(self) -> Result<()> {
        channel::go(self.0.0.as_fd()).doing("start the container's first process")?;
        let mut progress = Progress::default();
        self.0.until(&mut progress, Step::Over).await?;
        progress.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }
}

fn made(progress: Progress) -> Result<Made> {
    match progress {
        Progress { pid: Some(pid), pidfd: Some(pidfd), terminal, .. } => {
            Ok(Made { pid, pidfd, terminal })
        }
        _ => Err(Error::internal("the container's engine was killed")),
    }
}

fn error(progress: &mut Progress) -> Error {
    let killed = || Error::internal("the container's engine was killed");
    progress.failure().map_or_else(killed, Error::from)
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoProgram(why) => Error::invalid(why),
            Failure::Other(why) => Error::internal(why),
        }
    }
}

impl Reports {
    fn of(stage: Stage, on_stage: impl FnOnce(OwnedFd)) -> Result<Self> {
        on_stage(stage.pidfd);
        let nonblocking = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
        fcntl(&stage.channel, nonblocking).doing("poll the engine's socket")?;
        // SAFETY: an OwnedFd's descriptor stays the same and open until it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(stage.channel, Interest::READABLE) };
        Ok(Self(fd.doing("poll the engine's socket")?))
    }

    /// Follows the reports to a step, or to their end.
    async fn until(&self, progress: &mut Progress, last: Step) -> Result<Step> {
        loop {
            let step = progress.take(self.next().await?);
            if step == last || step == Step::Over {
                return Ok(step);
            }
        }
    }

    async fn next(&self) -> Result<Option<Received>> {
        let next = self.0.async_io(Interest::READABLE, |fd| channel::receive(fd.as_fd()));
        match next.await {
            // The children's end was closed with something unread in it.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            received => received.doing("hear from the container's engine"),
        }
    }
}
