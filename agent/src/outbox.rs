// SPDX-License-Identifier: Apache-2.0

//! Everything the agent says to the host goes through one queue, so the order in which it
//! is put in is the order in which the host sees it.

use std::cell::Cell;
use std::rc::Rc;

use husk_protocol::agent::frame::Body;
use husk_protocol::agent::log::Level;
use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::{self, Event, Frame, Log, Response, event::Kind};
use husk_protocol::{FrameError, write_frame};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// Frames waiting to be sent beyond which log lines are dropped. More than that tells nobody
/// anything, and a guest that fails in a loop must not fill its memory with the news.
const LOGS_WAITING: usize = 256;

#[derive(Clone)]
pub struct Outbox {
    queue: mpsc::UnboundedSender<Frame>,
    waiting: Rc<Cell<usize>>,
}

/// The other end of the queue.
pub struct Outgoing {
    queue: mpsc::UnboundedReceiver<Frame>,
    waiting: Rc<Cell<usize>>,
}

/// The right to answer one request, once.
pub struct Reply {
    id: u64,
    outbox: Outbox,
}

pub fn queue() -> (Outbox, Outgoing) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Rc::new(Cell::new(0));
    (Outbox { queue: sender, waiting: waiting.clone() }, Outgoing { queue: receiver, waiting })
}

impl Outbox {
    pub fn event(&self, kind: Kind) {
        self.push(0, Body::Event(Event { kind: Some(kind), ..Default::default() }));
    }

    pub fn reply(&self, id: u64) -> Reply {
        Reply { id, outbox: self.clone() }
    }

    pub fn warn(&self, message: impl Into<String>) {
        self.log(Level::WARN, message.into());
    }

    pub fn error(&self, message: impl Into<String>) {
        self.log(Level::ERROR, message.into());
    }

    fn log(&self, level: Level, message: String) {
        if self.waiting.get() < LOGS_WAITING {
            self.event(Kind::Log(Log { level: level.into(), message, ..Default::default() }));
        }
    }

    fn push(&self, id: u64, body: Body) {
        // Fails only when the connection is lost, and then the VM is about to be switched off.
        let _ = self.queue.send(Frame { id, body: Some(body), ..Default::default() });
        self.waiting.set(self.waiting.get() + 1);
    }
}

impl Reply {
    /// Answers. The host sees the answer before anything that is said from now on.
    pub fn send(self, result: Result<Outcome>) {
        self.outbox.push(self.id, Body::Response(response(result)));
    }
}

impl Outgoing {
    /// Sends until the connection fails, or nothing more can be said.
    pub async fn run<W: AsyncWrite + Unpin>(mut self, stream: &mut W) -> Option<FrameError> {
        while let Some(frame) = self.queue.recv().await {
            self.waiting.set(self.waiting.get().saturating_sub(1));
            match write_frame(stream, &frame).await {
                Ok(()) => {}
                Err(FrameError::TooLong(length)) => {
                    let error = Error::internal(format!("the answer takes {length} bytes"));
                    let body = Some(Body::Response(response(Err(error))));
                    let frame = Frame { id: frame.id, body, ..Default::default() };
                    if frame.id != 0
                        && let Err(error) = write_frame(stream, &frame).await
                    {
                        return Some(error);
                    }
                }
                Err(error) => return Some(error),
            }
        }
        None
    }
}

fn response(result: Result<Outcome>) -> Response {
    let outcome = result.unwrap_or_else(|error| {
        Outcome::Error(agent::Error {
            code: error.code.into(),
            message: error.message,
            ..Default::default()
        })
    });
    Response { result: Some(outcome), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::Done;
    use husk_protocol::read_frame;

    use super::*;

    #[tokio::test]
    async fn frames_leave_in_order_and_logs_are_bounded() {
        let (outbox, outgoing) = queue();
        for _ in 0..2 * LOGS_WAITING {
            outbox.warn("again");
        }
        outbox.reply(7).send(Ok(Outcome::Done(Done::new())));
        drop(outbox);
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        assert!(outgoing.run(&mut ours).await.is_none());
        drop(ours);
        let mut frames = Vec::new();
        while let Some(frame) = read_frame(&mut theirs).await.expect("frame") {
            frames.push(frame);
        }
        assert_eq!(frames.len(), LOGS_WAITING + 1);
        assert_eq!(frames.last().map(|frame| frame.id), Some(7));
    }

    #[tokio::test]
    async fn an_answer_too_long_becomes_an_error() {
        let (outbox, outgoing) = queue();
        let message = "x".repeat(husk_protocol::MAX_FRAME);
        outbox.reply(1).send(Err(Error::internal(message)));
        drop(outbox);
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        assert!(outgoing.run(&mut ours).await.is_none());
        let frame = read_frame(&mut theirs).await.expect("frame").expect("a frame");
        assert_eq!(frame.id, 1);
        assert!(frame.response().error().message.contains("bytes"));
    }
}
