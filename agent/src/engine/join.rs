// SPDX-License-Identifier: Apache-2.0

//! In the helper: a further process in a container. libcontainer has a way to do this, but
//! without the container's seccomp filter and its user namespace, so this is our own: enter
//! the cgroup and the namespaces, make a child for the agent, and there take on the identity
//! and the limits that the process is to have.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{LinuxSeccomp, Process};

use super::helper::Inherited;
use super::program::{self, text};
use super::{Join, spec};

/// Magic number of devpts, and the device number of every ptmx.
const DEVPTS: i64 = 0x1cd1;
const PTMX: u64 = libc::makedev(5, 2);

/// Returns the pid, and the terminal if the process has one. The process runs its program
/// when the result pipe closes without a text.
pub fn join(task: &Join, inherited: &Inherited) -> Result<(i32, Option<OwnedFd>), String> {
    let init = inherited.init.as_ref().ok_or("the container's first process is not given")?;
    // Nothing in the container may look into this process while it is on its way in.
    // SAFETY: this prctl() takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, "become undumpable")?;
    if let Some(score) = task.process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|e| format!("cannot set oomScoreAdj to {score}: {e}"))?;
    }
    enter_cgroup(task)?;
    // SAFETY: setns() takes no pointers.
    let entered = unsafe { libc::setns(init.as_raw_fd(), task.namespaces) };
    check(entered, "enter the container's namespaces")?;
    let terminal = task.process.terminal().unwrap_or(false);
    let terminal = terminal.then(|| open_terminal(task)).transpose()?;
    // SAFETY: without CLONE_VM this is a fork, and there is one thread. CLONE_PARENT makes
    // the process the agent's child, and its end the agent's to learn.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid != 0 {
        check(pid as i32, "make a process in the container")?;
        return Ok((pid as i32, terminal.map(|(master, _)| master)));
    }
    let why = match become_process(task, terminal.map(|(_, slave)| slave)) {
        Ok(never) => match never {},
        Err(why) => why,
    };
    // SAFETY: writes why.len() bytes from why; _exit() runs nothing of the helper's.
    unsafe {
        libc::write(inherited.result.as_raw_fd(), why.as_ptr().cast(), why.len());
        libc::_exit(127)
    }
}

/// Joins the container's cgroup. Where its root cannot hold processes, because the
/// container has delegated controllers to children of it, the first process shows the way.
fn enter_cgroup(task: &Join) -> Result<(), String> {
    let enter = |directory: &Path| std::fs::write(directory.join("cgroup.procs"), "0");
    let failed = |e: io::Error| format!("cannot enter the container's cgroup: {e}");
    match enter(&task.cgroup) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
        result => return result.map_err(failed),
    }
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", task.init)).map_err(failed)?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or("the container's first process has no cgroup")?;
    enter(&Path::new("/sys/fs/cgroup").join(own)).map_err(failed)
}

/// Makes a terminal in the container, where its path means something to the process.
fn open_terminal(task: &Join) -> Result<(OwnedFd, OwnedFd), String> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: the path is a C string constant.
    let fd = unsafe { libc::open(c"/dev/pts/ptmx".as_ptr(), flags) };
    check(fd, "open /dev/pts/ptmx in the container")?;
    // SAFETY: the descriptor is new and nobody else's.
    let master = unsafe { OwnedFd::from_raw_fd(fd) };
    // The path is the container's to choose; it must not choose what the agent reads.
    let stat = nix::sys::stat::fstat(&master).map_err(text)?;
    let fs = nix::sys::statfs::fstatfs(&master).map_err(text)?;
    if fs.filesystem_type().0 != DEVPTS || stat.st_rdev != PTMX {
        return Err("/dev/pts/ptmx of the container is no terminal multiplexer".to_owned());
    }
    let unlock = 0i32;
    // SAFETY: TIOCSPTLCK reads an int, which is alive during the call.
    let unlocked = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
    check(unlocked, "unlock the terminal")?;
    if task.rows != 0 || task.cols != 0 {
        crate::stdio::set_size(&master, task.rows, task.cols).map_err(|e| e.to_string())?;
    }
    let slave = program::own_terminal(&master, task.process.user().uid())?;
    Ok((master, slave))
}

/// In the new process. The order is the specification's and the kernel's: what needs
/// privileges first, the filter that may forbid it all last.
fn become_process(
    task: &Join,
    terminal: Option<OwnedFd>,
) -> Result<std::convert::Infallible, String> {
    nix::unistd::setsid().map_err(|e| format!("cannot make a session: {}", text(e)))?;
    if let Some(terminal) = terminal {
        // SAFETY: TIOCSCTTY takes an int; dup2() takes descriptors.
        unsafe {
            check(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0), "take the terminal")?;
            for fd in 0..3 {
                check(libc::dup2(terminal.as_raw_fd(), fd), "take the terminal")?;
            }
        }
    }
    if task.namespaces & libc::CLONE_NEWUSER != 0 {
        set_ids(0, 0)?;
    }
    let mut process = task.process.clone();
    spec::set_home(&mut process, || {
        let path = "/etc/passwd";
        let open = std::fs::OpenOptions::new();
        spec::passwd(nonblocking(open).open(path).ok()?)
    });
    set_limits(&process)?;
    let mask = process.user().umask().unwrap_or(0o022);
    umask(Mode::from_bits_truncate(mask));
    let confined = process.no_new_privileges() == Some(true);
    if confined {
        // SAFETY: this prctl() takes no pointers.
        let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        check(set, "set noNewPrivileges")?;
    }
    // With the rights of the container's root, or of the user where those do not reach.
    let changed = nix::unistd::chdir(process.cwd());
    let again = matches!(changed, Err(Errno::EACCES | Errno::EPERM));
    if !again {
        changed.map_err(|e| no_cwd(&process, e))?;
    }
    set_user(&process)?;
    if again {
        nix::unistd::chdir(process.cwd()).map_err(|e| no_cwd(&process, e))?;
    }
    if !confined {
        filter(&task.seccomp)?;
    }
    set_capabilities(&process)?;
    // Finding the program is the last thing that the filter could keep from working.
    program::find(&process)?;
    if confined {
        filter(&task.seccomp)?;
    }
    // SAFETY: close_range() takes no pointers.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Err(program::execute(&process))
}

fn nonblocking(mut options: std::fs::OpenOptions) -> std::fs::OpenOptions {
    std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true), libc::O_NONBLOCK);
    options
}

fn no_cwd(process: &Process, errno: Errno) -> String {
    format!("chdir to cwd ({:?}) set in config.json failed: {}", process.cwd(), text(errno))
}

fn set_limits(process: &Process) -> Result<(), String> {
    for limit in process.rlimits().iter().flatten() {
        let value = libc::rlimit { rlim_cur: limit.soft(), rlim_max: limit.hard() };
        // SAFETY: setrlimit() reads an rlimit, which is alive during the call. The types are
        // listed in the order of the kernel's numbers.
        let set = unsafe { libc::setrlimit(limit.typ() as u32, &value) };
        check(set, &format!("set {}", limit.typ()))?;
    }
    Ok(())
}

/// Takes on user and groups, and keeps the capabilities until they are set.
fn set_user(process: &Process) -> Result<(), String> {
    let user = process.user();
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    // SAFETY: setgroups() reads groups.len() ids from groups; prctl() takes no pointers.
    unsafe {
        // An empty list is not worth failing for where setting groups is denied.
        if !groups.is_empty() {
            let set = libc::setgroups(groups.len(), groups.as_ptr());
            check(set, "set additionalGids")?;
        }
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")?;
        set_ids(user.uid(), user.gid())?;
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0), "keep capabilities")
    }
}

fn set_ids(uid: u32, gid: u32) -> Result<(), String> {
    // SAFETY: these take no pointers. The system calls, because the C library's functions
    // care for threads that do not exist.
    unsafe {
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid) as i32, "set the group")?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid) as i32, "set the user")
    }
}

fn set_capabilities(process: &Process) -> Result<(), String> {
    let syscall = SyscallType::default().create_syscall();
    let failed = |e: &dyn std::fmt::Display| format!("cannot set capabilities: {e}");
    libcontainer::capabilities::reset_effective(syscall.as_ref()).map_err(|e| failed(&e))?;
    let capabilities = process.capabilities().as_ref();
    let capabilities = capabilities.ok_or_else(|| failed(&"none are given"))?;
    libcontainer::capabilities::drop_privileges(capabilities, syscall.as_ref())
        .map_err(|e| failed(&e))
}

fn filter(seccomp: &Option<LinuxSeccomp>) -> Result<(), String> {
    let Some(seccomp) = seccomp else { return Ok(()) };
    libcontainer::seccomp::initialize_seccomp(seccomp)
        .map(drop)
        .map_err(|e| format!("cannot load the seccomp filter: {e}"))
}

fn check(result: i32, what: &str) -> Result<(), String> {
    if result < 0 { Err(format!("cannot {what}: {}", text(Errno::last()))) } else { Ok(()) }
}
