// SPDX-License-Identifier: Apache-2.0

//! Moves bytes between descriptors that do not block.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use tokio::io::unix::AsyncFd;

/// Bytes per system call; more than a pipe holds.
const CHUNK: usize = 1 << 20;

/// Bytes of one read where the kernel cannot move them itself.
const BUFFER: usize = 64 << 10;

/// Moves everything from a socket to a pipe or the other way, without copying through this
/// process, until `from` ends. [`io::ErrorKind::BrokenPipe`] when nobody can read `to`.
pub async fn splice_all(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut readable = from.readable().await?;
        let mut writable = to.writable().await?;
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(from.get_ref(), None, to.get_ref(), None, CHUNK, flags) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                // One of the two; only the guilty one may be waited for, or its next
                // readiness would go unnoticed.
                let (can_read, can_write) = poll_both(from.get_ref(), to.get_ref())?;
                if !can_read {
                    readable.clear_ready();
                }
                if !can_write {
                    writable.clear_ready();
                }
                if can_read && can_write {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Appends everything from a socket to a file, until the socket ends.
pub async fn copy_to_file(from: &AsyncFd<OwnedFd>, file: &Arc<File>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut readable = from.readable().await?;
        let len = match nix::unistd::read(from.get_ref().as_fd(), &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(Errno::EAGAIN) => {
                readable.clear_ready();
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        // A file system may take its time.
        let file = file.clone();
        let written = tokio::task::spawn_blocking(move || {
            (&*file).write_all(&buffer[..len]).map(|()| buffer)
        });
        buffer = written.await.map_err(io::Error::other)??;
    }
}

/// Whether `from` can be read and `to` be written now.
fn poll_both(from: &OwnedFd, to: &OwnedFd) -> io::Result<(bool, bool)> {
    let mut fds = [
        libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        libc::pollfd { fd: to.as_raw_fd(), events: libc::POLLOUT, revents: 0 },
    ];
    // SAFETY: fds is an array of two that outlives the call.
    if unsafe { libc::poll(fds.as_mut_ptr(), 2, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((fds[0].revents != 0, fds[1].revents != 0))
}
