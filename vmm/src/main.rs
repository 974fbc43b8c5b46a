// SPDX-License-Identifier: Apache-2.0

//! husk-vmm: one microVM, one process. Alone it boots a guest on the terminal; with
//! `--control FD` it is driven by a supervisor (see `husk_vmm::control`).

mod alone;
mod supervised;

use std::process::ExitCode;

/// Exit status for input that cannot be used.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let started_ns = monotonic_ns();
    let arguments = match alone::parse(lexopt::Parser::from_env()) {
        Ok(arguments) => arguments,
        Err(message) => return refuse(&message),
    };
    raise_descriptor_limit();
    grow_descriptor_table();
    match arguments {
        alone::Arguments::Print(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        alone::Arguments::Supervised(control) => supervised::run(control, started_ns),
        alone::Arguments::Alone(guest) => alone::run(*guest),
    }
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("husk-vmm: {message}");
    ExitCode::from(BAD_INPUT)
}

/// Lets the process have as many descriptors as the system allows: the file server keeps
/// one for each inode that the guest knows, and takes its own caps from this limit.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to one live rlimit. If they fail the limit stays.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Makes room for the descriptors of a usual guest while there is one thread only. With
/// more, the kernel waits for an RCU grace period, some 10 ms, each time the table is doubled.
fn grow_descriptor_table() {
    const ROOM: libc::c_int = 1023;
    // SAFETY: neither call touches memory. A lower limit on descriptors makes the first fail,
    // and then the table grows when it has to.
    unsafe {
        let highest = libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, ROOM);
        if highest >= 0 {
            libc::close(highest);
        }
    }
}

/// Host CLOCK_MONOTONIC in ns.
fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
