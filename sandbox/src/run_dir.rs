// SPDX-License-Identifier: Apache-2.0

//! A pod's directory on the host, `/run/husk/<namespace>/<pod>`: the console log, the
//! share, and a state file with a line for every resource outside it and for hooks that are
//! due, so that [`clean`] can undo all after a crash. Nothing here is ever removed recursively: what the pod could
//! have put somewhere is only ever unmounted.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup::Places;
use crate::error::{Error, IoContext};
use crate::hooks::Poststop;
use crate::mount::unmount_all;
use crate::network::{self, Redirected};
use crate::process::ProcessId;

/// Where the directories of all pods are.
pub const RUN_ROOT: &str = "/run/husk";

/// Where the pod's figures can be asked for; whoever supervises it may listen there.
pub const METRICS_SOCKET: &str = "metrics.sock";

/// How long [`clean`] waits for a VMM that it has killed; its guest memory is freed by then.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// Longest state file that is read back, in bytes: more than a pod's containers can have in
/// their hooks and annotations.
const MAX_STATE: u64 = 64 << 20;

/// A line of the state file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Resource {
    /// A husk-vmm.
    Vmm(ProcessId),
    /// The cgroup of it and of its supervisor.
    Cgroup(Places),
    /// A mount point outside the directory.
    Mount(PathBuf),
    /// An interface that is joined to the VM.
    Redirect(Redirected),
    /// Hooks that are to run when the container is gone.
    Poststop(Poststop),
    /// The container whose hooks have run.
    PoststopRan(String),
}

/// The directory of a living pod; dropping it removes it.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes the directory; what a crashed pod of the same name left is undone first.
    pub fn create(root: &Path, namespace: &str, pod: &str) -> Result<RunDir, Error> {
        let path = path_of(root, namespace, pod)?;
        clean(root, namespace, pod)?;
        let cannot = || format!("cannot make the directory {}", path.display());
        DirBuilder::new().recursive(true).mode(0o700).create(root).context(cannot)?;
        let mut directory = DirBuilder::new();
        directory.mode(0o700);
        loop {
            match directory.create(root.join(namespace)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => made.context(cannot)?,
            }
            match directory.create(&path) {
                // Another pod of the namespace was its last, and has taken it away meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound && root.exists() => {}
                made => {
                    made.context(cannot)?;
                    return Ok(RunDir { path });
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that the VM sees.
    pub fn share(&self) -> PathBuf {
        self.path.join("share")
    }

    /// Opens a new console log.
    pub fn create_console_log(&self) -> Result<File, Error> {
        let path = self.path.join("console.log");
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .context(|| format!("cannot make {}", path.display()))
    }

    /// Notes a running VMM, so that it can be found after a crash of ours.
    pub fn record_vmm(&self, process: ProcessId) -> Result<(), Error> {
        self.record(&Resource::Vmm(process))
    }

    /// Notes the pod's cgroup; call before making it.
    pub fn record_cgroup(&self, places: &Places) -> Result<(), Error> {
        self.record(&Resource::Cgroup(places.clone()))
    }

    /// Notes a mount point outside the directory; call before mounting.
    pub fn record_mount(&self, target: &Path) -> Result<(), Error> {
        self.record(&Resource::Mount(target.to_owned()))
    }

    /// Notes that hooks have to run for a container; call before any other of its hooks runs.
    pub fn record_poststop(&self, poststop: &Poststop) -> Result<(), Error> {
        self.record(&Resource::Poststop(poststop.clone()))
    }

    /// Notes that they need not run any more.
    pub fn record_poststop_ran(&self, container: &str) -> Result<(), Error> {
        self.record(&Resource::PoststopRan(container.into()))
    }

    /// The state file by itself.
    pub fn state_file(&self) -> StateFile {
        StateFile(self.path.join("state"))
    }

    fn record(&self, resource: &Resource) -> Result<(), Error> {
        self.state_file().record(resource)
    }

    /// Removes the directory and reports what could not be removed.
    pub fn remove(self) -> Result<(), Error> {
        let done = remove(&self.path);
        std::mem::forget(self);
        done
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // `delete` repeats this and reports.
        let _ = remove(&self.path);
    }
}

/// Where the resources of a living pod are noted.
#[derive(Debug)]
pub struct StateFile(PathBuf);

impl StateFile {
    /// Notes an interface that is about to be joined to the VM.
    pub fn record_redirect(&self, redirected: Redirected) -> Result<(), Error> {
        self.record(&Resource::Redirect(redirected))
    }

    fn record(&self, resource: &Resource) -> Result<(), Error> {
        let mut line = serde_json::to_vec(resource).context(|| "cannot write state".to_owned())?;
        line.push(b'\n');
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.0)
            .and_then(|mut file| file.write_all(&line))
            .context(|| format!("cannot write {}", self.0.display()))
    }
}

/// The last `max` bytes of a console log, control characters made harmless.
pub fn console_tail(log: &mut File, max: u64) -> String {
    let mut bytes = Vec::new();
    let read = log
        .seek(SeekFrom::End(0))
        .and_then(|end| log.seek(SeekFrom::Start(end.saturating_sub(max))))
        .and_then(|_| log.take(max).read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes)
        .chars()
        .filter(|&c| c == '\n' || c == '\t' || !c.is_control())
        .collect()
}

/// Whether a VMM of this pod is running.
pub fn has_vm(root: &Path, namespace: &str, pod: &str) -> bool {
    let Ok(path) = path_of(root, namespace, pod) else { return false };
    recorded(&path)
        .iter()
        .any(|resource| matches!(resource, Resource::Vmm(process) if process.open().is_some()))
}

/// Undoes all that a pod left: kills its VMM, unmounts what it mounted, runs the poststop
/// hooks that are due, removes its directory. Blocks as long as hooks do. Goes on past errors and reports them together. Nothing there is success.
pub fn clean(root: &Path, namespace: &str, pod: &str) -> Result<(), Error> {
    let path = path_of(root, namespace, pod)?;
    let mut errors = Vec::new();
    let resources = recorded(&path);
    for resource in resources.iter().rev() {
        match resource {
            Resource::Vmm(process) => {
                let Some(pidfd) = process.open() else { continue };
                if let Err(error) = pidfd.signal(libc::SIGKILL) {
                    errors.push(format!("cannot kill husk-vmm ({}): {error}", process.pid));
                } else if !pidfd.wait(KILL_LIMIT) {
                    errors.push(format!("husk-vmm ({}) does not die", process.pid));
                }
            }
            Resource::Cgroup(places) => {
                errors.extend(places.remove().err().map(|error| error.message));
            }
            Resource::Mount(target) => {
                errors.extend(unmount_all(target).err().map(|error| error.message));
            }
            Resource::Redirect(redirected) => {
                errors.extend(network::undo(redirected).err().map(|error| error.message));
            }
            Resource::Poststop(_) | Resource::PoststopRan(_) => {}
        }
    }
    errors.extend(unmount_all(&path.join("share")).err().map(|error| error.message));
    // Last, for they may take longer than our caller has; their lines stay until they have run.
    for poststop in due(&resources) {
        errors.extend(poststop.run_blocking().into_iter().map(|error| error.message));
    }
    errors.extend(remove(&path).err().map(|error| error.message));
    if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join("; "))) }
}

/// The poststop hooks that nobody has run.
fn due(resources: &[Resource]) -> Vec<&Poststop> {
    let mut due: Vec<&Poststop> = Vec::new();
    for resource in resources {
        match resource {
            Resource::Poststop(poststop) => due.push(poststop),
            Resource::PoststopRan(container) => {
                due.retain(|poststop| poststop.container() != container);
            }
            Resource::Vmm(_) | Resource::Cgroup(_) | Resource::Mount(_) | Resource::Redirect(_) => {
            }
        }
    }
    due
}

/// The resources of the state file, as far as it can be read: a line cut short by a crash
/// belongs to a resource that was not made yet.
fn recorded(path: &Path) -> Vec<Resource> {
    let mut text = Vec::new();
    if let Ok(file) = File::open(path.join("state")) {
        let _ = file.take(MAX_STATE).read_to_end(&mut text);
    }
    text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn remove(path: &Path) -> Result<(), Error> {
    let share = path.join("share");
    let mut errors = Vec::new();
    errors.extend(unmount_all(&share).err().map(|error| error.message));
    let mut note = |path: &Path, done: std::io::Result<()>| match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            errors.push(format!("cannot remove {}: {error}", path.display()));
        }
        _ => {}
    };
    note(&share, fs::remove_dir(&share));
    for name in ["console.log", METRICS_SOCKET, "state"] {
        let file = path.join(name);
        note(&file, fs::remove_file(&file));
    }
    note(path, fs::remove_dir(path));
    if let Some(namespace) = path.parent() {
        // Other pods of the namespace keep it.
        let _ = fs::remove_dir(namespace);
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join("; "))) }
}

fn path_of(root: &Path, namespace: &str, pod: &str) -> Result<PathBuf, Error> {
    Ok(root.join(checked_name(namespace)?).join(checked_name(pod)?))
}

/// A name that is one component of a path; containerd allows no other, so this refuses
/// only what would lead elsewhere.
pub fn checked_name(name: &str) -> Result<&str, Error> {
    /// Longest name of a file on every file system.
    const MAX_NAME: usize = 255;
    if name.is_empty() || name.len() > MAX_NAME || name == "." || name == ".." {
        return Err(Error::invalid(format!("{name:?} cannot be the name of a pod or container")));
    }
    if name.contains(['/', '\0', '\n']) {
        return Err(Error::invalid(format!(
            "{name:?} cannot be the name of a pod or container: it contains a slash, a newline \
             or a zero byte"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn nothing_is_left_when_it_is_dropped() {
        let root = tempfile::tempdir().expect("directory");
        let run = RunDir::create(root.path(), "ns", "pod").expect("create");
        run.create_console_log().expect("log");
        run.record_mount(Path::new("/nonexistent/rootfs")).expect("record");
        fs::create_dir(run.share()).expect("share");
        drop(run);
        assert_eq!(fs::read_dir(root.path()).expect("root").count(), 0);
    }

    #[test]
    fn pods_that_come_and_go_at_once_do_not_disturb_each_other() {
        let root = tempfile::tempdir().expect("directory");
        std::thread::scope(|scope| {
            for pod in ["a", "b", "c"] {
                let root = root.path();
                scope.spawn(move || {
                    for _ in 0..2000 {
                        RunDir::create(root, "ns", pod).expect("create").remove().expect("remove");
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(root.path()).expect("root").count(), 0);
    }

    #[test]
    fn what_a_crash_left_is_undone() {
        let root = tempfile::tempdir().expect("directory");
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let run = RunDir::create(root.path(), "ns", "pod").expect("create");
        run.record_vmm(ProcessId::of(child.id()).expect("running")).expect("record");
        run.record_vmm(ProcessId { pid: std::process::id(), start: 1 }).expect("record");
        std::mem::forget(run);
        let mut state =
            OpenOptions::new().append(true).open(root.path().join("ns/pod/state")).expect("state");
        state.write_all(b"{\"mou").expect("cut short");
        let reaper = std::thread::spawn(move || child.wait().expect("status"));
        clean(root.path(), "ns", "pod").expect("clean");
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&reaper.join().expect("reaper")),
            Some(libc::SIGKILL)
        );
        assert!(!root.path().join("ns").exists());
        clean(root.path(), "ns", "pod").expect("again");
    }

    #[test]
    fn hooks_that_are_due_run_after_a_crash_and_others_do_not() {
        let root = tempfile::tempdir().expect("directory");
        let bundle = tempfile::tempdir().expect("directory");
        let run = RunDir::create(root.path(), "ns", "pod").expect("create");
        let hook = |container: &str| -> Poststop {
            serde_json::from_value(serde_json::json!({
                "subject": {"id": container, "bundle": bundle.path(), "annotations": {}},
                "hooks": [{"path": "/bin/sh", "args": ["sh", "-c", "cat >>ran; echo >>ran"]}],
            }))
            .expect("hooks")
        };
        for container in ["again", "gone", "left"] {
            run.record_poststop(&hook(container)).expect("record");
        }
        run.record_poststop_ran("gone").expect("record");
        run.record_poststop_ran("again").expect("record");
        run.record_poststop(&hook("again")).expect("record");
        std::mem::forget(run);
        clean(root.path(), "ns", "pod").expect("clean");
        let ran = fs::read_to_string(bundle.path().join("ran")).expect("ran");
        let ids: Vec<String> = ran
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
            .map(|state| format!("{} {}", state["id"], state["status"]))
            .collect();
        assert_eq!(ids, [r#""left" "stopped""#, r#""again" "stopped""#]);
        clean(root.path(), "ns", "pod").expect("again");
        assert_eq!(fs::read_to_string(bundle.path().join("ran")).expect("ran"), ran);
    }

    #[test]
    fn files_of_others_are_never_removed() {
        let root = tempfile::tempdir().expect("directory");
        let precious = root.path().join("ns/pod/share/c/precious");
        fs::create_dir_all(precious.parent().expect("parent")).expect("directory");
        fs::write(&precious, b"data").expect("file");
        let error = clean(root.path(), "ns", "pod").expect_err("not empty");
        assert!(error.message.contains("share"), "{error}");
        assert!(precious.exists());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\nb", &"x".repeat(300)] {
            assert!(checked_name(bad).is_err(), "{bad:?}");
        }
        checked_name("k8s.io_web-1").expect("fine");
    }

    #[test]
    fn a_console_tail_is_short_and_printable() {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(b"first\nsecond \x1b[1m\xff\n").expect("write");
        assert_eq!(console_tail(&mut file, 13), "second [1m\u{fffd}\n");
    }
}
