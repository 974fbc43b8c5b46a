// SPDX-License-Identifier: Apache-2.0

//! The queue against a containerd that is late, goes away, comes back and refuses.

use super::*;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::shim_async::create_events;
use tokio::sync::Notify;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// What containerd was told: container ids.
#[derive(Clone, Default)]
struct Containerd {
    told: Arc<Mutex<Vec<String>>>,
    news: Arc<Notify>,
}

#[async_trait]
impl containerd_shim_protos::shim_async::Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope;
        assert_eq!(envelope.namespace, "ns");
        assert!(envelope.timestamp.seconds > 0);
        if envelope.topic == "/tasks/oom" {
            let status = ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "no ooms here");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        assert_eq!(envelope.event.type_url, "containerd.events.TaskStart");
        let start: message::TaskStart =
            protobuf::Message::parse_from_bytes(&envelope.event.value).expect("event");
        self.told.lock().expect("lock").push(start.container_id);
        self.news.notify_one();
        Ok(Empty::new())
    }
}

impl Containerd {
    async fn listen(&self, path: &Path) -> Server {
        let _ = std::fs::remove_file(path);
        let mut server = Server::new()
            .bind(&format!("unix://{}", path.display()))
            .expect("bind")
            .register_service(create_events(Arc::new(self.clone())));
        server.start().await.expect("start");
        server
    }

    async fn heard(&self, count: usize) {
        while self.told.lock().expect("lock").len() < count {
            self.news.notified().await;
        }
    }
}

fn start(n: usize) -> Event {
    Event::Start(message::TaskStart { container_id: n.to_string(), ..Default::default() })
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("containerd.sock.ttrpc");
    (dir, path)
}

#[tokio::test]
async fn order_survives_a_containerd_that_comes_and_goes() {
    let (_dir, path) = socket();
    let events = Events::start("ns", &path.display().to_string());
    for n in 0..10 {
        events.publish(start(n));
    }
    let containerd = Containerd::default();
    let mut server = containerd.listen(&path).await;
    containerd.heard(10).await;
    events.flush(Duration::from_secs(10)).await;
    server.shutdown().await.expect("shutdown");
    drop(server);
    for n in 10..20 {
        events.publish(start(n));
    }
    let _server = containerd.listen(&path).await;
    containerd.heard(20).await;
    let told = containerd.told.lock().expect("lock").clone();
    let expected: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn an_event_that_is_refused_holds_up_nothing() {
    let (_dir, path) = socket();
    let containerd = Containerd::default();
    let _server = containerd.listen(&path).await;
    let events = Events::start("ns", &path.display().to_string());
    events.publish(Event::Oom(message::TaskOOM::new()));
    events.publish(start(1));
    events.flush(Duration::from_secs(10)).await;
    assert_eq!(*containerd.told.lock().expect("lock"), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_never_blocks() {
    let (_dir, path) = socket();
    let events = Events::start("ns", &path.display().to_string());
    for n in 0..2 * MAX_QUEUED {
        events.publish(start(n));
    }
    assert_eq!(*events.waiting.borrow(), MAX_QUEUED);
    events.flush(Duration::from_secs(1)).await;
    assert!(*events.waiting.borrow() > 0);
}
