// SPDX-License-Identifier: Apache-2.0

//! The pod's network namespace, which husk-vmm is started in. Its process is the one that
//! clients and hooks are told of, so /proc/<pid>/ns/net has to be the pod's network. Neither
//! vsock nor anything else of a VM needs the host's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, IoContext};

/// Which network namespace a container's spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The host's own.
    Host,
    /// A new one, which lives as long as the VM.
    New,
    /// One that somebody has made, such as a CNI client.
    At(PathBuf),
}

/// The same, ready to be entered.
#[derive(Debug, Clone)]
pub enum Netns {
    Host,
    New,
    Open(Namespace),
}

impl Network {
    /// Opens the namespace if it is one. A path to the host's own is the host's.
    pub fn open(&self) -> Result<Netns, Error> {
        let path = match self {
            Network::Host => return Ok(Netns::Host),
            Network::New => return Ok(Netns::New),
            Network::At(path) => path,
        };
        let namespace = Namespace::open(path).map_err(|error| {
            Error::invalid(format!("{error} (linux.namespaces of the container's config.json)"))
        })?;
        let own = Namespace::open(Path::new("/proc/self/ns/net"))?;
        Ok(match namespace.inode == own.inode {
            true => Netns::Host,
            false => Netns::Open(namespace),
        })
    }
}

impl Netns {
    /// Moves the calling thread into it. Makes system calls only, so it may be used between
    /// fork and exec.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: neither call takes a pointer.
        let done = match self {
            Netns::Host => 0,
            Netns::New => unsafe { libc::unshare(libc::CLONE_NEWNET) },
            Netns::Open(at) => unsafe { libc::setns(at.file.as_raw_fd(), libc::CLONE_NEWNET) },
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// A network namespace that is kept open. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
    /// By which it differs from all others that live.
    pub inode: u64,
    /// Where to find it again; none if it does not outlive the pod.
    pub path: Option<PathBuf>,
}

impl Namespace {
    /// Opens the namespace at `path`.
    pub fn open(path: &Path) -> Result<Namespace, Error> {
        let failed = || format!("cannot use the network namespace {}", path.display());
        let file = File::open(path).context(failed)?;
        // SAFETY: this request takes no argument and gives the CLONE_NEW flag; it fails on
        // other files.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) } != libc::CLONE_NEWNET {
            return Err(Error::invalid(format!("{}: it is none", failed())));
        }
        let inode = file.metadata().context(failed)?.ino();
        Ok(Namespace { file: Arc::new(file), inode, path: Some(path.to_owned()) })
    }

    /// That of a process, which it may end with.
    pub fn of(pid: u32) -> Result<Namespace, Error> {
        let namespace = Namespace::open(Path::new(&format!("/proc/{pid}/ns/net")))?;
        Ok(Namespace { path: None, ..namespace })
    }

    /// Works in the namespace, on a thread that enters it and ends. Blocks.
    pub fn within<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let failed = || format!("cannot enter the network namespace {self}");
        std::thread::scope(|scope| {
            let entered = || {
                // SAFETY: setns takes no pointer. It moves this thread only.
                let done = unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) };
                nix::errno::Errno::result(done).context(failed)?;
                work()
            };
            let thread = std::thread::Builder::new().spawn_scoped(scope, entered);
            thread.context(failed)?.join().unwrap_or_else(|_| Err(Error::internal(failed())))
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}", path.display()),
            None => write!(f, "net:[{}]", self.inode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_refused_by_its_name() {
        for path in ["/nonexistent/net", "/proc/self/ns/uts", "/etc/passwd"] {
            let error = Network::At(path.into()).open().expect_err(path);
            assert!(error.message.contains(path), "{error}");
            assert_eq!(error.code, crate::Code::InvalidArgument);
        }
    }

    #[test]
    fn a_path_to_the_hosts_own_is_the_hosts() {
        let own = Network::At("/proc/self/ns/net".into()).open().expect("a network namespace");
        assert!(matches!(own, Netns::Host));
    }

    #[test]
    fn a_new_one_is_not_ours() {
        let identity = || std::fs::read_link("/proc/thread-self/ns/net").expect("link");
        let ours = identity();
        let entered = std::thread::spawn(move || Netns::New.enter().map(|()| identity()));
        match entered.join().expect("thread") {
            Ok(theirs) => assert_ne!(theirs, ours),
            // Not permitted to everybody.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
    }
}
