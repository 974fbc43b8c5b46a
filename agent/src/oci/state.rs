// SPDX-License-Identifier: Apache-2.0

//! What is kept of a container between two commands: a directory of its id, with a record
//! of what it is and the socket at which its first process waits for its start. How far its
//! life has gone is not written anywhere but seen: by the name of the socket, by the
//! process, and by the cgroup.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Result, text};
use crate::agent::check_id;
use crate::cgroup::Cgroup;
use crate::engine::{hooks, stage};

const RECORD: &str = "state.json";

/// Names of the socket: until the first process waits at it, while it does, and since it
/// was told to go on.
const CREATING: &str = "creating";
const CREATED: &str = "created";
const STARTED: &str = "started";

#[derive(Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub bundle: PathBuf,
    pub cgroup: PathBuf,
    /// When it was created, by RFC 3339.
    pub created: String,
    /// The first process; 0 until there is one.
    pub pid: i32,
    /// When that began, in the kernel's ticks, which tells it from a later one.
    pub began: u64,
    /// Whether its processes have a session keyring of their own.
    pub keyring: bool,
    pub spec: Spec,
}

pub struct Container {
    directory: PathBuf,
    pub record: Record,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Container {
    /// Takes the id of a new container.
    pub fn claim(root: &Path, record: Record) -> Result<Self> {
        let directory = directory(root, &record.id)?;
        let mut private = DirBuilder::new();
        private.mode(0o700);
        private.recursive(true).create(root).map_err(|e| format!("cannot make {root:?}: {e}"))?;
        private.recursive(false).create(&directory).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => "container with given ID already exists".to_owned(),
            _ => format!("cannot make {directory:?}: {e}"),
        })?;
        let container = Self { directory, record };
        container.save().inspect_err(|_| drop(container.forget()))?;
        Ok(container)
    }

    pub fn find(root: &Path, id: &str) -> Result<Option<Self>> {
        let directory = directory(root, id)?;
        let file = directory.join(RECORD);
        let record = match std::fs::read(&file) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            record => record.map_err(|e| format!("cannot read {file:?}: {e}"))?,
        };
        let record = serde_json::from_slice(&record);
        let record = record.map_err(|e| format!("cannot make sense of {file:?}: {e}"))?;
        Ok(Some(Self { directory, record }))
    }

    /// All there are, by their ids. Those that come or go meanwhile may be missing.
    pub fn all(root: &Path) -> Result<Vec<Self>> {
        let entries = match std::fs::read_dir(root) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| format!("cannot read {root:?}: {e}"))?,
        };
        let mut ids: Vec<_> = entries.flatten().flat_map(|e| e.file_name().into_string()).collect();
        ids.sort();
        let found = ids.iter().map(|id| Self::find(root, id));
        found.filter_map(|found| found.transpose()).collect()
    }

    /// Keeps a record that was changed.
    pub fn save(&self) -> Result<()> {
        write_whole(&self.directory.join(RECORD), &serde_json::to_vec(&self.record).map_err(text)?)
    }

    /// Removes what is kept.
    pub fn forget(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.directory)
            .map_err(|e| format!("cannot remove {:?}: {e}", self.directory))
    }

    pub fn cgroup(&self) -> Cgroup {
        Cgroup::at(&self.record.cgroup)
    }

    pub fn status(&self) -> Status {
        let socket = |name| self.directory.join(name).exists();
        if self.record.pid == 0 {
            Status::Creating
        } else if began(self.record.pid) != Some(self.record.began) {
            Status::Stopped
        } else if socket(CREATING) {
            Status::Creating
        } else if self.cgroup().read("cgroup.freeze").is_ok_and(|text| text.trim() == "1") {
            Status::Paused
        } else if socket(CREATED) {
            Status::Created
        } else {
            Status::Running
        }
    }

    /// Keeps which process is the first. The caller has not reaped it.
    pub fn set_process(&mut self, pid: i32) -> Result<()> {
        self.record.pid = pid;
        // One that has ended already is never found again.
        self.record.began = began(pid).unwrap_or(0);
        self.save()
    }

    /// Refers to the first process, if it has not ended.
    pub fn process(&self) -> Option<OwnedFd> {
        let pidfd = stage::pidfd(self.record.pid).ok()?;
        // Now that the pid cannot become another's, see whose it is.
        (began(self.record.pid) == Some(self.record.began)).then_some(pidfd)
    }

    /// Makes the socket at which the first process is to wait.
    pub fn gate(&self) -> Result<UnixListener> {
        self.at_socket(CREATING, |path| UnixListener::bind(path))
            .map_err(|e| format!("cannot make a socket in {:?}: {e}", self.directory))
    }

    /// The first process waits there.
    pub fn created(&self) -> Result<()> {
        self.rename(CREATING, CREATED).map_err(text)
    }

    /// Tells the first process to go on; there is no second time. It reports over what is
    /// returned.
    pub fn go(&self) -> Result<OwnedFd> {
        self.rename(CREATED, STARTED).map_err(|e| match e.kind() {
            ErrorKind::NotFound => "cannot start an already running container".to_owned(),
            _ => text(e),
        })?;
        let stream = self.at_socket(STARTED, |path| UnixStream::connect(path));
        stream.map(OwnedFd::from).map_err(|e| format!("cannot reach the first process: {e}"))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.directory.join(from), self.directory.join(to))
    }

    /// Calls `f` with a path of a socket that is short enough to be a socket's, however long
    /// that of the directory is.
    fn at_socket<T>(&self, name: &str, f: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
        let directory = File::open(&self.directory)?;
        f(&Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
    }

    /// What hooks are told.
    pub fn told(&self, status: Status) -> hooks::State<'_> {
        let Record { id, bundle, spec, pid, .. } = &self.record;
        let pid = if status == Status::Stopped { 0 } else { *pid };
        hooks::State { id, status: status.name(), pid, bundle, spec }
    }

    /// The state by the specification, and what runc adds.
    pub fn json(&self) -> Value {
        let mut state = self.told(self.status()).json();
        let root = self.record.spec.root().as_ref();
        state["rootfs"] = json!(root.map(|root| self.record.bundle.join(root.path())));
        state["created"] = json!(self.record.created);
        state["owner"] = json!(self.owner());
        state
    }

    pub fn owner(&self) -> String {
        let uid = std::fs::metadata(&self.directory).map(|metadata| metadata.uid());
        match uid {
            Ok(0) => "root".to_owned(),
            Ok(uid) => uid.to_string(),
            Err(_) => String::new(),
        }
    }
}

/// Removes what a command that was killed has left of an id whose record is missing.
pub fn forget_remains(root: &Path, id: &str) -> Result<()> {
    let directory = directory(root, id)?;
    match std::fs::remove_dir_all(&directory) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(format!("cannot remove {directory:?}: {e}"))
        }
        _ => Ok(()),
    }
}

/// Writes a file that others see whole or not at all.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o644);
    let written = options.open(&new).and_then(|mut file| file.write_all(content));
    let written = written.and_then(|()| std::fs::rename(&new, path));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&new);
        format!("cannot write {path:?}: {e}")
    })
}

fn directory(root: &Path, id: &str) -> Result<PathBuf> {
    check_id(id).map_err(|_| "invalid container ID format".to_owned())?;
    Ok(root.join(id))
}

/// When a process began; None for one that has ended, though it may not have been reaped.
fn began(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5). The name, which is the second field, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    fields.nth(18)?.parse().ok().filter(|_| !ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_and_from_what_is_left_of_it() {
        let own = std::process::id() as i32;
        let first = began(own).expect("this process");
        let mut child = std::process::Command::new("true").spawn().expect("true");
        assert!(first > 0);
        // Ended and not reaped, once its pidfd says so.
        let pidfd = stage::pidfd(child.id() as i32).expect("pidfd");
        let mut fds = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&pidfd),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE).expect("poll");
        assert_eq!(began(child.id() as i32), None);
        child.wait().expect("wait");
        assert_eq!(began(child.id() as i32), None);
    }

    #[test]
    fn ids_are_no_paths() {
        for bad in ["", "..", "a/b", "/etc"] {
            assert!(directory(Path::new("/run"), bad).is_err(), "{bad:?}");
        }
    }
}
