// SPDX-License-Identifier: Apache-2.0

//! One container from `ctr run` to its removal. What is seen from outside is the same for
//! every runtime; husk's shim tells of the steps between in a line of containerd's log.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Instants, now_ns};
use crate::containerd::leftovers::Host;
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

    /// Runs a container `rounds` times after one that warms the machine up.
    pub fn cold_starts(&self, runtime: &str, rounds: u32) -> Result<Vec<Instants>, String> {
        let runs = (0..=rounds).map(|round| self.cold_start(runtime, &format!("bench-{round}")));
        let runs: Result<Vec<_>, _> = runs.collect();
        runs.map(|runs| runs[1..].to_vec())
    }

    fn cold_start(&self, runtime: &str, id: &str) -> Result<Instants, String> {
        let before = Host::look(&self.directory, &|_| Vec::new());
        let log_start = self.log.metadata().map_or(0, |log| log.len() as usize);
        let mut command = Command::new("ctr");
        command.args(["run", "--rm", "--runtime", runtime, IMAGE, id, "echo", LINE.trim_end()]);

        let began = now_ns();
        let watched = watch(&mut command).map_err(|error| format!("ctr run: {error}"))?;
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
        Ok(instants)
    }

    /// Runs an idle container for the time of `look`.
    pub fn beside_idle<T>(
        &self,
        runtime: &str,
        look: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let before = Host::look(&self.directory, &|_| Vec::new());
        let id = "bench-idle";
        let script = "echo up; exec sleep 100000";
        let mut idle = Command::new("ctr")
            .args(["run", "--rm", "--runtime", runtime, IMAGE, id, "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("ctr run: {error}"))?;
        let found = match first_byte(&mut idle) {
            Ok(Some(_)) => look(),
            Ok(None) => Err("the idle container did not start".to_owned()),
            Err(error) => Err(format!("ctr run: {error}")),
        };
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
fn watch(command: &mut Command) -> io::Result<Watched> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let first = first_byte(&mut child)?;
    let first_byte_ns = now_ns();
    let mut said: Vec<u8> = first.into_iter().collect();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_end(&mut said)?;
    }
    let status = child.wait()?;
    Ok(Watched { said, code: status.code(), first_byte_ns, end_ns: now_ns() })
}

fn first_byte(child: &mut Child) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let len = match &mut child.stdout {
        Some(stdout) => stdout.read(&mut byte)?,
        None => 0,
    };
    Ok((len == 1).then_some(byte[0]))
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
