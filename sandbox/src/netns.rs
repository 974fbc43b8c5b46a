// SPDX-License-Identifier: Apache-2.0

//! The network namespace that husk-vmm is started in. Its process is the one that clients
//! and hooks are told of, so /proc/<pid>/ns/net has to be the pod's network. Neither vsock
//! nor anything else of a VM needs the host's.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use crate::error::Error;

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
#[derive(Debug)]
pub enum Netns {
    Host,
    New,
    Open(File),
}

impl Network {
    /// Opens the namespace if it is one.
    pub fn open(&self) -> Result<Netns, Error> {
        let path = match self {
            Network::Host => return Ok(Netns::Host),
            Network::New => return Ok(Netns::New),
            Network::At(path) => path,
        };
        let refuse = |why: &dyn std::fmt::Display| {
            Error::invalid(format!(
                "cannot use the network namespace {} of the container's config.json: {why}",
                path.display()
            ))
        };
        let file = File::open(path).map_err(|error| refuse(&error))?;
        // SAFETY: this request takes no argument and gives the CLONE_NEW flag; it fails on
        // other files.
        match unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) } {
            libc::CLONE_NEWNET => Ok(Netns::Open(file)),
            _ => Err(refuse(&"it is not a network namespace")),
        }
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
            Netns::Open(file) => unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) },
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
        let own = Network::At("/proc/self/ns/net".into()).open().expect("a network namespace");
        assert!(matches!(own, Netns::Open(_)));
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
