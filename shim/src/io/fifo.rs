// SPDX-License-Identifier: Apache-2.0

//! FIFOs that survive the other side going away and coming back: we hold both ends of each.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use husk_sandbox::reactor;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The writing end of an output.
#[derive(Debug)]
pub struct Output {
    writer: AsyncFd<OwnedFd>,
    /// Keeps writes from failing while no reader is there: a restarted containerd opens the
    /// FIFO again and finds what was written meanwhile. A logger's pipe has none.
    _reader: Option<OwnedFd>,
}

impl Output {
    /// The writing end of a pipe whose reader is another process for good.
    pub fn of_pipe(writer: OwnedFd) -> io::Result<Output> {
        Ok(Output { writer: reactor::watch(writer, Interest::WRITABLE)?, _reader: None })
    }

    pub fn fd(&self) -> &AsyncFd<OwnedFd> {
        &self.writer
    }
}

/// The reading end of stdin.
#[derive(Debug)]
pub struct Input(AsyncFd<OwnedFd>);

impl Input {
    pub fn fd(&self) -> &AsyncFd<OwnedFd> {
        &self.0
    }
}

/// Opens the FIFO of an output. Never blocks: the reading end, opened first, is our own.
pub fn open_output(path: &Path) -> io::Result<Output> {
    let reader = open(path, OpenOptions::new().read(true))?;
    let writer = open(path, OpenOptions::new().write(true))?;
    Ok(Output { writer: reactor::watch(writer, Interest::WRITABLE)?, _reader: Some(reader) })
}

/// Opens the FIFO of stdin, with a writing end that keeps it from ending while held.
/// Never blocks.
pub fn open_input(path: &Path) -> io::Result<(Input, OwnedFd)> {
    let reader = open(path, OpenOptions::new().read(true))?;
    let writer = open(path, OpenOptions::new().write(true))?;
    Ok((Input(reactor::watch(reader, Interest::READABLE)?), writer))
}

/// Fails if there is no FIFO at `path`.
pub fn check(path: &Path) -> io::Result<()> {
    is_fifo(&std::fs::metadata(path)?)
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<OwnedFd> {
    let file = options.custom_flags(libc::O_NONBLOCK).open(path)?;
    is_fifo(&file.metadata()?)?;
    Ok(file.into())
}

fn is_fifo(metadata: &std::fs::Metadata) -> io::Result<()> {
    match metadata.file_type().is_fifo() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a FIFO")),
    }
}
