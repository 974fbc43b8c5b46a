// SPDX-License-Identifier: Apache-2.0

//! Hooks (runtime-spec 1.2, config.md "POSIX-platform Hooks"): programs that are told a
//! container's state at a point of its life. A hook that fails, fails what it is part of.

use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{Hook, Spec};
use serde_json::json;

use super::stage;

/// So much of what a failed hook printed is shown.
const MAX_OUTPUT: u64 = 4096;

/// What a hook is told.
pub struct State<'a> {
    pub id: &'a str,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: &'static str,
    /// 0 for a container that has no process.
    pub pid: i32,
    pub bundle: &'a Path,
    pub spec: &'a Spec,
}

impl State<'_> {
    pub fn json(&self) -> serde_json::Value {
        json!({
            "ociVersion": self.spec.version(),
            "id": self.id,
            "status": self.status,
            "pid": self.pid,
            "bundle": self.bundle,
            "annotations": self.spec.annotations().clone().unwrap_or_default(),
        })
    }
}

/// Runs hooks one after the other. `kind` is their name in config.json.
pub fn run(kind: &str, hooks: Option<&Vec<Hook>>, state: &State) -> Result<(), String> {
    for hook in hooks.into_iter().flatten() {
        run_one(hook, state).map_err(|why| format!("{kind} hook {:?}: {why}", hook.path()))?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &State) -> Result<(), String> {
    let input = memory(state.json().to_string().as_bytes())?;
    let mut output = memory(b"")?;
    let share = || output.try_clone().map_err(|e| e.to_string());
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear();
    let env = hook.env().iter().flatten();
    command.envs(env.filter_map(|entry| entry.split_once('=')));
    command.stdin(Stdio::from(input)).stdout(share()?).stderr(share()?);
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let pidfd = stage::pidfd(child.id() as i32).map_err(|e| e.to_string())?;
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    let in_time = ended(&pidfd, limit.map(Duration::from_secs))?;
    if !in_time {
        child.kill().map_err(|e| e.to_string())?;
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    let mut text = String::new();
    let _ = output.rewind();
    let _ = output.take(MAX_OUTPUT).read_to_string(&mut text);
    match (in_time, limit) {
        (false, Some(seconds)) => Err(format!("killed after its timeout of {seconds} s: {text}")),
        _ if status.success() => Ok(()),
        _ => Err(format!("{status}: {text}").trim_end_matches([':', ' ', '\n']).to_owned()),
    }
}

/// Waits for a process's end; false when the limit passed before.
fn ended(pidfd: &OwnedFd, limit: Option<Duration>) -> Result<bool, String> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = match left {
            Some(left) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.to_string()),
        }
    }
}

/// A file without a name. Not a pipe, which a hook that neither reads nor ends could block.
fn memory(content: &[u8]) -> Result<std::fs::File, String> {
    // SAFETY: the name is a C string constant.
    let fd = unsafe { libc::memfd_create(c"hook".as_ptr(), libc::MFD_CLOEXEC) };
    stage::check(fd, "make a file for a hook")?;
    // SAFETY: the descriptor is new and nobody else's.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(content).and_then(|()| file.rewind()).map_err(|e| e.to_string())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_script(script: &str, timeout: Option<i64>) -> Result<(), String> {
        let mut hook = Hook::default();
        hook.set_path("/bin/sh".into());
        hook.set_args(Some(vec!["named".into(), "-c".into(), script.into()]));
        hook.set_env(Some(vec!["A=b".into()]));
        hook.set_timeout(timeout);
        let spec = Spec::default();
        let state =
            State { id: "c", status: "created", pid: 7, bundle: Path::new("/b"), spec: &spec };
        run("poststart", Some(&vec![hook]), &state)
    }

    #[test]
    fn hooks_are_told_the_state() {
        let script = r#"read -r state; test "$0 $A" = "named b" || exit 3
            case $state in *'"id":"c"'*) ;; *) exit 4;; esac
            case $state in *'"pid":7'*) ;; *) exit 5;; esac"#;
        // With -c, $0 is the first operand after the script, or the shell's own name.
        assert_eq!(run_script(script, None), Ok(()));
    }

    #[test]
    fn a_failing_hook_is_named_with_what_it_said() {
        let why = run_script("echo broken >&2; exit 3", None).expect_err("fails");
        assert!(why.starts_with(r#"poststart hook "/bin/sh": exit status: 3: broken"#), "{why}");
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let why = run_script("exec sleep 1000", Some(1)).expect_err("killed");
        assert!(why.contains("killed after its timeout of 1 s"), "{why}");
    }
}
