// SPDX-License-Identifier: Apache-2.0

//! Events for containerd: one queue, one sender, so that they arrive in the order in which
//! they were published. An event is tried until containerd has it, with a new connection
//! each time one fails, for containerd may be restarted while containers run.

use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task as message;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use husk_sandbox::clock;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use tokio::sync::{mpsc, watch};

use crate::log;
use crate::reply::timestamp;

/// Events that wait for containerd. While it is away nobody creates or starts anything, so
/// only exits of what runs already can come.
const MAX_QUEUED: usize = 4096;

/// How long containerd may take for one event before the connection is given up. Long, for
/// an event that is tried again may arrive twice.
const FORWARD_LIMIT: Duration = Duration::from_secs(30);

/// Between two tries while containerd is away.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// What can be told about a task.
#[derive(Debug, Clone)]
pub enum Event {
    Create(message::TaskCreate),
    Start(message::TaskStart),
    Exit(message::TaskExit),
    Delete(message::TaskDelete),
    ExecAdded(message::TaskExecAdded),
    ExecStarted(message::TaskExecStarted),
    Paused(message::TaskPaused),
    Resumed(message::TaskResumed),
    Oom(message::TaskOOM),
}

impl Event {
    /// Topic, type and message.
    fn parts(&self) -> (&'static str, &'static str, &dyn protobuf::MessageDyn) {
        match self {
            Event::Create(m) => (topics::TASK_CREATE_EVENT_TOPIC, "TaskCreate", m),
            Event::Start(m) => (topics::TASK_START_EVENT_TOPIC, "TaskStart", m),
            Event::Exit(m) => (topics::TASK_EXIT_EVENT_TOPIC, "TaskExit", m),
            Event::Delete(m) => (topics::TASK_DELETE_EVENT_TOPIC, "TaskDelete", m),
            Event::ExecAdded(m) => (topics::TASK_EXEC_ADDED_EVENT_TOPIC, "TaskExecAdded", m),
            Event::ExecStarted(m) => (topics::TASK_EXEC_STARTED_EVENT_TOPIC, "TaskExecStarted", m),
            Event::Paused(m) => (topics::TASK_PAUSED_EVENT_TOPIC, "TaskPaused", m),
            Event::Resumed(m) => (topics::TASK_RESUMED_EVENT_TOPIC, "TaskResumed", m),
            Event::Oom(m) => (topics::TASK_OOM_EVENT_TOPIC, "TaskOOM", m),
        }
    }

    fn envelope(&self, namespace: &str) -> Result<Envelope, protobuf::Error> {
        let (topic, kind, message) = self.parts();
        Ok(Envelope {
            timestamp: MessageField::some(timestamp(clock::realtime())),
            namespace: namespace.into(),
            topic: topic.into(),
            event: MessageField::some(Any {
                type_url: format!("containerd.events.{kind}"),
                value: message.write_to_bytes_dyn()?,
                ..Default::default()
            }),
            ..Default::default()
        })
    }
}

/// The queue's entrance.
#[derive(Debug, Clone)]
pub struct Events {
    namespace: String,
    /// None if nobody is to hear of them.
    queue: Option<mpsc::Sender<Envelope>>,
    /// Events not yet with containerd.
    waiting: watch::Sender<usize>,
}

impl Events {
    /// Starts the sender to containerd's ttrpc socket, a path. Needs a tokio runtime.
    pub fn start(namespace: &str, address: &str) -> Events {
        let (queue, events) = mpsc::channel(MAX_QUEUED);
        let waiting = watch::channel(0).0;
        let sender = Sender { address: format!("unix://{address}"), client: None };
        tokio::spawn(sender.run(events, waiting.clone()));
        Events { namespace: namespace.into(), queue: Some(queue), waiting }
    }

    /// An entrance to no queue, for what containerd has no container for.
    pub fn unheard() -> Events {
        Events { namespace: String::new(), queue: None, waiting: watch::channel(0).0 }
    }

    /// A queue whose other end is the test's.
    #[cfg(test)]
    pub fn collected(namespace: &str) -> (Events, mpsc::Receiver<Envelope>) {
        let (queue, events) = mpsc::channel(MAX_QUEUED);
        let queue = Some(queue);
        (Events { namespace: namespace.into(), queue, waiting: watch::channel(0).0 }, events)
    }

    /// Puts an event at the end of the queue. Never blocks.
    pub fn publish(&self, event: Event) {
        let Some(queue) = &self.queue else { return };
        let envelope = match event.envelope(&self.namespace) {
            Ok(envelope) => envelope,
            Err(error) => return log::error(&format!("cannot encode an event: {error}")),
        };
        let topic = envelope.topic.clone();
        self.waiting.send_modify(|waiting| *waiting += 1);
        if queue.try_send(envelope).is_err() {
            self.waiting.send_modify(|waiting| *waiting -= 1);
            log::error(&format!(
                "dropped an event {topic}: {MAX_QUEUED} others wait for containerd"
            ));
        }
    }

    /// Waits until containerd has all events, for `limit` at most.
    pub async fn flush(&self, limit: Duration) {
        let mut waiting = self.waiting.subscribe();
        // Past the limit, containerd is away and learns of the end by other means.
        let _ = tokio::time::timeout(limit, waiting.wait_for(|&waiting| waiting == 0)).await;
    }
}

struct Sender {
    address: String,
    client: Option<Client>,
}

impl Sender {
    async fn run(mut self, mut events: mpsc::Receiver<Envelope>, waiting: watch::Sender<usize>) {
        while let Some(envelope) = events.recv().await {
            self.deliver(envelope).await;
            waiting.send_modify(|waiting| *waiting -= 1);
        }
    }

    /// Tries until containerd has the event, or has refused it for good.
    async fn deliver(&mut self, envelope: Envelope) {
        let topic = envelope.topic.clone();
        let request =
            ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        let mut pause = RETRY[0];
        loop {
            match self.forward(&request).await {
                Ok(()) => return,
                Err(ttrpc::Error::RpcStatus(status)) if is_final(status.code()) => {
                    log::error(&format!(
                        "containerd refused an event {topic}: {}",
                        status.message()
                    ));
                    return;
                }
                Err(error) => {
                    log::debug(&format!("event {topic}: {error}; trying again"));
                    self.client = None;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY[1]);
        }
    }

    async fn forward(&mut self, request: &ForwardRequest) -> ttrpc::Result<()> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(Client::connect(&self.address).await?).clone(),
        };
        let context = ttrpc::context::with_duration(FORWARD_LIMIT);
        EventsClient::new(client).forward(context, request).await.map(drop)
    }
}

/// Answers that another try would not change.
fn is_final(code: ttrpc::Code) -> bool {
    use ttrpc::Code::{INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, UNIMPLEMENTED};
    matches!(code, INVALID_ARGUMENT | NOT_FOUND | PERMISSION_DENIED | UNIMPLEMENTED)
}

#[cfg(test)]
mod tests;
