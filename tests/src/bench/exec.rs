// SPDX-License-Identifier: Apache-2.0

//! Further processes in a running container, asked of the shim itself: what `true` takes
//! from the first request to its exit, and what a byte of output takes from the process to
//! a client that reads the FIFO as `ctr` does.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::ttrpc;

use super::{Instants, LIMIT_MS, Runs, now_ns, readable, repeat};
use crate::containerd::fifos::Fifos;
use crate::containerd::shim::Shim;

pub const EXIT: &str = "exit";
pub const BYTE: &str = "per byte";

/// Bytes of output of a run: 1600 of dd's blocks, 100 MiB.
pub const OUTPUT: usize = 1600 * BLOCK;
const BLOCK: usize = 64 << 10;

/// What a client reads at once: the buffer that ctr has.
const READ: usize = 32 << 10;

/// How long a request may take before the VM counts as hung.
const LIMIT: Duration = Duration::from_millis(LIMIT_MS as u64);

/// Runs `true` in a container, from the first request to the delete.
pub fn latency(directory: &Path, container: &str, rounds: u32) -> Result<Runs, String> {
    let shim = Shim::of(directory, container)?.within(LIMIT);
    let process = shim.process(&["true"]);
    let fifos = Fifos::new();
    // runc's shim waits for readers.
    let _readers = [fifos.open("stdout"), fifos.open("stderr")];
    repeat(rounds, |round| {
        let exec = format!("true-{round}");
        let begun = now_ns();
        let mut instants = Instants::new();
        let mut reach = |name: &str| instants.insert(name.to_owned(), now_ns() - begun);
        let mut run = || -> ttrpc::Result<u32> {
            shim.exec(&exec, &process, &fifos.outputs())?;
            reach("added");
            shim.start(&exec)?;
            reach("started");
            let status = shim.wait(&exec)?;
            reach(EXIT);
            shim.delete(&exec)?;
            reach("deleted");
            Ok(status)
        };
        match run() {
            Ok(0) => Ok(Some(instants)),
            Ok(status) => Err(format!("exec of true ended with {status}")),
            Err(error) => Err(format!("exec of true: {error}")),
        }
    })
}

/// Has a process in a container write, and reads it: ns for [`OUTPUT`] bytes.
pub fn throughput(directory: &Path, container: &str, rounds: u32) -> Result<Runs, String> {
    let shim = Shim::of(directory, container)?.within(LIMIT);
    let (block, count) = (format!("bs={BLOCK}"), format!("count={}", OUTPUT / BLOCK));
    let process = shim.process(&["dd", "if=/dev/zero", &block, &count]);
    repeat(rounds, |round| {
        let exec = format!("output-{round}");
        let fifos = Fifos::new();
        let [mut stdout, _stderr] = [fifos.open("stdout"), fifos.open("stderr")];
        let failed = |error: ttrpc::Error| format!("exec of dd: {error}");
        shim.exec(&exec, &process, &fifos.outputs()).map_err(failed)?;
        shim.start(&exec).map_err(failed)?;
        let begun = now_ns();
        let read = drain(&mut stdout, OUTPUT).map_err(|error| format!("stdout: {error}"))?;
        let took = now_ns() - begun;
        if !read {
            return Ok(None);
        }
        let status = shim.wait(&exec).map_err(failed)?;
        shim.delete(&exec).map_err(failed)?;
        match status {
            0 => Ok(Some([(BYTE.to_owned(), took)].into())),
            status => Err(format!("dd ended with {status}")),
        }
    })
}

/// Reads that many bytes; false if they do not come in time.
fn drain(stream: &mut File, mut missing: usize) -> io::Result<bool> {
    let mut buffer = vec![0; READ];
    while missing > 0 {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => missing -= len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !readable(stream.as_fd()) {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
