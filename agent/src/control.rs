// SPDX-License-Identifier: Apache-2.0

//! The control connection: Hello as early as can be, Setup, then requests until the host
//! closes. Every request runs as a task of its own, so none waits for another.

use std::rc::Rc;
use std::time::Duration;

use husk_protocol::agent::frame::Body;
use husk_protocol::agent::{Done, Frame, Hello, response::Result as Outcome};
use husk_protocol::{CONTROL_PORT, PROTOCOL_VERSION, read_frame, write_frame};
use nix::time::{ClockId, clock_gettime};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

use crate::agent::Agent;
use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::outbox::queue;
use crate::{boot, setup};

/// How often and how long the host is looked for, should it not be there at once.
const DIAL_ATTEMPTS: u32 = 50;
const DIAL_PAUSE: Duration = Duration::from_millis(20);

/// Serves the host. Returns when the connection ends; an error says why it never began, or
/// how it broke.
pub async fn serve(host: Host, started_ns: u64) -> Result<()> {
    let in_vm = matches!(host, Host::Vsock);
    let mut stream = dial(&host).await?;
    let hello = hello(started_ns)?;
    write_frame(&mut stream, &hello).await.doing("greet the host")?;

    // The host makes up its answer meanwhile.
    prepare(in_vm)?;
    let (setup_id, setup) = match read_frame(&mut stream).await.doing("hear from the host")? {
        Some(Frame { id, body: Some(Body::Setup(setup)), .. }) => (id, setup),
        Some(Frame { body: Some(Body::Refused(refused)), .. }) => {
            return Err(Error::precondition(format!("the host refused: {}", refused.message)));
        }
        Some(_) => return Err(Error::invalid("the host did not answer Hello with Setup")),
        None => return Err(Error::unavailable("the host closed the connection after Hello")),
    };

    let (outbox, outgoing) = queue();
    let (mut from_host, mut to_host) = stream.into_split();
    let agent = Rc::new(Agent::new(host, outbox.clone()));
    let reaping = agent.clone();
    tokio::task::spawn_local(async move {
        if let Err(error) = reaping.reaper.run().await {
            reaping.outbox.error(format!("cannot reap processes: {error}"));
        }
    });
    let result = setup::apply(&setup).map(|()| Outcome::Done(Done::new()));
    outbox.reply(setup_id).send(result);

    tokio::select! {
        result = requests(&agent, &mut from_host) => result,
        lost = outgoing.run(&mut to_host) => match lost {
            Some(error) => Err(Error::unavailable(format!("lost the host: {error}"))),
            None => Ok(()),
        },
    }
}

async fn requests(agent: &Rc<Agent>, from_host: &mut OwnedReadHalf) -> Result<()> {
    while let Some(frame) = read_frame(from_host).await.doing("hear from the host")? {
        let reply = agent.outbox.reply(frame.id);
        match frame.body {
            Some(Body::Request(request)) => {
                let agent = agent.clone();
                tokio::task::spawn_local(async move { agent.answer(request, reply).await });
            }
            _ => reply.send(Err(Error::invalid("this frame is not for a guest"))),
        }
    }
    Ok(())
}

async fn dial(host: &Host) -> Result<UnixStream> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match host.dial(CONTROL_PORT).await {
            Ok(stream) => return Ok(stream),
            Err(error) if attempt == DIAL_ATTEMPTS => {
                return Err(error).doing(format!("reach the host on port {CONTROL_PORT}"));
            }
            Err(_) => tokio::time::sleep(DIAL_PAUSE).await,
        }
    }
}

fn hello(started_ns: u64) -> Result<Frame> {
    let kernel = nix::sys::utsname::uname().doing("ask for the kernel's release")?;
    let hello = Hello {
        version: PROTOCOL_VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel.release().to_string_lossy().into_owned(),
        started_ns,
        sent_ns: boottime_ns(),
        ..Default::default()
    };
    Ok(Frame { body: Some(Body::Hello(hello)), ..Default::default() })
}

fn prepare(in_vm: bool) -> Result<()> {
    if in_vm {
        boot::mount_all()?;
        boot::lift_limits()?;
    }
    boot::loopback_up()?;
    boot::prepare_for_containers()
}

/// Time since the guest's kernel started, in ns.
pub fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
