// SPDX-License-Identifier: Apache-2.0

//! For tests of what a process does to itself: a forked child does it.

use std::io::{Read, Write};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// How a child ended that neither succeeded nor told why it did not.
#[derive(Debug, PartialEq)]
pub enum Ended {
    Failed(String),
    Killed(nix::sys::signal::Signal),
}

/// Calls `f` in a child, and returns what it returned. Neither locks nor output are the
/// child's to use: other threads may hold them.
pub fn forked(f: impl FnOnce() -> Result<(), String>) -> Result<(), Ended> {
    let (mut reader, mut writer) = std::io::pipe().expect("pipe");
    // SAFETY: the C library makes its own locks usable in the child; `f` keeps off others,
    // and _exit() runs nothing of the test's.
    let child = match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let code = match f() {
                Ok(()) => 0,
                Err(why) => i32::from(writer.write_all(why.as_bytes()).is_err()) + 1,
            };
            unsafe { libc::_exit(code) }
        }
    };
    drop(writer);
    let mut why = String::new();
    reader.read_to_string(&mut why).expect("read");
    match waitpid(child, None).expect("wait") {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Signaled(_, signal, _) => Err(Ended::Killed(signal)),
        _ => Err(Ended::Failed(why)),
    }
}

/// Whether the test may do what only root may; prints that it does not run otherwise.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not run: this test needs root");
    }
    root
}
