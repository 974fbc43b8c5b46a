// SPDX-License-Identifier: Apache-2.0

//! The hooks of a container that run on the host (runtime-spec 1.2, "POSIX-platform
//! Hooks"): prestart and createRuntime before the guest makes the container, poststart
//! after its start, poststop after its end. Each is told the container's state on stdin and
//! runs in the bundle. One that takes too long, or that nobody waits for any more, is killed
//! with its process group.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use husk_protocol::features::OCI_VERSION;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::Interest;

use crate::error::{Error, IoContext};
use crate::process::Pidfd;
use crate::reactor;
use crate::tail::Tail;

/// The hooks of config.json.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// A program that is run at some point of a container's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    pub path: PathBuf,
    /// With the program's name for itself as the first, as execv(3) has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// All of its environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
}

/// What hooks are told of a container that does not change.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Subject {
    id: String,
    bundle: PathBuf,
    annotations: Map<String, Value>,
}

/// The hooks of one container that run on the host.
#[derive(Debug)]
pub struct HostHooks {
    subject: Subject,
    hooks: Hooks,
}

/// The poststop hooks of a container. They can be kept in a file, so that they run even if
/// nobody is left who knew the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Poststop {
    subject: Subject,
    hooks: Vec<Hook>,
}

impl Hooks {
    /// Refuses what could not run, before anything has been made.
    pub fn check(&self) -> Result<(), Error> {
        let all = [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("startContainer", &self.start_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ];
        for (kind, hooks) in all {
            for hook in hooks {
                let path = hook.path.display();
                if !hook.path.is_absolute() {
                    return Err(Error::invalid(format!(
                        "the path of the {kind} hook {path} is not absolute"
                    )));
                }
                if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                    return Err(Error::invalid(format!(
                        "the timeout of the {kind} hook {path} is not above 0; leave it out for \
                         none"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Those that run on the host for this container.
    pub fn on_host(&self, id: &str, bundle: &Path, annotations: &Map<String, Value>) -> HostHooks {
        let subject =
            Subject { id: id.into(), bundle: bundle.into(), annotations: annotations.clone() };
        HostHooks { subject, hooks: self.clone() }
    }

    pub fn is_empty(&self) -> bool {
        [
            &self.prestart,
            &self.create_runtime,
            &self.create_container,
            &self.start_container,
            &self.poststart,
            &self.poststop,
        ]
        .iter()
        .all(|hooks| hooks.is_empty())
    }
}

impl HostHooks {
    /// prestart and createRuntime. The first that fails is the last that runs.
    pub async fn before_create(&self, pid: u32) -> Result<(), Error> {
        let state = self.subject.state("creating", Some(pid));
        let lists =
            [("prestart", &self.hooks.prestart), ("createRuntime", &self.hooks.create_runtime)];
        for (kind, hooks) in lists {
            for hook in hooks {
                hook.run(kind, &self.subject.bundle, &state).await?;
            }
        }
        Ok(())
    }

    /// poststart. One that fails does not keep the others from running.
    pub async fn after_start(&self, pid: u32) -> Vec<Error> {
        let state = self.subject.state("running", Some(pid));
        run_all("poststart", &self.hooks.poststart, &self.subject.bundle, &state).await
    }

    /// poststop, if there are any.
    pub fn poststop(&self) -> Option<Poststop> {
        let hooks = self.hooks.poststop.clone();
        (!hooks.is_empty()).then(|| Poststop { subject: self.subject.clone(), hooks })
    }
}

impl Poststop {
    pub fn container(&self) -> &str {
        &self.subject.id
    }

    /// Runs them all, and returns what failed.
    pub async fn run(&self) -> Vec<Error> {
        let state = self.subject.state("stopped", None);
        run_all("poststop", &self.hooks, &self.subject.bundle, &state).await
    }

    /// The same for callers that may block.
    pub fn run_blocking(&self) -> Vec<Error> {
        // On a thread of its own, since the caller's may belong to a runtime.
        let work = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map(|runtime| runtime.block_on(self.run()))
                .unwrap_or_else(|error| vec![Error::internal(format!("poststop hooks: {error}"))])
        };
        std::thread::scope(|scope| scope.spawn(work).join())
            .unwrap_or_else(|_| vec![Error::internal("the thread of the poststop hooks died")])
    }
}

async fn run_all(kind: &str, hooks: &[Hook], bundle: &Path, state: &[u8]) -> Vec<Error> {
    let mut errors = Vec::new();
    for hook in hooks {
        errors.extend(hook.run(kind, bundle, state).await.err());
    }
    errors
}

impl Subject {
    /// The container's state as JSON.
    fn state(&self, status: &str, pid: Option<u32>) -> Vec<u8> {
        let mut state = serde_json::json!({
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": status,
            "bundle": self.bundle,
            "annotations": self.annotations,
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        state.to_string().into_bytes()
    }
}

impl Hook {
    async fn run(&self, kind: &str, bundle: &Path, state: &[u8]) -> Result<(), Error> {
        let what = || format!("the {kind} hook {}", self.path.display());
        let (mut output, writer) = Tail::new().context(what)?;
        let mut running = self.spawn(bundle, state, writer).context(what)?;
        let pidfd = Pidfd::open(running.child.id()).context(what)?;
        let exited = reactor::watch(pidfd.into(), Interest::READABLE).context(what)?;
        let ended = async {
            loop {
                tokio::select! {
                    biased;
                    // First, since what it has started may write for ever.
                    _ = exited.readable() => return running.child.wait(),
                    () = output.read() => {}
                }
            }
        };
        let status = match self.timeout.and_then(|seconds| u64::try_from(seconds).ok()) {
            None => ended.await,
            Some(seconds) => {
                tokio::time::timeout(Duration::from_secs(seconds), ended).await.unwrap_or_else(
                    |_| Err(io::Error::other(format!("it did not end within {seconds} s"))),
                )
            }
        };
        running.over = status.is_ok();
        let why = match status {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => describe(status),
            Err(error) => error.to_string(),
        };
        Err(Error::internal(match output.text() {
            said if said.is_empty() => format!("{} failed: {why}", what()),
            said => format!("{} failed: {why}: {said}", what()),
        }))
    }

    fn spawn(&self, bundle: &Path, state: &[u8], output: OwnedFd) -> io::Result<Running> {
        // A file, so that nobody waits for a hook that does not read it.
        let mut stdin = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
        stdin.write_all(state)?;
        stdin.rewind()?;
        let mut command = Command::new(&self.path);
        if let Some((name, arguments)) = self.args.split_first() {
            command.arg0(name).args(arguments);
        }
        let env = self.env.iter().filter_map(|entry| entry.split_once('='));
        command
            .env_clear()
            .envs(env.filter(|(name, _)| !name.is_empty()))
            .stdin(stdin)
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            // After a crash the bundle may be gone.
            .current_dir(if bundle.is_dir() { bundle } else { Path::new("/") });
        Ok(Running { child: command.spawn()?, over: false })
    }
}

fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("it exited with status {code}"),
        None => format!("it was killed ({status})"),
    }
}

/// A hook's process; killed with its group and reaped unless it is over.
struct Running {
    child: Child,
    over: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            // Both fail only for what is gone.
            let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests;
