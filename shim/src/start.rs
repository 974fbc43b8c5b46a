// SPDX-License-Identifier: Apache-2.0

//! `start`: find the pod's daemon or leave one behind, and print its address.
//!
//! Whatever is printed besides the address, containerd takes for part of it. The socket is
//! bound here, so it can be dialled as soon as the address is known; nothing waits for the
//! daemon, which inherits the socket.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use husk_sandbox::{ProcessId, clock};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::address::{self, SOCKET_DIR};
use crate::args::Args;
use crate::bootstrap;

/// The descriptor on which the daemon finds its listening socket.
pub const LISTENER_FD: i32 = 3;

/// Tells the daemon when `start` was run, host CLOCK_MONOTONIC in ns.
pub const STARTED_ENV: &str = "HUSK_SHIM_STARTED_NS";

/// Tells it the file of husk's settings that the runtime's options name. A task's are in its
/// Create too, a sandbox's only here.
pub const CONFIG_ENV: &str = "HUSK_SHIM_CONFIG";

/// The file of the bundle in which containerd 1.6 and 1.7 look for the address.
const ADDRESS_FILE: &str = "address";

/// The file of the bundle that says which process the daemon is: its number and start time.
pub const PID_FILE: &str = "shim.pid";

pub fn start(args: &Args) -> Result<(), String> {
    let started_ns = clock::monotonic_ns();
    let bundle = std::env::current_dir().map_err(|error| format!("no bundle: {error}"))?;
    let input = bootstrap::read_stdin(&args.namespace, &args.id);
    let group = address::group(&args.id, &bundle)?;
    let directory = Path::new(SOCKET_DIR);
    let socket = address::socket_path(directory, &args.address, &args.namespace, &group);
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(directory)
        .map_err(|error| format!("cannot make {SOCKET_DIR}: {error}; is it run as root?"))?;
    let text = format!("unix://{}", socket.display());
    let lock = lock(directory)?;
    if answers(&socket)? {
        address::write_atomically(&bundle.join(ADDRESS_FILE), &text).map_err(|error| {
            format!("cannot write {ADDRESS_FILE} in {}: {error}", bundle.display())
        })?;
    } else {
        if group != args.id {
            return Err(format!(
                "container {} belongs to pod {group}, which is not running; create its sandbox \
                 container first",
                args.id
            ));
        }
        let config_file = input.config_file.as_deref();
        launch(args, config_file, &bundle, &socket, &text, started_ns)?;
    }
    drop(lock);
    let mut stdout = io::stdout();
    stdout
        .write_all(&input.answer.bytes(&text))
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("cannot print the address: {error}"))
}

/// Keeps two starts of one pod, and a daemon's end, apart.
pub fn lock(directory: &Path) -> Result<Flock<File>, String> {
    let what =
        |error: &dyn std::fmt::Display| format!("cannot lock {}: {error}", directory.display());
    let file = File::open(directory).map_err(|error| what(&error))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| what(&error))
}

/// Whether a daemon listens there. What a dead one left is removed.
pub fn answers(path: &Path) -> Result<bool, String> {
    let what = |error: Errno| format!("cannot dial {}: {error}", path.display());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(what)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path).map_err(what)?) {
        // With its queue full it is busy, not dead.
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(Errno::ECONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("cannot remove the stale socket {}: {error}", path.display()))
            }
            _ => Ok(false),
        },
        Err(error) => Err(what(error)),
    }
}

/// Binds the socket and starts a daemon on it, which the bundle's files then tell of.
fn launch(
    args: &Args,
    config_file: Option<&Path>,
    bundle: &Path,
    socket: &Path,
    address: &str,
    started_ns: u64,
) -> Result<(), String> {
    let listener = UnixListener::bind(socket)
        .map_err(|error| format!("cannot listen on {}: {error}", socket.display()))?;
    let started = fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .and_then(|()| spawn(args, config_file, listener.into(), started_ns))
        .and_then(|mut daemon| {
            rank_for_oom_killer(daemon.id());
            let written = ProcessId::of(daemon.id()).and_then(|process| {
                let text = format!("{} {}", process.pid, process.start);
                address::write_atomically(&bundle.join(PID_FILE), &text)?;
                address::write_atomically(&bundle.join(ADDRESS_FILE), address)
            });
            if written.is_err() {
                // Nobody would ever find it.
                let _ = daemon.kill();
            }
            written
        });
    started.map_err(|error| {
        let _ = fs::remove_file(socket);
        format!("cannot start the daemon: {error}")
    })
}

/// Starts this program again as the daemon.
fn spawn(
    args: &Args,
    config_file: Option<&Path>,
    listener: OwnedFd,
    started_ns: u64,
) -> io::Result<Child> {
    // As for husk-vmm: if the number is taken here, then by a descriptor the child may lose.
    // SAFETY: fcntl on a descriptor that we own touches no memory.
    let fd = unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_DUPFD_CLOEXEC, LISTENER_FD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let _listener = unsafe { OwnedFd::from_raw_fd(fd) };
    // By its path, so that the process has the program's name.
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["-namespace", &args.namespace, "-address", &args.address, "-id", &args.id])
        .env(STARTED_ENV, started_ns.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    match config_file {
        Some(path) => command.env(CONFIG_ENV, path),
        None => command.env_remove(CONFIG_ENV),
    };
    if args.debug {
        command.arg("-debug");
    }
    command.arg("daemon");
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            let kept = if fd == LISTENER_FD {
                libc::fcntl(fd, libc::F_SETFD, 0)
            } else {
                libc::dup2(fd, LISTENER_FD)
            };
            let rest = LISTENER_FD as libc::c_uint + 1;
            if kept < 0
                || libc::close_range(rest, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Makes the daemon go just before containerd when the host is out of memory.
fn rank_for_oom_killer(pid: u32) {
    /// Where the kernel's scale ends.
    const MAX_SCORE: i32 = 1000;
    let own = fs::read_to_string("/proc/self/oom_score_adj");
    if let Some(own) = own.ok().and_then(|text| text.trim().parse::<i32>().ok()) {
        // A rank is worth having, not worth failing for.
        let _ =
            fs::write(format!("/proc/{pid}/oom_score_adj"), (own + 1).min(MAX_SCORE).to_string());
    }
}
