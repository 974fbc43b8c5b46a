// SPDX-License-Identifier: Apache-2.0

//! A number among the host's processes for a container that is not its pod's first. A pod is
//! one process of the host, but /proc/<pid>/ns/pid is how a client says whose processes a
//! container is to see: with one number for all, a container of the pod could not be told from
//! the pod. So each gets a thread, which is not in any list of processes but has its place
//! below /proc, is in the pod's network namespace like husk-vmm, and does nothing.

use std::fs::File;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use husk_sandbox::{Error, IoContext};
use nix::sched::{CloneFlags, setns};
use nix::unistd::gettid;

/// It calls two functions and waits.
const STACK: usize = 64 << 10;

/// The thread; dropping this ends it.
#[derive(Debug)]
pub struct StandIn {
    pid: u32,
    _end: Sender<()>,
}

impl StandIn {
    /// Starts one in the network namespace of this process.
    pub fn in_network_of(pid: u32) -> Result<StandIn, Error> {
        let path = format!("/proc/{pid}/ns/net");
        let network = File::open(&path).context(|| format!("cannot open {path}"))?;
        let (end, until_end) = channel();
        let (answer, answered) = channel();
        thread::Builder::new()
            .name("stand-in".into())
            .stack_size(STACK)
            .spawn(move || stand_in(network, &answer, &until_end))
            .context(|| "cannot start a thread for the container".to_owned())?;
        let pid = answered.recv().unwrap_or_else(|_| Err(Error::internal("it has ended")))?;
        Ok(StandIn { pid, _end: end })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }
}

fn stand_in(network: File, answer: &Sender<Result<u32, Error>>, until_end: &Receiver<()>) {
    let entered = setns(network, CloneFlags::CLONE_NEWNET)
        .context(|| "cannot enter the pod's network namespace".to_owned());
    let _ = answer.send(entered.map(|()| gettid().as_raw() as u32));
    // Nothing is ever sent: this is the end of the other side.
    let _ = until_end.recv();
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn it_is_there_as_long_as_its_container() {
        let one = match StandIn::in_network_of(std::process::id()) {
            Ok(one) => one,
            // Not root.
            Err(error) if error.message.contains("EPERM") => return println!("not run: {error}"),
            Err(error) => panic!("{error}"),
        };
        let other = StandIn::in_network_of(std::process::id()).expect("another");
        assert_ne!(one.pid(), other.pid());
        let place = format!("/proc/{}/ns/pid", one.pid());
        assert!(Path::new(&place).exists());
        drop(one);
        let start = Instant::now();
        while Path::new(&place).exists() {
            assert!(start.elapsed() < Duration::from_secs(10), "it does not end");
            thread::yield_now();
        }
    }
}
