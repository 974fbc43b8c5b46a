// SPDX-License-Identifier: Apache-2.0

//! Nothing left behind: what a container's life may leave on the host, looked at before and
//! after a case. What is there afterwards and was not before is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::eventually;

/// How long the last of a container may take to go: containerd's clean-up after a shim has
/// up to 5 s for itself, and the machine may be an emulated one.
const LIMIT: Duration = Duration::from_secs(30);

const SHIM_SOCKETS: &str = "/run/containerd/s";
const HUSK_RUN: &str = "/run/husk";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Where containerd keeps the bundles of tasks and of sandboxes.
const BUNDLES: [&str; 2] =
    ["io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"];

/// As the session names it.
const CNI_BRIDGE: &str = "husk-cni0";

/// What the CNI plugins have made of each pod, as the library that calls them keeps it.
const CNI_RESULTS: &str = "/var/lib/cni/results";

/// One thing on the host that a container can leave.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Process {
        pid: i32,
        program: String,
        line: String,
    },
    Mount(PathBuf),
    Cgroup(PathBuf),
    Socket(PathBuf),
    /// Below /run/husk, or a network namespace, or what CNI plugins keep of a pod.
    File(PathBuf),
    /// A rule or a chain of the host's packet filter that CNI plugins made for a pod.
    Rule(String),
    /// A directory of a task, or of a pod or container of the CRI plugin, in containerd's state
    /// or root.
    Bundle(PathBuf),
    /// A network interface.
    Interface(PathBuf),
    /// One of containerd's own descriptors; of equal ones, the `nth`.
    Descriptor {
        target: String,
        nth: usize,
    },
    /// An entry in containerd's database.
    Entry {
        kind: &'static str,
        name: String,
    },
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thing::Process { pid, program, line } => write!(f, "process {pid}, {program}: {line}"),
            Thing::Mount(path) => write!(f, "mount {}", path.display()),
            Thing::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Thing::Socket(path) => write!(f, "socket {}", path.display()),
            Thing::File(path) => write!(f, "file {}", path.display()),
            Thing::Rule(rule) => write!(f, "packet filter {rule}"),
            Thing::Bundle(path) => write!(f, "bundle {}", path.display()),
            Thing::Interface(path) => write!(f, "network interface {}", path.display()),
            Thing::Descriptor { target, nth } => write!(f, "containerd's {target}, no. {nth}"),
            Thing::Entry { kind, name } => write!(f, "containerd's {kind} {name}"),
        }
    }
}

/// Asks containerd for the names of what it keeps of a kind.
pub type Ask<'a> = &'a dyn Fn(&'static str) -> Vec<String>;

/// What is on the host at one instant.
#[derive(Debug, Clone)]
pub struct Host {
    things: BTreeSet<Thing>,
}

impl Host {
    /// Looks at everything. `directory` is containerd's own: its state and root are below.
    pub fn look(directory: &Path, ask: Ask) -> Host {
        let mut host = Host::look_without_containerd(directory);
        host.things.extend(rules());
        for kind in ["container", "snapshot", "lease"] {
            host.things.extend(ask(kind).into_iter().map(|name| Thing::Entry { kind, name }));
        }
        host
    }

    /// Looks at all but containerd's database, which only a client can read.
    fn look_without_containerd(directory: &Path) -> Host {
        let mut things = BTreeSet::new();
        things.extend(processes());
        things.extend(mounts(&[directory, Path::new("/run/containerd"), Path::new(HUSK_RUN)]));
        things.extend(cgroups(Path::new(CGROUPS)));
        things.extend(entries(Path::new(SHIM_SOCKETS)).into_iter().map(Thing::Socket));
        let interfaces = entries(Path::new("/sys/class/net")).into_iter();
        // The CNI plugin `bridge` never removes its bridge, which is the node's.
        let of_pods = interfaces.filter(|path| !path.ends_with(CNI_BRIDGE));
        things.extend(of_pods.map(Thing::Interface));
        for place in ["state", "root"] {
            for kind in ["sandboxes", "containers"] {
                let kept = directory.join(place).join("io.containerd.grpc.v1.cri").join(kind);
                things.extend(entries(&kept).into_iter().map(Thing::Bundle));
            }
        }
        things.extend(entries(Path::new("/run/netns")).into_iter().map(Thing::File));
        things.extend(entries(Path::new(CNI_RESULTS)).into_iter().map(Thing::File));
        let addresses = below(&directory.join("ipam")).into_iter();
        let of_no_pod = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.is_dir() || name == "lock" || name.starts_with("last_reserved_ip")
        };
        things.extend(addresses.filter(|path| !of_no_pod(path)).map(Thing::File));
        things.extend(descriptors(directory));
        for namespace in entries(Path::new(HUSK_RUN)) {
            // The namespace's own directory may stay, empty.
            things.extend(below(&namespace).into_iter().map(Thing::File));
        }
        for place in ["state", "root"] {
            for plugin in BUNDLES {
                for namespace in entries(&directory.join(place).join(plugin)) {
                    things.extend(entries(&namespace).into_iter().map(Thing::Bundle));
                }
            }
        }
        Host { things }
    }

    /// Waits until nothing is there that was not in `self`, and returns the host as it is
    /// then; if time runs out, what is left, a line each.
    pub fn wait_until_clean(&self, directory: &Path, ask: Ask) -> Result<Host, String> {
        let no_more = |now: &Host| now.things.is_subset(&self.things);
        eventually(LIMIT, || no_more(&Host::look_without_containerd(directory)));
        let mut now = Host::look(directory, ask);
        // What containerd itself removes, it may do a moment later.
        if !no_more(&now) {
            eventually(LIMIT / 4, || {
                now = Host::look(directory, ask);
                no_more(&now)
            });
        }
        if no_more(&now) {
            return Ok(now);
        }
        let left = now.things.difference(&self.things);
        Err(left.map(|thing| format!("  left behind: {thing}\n")).collect())
    }

    /// Kills what runs of ours and did not in `self`.
    pub fn kill_new_processes(&self) {
        for thing in processes() {
            if let Thing::Process { pid, .. } = thing
                && !self.things.contains(&thing)
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// Pids of the programs with this name.
pub fn pids_of(name: &str) -> Vec<i32> {
    processes()
        .into_iter()
        .filter_map(|thing| match thing {
            Thing::Process { pid, program, .. } if program == name => Some(pid),
            _ => None,
        })
        .collect()
}

/// Whether a process runs; a dead one that was not reaped does not.
pub fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Our programs and any shim, each with its command line.
fn processes() -> Vec<Thing> {
    let mut found = Vec::new();
    for directory in entries(Path::new("/proc")) {
        let Some(pid) = directory.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
            continue;
        };
        // Gone in between.
        let Ok(stat) = fs::read_to_string(directory.join("stat")) else { continue };
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, tail)| tail.rsplit_once(')'))
        else {
            continue;
        };
        let rest: Vec<&str> = rest.split_whitespace().collect();
        // One that is dead and whose parent is PID 1 will be reaped, and is not our business.
        if rest.first() == Some(&"Z") && rest.get(1) == Some(&"1") {
            continue;
        }
        // A process can name itself, but not its file. Only a dead one has none.
        let program = match fs::read_link(directory.join("exe")) {
            Ok(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Err(_) => name.to_owned(),
        };
        if ["husk-vmm", "husk-agent", "containerd-shim"]
            .iter()
            .any(|ours| program.starts_with(ours))
        {
            let line = fs::read(directory.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
            found.push(Thing::Process { pid, program, line });
        }
    }
    found
}

/// Rules and chains of the packet filter that are one pod's. None before CNI plugins have run,
/// who would have made them.
fn rules() -> Vec<Thing> {
    if !Path::new(CNI_RESULTS).exists() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for program in ["iptables", "ip6tables"] {
        for table in ["nat", "filter"] {
            let output = Command::new(program).args(["-w", "-t", table, "-S"]).output();
            let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // The plugin for ports has chains of its own, which stay.
            let chains = |line: &str| line.contains("CNI-") && !line.contains("CNI-HOSTPORT-");
            let of_pods = text.lines().filter(|line| chains(line) || line.contains("CNI-DN-"));
            found.extend(of_pods.map(|line| Thing::Rule(format!("{program} -t {table} {line}"))));
        }
    }
    found
}

/// Those of containerd's descriptors that it has for tasks and clients: sockets, pipes and
/// what is in bundles.
fn descriptors(directory: &Path) -> Vec<Thing> {
    let pid = fs::read_to_string(directory.join("containerd.pid")).unwrap_or_default();
    let mut counts = BTreeMap::new();
    for fd in entries(&Path::new("/proc").join(pid.trim()).join("fd")) {
        // Closed in between.
        let Ok(target) = fs::read_link(fd) else { continue };
        let target = target.to_string_lossy();
        let target = target.split_once(":[").map_or(target.as_ref(), |(kind, _)| kind);
        if ["socket", "pipe"].contains(&target) || target.contains("/io.containerd.runtime") {
            *counts.entry(target.to_owned()).or_insert(0) += 1;
        }
    }
    let each = counts.into_iter().flat_map(|(target, count)| {
        (1..=count).map(move |nth| Thing::Descriptor { target: target.clone(), nth })
    });
    each.collect()
}

fn mounts(roots: &[&Path]) -> Vec<Thing> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|point| roots.iter().any(|root| point.starts_with(root)))
        .map(Thing::Mount)
        .collect()
}

/// The cgroups, but for those of the machine's own services and those that only hold others
/// (containerd's namespace has one that stays).
fn cgroups(directory: &Path) -> Vec<Thing> {
    let mut found = Vec::new();
    for path in entries(directory) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let of_the_machine = name.ends_with(".slice") || name.ends_with(".scope");
        if !path.is_dir() || of_the_machine {
            continue;
        }
        let parents = ["default", "husk", "k8s.io"];
        let holds_others = directory == Path::new(CGROUPS) && parents.contains(&name.as_ref());
        found.extend(cgroups(&path));
        if !holds_others {
            found.push(Thing::Cgroup(path.clone()));
        }
    }
    found
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(directory) {
        if path.is_dir() && !path.is_symlink() {
            found.extend(below(&path));
        }
        found.push(path);
    }
    found
}

/// What is in a directory; nothing if it does not exist.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(list) = fs::read_dir(directory) else { return Vec::new() };
    list.flatten().map(|entry| entry.path()).collect()
}
