// SPDX-License-Identifier: Apache-2.0

//! What a pod tells those who watch it: figures for Prometheus, and lines of the log.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use husk_tests::containerd::husk_case;
use husk_tests::containerd::process::LIMIT;
use husk_tests::containerd::task::Task;

/// Asks as `curl --unix-socket` does; the samples by name and labels.
pub fn samples(pod: &str) -> HashMap<String, f64> {
    let mut socket =
        UnixStream::connect(format!("/run/husk/default/{pod}/metrics.sock")).expect("connect");
    socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: husk\r\n\r\n").expect("ask");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("the answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    let labels = format!("{{namespace=\"default\",pod=\"{pod}\"");
    body.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            let name = name.replace(&labels, "").replace('}', "");
            (name, value.parse().expect("a number"))
        })
        .collect()
}

#[test]
fn figures_of_a_pod() {
    husk_case("a pod's figures are on its socket, for Prometheus", |lab| {
        lab.idle(&[], "watched");
        let before = samples("watched");
        assert_eq!(before["husk_containers"], 1.0);
        assert_eq!(before["husk_process_exits_total"], 0.0);
        let phase = |name: &str| before[&format!("husk_boot_phase_seconds,phase=\"{name}\"")];
        assert!(0.0 < phase("guest_running") && phase("guest_running") < phase("kernel_done"));
        assert!(phase("kernel_done") < phase("hello") && phase("hello") < phase("setup_done"));
        let resident = before["husk_process_resident_memory_bytes,process=\"vmm\""];
        assert!(resident > f64::from(20 << 20), "{resident} bytes of a VM");

        lab.exec_sh(
            "watched",
            "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; echo x >/written",
        );
        let after = samples("watched");
        assert_eq!(after["husk_process_exits_total"], 1.0);
        let cpu = "husk_process_cpu_seconds_total,process=\"vmm\"";
        assert!(after[cpu] > before[cpu], "{} s, then {} s", before[cpu], after[cpu]);
        // The verbs come by vsock, the file is in the share.
        let busy: Vec<_> = after
            .keys()
            .filter(|name| name.starts_with("husk_device_requests_total"))
            .filter(|name| after[*name] > before[*name])
            .collect();
        for device in ["vsock", "fs"] {
            let label = format!("device=\"{device}\"");
            assert!(busy.iter().any(|name| name.contains(&label)), "{device} not of {busy:?}");
        }
        println!("{} samples; busy: {busy:?}", after.len());

        // Clients that say nothing, or leave, hold up nobody.
        let path = "/run/husk/default/watched/metrics.sock";
        let silent: Vec<_> = (0..3).map(|_| UnixStream::connect(path).expect("connect")).collect();
        drop(UnixStream::connect(path).expect("connect"));
        samples("watched");
        drop(silent);
        lab.remove("watched");
    });
}

#[test]
fn lines_of_the_log() {
    husk_case("each line of the shim's log names namespace, pod and VM", |lab| {
        lab.idle(&[], "logged");
        let vmm = Task::of_containerd(lab, "logged").state("").expect("State").pid;
        lab.remove("logged");
        let log = lab.log();
        let line = log.lines().find(|line| line.contains("phases")).expect("a line of the shim");
        for field in ["namespace=default", "pod=logged", "container=logged", &format!("vmm={vmm}")]
        {
            assert!(line.split(' ').any(|word| word == field), "no {field} in {line}");
        }
    });
}
