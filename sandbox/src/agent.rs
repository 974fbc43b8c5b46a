// SPDX-License-Identifier: Apache-2.0

//! The control connection to husk-agent: Hello and Setup, then requests by id with answers
//! in any order, and one ordered stream of events. When the connection ends, every pending
//! and every later call fails with the reason.

use std::collections::HashMap;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use husk_protocol::agent::frame::Body;
use husk_protocol::agent::{
    Event, Frame, Hello, Refused, Request, SetClock, Setup, request, response,
};
use husk_protocol::{PROTOCOL_VERSION, read_frame, write_frame};
use tokio::io::BufReader;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::{monotonic_ns, realtime};
use crate::error::{Code, Error, clip};

/// How long the guest may take from its first instruction to its Hello. A guest on an
/// emulated machine takes seconds.
pub const HELLO_LIMIT: Duration = Duration::from_secs(90);

/// Requests that wait for the connection or for room in it.
const MAX_QUEUED: usize = 64;

/// Requests that wait for their answers; more fail at once.
const MAX_PENDING: usize = 1024;

/// Events that wait for their receiver; then the guest is made to wait.
const MAX_EVENTS: usize = 256;

/// Longest text of the guest that is quoted, in bytes.
const MAX_QUOTED: usize = 128;

/// When the guest reached what, host CLOCK_MONOTONIC in ns.
#[derive(Debug, Clone, Copy, Default)]
pub struct Milestones {
    /// The kernel started the agent.
    pub agent_started_ns: Option<u64>,
    pub hello_ns: Option<u64>,
    pub setup_ns: Option<u64>,
}

/// A handle to the agent; clones share the connection.
#[derive(Debug, Clone)]
pub struct Agent {
    queue: mpsc::Sender<Call>,
    lost: watch::Receiver<Option<String>>,
    milestones: Arc<Mutex<Milestones>>,
}

/// A request on its way.
struct Call {
    verb: request::Verb,
    answer: oneshot::Sender<Result<response::Result, Error>>,
}

/// Requests that were sent, by id.
type Pending = Mutex<HashMap<u64, oneshot::Sender<Result<response::Result, Error>>>>;

/// The id of Setup; requests count on from it.
const SETUP_ID: u64 = 1;

impl Agent {
    /// Talks to the agent once `connection` has come. `setup` is asked for what makes the VM
    /// this pod's when the agent has said Hello. When the conversation ends, for whatever
    /// reason, `lost` is given the reason and answers with the one to report: what became of
    /// the VM is more telling than a closed connection.
    ///
    /// Calls may be made at once; they wait for the connection. The events end when the
    /// agent is lost.
    pub fn connect<C, S, L, F>(connection: C, setup: S, lost: L) -> (Agent, mpsc::Receiver<Event>)
    where
        C: Future<Output = Result<UnixStream, Error>> + Send + 'static,
        S: FnOnce() -> Setup + Send + 'static,
        L: FnOnce(String) -> F + Send + 'static,
        F: Future<Output = String> + Send + 'static,
    {
        let (queue, calls) = mpsc::channel(MAX_QUEUED);
        let (events, event_receiver) = mpsc::channel(MAX_EVENTS);
        let (lost_sender, lost_receiver) = watch::channel(None);
        let milestones = Arc::new(Mutex::new(Milestones::default()));
        let agent = Agent { queue, lost: lost_receiver, milestones: milestones.clone() };
        let conversation = Conversation { calls, pending: Pending::default(), events, milestones };
        tokio::spawn(async move {
            let mut conversation = conversation;
            let why = conversation.hold(connection, setup).await;
            let reason = lost(why).await;
            lost_sender.send_replace(Some(reason.clone()));
            conversation.fail_all(&reason);
        });
        (agent, event_receiver)
    }

    /// Sends one request and waits for its answer.
    pub async fn call(&self, verb: request::Verb) -> Result<response::Result, Error> {
        let (answer, answered) = oneshot::channel();
        if self.queue.send(Call { verb, answer }).await.is_err() {
            return Err(self.reason());
        }
        answered.await.unwrap_or_else(|_| Err(self.reason()))
    }

    /// Gives the guest the host's time, that of the moment in which this is sent.
    pub async fn set_clock(&self) -> Result<(), Error> {
        done(self.call(request::Verb::SetClock(SetClock::default())).await?)
    }

    /// Resolves when the agent is lost.
    pub async fn lost(&self) {
        // An error says that the conversation was given up with its runtime.
        let _ = self.lost.clone().wait_for(Option::is_some).await;
    }

    pub fn milestones(&self) -> Milestones {
        *self.milestones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reason(&self) -> Error {
        let reason = self.lost.borrow().clone();
        Error::unavailable(reason.unwrap_or_else(|| "the guest agent is gone".into()))
    }
}

/// The connection's own side.
struct Conversation {
    calls: mpsc::Receiver<Call>,
    pending: Pending,
    events: mpsc::Sender<Event>,
    milestones: Arc<Mutex<Milestones>>,
}

impl Conversation {
    /// Runs from the connection to its end; why it ended.
    async fn hold(
        &mut self,
        connection: impl Future<Output = Result<UnixStream, Error>>,
        setup: impl FnOnce() -> Setup,
    ) -> String {
        let greeting = async {
            let stream = connection.await.map_err(|error| error.message)?;
            let stream = tokio::net::UnixStream::from_std(stream)
                .map_err(|error| format!("the agent's connection: {error}"))?;
            let (reader, writer) = stream.into_split();
            let mut reader = BufReader::new(reader);
            let hello = read_hello(&mut reader).await?;
            Ok::<_, String>((reader, writer, hello))
        };
        let (mut reader, mut writer, hello) =
            match tokio::time::timeout(HELLO_LIMIT, greeting).await {
                Ok(Ok(greeted)) => greeted,
                Ok(Err(why)) => return why,
                Err(_) => {
                    return format!(
                        "the guest agent did not say Hello within {} s; see the guest's console",
                        HELLO_LIMIT.as_secs()
                    );
                }
            };
        self.mark(|milestones| {
            let now = monotonic_ns();
            milestones.hello_ns = Some(now);
            milestones.agent_started_ns =
                Some(now.saturating_sub(hello.sent_ns.saturating_sub(hello.started_ns)));
        });
        if let Err(why) = check_version(&hello, &mut writer).await {
            return why;
        }
        let frame = Frame { id: SETUP_ID, body: Some(Body::Setup(setup())), ..Default::default() };
        if let Err(error) = write_frame(&mut writer, &frame).await {
            return format!("cannot set the guest up: {}", chain(&error));
        }
        // Whole conversations, not single frames, are raced: neither half is cancel-safe.
        tokio::select! {
            why = send(&mut self.calls, &self.pending, &mut writer) => why,
            why = receive(&mut reader, &self.pending, &self.events, &self.milestones) => why,
        }
    }

    fn mark(&self, change: impl FnOnce(&mut Milestones)) {
        change(&mut self.milestones.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn fail_all(mut self, reason: &str) {
        self.calls.close();
        for (_, answer) in lock(&self.pending).drain() {
            let _ = answer.send(Err(Error::unavailable(reason)));
        }
        while let Ok(call) = self.calls.try_recv() {
            let _ = call.answer.send(Err(Error::unavailable(reason)));
        }
    }
}

async fn read_hello(reader: &mut BufReader<OwnedReadHalf>) -> Result<Hello, String> {
    match read_frame(reader).await {
        Ok(Some(Frame { body: Some(Body::Hello(hello)), .. })) => Ok(hello),
        Ok(Some(_)) => Err("the guest agent did not begin with Hello".into()),
        Ok(None) => Err("the guest agent closed its connection before Hello".into()),
        Err(error) => Err(format!("the guest agent's Hello: {}", chain(&error))),
    }
}

/// Refuses an agent of another version, saying so to both sides.
async fn check_version(hello: &Hello, writer: &mut OwnedWriteHalf) -> Result<(), String> {
    if hello.version == PROTOCOL_VERSION {
        return Ok(());
    }
    let message = format!(
        "the guest image's agent ({}) speaks protocol version {}, this host speaks {}; install \
         guest.img and the host's executables from the same release",
        clip(hello.agent.clone(), MAX_QUOTED),
        hello.version,
        PROTOCOL_VERSION
    );
    let refused =
        Refused { message: message.clone(), version: PROTOCOL_VERSION, ..Default::default() };
    let frame = Frame { body: Some(Body::Refused(refused)), ..Default::default() };
    // The guest's side of the message is a courtesy.
    let _ = write_frame(writer, &frame).await;
    Err(message)
}

/// Sends requests as they come; why that ended.
async fn send(
    calls: &mut mpsc::Receiver<Call>,
    pending: &Pending,
    writer: &mut OwnedWriteHalf,
) -> String {
    let mut id = SETUP_ID;
    while let Some(call) = calls.recv().await {
        id += 1;
        {
            let mut pending = lock(pending);
            pending.retain(|_, answer| !answer.is_closed());
            if pending.len() >= MAX_PENDING {
                let error = Error::unavailable(format!(
                    "the guest agent has not answered {MAX_PENDING} requests; try again later"
                ));
                let _ = call.answer.send(Err(error));
                continue;
            }
            pending.insert(id, call.answer);
        }
        let mut verb = call.verb;
        if let request::Verb::SetClock(clock) = &mut verb {
            // Not earlier, for it may have waited until the guest had booted.
            clock.realtime_ns = realtime().as_nanos() as i64;
        }
        let request = Request { verb: Some(verb), ..Default::default() };
        let frame = Frame { id, body: Some(Body::Request(request)), ..Default::default() };
        match write_frame(writer, &frame).await {
            Ok(()) => {}
            Err(husk_protocol::FrameError::TooLong(len)) => {
                if let Some(answer) = lock(pending).remove(&id) {
                    let _ = answer.send(Err(Error::invalid(format!(
                        "the request takes {len} bytes, more than the guest agent accepts ({})",
                        husk_protocol::MAX_FRAME
                    ))));
                }
            }
            Err(error) => return format!("the connection to the guest agent: {}", chain(&error)),
        }
    }
    "the sandbox was given up".into()
}

/// Hands answers and events to whoever waits for them; why that ended.
async fn receive(
    reader: &mut BufReader<OwnedReadHalf>,
    pending: &Pending,
    events: &mpsc::Sender<Event>,
    milestones: &Mutex<Milestones>,
) -> String {
    loop {
        let frame = match read_frame(reader).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return "the guest agent closed its connection".into(),
            Err(error) => return format!("the connection to the guest agent: {}", chain(&error)),
        };
        match frame.body {
            Some(Body::Response(answer)) => {
                let result = match answer.result {
                    Some(response::Result::Error(error)) => Err(Error::from(error)),
                    Some(result) => Ok(result),
                    None => Err(Error::internal("the guest agent sent an empty answer")),
                };
                if frame.id == SETUP_ID {
                    if let Err(error) = result {
                        return format!("the guest could not be set up: {error}");
                    }
                    let mut milestones = milestones.lock().unwrap_or_else(PoisonError::into_inner);
                    milestones.setup_ns = Some(monotonic_ns());
                } else if let Some(answer) = lock(pending).remove(&frame.id) {
                    // A caller that has gone away does not want it.
                    let _ = answer.send(result);
                }
            }
            Some(Body::Event(event)) => {
                if events.send(event).await.is_err() {
                    return "the sandbox was given up".into();
                }
            }
            _ => return "the guest agent sent a frame that only the host may send".into(),
        }
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds this lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer of a verb that has nothing else to say.
pub fn done(result: response::Result) -> Result<(), Error> {
    match result {
        response::Result::Done(_) => Ok(()),
        _ => Err(unexpected()),
    }
}

/// An answer of a type that does not belong to the request.
pub fn unexpected() -> Error {
    Error::new(Code::Internal, "the guest agent gave an answer that does not fit the request")
}

#[cfg(test)]
mod tests;
