// SPDX-License-Identifier: Apache-2.0

//! The pod's processes on the host: in the cgroup that the client asked for, as readily
//! killed as it asked for.

use std::fs;
use std::path::Path;
use std::process::Command;

use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{CTR_NAMESPACE, Lab, husk_case};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// The cgroup of a process of the host, version 2.
fn cgroup_of(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    text.trim().trim_start_matches("0::").to_owned()
}

fn adj_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("oom_score_adj").trim().into()
}

fn is_there(cgroup: &str) -> bool {
    Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/')).exists()
}

/// A container whose spec asks for this cgroup.
fn pod<'a>(lab: &'a Lab, id: &str, cgroups_path: &str) -> Bundle<'a> {
    Bundle::with(lab, CTR_NAMESPACE, id, |spec| {
        spec["process"]["args"] = json!(["sleep", "100000"]);
        spec["process"]["oomScoreAdj"] = json!(-500);
        spec["linux"]["cgroupsPath"] = cgroups_path.into();
    })
}

#[test]
fn of_the_pod() {
    husk_case("husk-vmm and the shim live in the pod's cgroup while the pod does", |lab| {
        for (cgroups_path, wanted) in [
            ("/default/weighed", "/default/weighed"),
            ("test-a.slice:husk:weighed", "/test.slice/test-a.slice/husk-weighed.scope"),
        ] {
            let pod = pod(lab, "weighed", cgroups_path);
            let vmm = pod.launch();
            let shim = pod.daemon();
            assert_eq!((cgroup_of(vmm), cgroup_of(shim)), (wanted.into(), wanted.into()));
            let memory = fs::read_to_string(format!("/sys/fs/cgroup{wanted}/memory.current"));
            let bytes: u64 = memory.expect("memory.current").trim().parse().expect("bytes");
            assert!(bytes > 20 << 20, "a VM is counted there, not {bytes} bytes");
            pod.remove_pod();
            assert!(!is_there(wanted), "{wanted} is left");
        }
        for slice in ["test.slice/test-a.slice", "test.slice"] {
            fs::remove_dir(Path::new("/sys/fs/cgroup").join(slice)).expect("what systemd owns");
        }
    });
}

#[test]
fn after_a_crash() {
    husk_case("the pod's cgroup goes with `delete` after shim and VM were killed", |lab| {
        let pod = pod(lab, "crashed", "/default/crashed");
        pod.launch();
        let daemon = Pid::from_raw(pod.daemon().try_into().expect("pid"));
        kill(daemon, Signal::SIGKILL).expect("kill");
        pod.run("delete").ended(0);
        let gone = eventually(LIMIT, || !is_there("/default/crashed"));
        assert!(gone, "/default/crashed is left");
    });
}

#[test]
fn oom_score() {
    let subject =
        "husk-vmm has the highest oomScoreAdj of the pod's containers, the shim none above";
    husk_case(subject, |lab| {
        let pod = pod(lab, "readiness", "/default/readiness");
        pod.start_shim();
        // One more than containerd's.
        let alone: i64 = adj_of(pod.daemon()).parse().expect("a number");
        assert!(alone > -500, "{alone}");
        let vmm = pod.launch();
        assert_eq!((adj_of(vmm), adj_of(pod.daemon())), ("-500".into(), "-500".into()));
        let mut containers = Vec::new();
        for (number, (wanted, got)) in [(900, "900"), (-900, "900")].into_iter().enumerate() {
            let container = Bundle::in_pod(&pod, &format!("ready-{number}"), &["true"]);
            let file = container.path().join("config.json");
            let text = fs::read_to_string(&file).expect("config.json");
            let mut spec: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            spec["process"]["oomScoreAdj"] = wanted.into();
            fs::write(&file, spec.to_string()).expect("config.json");
            container.launch();
            assert_eq!((adj_of(vmm), adj_of(pod.daemon())), (got.into(), "-500".into()));
            container.wait("").expect("Wait");
            container.delete("").expect("Delete");
            containers.push(container);
        }
        pod.remove_pod();
    });
}

#[test]
fn taken() {
    husk_case("a cgroupsPath whose cgroup has processes of others is refused; they stay", |lab| {
        let taken = Path::new("/sys/fs/cgroup/test-taken");
        fs::create_dir_all(taken.join("below")).expect("make the cgroup");
        let mut other = Command::new("sleep").arg("100000").spawn().expect("sleep");
        for place in ["/test-taken/below", "/test-taken"] {
            let directory = Path::new("/sys/fs/cgroup").join(place.trim_start_matches('/'));
            fs::write(directory.join("cgroup.procs"), other.id().to_string()).expect("move");
            let pod = pod(lab, "intruder", "/test-taken");
            pod.start_shim();
            let refused =
                pod.calls().create(husk_tests::containerd::task::context(), &pod.create_request());
            let text = format!("{:?}", refused.expect_err("refused"));
            assert!(text.contains("linux.cgroupsPath"), "{text}");
            assert_eq!(cgroup_of(other.id()), place);
            pod.end_shim();
        }
        other.kill().and_then(|()| other.wait()).expect("end the other");
        for directory in [&taken.join("below"), taken] {
            fs::remove_dir(directory).expect("nothing is in there");
        }
    });
}

#[test]
fn impossible() {
    husk_case("a cgroupsPath that leads out of the hierarchy is refused", |lab| {
        let pod = pod(lab, "outside", "/default/../../../tmp/outside");
        pod.start_shim();
        let refused =
            pod.calls().create(husk_tests::containerd::task::context(), &pod.create_request());
        let text = format!("{:?}", refused.expect_err("refused"));
        assert!(text.contains("linux.cgroupsPath"), "{text}");
        pod.end_shim();
    });
}
