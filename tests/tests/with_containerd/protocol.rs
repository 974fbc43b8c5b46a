// SPDX-License-Identifier: Apache-2.0

//! The agent's protocol at its limits: a request that is too long, a guest that is silent.

use std::fs;

use containerd_shim_protos::api::StatsRequest;
use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::husk_case;
use husk_tests::containerd::task::{code, context, gone, refusal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

#[test]
fn request_that_is_too_long() {
    husk_case("a spec of more than the agent's 4 MiB is refused, and nothing else ends", |lab| {
        let pod = Bundle::new(lab, "terse", &["sleep", "100000"]);
        pod.launch();
        let long = format!("LONG={}", "x".repeat(5 << 20));
        let verbose = Bundle::in_pod(&pod, "verbose", &["true"]);
        let config = verbose.path().join("config.json");
        let mut spec: Value =
            serde_json::from_slice(&fs::read(&config).expect("read")).expect("JSON");
        spec["process"]["env"] = [long].as_slice().into();
        fs::write(&config, spec.to_string()).expect("write");
        let answer = verbose.calls().create(context(), &verbose.create_request());
        let (code, text) = refusal(answer);
        assert_eq!(format!("{code:?}"), "INVALID_ARGUMENT");
        assert!(text.contains("more than the guest agent accepts"), "{text}");
        pod.exec("short", &["sh", "-c", "exit 4"]);
        assert_eq!(pod.wait("short").expect("Wait").exit_status, 4);
        pod.remove_pod();
    });
}

#[test]
fn guest_that_does_not_answer() {
    husk_case("calls to a guest that stands still fail in time, and SIGKILL ends it", |lab| {
        let bundle = Bundle::new(lab, "frozen", &["sleep", "100000"]);
        let vmm = bundle.launch();
        kill(Pid::from_raw(vmm as i32), Signal::SIGSTOP).expect("SIGSTOP");
        let request = StatsRequest { id: "frozen".into(), ..Default::default() };
        let stats = bundle.calls().stats(context(), &request);
        assert_eq!(code(stats), "UNAVAILABLE");
        assert_eq!(bundle.status(), "RUNNING", "what the host knows by itself");
        assert_eq!(code(bundle.kill("", libc::SIGTERM)), "UNAVAILABLE");
        bundle.kill("", libc::SIGKILL).expect("Kill for good");
        assert_eq!(bundle.wait("").expect("Wait").exit_status, 137);
        assert!(gone(vmm), "its VM");
        bundle.delete("").expect("Delete");
        bundle.end_shim();
    });
}
