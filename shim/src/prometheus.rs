// SPDX-License-Identifier: Apache-2.0

//! The pod's figures in Prometheus's text format 0.0.4, for whoever asks by HTTP on the
//! socket `metrics.sock` in the pod's directory. Whatever is asked, the answer is the same.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use husk_sandbox::{DeviceCounters, Milestones, Sandbox};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::log;
use crate::pod::Pod;

/// Longest request that is read, in bytes.
const MAX_REQUEST: usize = 8192;

/// How long a client may take.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);

/// How long husk-vmm may take to answer.
const VMM_LIMIT: Duration = Duration::from_secs(2);

/// How the names of the VM's own taps begin.
const TAP: &str = "husk";

/// Clients at once; the others wait.
const MAX_CLIENTS: usize = 4;

/// Answers on `socket` until the process ends. A pod is none the worse without.
pub fn start(pod: Arc<Pod>, socket: &Path) {
    match UnixListener::bind(socket) {
        Ok(listener) => drop(tokio::spawn(serve(pod, listener))),
        Err(error) => log::warn(&format!("no metrics on {}: {error}", socket.display())),
    }
}

async fn serve(pod: Arc<Pod>, listener: UnixListener) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    while let Ok(turn) = clients.clone().acquire_owned().await {
        let Ok((client, _)) = listener.accept().await else { return };
        let pod = pod.clone();
        tokio::spawn(async move {
            // A client that goes away, or is too slow, gets nothing.
            let _ = tokio::time::timeout(CLIENT_LIMIT, answer(&pod, client)).await;
            drop(turn);
        });
    }
}

async fn answer(pod: &Pod, mut client: UnixStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST || client.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let body = text(&Figures::of(pod).await);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(body.as_bytes()).await?;
    client.shutdown().await
}

/// What there is to say at one moment.
#[derive(Default)]
struct Figures {
    namespace: String,
    pod: String,
    containers: usize,
    exits: u64,
    ooms: u64,
    phases: Vec<(&'static str, u64)>,
    processes: Vec<(&'static str, Usage)>,
    devices: Vec<DeviceCounters>,
    interfaces: Vec<Interface>,
}

/// What an interface of the pod's network namespace has counted, as the host's side of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Interface {
    name: String,
    received: Traffic,
    sent: Traffic,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Traffic {
    bytes: u64,
    packets: u64,
    errors: u64,
    dropped: u64,
}

/// What a process of the host has used.
#[derive(Default)]
struct Usage {
    resident_bytes: u64,
    cpu_seconds: f64,
}

impl Figures {
    async fn of(pod: &Pod) -> Figures {
        let sandbox = pod.sandbox().ok();
        let vmm = sandbox.as_ref().and_then(|sandbox| Usage::of(sandbox.pid()));
        let shim = Usage::of(std::process::id());
        let (exits, ooms) = pod.ends();
        let devices = match &sandbox {
            // One that has ended has none any more, nor has one that does not answer.
            Some(sandbox) => {
                let counters = tokio::time::timeout(VMM_LIMIT, sandbox.device_counters()).await;
                counters.ok().and_then(Result::ok).unwrap_or_default()
            }
            None => Vec::new(),
        };
        Figures {
            namespace: pod.namespace.clone(),
            pod: pod.id.clone(),
            containers: pod.containers().len(),
            exits,
            ooms,
            interfaces: sandbox.as_ref().map(|sandbox| interfaces(sandbox)).unwrap_or_default(),
            phases: sandbox.map(|sandbox| phases(&sandbox.milestones())).unwrap_or_default(),
            processes: [("vmm", vmm), ("shim", shim)]
                .into_iter()
                .filter_map(|(name, usage)| Some((name, usage?)))
                .collect(),
            devices,
        }
    }
}

/// Those that the pod sees: not loopback, and not the taps of its VM. None for a pod in the
/// host's network.
fn interfaces(sandbox: &Sandbox) -> Vec<Interface> {
    if sandbox.network().is_none() {
        return Vec::new();
    }
    // husk-vmm is in the pod's network namespace.
    let text = fs::read_to_string(format!("/proc/{}/net/dev", sandbox.pid())).unwrap_or_default();
    let of_pod = |interface: &Interface| interface.name != "lo" && !interface.name.starts_with(TAP);
    text.lines().filter_map(Interface::parse).filter(of_pod).collect()
}

impl Interface {
    /// A line of /proc/net/dev: name, then eight counters of what was received and of what was
    /// sent.
    fn parse(line: &str) -> Option<Interface> {
        let (name, counters) = line.split_once(':')?;
        let counters: Option<Vec<u64>> =
            counters.split_whitespace().map(|number| number.parse().ok()).collect();
        let counters = counters.filter(|counters| counters.len() >= 16)?;
        let traffic = |at: usize| Traffic {
            bytes: counters[at],
            packets: counters[at + 1],
            errors: counters[at + 2],
            dropped: counters[at + 3],
        };
        Some(Interface { name: name.trim().into(), received: traffic(0), sent: traffic(8) })
    }
}

/// ns from the start of husk-vmm.
fn phases(vm: &Milestones) -> Vec<(&'static str, u64)> {
    let started = vm.vmm_started_ns.unwrap_or_default();
    [
        ("guest_running", vm.guest_running_ns),
        ("kernel_done", vm.kernel_done_ns),
        ("hello", vm.hello_ns),
        ("setup_done", vm.setup_ns),
    ]
    .into_iter()
    .filter_map(|(phase, ns)| Some((phase, ns?.saturating_sub(started))))
    .collect()
}

impl Usage {
    fn of(pid: u32) -> Option<Usage> {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        // The name, in parentheses, may contain anything; fields count from behind it.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let ticks = ticks()? + ticks()?;
        let system = |name| nix::unistd::sysconf(name).ok().flatten().map(|value| value as u64);
        let page = system(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let hertz = system(nix::unistd::SysconfVar::CLK_TCK)?;
        Some(Usage { resident_bytes: pages * page, cpu_seconds: ticks as f64 / hertz as f64 })
    }
}

fn text(figures: &Figures) -> String {
    let Figures { namespace, pod, .. } = figures;
    let of_pod = format!("namespace=\"{}\",pod=\"{}\"", escaped(namespace), escaped(pod));
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
        // A String takes everything.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{{{of_pod}{labels}}} {value}");
        }
    };
    let one = |value: String| vec![(String::new(), value)];
    let version = format!(",version=\"{}\"", env!("CARGO_PKG_VERSION"));
    family("husk_pod_info", "gauge", "The pod and who serves it.", &[(version, "1".into())]);
    family(
        "husk_containers",
        "gauge",
        "Containers of the pod, those that are being made or have ended included.",
        &one(figures.containers.to_string()),
    );
    family(
        "husk_process_exits_total",
        "counter",
        "Processes of containers, first ones and execs, whose end was reported.",
        &one(figures.exits.to_string()),
    );
    family(
        "husk_oom_events_total",
        "counter",
        "Reports of the guest's OOM killer.",
        &one(figures.ooms.to_string()),
    );
    let seconds = |ns: u64| (ns as f64 / 1e9).to_string();
    let phases =
        figures.phases.iter().map(|&(phase, ns)| (format!(",phase=\"{phase}\""), seconds(ns)));
    family(
        "husk_boot_phase_seconds",
        "gauge",
        "When the VM reached a phase of its boot, since husk-vmm was started.",
        &phases.collect::<Vec<_>>(),
    );
    let of_each = |value: &dyn Fn(&Usage) -> String| -> Vec<_> {
        let label = |name| format!(",process=\"{name}\"");
        figures.processes.iter().map(|(name, usage)| (label(name), value(usage))).collect()
    };
    family(
        "husk_process_resident_memory_bytes",
        "gauge",
        "Memory of the pod's processes on the host; the VMM's includes the guest's.",
        &of_each(&|usage| usage.resident_bytes.to_string()),
    );
    family(
        "husk_process_cpu_seconds_total",
        "counter",
        "CPU time of the pod's processes on the host; the VMM's includes the guest's.",
        &of_each(&|usage| usage.cpu_seconds.to_string()),
    );
    type Count = fn(&DeviceCounters) -> u64;
    let of_devices: [(&str, &str, Count); 4] = [
        ("requests", "Requests of the guest that the device has answered.", |d| d.requests),
        ("written_bytes", "Bytes that the device has written for the guest.", |d| d.written_bytes),
        ("kicks", "Notifications that the device had of the guest.", |d| d.kicks),
        ("interrupts", "Interrupts that the device has raised.", |d| d.interrupts),
    ];
    for (what, help, value) in of_devices {
        let sample = |device: &DeviceCounters| {
            let labels = format!(",device=\"{}\",slot=\"{}\"", device.device, device.slot);
            (labels, value(device).to_string())
        };
        let samples: Vec<_> = figures.devices.iter().map(sample).collect();
        family(&format!("husk_device_{what}_total"), "counter", help, &samples);
    }
    type Counter = fn(&Traffic) -> u64;
    let counters: [(&str, &str, Counter); 4] = [
        ("bytes", "Bytes", |traffic| traffic.bytes),
        ("packets", "Packets", |traffic| traffic.packets),
        ("errors", "Errors", |traffic| traffic.errors),
        ("packets_dropped", "Dropped packets", |traffic| traffic.dropped),
    ];
    for (name, what, counter) in counters {
        for (direction, verb) in [("receive", "received"), ("transmit", "sent")] {
            let samples = figures.interfaces.iter().map(|interface| {
                let traffic = match direction {
                    "receive" => &interface.received,
                    _ => &interface.sent,
                };
                let label = format!(",interface=\"{}\"", escaped(&interface.name));
                (label, counter(traffic).to_string())
            });
            family(
                &format!("husk_network_{direction}_{name}_total"),
                "counter",
                &format!("{what} of what the pod has {verb}, as its interface counts."),
                &samples.collect::<Vec<_>>(),
            );
        }
    }
    text
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let figures = Figures {
            namespace: "k8s.io".into(),
            pod: "a\"b".into(),
            containers: 2,
            exits: 3,
            phases: vec![("hello", 1_500_000_000)],
            processes: vec![("vmm", Usage { resident_bytes: 4096, cpu_seconds: 0.25 })],
            devices: vec![DeviceCounters {
                slot: 4,
                device: "fs".into(),
                requests: 7,
                written_bytes: 8,
                kicks: 5,
                interrupts: 6,
            }],
            interfaces: vec![
                Interface::parse("  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0").expect("a line"),
            ],
            ..Default::default()
        };
        let text = text(&figures);
        for line in [
            "# TYPE husk_containers gauge",
            "husk_containers{namespace=\"k8s.io\",pod=\"a\\\"b\"} 2",
            "husk_process_exits_total{namespace=\"k8s.io\",pod=\"a\\\"b\"} 3",
            "husk_boot_phase_seconds{namespace=\"k8s.io\",pod=\"a\\\"b\",phase=\"hello\"} 1.5",
            "husk_process_cpu_seconds_total{namespace=\"k8s.io\",pod=\"a\\\"b\",process=\"vmm\"} 0.25",
            "# TYPE husk_device_kicks_total counter",
            "husk_device_kicks_total{namespace=\"k8s.io\",pod=\"a\\\"b\",device=\"fs\",slot=\"4\"} 5",
            "husk_network_receive_bytes_total{namespace=\"k8s.io\",pod=\"a\\\"b\",interface=\"eth0\"} 1",
            "husk_network_transmit_packets_dropped_total{namespace=\"k8s.io\",pod=\"a\\\"b\",interface=\"eth0\"} 8",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
        let of_family = |line: &str| line.starts_with("# ") || line.starts_with("husk_");
        assert!(text.ends_with('\n') && text.lines().all(of_family), "{text}");
    }

    #[test]
    fn what_is_no_interface_is_none() {
        for line in ["Inter-|   Receive", " face |bytes", "eth0: 1 2 3", "eth0: a b c", ""] {
            assert_eq!(Interface::parse(line), None, "{line}");
        }
    }

    #[test]
    fn processes_are_measured() {
        let own = Usage::of(std::process::id()).expect("ours");
        assert!(own.resident_bytes > 100 << 10);
        assert!(Usage::of(u32::MAX).is_none());
    }
}
