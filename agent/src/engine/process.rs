// SPDX-License-Identifier: Apache-2.0

//! In the new process: what config.json's `process` says it is to be (runtime-spec 1.2,
//! config.md "Process"). The order is the specification's and the kernel's: what needs
//! privileges first, the filter that may forbid it all last.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::Process;

use super::capabilities::Sets;
use super::program::{self, Program, text};
use super::schedule;
use super::seccomp::Filter;
use super::stage::{Failure, check};
use super::users;

/// Magic number of devpts, and the device number of every ptmx.
const DEVPTS: i64 = 0x1cd1;
const PTMX: u64 = libc::makedev(5, 2);

/// The standard descriptors of a process.
#[derive(Clone, Copy)]
pub enum Stdio<'a> {
    /// They are what this process has already.
    Inherited,
    Given(&'a [OwnedFd; 3]),
    /// A terminal of the container, with its rows and columns; 0 for the kernel's default.
    Terminal(u32, u32),
}

/// What a process becomes, beside its namespaces.
pub struct Identity<'a> {
    pub process: &'a Process,
    pub filter: Option<&'a Filter>,
    /// Whether it is in a user namespace that the caller is not in.
    pub mapped: bool,
    /// Descriptors from 3 on that the program gets.
    pub preserved: u32,
}

/// The other side of `terminal`, and a session that it controls.
pub fn take_terminal(slave: &OwnedFd) -> Result<(), String> {
    // SAFETY: TIOCSCTTY takes an int; dup2() takes descriptors.
    unsafe {
        check(libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0), "take the terminal")?;
        for fd in 0..3 {
            check(libc::dup2(slave.as_raw_fd(), fd), "take the terminal")?;
        }
    }
    Ok(())
}

/// Makes the given descriptors the standard ones.
pub fn take_stdio(stdio: &[OwnedFd; 3]) -> Result<(), String> {
    for (target, fd) in stdio.iter().enumerate() {
        // SAFETY: dup2() takes descriptors.
        check(unsafe { libc::dup2(fd.as_raw_fd(), target as i32) }, "take the standard streams")?;
    }
    Ok(())
}

/// Makes a terminal in the container, where its path means something to the process: its
/// master and its slave side.
pub fn open_terminal(uid: u32, rows: u32, cols: u32) -> Result<(OwnedFd, OwnedFd), String> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: the path is a C string constant.
    let fd = unsafe { libc::open(c"/dev/pts/ptmx".as_ptr(), flags) };
    check(fd, "open /dev/pts/ptmx in the container")?;
    // SAFETY: the descriptor is new and nobody else's.
    let master = unsafe { OwnedFd::from_raw_fd(fd) };
    // The path is the container's to choose; it must not choose what the caller reads.
    let stat = nix::sys::stat::fstat(&master).map_err(text)?;
    let fs = nix::sys::statfs::fstatfs(&master).map_err(text)?;
    if fs.filesystem_type().0 != DEVPTS || stat.st_rdev != PTMX {
        return Err("/dev/pts/ptmx of the container is no terminal multiplexer".to_owned());
    }
    let unlock = 0i32;
    // SAFETY: TIOCSPTLCK reads an int, which is alive during the call.
    let unlocked = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
    check(unlocked, "unlock the terminal")?;
    if rows != 0 || cols != 0 {
        crate::stdio::set_size(&master, rows, cols).map_err(|e| e.to_string())?;
    }
    let slave = program::own_terminal(&master, uid)?;
    Ok((master, slave))
}

/// Writes the process's oom_score_adj; children inherit it. Before the namespaces, because
/// lowering it takes the caller's rights.
pub fn set_oom_score(process: &Process) -> Result<(), String> {
    let Some(score) = process.oom_score_adj() else { return Ok(()) };
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|e| format!("cannot set oomScoreAdj to {score}: {e}"))
}

impl Identity<'_> {
    /// Takes on everything but the program, and finds that.
    pub fn assume(&self) -> Result<Program, Failure> {
        let mut process = self.process.clone();
        users::set_home(&mut process);
        schedule::apply(&process)?;
        set_limits(&process)?;
        umask(Mode::from_bits_truncate(process.user().umask().unwrap_or(0o022)));
        if self.confined() {
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
        if !self.confined() {
            self.load_filter()?;
        }
        let capabilities = Sets::of(process.capabilities().as_ref());
        capabilities.drop_bounding()?;
        self.set_user(&process)?;
        if again {
            nix::unistd::chdir(process.cwd()).map_err(|e| no_cwd(&process, e))?;
        }
        capabilities.apply()?;
        if !within_root() {
            return Err("the current working directory is outside of the container".into());
        }
        Program::find(&process).map_err(Failure::NoProgram)
    }

    /// Becomes the program. Returns only if that failed.
    pub fn execute(&self, program: &Program) -> Failure {
        if self.confined()
            && let Err(why) = self.load_filter()
        {
            return why.into();
        }
        let first = 3u32.saturating_add(self.preserved);
        // SAFETY: close_range() takes no pointers.
        unsafe {
            libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        }
        Failure::NoProgram(program.execute())
    }

    /// Only a process that cannot gain privileges may load a filter without having any.
    fn confined(&self) -> bool {
        self.process.no_new_privileges() == Some(true)
    }

    fn load_filter(&self) -> Result<(), String> {
        self.filter.map_or(Ok(()), Filter::load)
    }

    /// Takes on user and groups, and keeps the capabilities until they are set.
    fn set_user(&self, process: &Process) -> Result<(), String> {
        let user = process.user();
        let groups = user.additional_gids().as_deref().unwrap_or_default();
        // An empty list is not worth failing for where setting groups is denied.
        if !groups.is_empty() || !self.mapped {
            // SAFETY: setgroups() reads groups.len() ids from groups.
            let set = unsafe { libc::setgroups(groups.len(), groups.as_ptr()) };
            check(set, "set additionalGids")?;
        }
        keep_capabilities(true)?;
        set_ids(user.uid(), user.gid())?;
        keep_capabilities(false)
    }
}

fn keep_capabilities(keep: bool) -> Result<(), String> {
    // SAFETY: this prctl() takes no pointers.
    let set = unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, i32::from(keep), 0, 0, 0) };
    check(set, "keep capabilities")
}

/// Changes all three user and group ids.
pub fn set_ids(uid: u32, gid: u32) -> Result<(), String> {
    // SAFETY: these take no pointers. The system calls, because the C library's functions
    // care for threads that do not exist.
    unsafe {
        let set = libc::syscall(libc::SYS_setresgid, gid, gid, gid) as i32;
        check(set, &format!("set the group {gid}"))?;
        let set = libc::syscall(libc::SYS_setresuid, uid, uid, uid) as i32;
        check(set, &format!("set the user {uid}"))
    }
}

/// The kernel marks a path that does not lie below the root.
fn within_root() -> bool {
    let mut path = [0u8; libc::PATH_MAX as usize];
    // SAFETY: getcwd() writes at most path.len() bytes. The system call, because the C
    // library hides what is asked for here.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    length < 0 || path[0] == b'/'
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
        let (kind, soft, hard) = (limit.typ(), limit.soft(), limit.hard());
        check(set, &format!("set {kind} to {soft} (soft) and {hard} (hard)"))?;
    }
    Ok(())
}

/// A session of its own for the process, and a keyring that it shares with its container
/// only. Kernels without keys have nothing to share.
pub fn make_session(keyring: Option<&str>) -> Result<(), String> {
    nix::unistd::setsid().map_err(|e| format!("cannot make a session: {}", text(e)))?;
    let Some(id) = keyring else { return Ok(()) };
    let name = std::ffi::CString::new(format!("_ses.{id}")).map_err(|e| e.to_string())?;
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the name is a C string, alive during the call.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr(), 0, 0, 0) };
    match Errno::last() {
        errno if joined < 0 && errno != Errno::ENOSYS => {
            Err(format!("cannot join the session keyring {name:?}: {}", text(errno)))
        }
        _ => Ok(()),
    }
}

/// Changes what uname(2) and the layout of memory look like.
pub fn set_personality(spec: &oci_spec::runtime::Spec) -> Result<(), String> {
    use oci_spec::runtime::LinuxPersonalityDomain::{PerLinux, PerLinux32};
    let linux = spec.linux().as_ref();
    let Some(personality) = linux.and_then(|linux| linux.personality().as_ref()) else {
        return Ok(());
    };
    let domain = match personality.domain() {
        PerLinux => 0,
        PerLinux32 => 8,
    };
    // SAFETY: personality() takes no pointers.
    check(unsafe { libc::personality(domain) }, "set the personality")
}
