// SPDX-License-Identifier: Apache-2.0

//! Pods through containerd's CRI plugin, asked as the kubelet asks: over gRPC, with the
//! messages of `tests/proto/cri.proto`.
//!
//! A case is one of `crate::containerd` with a [`Cri`]: pods and containers as values, and
//! after it the same check that nothing is left behind. HUSK_TEST_RUNTIME=runc runs the cases
//! with that runtime handler. They need a containerd with the plugin, which `tests/lab/run`
//! starts with HUSK_LAB_CRI=1.

pub mod container;
pub mod grpc;
pub mod log;
pub mod pod;
pub mod streaming;

mod messages {
    include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));
}

use std::cell::RefCell;
use std::env;
use std::fmt::Debug;
use std::thread;

use protobuf::{Message, MessageField};

use crate::containerd::process::{LIMIT, eventually};
use crate::containerd::{self, IMAGE, Lab};
use grpc::Refusal;
pub use messages::cri as api;
use pod::Pod;

/// Calls that a failure shows, and characters of each message.
const MAX_CALLS: usize = 40;
const MAX_MESSAGE: usize = 600;

/// What a case works with.
pub struct Cri<'a> {
    pub lab: &'a Lab,
    calls: RefCell<Vec<String>>,
}

/// Runs a case: the body, then the check that it left nothing behind.
pub fn case(subject: &str, body: impl FnOnce(&Cri)) {
    if env::var("HUSK_LAB_CRI").unwrap_or_default().is_empty() {
        println!("not run, needs HUSK_LAB_CRI=1 tests/lab/run: {subject}");
        return;
    }
    containerd::case(subject, |lab| {
        let cri = Cri { lab, calls: RefCell::default() };
        cri.until_ready();
        body(&cri);
    });
}

/// Runs a case of what only husk has.
pub fn husk_case(subject: &str, body: impl FnOnce(&Cri)) {
    match handler().as_str() {
        "husk" => case(subject, body),
        other => println!("not run, {other} is not husk: {subject}"),
    }
}

/// The runtime handler that pods ask for.
pub fn handler() -> String {
    env::var("HUSK_TEST_RUNTIME").unwrap_or_else(|_| "husk".to_owned())
}

/// Removes all pods by force: what a failed case may have left.
pub fn remove_all() {
    let list =
        grpc::call("RuntimeService", "ListPodSandbox", &api::ListPodSandboxRequest::new(), LIMIT);
    let pods: api::ListPodSandboxResponse = list.expect("a list of the pods");
    for pod in pods.items {
        let stop =
            api::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
        let remove = api::RemovePodSandboxRequest { pod_sandbox_id: pod.id, ..Default::default() };
        let done = grpc::call::<api::StopPodSandboxResponse>(
            "RuntimeService",
            "StopPodSandbox",
            &stop,
            LIMIT,
        )
        .and_then(|_| {
            grpc::call::<api::RemovePodSandboxResponse>(
                "RuntimeService",
                "RemovePodSandbox",
                &remove,
                LIMIT,
            )
        });
        if let Err(error) = done {
            eprintln!("a pod of the failed case stays: {error}");
        }
    }
}

impl<'a> Cri<'a> {
    /// Asks the runtime service.
    pub fn ask<A: Message + Debug>(
        &self,
        method: &str,
        request: &(impl Message + Debug),
    ) -> Result<A, Refusal> {
        self.ask_of("RuntimeService", method, request)
    }

    fn ask_of<A: Message + Debug>(
        &self,
        service: &str,
        method: &str,
        request: &(impl Message + Debug),
    ) -> Result<A, Refusal> {
        let answer = grpc::call::<A>(service, method, request, LIMIT);
        let said = match &answer {
            Ok(answer) => format!("{answer:?}"),
            Err(refusal) => refusal.to_string(),
        };
        let line = brief(&format!("{request:?}"));
        self.calls.borrow_mut().push(format!("{method} {line}\n  = {}", brief(&said)));
        answer
    }

    /// Runs a pod as `change` leaves its configuration. In the host's network, unless that is
    /// changed: such a pod is made fastest.
    #[track_caller]
    pub fn pod(&self, name: &str, change: impl FnOnce(&mut api::PodSandboxConfig)) -> Pod<'_> {
        Pod::run(self, name, change).expect("RunPodSandbox")
    }

    /// Waits until the plugin answers, and knows the images: that is a moment after
    /// containerd has started, and after they were imported.
    #[track_caller]
    pub fn until_ready(&self) {
        for image in [IMAGE, "husk.test/pause:latest"] {
            let spec = api::ImageSpec { image: image.to_owned(), ..Default::default() };
            let request =
                api::ImageStatusRequest { image: MessageField::some(spec), ..Default::default() };
            let known = eventually(LIMIT, || {
                let status: Result<api::ImageStatusResponse, _> =
                    self.ask_of("ImageService", "ImageStatus", &request);
                status.is_ok_and(|status| status.image.is_some())
            });
            assert!(known, "the CRI plugin does not know the image {image}");
        }
    }
}

impl Drop for Cri<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let calls = self.calls.borrow();
            let last = &calls[calls.len().saturating_sub(MAX_CALLS)..];
            eprintln!("--- the last calls:\n{}", last.join("\n"));
        }
    }
}

/// A message without what protobuf keeps beside its fields.
fn brief(message: &str) -> String {
    const BESIDE: &str = "special_fields: SpecialFields {";
    let mut text = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once(BESIDE) {
        text.push_str(before.trim_end_matches([' ', ',']));
        let mut depth = 1;
        let end = after.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        });
        rest = &after[end.map_or(after.len(), |end| end + 1)..];
    }
    text.push_str(rest);
    text.chars().take(MAX_MESSAGE).collect()
}
