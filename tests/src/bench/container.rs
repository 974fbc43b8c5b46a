// SPDX-License-Identifier: Apache-2.0

//! One container from `ctr run` to its removal. What is seen from outside is the same for
//! every runtime; husk's shim tells of the steps between in a line of containerd's log.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Instants, Runs, now_ns, readable, repeat};
use crate::containerd::leftovers::{Host, pids_of};
use crate::containerd::{IMAGE, process};

pub const FIRST_BYTE: &str = "first_byte";
pub const END: &str = "end";

const LINE: &str = "hello from the container\n";

/// How long the shim's line may take to reach the log.
const LOG_LIMIT: Duration = Duration::from_secs(20);

/// containerd, as the lab's session runs it.
pub struct Containerd {
    directory: PathBuf,
    log: PathBuf,
}

impl Containerd {
    pub fn of_session() -> Result<Containerd, String> {
        let path = |name: &str| {
            let value = std::env::var_os(name).map(PathBuf::from);
            value.ok_or_else(|| format!("{name} is not set; run by tests/lab/run"))
        };
        let socket = path("CONTAINERD_ADDRESS")?;
        let directory = socket.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Containerd { directory, log: path("HUSK_CONTAINERD_LOG")? })
    }

    /// containerd's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs a container `rounds` times after one that warms the machine up.
    pub fn cold_starts(&self, runtime: &str, rounds: u32) -> Result<Runs, String> {
        repeat(rounds, |round| self.cold_start(runtime, &format!("bench-{round}")))
    }

    /// None if the VM hung.
    fn cold_start(&self, runtime: &str, id: &str) -> Result<Option<Instants>, String> {
        let before = Host::look(&self.directory, &|_| Vec::new());
        let log_start = self.log.metadata().map_or(0, |log| log.len() as usize);
        let mut command = Command::new("ctr");
        command.args(["run", "--rm", "--runtime", runtime, IMAGE, id, "echo", LINE.trim_end()]);

        let began = now_ns();
        let watched = watch(&mut command).map_err(|error| format!("ctr run: {error}"))?;
        let Some(watched) = watched else {
            before.wait_until_clean(&self.directory, &|_| Vec::new())?;
            return Ok(None);
        };
        let mut instants = Instants::new();
        if watched.said != LINE.as_bytes() || watched.code != Some(0) {
            let tail = self.log_since(log_start);
            return Err(format!(
                "ctr run with {runtime} ended with {:?} and said '{}'; containerd's log:\n{tail}",
                watched.code,
                String::from_utf8_lossy(&watched.said).trim_end(),
            ));
        }
        instants.insert(FIRST_BYTE.to_owned(), watched.first_byte_ns - began);
        instants.insert(END.to_owned(), watched.end_ns - began);

        // Not measured any more: let all of it go, or the next run would pay for it.
        before.wait_until_clean(&self.directory, &|_| Vec::new())?;
        if runtime.contains("husk") {
            let mut line = None;
            process::eventually(LOG_LIMIT, || {
                line = phases(&self.log_since(log_start), id, began);
                line.is_some()
            });
            let phases = line.ok_or("the shim did not log its phases")?;
            instants.extend(phases);
        }
        Ok(Some(instants))
    }

    /// The name of the container of [`beside_idle`](Self::beside_idle).
    pub const IDLE: &str = "bench-idle";

    /// Runs an idle container for the time of `look`.
    pub fn beside_idle<T>(
        &self,
        runtime: &str,
        look: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        self.beside(runtime, &[], &["sh", "-c", "echo up; exec sleep 100000"], look)
    }

    /// The same with flags of `ctr run`, and another command, which says something when `look`
    /// may begin.
    pub fn beside<T>(
        &self,
        runtime: &str,
        flags: &[String],
        command: &[&str],
        look: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let before = Host::look(&self.directory, &|_| Vec::new());
        let id = Self::IDLE;
        let mut idle = Command::new("ctr")
            .args(["run", "--rm", "--runtime", runtime])
            .args(flags)
            .args([IMAGE, id])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("ctr run: {error}"))?;
        let found = match first_byte(&mut idle) {
            Ok(First::Byte(_)) => look(),
            Ok(First::End) => Err("the container did not start".to_owned()),
            Ok(First::Nothing) => Err("the container's VM hung".to_owned()),
            Err(error) => Err(format!("ctr run: {error}")),
        };
        if found.is_err() {
            kill_vmms();
        }
        let kill = ["tasks", "kill", "-s", "KILL", id];
        // If it fails, what is left behind tells.
        let _ = Command::new("ctr").args(kill).status();
        let _ = idle.wait();
        before.wait_until_clean(&self.directory, &|_| Vec::new())?;
        found
    }

    fn log_since(&self, start: usize) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned()
    }
}

struct Watched {
    said: Vec<u8>,
    code: Option<i32>,
    first_byte_ns: u64,
    end_ns: u64,
}

/// Runs a command to its end and notes when it said something first and when it ended.
/// None if it went silent: then the VMs are killed, which lets it end.
fn watch(command: &mut Command) -> io::Result<Option<Watched>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut said = Vec::new();
    match first_byte(&mut child)? {
        First::Byte(byte) => said.push(byte),
        First::End => {}
        First::Nothing => {
            kill_vmms();
            child.wait()?;
            return Ok(None);
        }
    }
    let first_byte_ns = now_ns();
    if let Some(stdout) = &mut child.stdout {
        let mut more = [0; 4096];
        loop {
            if !readable(stdout.as_fd()) {
                kill_vmms();
                child.wait()?;
                return Ok(None);
            }
            match stdout.read(&mut more)? {
                0 => break,
                len => said.extend_from_slice(&more[..len]),
            }
        }
    }
    let status = child.wait()?;
    Ok(Some(Watched { said, code: status.code(), first_byte_ns, end_ns: now_ns() }))
}

/// How a command's output begins.
enum First {
    Byte(u8),
    End,
    /// Not in time.
    Nothing,
}

fn first_byte(child: &mut Child) -> io::Result<First> {
    let Some(stdout) = &mut child.stdout else { return Ok(First::End) };
    if !readable(stdout.as_fd()) {
        return Ok(First::Nothing);
    }
    let mut byte = [0];
    match stdout.read(&mut byte)? {
        0 => Ok(First::End),
        _ => Ok(First::Byte(byte[0])),
    }
}

/// All there are: a benchmark runs by itself.
fn kill_vmms() {
    for pid in pids_of("husk-vmm") {
        // It may have gone by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// The instants in the shim's line about this container, if it is in the log.
fn phases(log: &str, id: &str, began: u64) -> Option<Instants> {
    let container = format!("container={id}");
    let line = log
        .lines()
        .find(|line| line.contains("msg=phases") || line.contains("msg=\"phases\""))
        .filter(|line| line.split(' ').any(|word| word == container))?;
    let pairs = line.split(' ').filter_map(|word| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), value.parse::<u64>().ok()?.checked_sub(began)?))
    });
    Some(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shims_line_is_read() {
        let log = "time=\"t\" level=info msg=other\n\
                   time=\"t\" level=info msg=\"phases\" container=b1 create=105 hello=150 n=3\n";
        let found = phases(log, "b1", 100).expect("phases");
        let expected = [("create".to_owned(), 5), ("hello".to_owned(), 50)];
        assert_eq!(found, expected.into_iter().collect());
        assert_eq!(phases(log, "b2", 100), None);
    }
}
