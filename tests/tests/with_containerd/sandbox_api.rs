// SPDX-License-Identifier: Apache-2.0

//! The Sandbox API asked directly, which containerd 1.6 does not know: a pod that is no task,
//! and containers that are tasks in it.

use std::fs;
use std::thread;

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest,
    SandboxStatusRequest, ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest,
    WaitSandboxRequest,
};
use containerd_shim_protos::sandbox_sync::SandboxClient;
use containerd_shim_protos::{Client, ttrpc};
use husk_tests::containerd::bundle::{Bundle, run};
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::task::{self, code, context, gone, refusal};
use husk_tests::containerd::{Lab, husk_case};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ttrpc::context::Context;

/// A sandbox and its shim.
struct Pod<'a> {
    bundle: Bundle<'a>,
    api: SandboxClient,
}

impl<'a> Pod<'a> {
    fn new(lab: &'a Lab, id: &str) -> Pod<'a> {
        Pod::with(lab, id, b"")
    }

    /// The shim is started, as containerd does for a sandbox: with no config.json, and the
    /// runtime's options on stdin.
    fn with(lab: &'a Lab, id: &str, options: &[u8]) -> Pod<'a> {
        let bundle = Bundle::new(lab, id, &[]);
        fs::remove_file(bundle.path().join("config.json")).expect("no config.json");
        let address = run(&mut bundle.command("start"), options).ended(0).text();
        Pod { bundle, api: SandboxClient::new(Client::connect(&address).expect("connect")) }
    }

    fn id(&self) -> String {
        self.bundle.id().to_owned()
    }

    fn create(&self) -> ttrpc::Result<()> {
        let request = CreateSandboxRequest {
            sandbox_id: self.id(),
            bundle_path: self.bundle.path().display().to_string(),
            ..Default::default()
        };
        self.api.create_sandbox(context(), &request).map(drop)
    }

    /// The pid.
    fn start(&self) -> ttrpc::Result<u32> {
        let request = StartSandboxRequest { sandbox_id: self.id(), ..Default::default() };
        self.api.start_sandbox(context(), &request).map(|answer| answer.pid)
    }

    /// The state's name, and whether there are times of its creation and its end.
    fn status(&self) -> ttrpc::Result<(String, bool, bool)> {
        let request = SandboxStatusRequest { sandbox_id: self.id(), ..Default::default() };
        let status = self.api.sandbox_status(context(), &request)?;
        let some = |seconds: i64| seconds > 1_600_000_000;
        Ok((status.state, some(status.created_at.seconds), some(status.exited_at.seconds)))
    }

    fn ping(&self) -> ttrpc::Result<()> {
        let request = PingRequest { sandbox_id: self.id(), ..Default::default() };
        self.api.ping_sandbox(context(), &request).map(drop)
    }

    /// The status with which it will have ended.
    fn wait_beside(&self) -> thread::JoinHandle<u32> {
        let (api, sandbox_id) = (self.api.clone(), self.id());
        thread::spawn(move || {
            let request = WaitSandboxRequest { sandbox_id, ..Default::default() };
            // All that the case does meanwhile has deadlines of its own.
            api.wait_sandbox(Context::default(), &request).expect("WaitSandbox").exit_status
        })
    }

    fn metrics(&self) -> Metrics {
        let request = SandboxMetricsRequest { sandbox_id: self.id(), ..Default::default() };
        let answer = self.api.sandbox_metrics(context(), &request).expect("SandboxMetrics");
        let metric = answer.metrics.unwrap_or_default();
        assert_eq!(metric.data.type_url, "io.containerd.cgroups.v2.Metrics");
        Metrics::parse_from_bytes(&metric.data.value).expect("metrics")
    }

    fn stop(&self) -> ttrpc::Result<()> {
        let request = StopSandboxRequest { sandbox_id: self.id(), ..Default::default() };
        self.api.stop_sandbox(context(), &request).map(drop)
    }

    #[track_caller]
    fn end_shim(&self) {
        let daemon = self.bundle.daemon();
        let request = ShutdownSandboxRequest { sandbox_id: self.id(), ..Default::default() };
        self.api.shutdown_sandbox(context(), &request).expect("ShutdownSandbox");
        assert!(gone(daemon), "the shim goes on after ShutdownSandbox");
    }
}

#[test]
fn life_of_a_sandbox() {
    let subject = "a sandbox is created, started, asked, joined by a task, stopped and shut down";
    husk_case(subject, |lab| {
        let pod = Pod::new(lab, "bare");
        assert_eq!(code(pod.status()), "NOT_FOUND");
        assert_eq!(code(pod.start()), "NOT_FOUND");
        pod.create().expect("CreateSandbox");
        assert_eq!(code(pod.create()), "ALREADY_EXISTS");
        assert_eq!(pod.status().expect("status"), ("SANDBOX_NOTREADY".into(), true, false));
        let pid = pod.start().expect("StartSandbox");
        assert_eq!(pids_of("husk-vmm"), [pid as i32]);
        assert_eq!(pod.status().expect("status"), ("SANDBOX_READY".into(), true, false));
        pod.ping().expect("PingSandbox");
        let platform = pod.api.platform(context(), &PlatformRequest::default());
        let platform = platform.expect("Platform").platform.unwrap_or_default();
        assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", "amd64"));

        let alone = pod.metrics();
        let task = Bundle::in_pod(&pod.bundle, "member", &["sleep", "100000"]);
        task.launch();
        let both = pod.metrics();
        assert_eq!((alone.pids.current, both.pids.current), (1, 2), "processes of the pod");
        assert!(both.memory.usage > 0 && both.cpu.usage_usec > 0, "{both:?}");
        task.remove();
        task.shutdown().expect("Shutdown");
        pod.ping().expect("a task's Shutdown is not the pod's");

        let waiting = pod.wait_beside();
        pod.stop().expect("StopSandbox");
        pod.stop().expect("StopSandbox, again");
        assert_eq!(waiting.join().expect("a thread"), 137);
        assert_eq!(pod.wait_beside().join().expect("a thread"), 137, "waited for afterwards");
        assert_eq!(pod.status().expect("status"), ("SANDBOX_NOTREADY".into(), true, true));
        assert_eq!(code(pod.ping()), "UNAVAILABLE");
        pod.end_shim();
    });
}

#[test]
fn vmm_of_a_sandbox_killed() {
    let subject = "the VMM of a sandbox killed: Wait answers 137, Status says so, its task too";
    husk_case(subject, |lab| {
        let pod = Pod::new(lab, "struck");
        pod.create().expect("CreateSandbox");
        let vmm = pod.start().expect("StartSandbox");
        let task = Bundle::in_pod(&pod.bundle, "member", &["sleep", "100000"]);
        task.launch();
        let waiting = pod.wait_beside();
        kill(Pid::from_raw(vmm as i32), Signal::SIGKILL).expect("kill");
        assert_eq!(waiting.join().expect("a thread"), 137);
        assert_eq!(pod.status().expect("status"), ("SANDBOX_NOTREADY".into(), true, true));
        assert_eq!(task.wait("").expect("Wait").exit_status, 137);
        task.delete("").expect("Delete");
        pod.end_shim();
    });
}

#[test]
fn settings_of_a_sandbox() {
    let subject = "the file of settings that the runtime's options name is a sandbox's, too";
    husk_case(subject, |lab| {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"\x12\x0f/nonexistent/s1".to_vec(),
            ..Default::default()
        };
        let pod = Pod::with(lab, "set", &options.write_to_bytes().expect("bytes"));
        let (code, text) = refusal(pod.create());
        assert_eq!(format!("{code:?}"), "INVALID_ARGUMENT");
        assert!(text.contains("/nonexistent/s1"), "{text}");
        assert_eq!(task::code(pod.status()), "NOT_FOUND");
        pod.end_shim();
    });
}
