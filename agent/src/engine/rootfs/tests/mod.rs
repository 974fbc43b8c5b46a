// SPDX-License-Identifier: Apache-2.0

//! Roots built for real: a child, in a mount namespace that goes with it, prepares a bundle
//! on a tmpfs, and a grandchild in the container's namespaces builds the root, enters it and
//! looks around.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType::{self, Cgroup, Ipc, Network, User};
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags, open};
use serde_json::{Value, json};

use super::options::Attributes;
use super::{Sources, bind_console, build, has_namespace, restrict, sources};
use crate::engine::forked::{Ended, forked, is_root};

/// Where the bundle is, with `rootfs` in it; `source` beside it is for bind mounts.
const BUNDLE: &str = "/tmp";
const MAP: &str = "0 100000 65536\n";

type Told = Result<(), String>;

macro_rules! check {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(format!("{}: {}", stringify!($condition), format!($($text)*)));
        }
    };
}

mod entering;
mod mounting;

/// Builds a container from `mounts` and the rest of a spec, and calls `inside` in it.
struct Container {
    mounts: Vec<Value>,
    changes: Value,
    pivot: bool,
}

fn container(mounts: Vec<Value>) -> Container {
    Container { mounts, changes: json!({}), pivot: true }
}

/// An entry of the spec's mounts.
fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// A bind of the directory beside the root.
fn bind(destination: &str, options: &[&str]) -> Value {
    mount(destination, "none", "source", options)
}

impl Container {
    /// Replaces top-level sections of the spec; within `linux` its entries.
    fn with(mut self, changes: Value) -> Self {
        self.changes = changes;
        self
    }

    fn spec(&self) -> Result<Spec, String> {
        let mut mounts = vec![mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])];
        mounts.extend(self.mounts.clone());
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        });
        for (section, value) in self.changes.as_object().into_iter().flatten() {
            match (section.as_str(), value) {
                ("linux", Value::Object(entries)) => {
                    for (name, value) in entries {
                        spec["linux"][name] = value.clone();
                    }
                }
                _ => spec[section] = value.clone(),
            }
        }
        serde_json::from_value(spec).map_err(|e| e.to_string())
    }

    fn run(
        self,
        prepare: impl FnOnce(&Path, &Path) -> std::io::Result<()>,
        inside: impl FnOnce() -> Told,
    ) -> Result<(), Ended> {
        forked(|| {
            unshare(libc::CLONE_NEWNS)?;
            protect_machine()?;
            let mounted = shell(
                "mount -t tmpfs -o mode=755 bundle /tmp
                mkdir /tmp/rootfs /tmp/source",
            );
            io("prepare", mounted)?;
            let bundle = Path::new(BUNDLE);
            prepare(&bundle.join("rootfs"), &bundle.join("source")).map_err(|e| e.to_string())?;
            let spec = self.spec()?;
            let cgroup = bundle.join("cgroup");
            if self.mounts.iter().any(|mount| mount["type"] == "cgroup") {
                let made = shell(
                    "cd /tmp; mkdir groups; mount -t cgroup2 none groups
                    mkdir -p groups/husk-test/child; ln -s groups/husk-test cgroup",
                );
                io("make a cgroup", made)?;
                io("join it", fs::write(cgroup.join("cgroup.procs"), "0"))?;
            }
            let sources = Sources::open(&spec, bundle)?;
            let user = match has_namespace(&spec, User) {
                true => Some(
                    sources::user_namespace(&(MAP.into(), MAP.into()))
                        .map_err(|e| e.to_string())?,
                ),
                false => None,
            };
            let result = forked(|| {
                if let Some(user) = user {
                    // SAFETY: takes a descriptor; the process has one thread.
                    check!(
                        unsafe { libc::setns(user.as_raw_fd(), libc::CLONE_NEWUSER) } == 0,
                        "setns"
                    );
                    // SAFETY: take numbers.
                    check!(unsafe { libc::setgid(0) | libc::setuid(0) } == 0, "setuid");
                }
                let mut flags = libc::CLONE_NEWPID;
                for (kind, flag) in [
                    (LinuxNamespaceType::Mount, libc::CLONE_NEWNS),
                    (Cgroup, libc::CLONE_NEWCGROUP),
                    (Network, libc::CLONE_NEWNET),
                    (Ipc, libc::CLONE_NEWIPC),
                ] {
                    flags |= if has_namespace(&spec, kind) { flag } else { 0 };
                }
                unshare(flags)?;
                told(forked(|| {
                    build(&spec, bundle, sources, &cgroup)?.enter(&spec, self.pivot)?;
                    restrict(&spec)?;
                    inside()
                }))
            });
            if cgroup.exists() {
                io("leave the cgroup", fs::write("/tmp/groups/cgroup.procs", "0"))?;
                io("remove it", shell("cd /tmp/groups; rmdir husk-test/child husk-test"))?;
            }
            told(result)
        })
    }
}

/// Runs commands that the test needs and does not look at.
fn shell(commands: &str) -> std::io::Result<()> {
    let done = std::process::Command::new("sh").args(["-ec", commands]).status()?;
    if done.success() { Ok(()) } else { Err(std::io::Error::other(format!("failed: {commands}"))) }
}

fn told(result: Result<(), Ended>) -> Told {
    result.map_err(|ended| match ended {
        Ended::Failed(why) => why,
        killed => format!("{killed:?}"),
    })
}

fn unshare(flags: i32) -> Told {
    // SAFETY: takes flags; the process has one thread.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(format!("unshare: {}", std::io::Error::last_os_error())),
    }
}

/// Makes everything read-only in this mount namespace, so that a fault that a test is to
/// find stays without consequences. Only proc is needed, for ID maps.
fn protect_machine() -> Told {
    let set = |place: &str, recursive, attributes| {
        let place = open(place, OFlags::PATH, Mode::empty())?;
        super::mount::set_propagation(&place, recursive, libc::MS_SLAVE)?;
        super::mount::set_attributes(&place, recursive, attributes)
    };
    let read_only = Attributes::READ_ONLY;
    let writable = Attributes { set: 0, clear: read_only.set };
    let protected = set("/", true, read_only).and_then(|()| set("/proc", false, writable));
    protected.map_err(|e| format!("protect the machine: {e}"))
}

fn nothing(_: &Path, _: &Path) -> std::io::Result<()> {
    Ok(())
}

fn why(result: Result<(), Ended>) -> String {
    let why = told(result).expect_err("it should have been refused");
    println!("refused: {why}");
    why
}

/// The line of the topmost mount at a place.
fn mount_at(place: &str) -> Result<String, String> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    let found = table.lines().rfind(|line| line.split(' ').nth(4) == Some(place));
    found.map(str::to_owned).ok_or_else(|| format!("nothing is mounted at {place}:\n{table}"))
}

/// The mount's options at a place, in order.
fn options_at(place: &str) -> Result<String, String> {
    Ok(mount_at(place)?.split(' ').nth(5).unwrap_or_default().to_owned())
}

fn io<T>(what: &str, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e}"))
}

fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

fn mode_of(path: &str) -> Result<u32, String> {
    Ok(io(path, fs::symlink_metadata(path))?.permissions().mode() & 0o7777)
}
