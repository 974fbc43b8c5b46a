// SPDX-License-Identifier: Apache-2.0

//! The namespaces of a container (runtime-spec 1.2, config-linux.md "Namespaces", "User
//! namespace mappings", "Offset for Time Namespace"): which are made, which are joined.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};

use super::program::text;
use super::stage::check;

/// What becomes of a container's namespaces.
pub struct Namespaces {
    /// CLONE_NEW flags of those that are made.
    pub new: i32,
    /// Those that exist, opened, with their flags.
    pub joined: Vec<(OwnedFd, i32)>,
}

impl Namespaces {
    /// Opens what is to be joined, before anything changes what the paths mean.
    pub fn of(spec: &Spec) -> Result<Self, String> {
        let mut all = Self { new: 0, joined: Vec::new() };
        for namespace in listed(spec) {
            let flag = flag(namespace.typ());
            match namespace.path() {
                None => all.new |= flag,
                Some(path) => {
                    let file = File::open(path).map_err(|e| {
                        format!("cannot open the {} namespace {path:?}: {e}", namespace.typ())
                    })?;
                    all.joined.push((file.into(), flag));
                }
            }
        }
        Ok(all)
    }

    /// Enters those that are joined, except the cgroup namespace; the user namespace last,
    /// for the others may need the rights that are lost with it.
    pub fn join(&self) -> Result<(), String> {
        let (user, others): (Vec<_>, Vec<_>) =
            self.joined.iter().partition(|(_, flag)| *flag == libc::CLONE_NEWUSER);
        for (fd, flag) in others.into_iter().chain(user) {
            if *flag != libc::CLONE_NEWCGROUP {
                enter(fd, *flag)?;
            }
        }
        Ok(())
    }

    /// In the process itself: the cgroup namespace, whose root is where the process is.
    pub fn cgroup(&self) -> Result<(), String> {
        if self.new & libc::CLONE_NEWCGROUP != 0 {
            // SAFETY: unshare() takes no pointers.
            let made = unsafe { libc::unshare(libc::CLONE_NEWCGROUP) };
            check(made, "make a cgroup namespace")?;
        }
        for (fd, flag) in &self.joined {
            if *flag == libc::CLONE_NEWCGROUP {
                enter(fd, *flag)?;
            }
        }
        Ok(())
    }

    /// The flags for clone3(): a time namespace is made before, and one of cgroups after.
    pub fn to_clone(&self) -> i32 {
        self.new & !(libc::CLONE_NEWTIME | libc::CLONE_NEWCGROUP)
    }

    /// Whether the process has a namespace of that kind to itself, made or joined.
    pub fn private(&self, flag: i32) -> bool {
        self.new & flag != 0 || self.joined.iter().any(|(_, joined)| *joined == flag)
    }
}

/// Enters a namespace, or all those of a process that `flags` names.
pub fn enter(fd: &OwnedFd, flags: i32) -> Result<(), String> {
    // SAFETY: setns() takes no pointers.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }, "enter the container's namespaces")
}

/// Makes the time namespace that this process's children will be in.
pub fn make_time(linux: &Linux, proc: &OwnedFd) -> Result<(), String> {
    // SAFETY: unshare() takes no pointers.
    check(unsafe { libc::unshare(libc::CLONE_NEWTIME) }, "make a time namespace")?;
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        let line = format!("{clock} {seconds} {nanoseconds}");
        write_at(proc, "self/timens_offsets", &line)
            .map_err(|why| format!("cannot set the time offset {line:?}: {why}"))?;
    }
    Ok(())
}

/// Gives a process's user namespace its mappings.
pub fn map_users(linux: &Linux, pid: i32, proc: &OwnedFd) -> Result<(), String> {
    for (file, mappings) in [("gid_map", linux.gid_mappings()), ("uid_map", linux.uid_mappings())] {
        let lines = mappings.iter().flatten().map(line).collect::<String>();
        write_at(proc, format!("{pid}/{file}"), &lines)
            .map_err(|why| format!("cannot write {file} {:?}: {why}", lines.trim_end()))?;
    }
    Ok(())
}

fn line(map: &LinuxIdMapping) -> String {
    format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())
}

/// Writes a file below a directory in one go.
pub fn write_at(directory: impl AsFd, path: impl AsRef<Path>, value: &str) -> Result<(), String> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(directory, path.as_ref(), flags, Mode::empty()).map_err(text)?;
    File::from(file).write_all(value.as_bytes()).map_err(|e| e.to_string())
}

/// The flags of all namespaces that the container does not share with the runtime.
pub fn flags(spec: &Spec) -> i32 {
    listed(spec).fold(0, |flags, namespace| flags | flag(namespace.typ()))
}

/// Whether the spec lists a namespace of that type, new or to be joined.
pub fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    listed(spec).any(|namespace| namespace.typ() == kind)
}

fn listed(spec: &Spec) -> impl Iterator<Item = &oci_spec::runtime::LinuxNamespace> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten()
}

fn flag(kind: LinuxNamespaceType) -> i32 {
    match kind {
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Time => libc::CLONE_NEWTIME,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
    }
}
