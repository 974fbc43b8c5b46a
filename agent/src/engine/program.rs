// SPDX-License-Identifier: Apache-2.0

//! In the process to be: finding its program and becoming it. The texts of the errors are
//! runc's, because docker and others read them.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use oci_spec::runtime::Process;

/// Where a process without PATH looks for its program.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds the program of a process in the file system that the caller sees, with the rights
/// that the caller has.
fn find(process: &Process) -> Result<PathBuf, String> {
    let name = process.args().as_ref().and_then(|args| args.first());
    let name = name.ok_or("the process has no args")?;
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(Errno::ENOENT) => {
                Err(format!("exec: {name:?}: stat {name}: {}", text(Errno::ENOENT)))
            }
            Err(errno) => Err(format!("exec: {name:?}: {}", text(errno))),
        };
    }
    let env = process.env().as_deref().unwrap_or_default();
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
        .find(|path| !name.is_empty() && executable(path).is_ok())
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

/// A program that was found, with what it is to be given.
pub struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    pub fn find(process: &Process) -> Result<Self, String> {
        let path = find(process)?;
        let strings = |list: &[String]| {
            list.iter().map(|s| CString::new(s.as_bytes())).collect::<Result<Vec<_>, _>>()
        };
        let path = CString::new(path.as_os_str().as_bytes());
        let env = distinct(process.env().as_deref().unwrap_or_default());
        match (path, strings(process.args().as_deref().unwrap_or_default()), strings(&env)) {
            (Ok(path), Ok(args), Ok(env)) => Ok(Self { path, args, env }),
            _ => Err("an argument or an environment variable holds a zero byte".to_owned()),
        }
    }

    /// Becomes the program. Returns only if that failed, with the reason.
    pub fn execute(&self) -> String {
        default_signals();
        match nix::unistd::execve(&self.path, &self.args, &self.env) {
            Ok(never) => match never {},
            Err(errno) => format!("exec {}: {}", self.path.to_string_lossy(), text(errno)),
        }
    }
}

/// An environment in which each variable is once, where it was first, with its last value:
/// programs differ in which of two they look at, and people overrule by adding.
fn distinct(env: &[String]) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    let mut places = HashMap::new();
    for entry in env {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        match places.get(name) {
            Some(&place) => distinct[place] = entry.clone(),
            None => {
                places.insert(name, distinct.len());
                distinct.push(entry.clone());
            }
        }
    }
    distinct
}

/// Undoes what Rust's runtime, the agent and whoever started it do to signals: a program
/// expects to be killed by SIGPIPE, and to receive everything.
pub fn default_signals() {
    // SAFETY: signal() with SIG_DFL installs no handler; sigprocmask() reads a set that was
    // made empty just before. Signals that cannot be set have no other way to be.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

fn executable(path: &Path) -> Result<(), Errno> {
    let stat = nix::sys::stat::stat(path)?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the name is a C string, alive during the call.
    let result =
        unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), libc::X_OK, libc::AT_EACCESS) };
    match (result, Errno::last()) {
        (0, _) => Ok(()),
        (_, Errno::EACCES) => Err(Errno::EACCES),
        // A seccomp filter may not know the call; the mode has to do.
        _ if stat.st_mode & 0o111 != 0 => Ok(()),
        _ => Err(Errno::EACCES),
    }
}

/// An errno in Go's words, which are the C library's in lower case.
pub fn text(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

/// Opens the other side of a terminal whose master side is given.
pub fn slave(master: &OwnedFd) -> Result<OwnedFd, String> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and no pointer.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(format!("cannot open the terminal: {}", text(Errno::last())));
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a terminal to a user; the group stays the one of all terminals.
pub fn own_terminal(master: &OwnedFd, uid: u32) -> Result<OwnedFd, String> {
    let slave = slave(master)?;
    nix::unistd::fchown(&slave, Some(nix::unistd::Uid::from_raw(uid)), None)
        .and_then(|()| {
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o620);
            nix::sys::stat::fchmod(&slave, mode)
        })
        .map_err(|errno| format!("cannot give the terminal to user {uid}: {}", text(errno)))?;
    Ok(slave)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_in(path: Option<&str>, name: &str) -> Result<PathBuf, String> {
        let mut process: Process =
            serde_json::from_str(r#"{"user":{"uid":0,"gid":0},"cwd":"/"}"#).expect("json");
        process.set_args(Some(vec![name.to_owned()]));
        process.set_env(path.map(|path| vec![format!("PATH={path}")]));
        find(&process)
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert_eq!(find_in(Some("/nowhere:/bin"), "sh"), Ok("/bin/sh".into()));
        assert_eq!(find_in(None, "/bin/sh"), Ok("/bin/sh".into()));
        assert!(find_in(None, "sh").is_ok());
    }

    #[test]
    fn the_later_of_two_values_of_a_variable_counts() {
        let env = ["A=1", "B=", "A=2", "AA=3", "B=4=5", "A="].map(str::to_owned);
        assert_eq!(distinct(&env), ["A=", "B=4=5", "AA=3"]);
    }

    #[test]
    fn what_cannot_be_executed_is_named_as_runc_names_it() {
        assert_eq!(
            find_in(Some("/bin"), "nope").expect_err("nope"),
            r#"exec: "nope": executable file not found in $PATH"#
        );
        assert_eq!(
            find_in(None, "/nope").expect_err("nope"),
            r#"exec: "/nope": stat /nope: no such file or directory"#
        );
        assert_eq!(
            find_in(None, "/etc/passwd").expect_err("passwd"),
            r#"exec: "/etc/passwd": permission denied"#
        );
        assert_eq!(find_in(None, "/etc").expect_err("etc"), r#"exec: "/etc": is a directory"#);
        assert!(find_in(Some("/bin"), "").is_err());
    }
}
