// SPDX-License-Identifier: Apache-2.0

//! What stands for containerd where a shim sends its events, to be there and away as a case
//! needs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::{self, Server, TtrpcContext};
use containerd_shim_protos::{Events, create_events};

use super::process::{LIMIT, eventually};

/// Listens until it is dropped.
pub struct Sink {
    path: PathBuf,
    heard: Heard,
    server: Option<Server>,
}

/// Topics without `/tasks/`, an exit with the process's name.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Events for Heard {
    fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let mut words = envelope.topic.trim_start_matches("/tasks/").to_owned();
        if words == "exit" {
            let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap_or_default();
            words = format!("exit {}", exit.id);
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(words);
        Ok(Empty::new())
    }
}

impl Sink {
    pub fn listen(path: &Path) -> Sink {
        let heard = Heard::default();
        let mut server = Server::new()
            .bind(&format!("unix://{}", path.display()))
            .expect("bind")
            .register_service(create_events(Arc::new(heard.clone())));
        server.start().expect("listen");
        Sink { path: path.to_owned(), heard, server: Some(server) }
    }

    /// Waits until so many events have come; all that have.
    #[track_caller]
    pub fn until(&self, number: usize) -> Vec<String> {
        let all = || self.heard.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(eventually(LIMIT, || all().len() >= number), "only {:?} of {number}", all());
        all()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
        let _ = fs::remove_file(&self.path);
    }
}
