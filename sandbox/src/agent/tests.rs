// SPDX-License-Identifier: Apache-2.0

//! The client against an agent made of a socket pair and a few lines.

use super::*;
use husk_protocol::agent::{self as guest, Done, Exit, Response, Start};
use tokio::net::UnixStream as Stream;

/// An agent's end of the connection.
struct Guest(Stream);

impl Guest {
    async fn say(&mut self, body: Body, id: u64) {
        let frame = Frame { id, body: Some(body), ..Default::default() };
        write_frame(&mut self.0, &frame).await.expect("write");
    }

    async fn hello(&mut self, version: u32) {
        let hello = Hello { version, started_ns: 5, sent_ns: 8, ..Default::default() };
        self.say(Body::Hello(hello), 0).await;
    }

    async fn hear(&mut self) -> Frame {
        read_frame(&mut self.0).await.expect("read").expect("frame")
    }

    async fn greet(&mut self) {
        self.hello(PROTOCOL_VERSION).await;
        let frame = self.hear().await;
        assert!(matches!(frame.body, Some(Body::Setup(_))));
        self.answer(frame.id).await;
    }

    async fn answer(&mut self, id: u64) {
        let done = response::Result::Done(Done::new());
        let response = Response { result: Some(done), ..Default::default() };
        self.say(Body::Response(response), id).await;
    }

    /// The container that the next request starts, and the request's id.
    async fn hear_start(&mut self) -> (String, u64) {
        let frame = self.hear().await;
        let Some(Body::Request(Request { verb: Some(request::Verb::Start(start)), .. })) =
            frame.body
        else {
            panic!("not a start: {frame:?}");
        };
        (start.container, frame.id)
    }
}

fn connect() -> (Agent, mpsc::Receiver<Event>, Guest) {
    let (host, guest) = UnixStream::pair().expect("pair");
    host.set_nonblocking(true).expect("nonblocking");
    guest.set_nonblocking(true).expect("nonblocking");
    let (agent, events) = Agent::connect(
        std::future::ready(Ok(host)),
        || Setup { hostname: "h".into(), ..Default::default() },
        async |why| format!("lost: {why}"),
    );
    (agent, events, Guest(Stream::from_std(guest).expect("stream")))
}

fn start(container: &str) -> request::Verb {
    request::Verb::Start(Start { container: container.into(), ..Default::default() })
}

#[tokio::test]
async fn answers_find_their_requests_in_any_order() {
    let (agent, _events, mut guest) = connect();
    let (first, second) = (agent.call(start("a")), agent.call(start("b")));
    let serve = async {
        guest.greet().await;
        let (a, b) = (guest.hear_start().await, guest.hear_start().await);
        assert_eq!((a.0.as_str(), b.0.as_str()), ("a", "b"));
        guest.answer(b.1).await;
        guest.answer(777).await;
        let error = guest::Error {
            code: guest::error::Code::NOT_FOUND.into(),
            message: "no a".into(),
            ..Default::default()
        };
        let result = Some(response::Result::Error(error));
        guest.say(Body::Response(Response { result, ..Default::default() }), a.1).await;
    };
    let (first, second, ()) = tokio::join!(first, second, serve);
    assert_eq!(first, Err(Error::not_found("no a")));
    done(second.expect("answer")).expect("done");
    let milestones = agent.milestones();
    let hello = milestones.hello_ns.expect("hello");
    assert_eq!(milestones.agent_started_ns, Some(hello - 3));
    assert!(milestones.setup_ns.expect("setup") >= hello);
}

#[tokio::test]
async fn the_time_is_that_of_the_sending() {
    let (agent, _events, mut guest) = connect();
    let set = tokio::spawn({
        let agent = agent.clone();
        async move { agent.set_clock().await }
    });
    // It waits in the queue now, until the guest is there.
    tokio::task::yield_now().await;
    let before = realtime();
    guest.greet().await;
    let frame = guest.hear().await;
    let Some(Body::Request(Request { verb: Some(request::Verb::SetClock(clock)), .. })) =
        frame.body
    else {
        panic!("not the clock: {frame:?}");
    };
    assert!((before..=realtime()).contains(&Duration::from_nanos(clock.realtime_ns as u64)));
    guest.answer(frame.id).await;
    set.await.expect("task").expect("set");
    drop(guest);
    agent.lost().await;
}

#[tokio::test]
async fn events_come_in_order_and_end_with_the_agent() {
    let (agent, mut events, mut guest) = connect();
    guest.greet().await;
    for status in 0..1000 {
        let exit = Exit { status, ..Default::default() };
        let kind = Some(guest::event::Kind::Exit(exit));
        let event = Event { kind, ..Default::default() };
        // More than the receiver's queue holds: the guest waits for it.
        let say = guest.say(Body::Event(event), 0);
        let hear = async {
            let event = events.recv().await.expect("event");
            assert!(
                matches!(event.kind, Some(guest::event::Kind::Exit(exit)) if exit.status == status)
            );
        };
        tokio::join!(say, hear);
    }
    drop(guest);
    assert!(events.recv().await.is_none());
    let error = agent.call(start("a")).await.expect_err("gone");
    assert_eq!(error, Error::unavailable("lost: the guest agent closed its connection"));
}

#[tokio::test]
async fn a_lost_connection_fails_what_waits_for_it() {
    let (agent, _events, mut guest) = connect();
    let serve = async {
        guest.greet().await;
        guest.hear_start().await;
        drop(guest);
    };
    let (answer, ()) = tokio::join!(agent.call(start("a")), serve);
    assert_eq!(answer.expect_err("gone").code, Code::Unavailable);
}

#[tokio::test]
async fn another_version_is_refused_with_a_remedy() {
    let (agent, _events, mut guest) = connect();
    guest.hello(PROTOCOL_VERSION + 1).await;
    let frame = guest.hear().await;
    let Some(Body::Refused(refused)) = frame.body else { panic!("not refused: {frame:?}") };
    assert_eq!(refused.version, PROTOCOL_VERSION);
    let error = agent.call(start("a")).await.expect_err("refused");
    assert!(error.message.contains("same release"), "{error}");
}

#[tokio::test]
async fn a_guest_that_cannot_be_set_up_is_lost() {
    let (agent, _events, mut guest) = connect();
    guest.hello(PROTOCOL_VERSION).await;
    let frame = guest.hear().await;
    let error = guest::Error { message: "no share".into(), ..Default::default() };
    let result = Some(response::Result::Error(error));
    guest.say(Body::Response(Response { result, ..Default::default() }), frame.id).await;
    let error = agent.call(start("a")).await.expect_err("lost");
    assert!(error.message.contains("no share"), "{error}");
}

#[tokio::test]
async fn nonsense_ends_the_conversation() {
    use tokio::io::AsyncWriteExt;
    for nonsense in [&[0xff, 0xff, 0xff, 0xff][..], &[1, 0, 0, 0, 0xff], b"\x02\0\0\0\x08\x01"] {
        let (agent, _events, mut guest) = connect();
        guest.0.write_all(nonsense).await.expect("write");
        guest.0.shutdown().await.expect("shutdown");
        let error = agent.call(start("a")).await.expect_err("lost");
        assert_eq!(error.code, Code::Unavailable, "{nonsense:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_fails_alone() {
    let (agent, _events, mut guest) = connect();
    guest.greet().await;
    let spec = vec![0; husk_protocol::MAX_FRAME + 1];
    let create = guest::Create { spec, ..Default::default() };
    let error = agent.call(request::Verb::Create(create)).await.expect_err("too long");
    assert_eq!(error.code, Code::InvalidArgument);
    let serve = async {
        let (_, id) = guest.hear_start().await;
        guest.answer(id).await;
    };
    let (answer, ()) = tokio::join!(agent.call(start("a")), serve);
    answer.expect("the connection goes on");
}

#[tokio::test]
async fn unanswered_requests_are_limited() {
    let (agent, _events, mut guest) = connect();
    guest.greet().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..MAX_PENDING + 1 {
        let agent = agent.clone();
        calls.spawn(async move { agent.call(start("a")).await });
    }
    let hear = async {
        loop {
            guest.hear().await;
        }
    };
    let first = tokio::select! {
        first = calls.join_next() => first.expect("call").expect("joined"),
        () = hear => unreachable!("the guest hears on"),
    };
    assert!(first.expect_err("refused").message.contains("has not answered"));
}
