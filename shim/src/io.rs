// SPDX-License-Identifier: Apache-2.0

//! The streams of a process on the host: what the client asked for by paths and URIs,
//! joined to the guest's streams. Bytes are moved by the kernel; nothing is held here, so a
//! reader that stalls holds up only the container's own output.

mod fifo;
mod logger;
mod shovel;
mod uri;

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use husk_sandbox::{Code, Error, Expected, IoContext, Terminal, reactor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use crate::log;
use fifo::{Input, Output};
use logger::Logger;
use uri::Uri;

/// How long a delete waits for output that a reader has not taken yet.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// What the client asked for; empty is /dev/null.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Whose streams they are, for a logging program.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub container: &'a str,
    pub namespace: &'a str,
}

/// A process's streams. Dropping it closes them at once.
#[derive(Debug)]
pub struct Io {
    stdin: Stdin,
    outputs: Vec<Task>,
    logger: Option<Logger>,
}

/// The client's input.
///
/// It is opened only when the process is started. Until then the client's own open waits,
/// and so it cannot come to its end, and say CloseIO, for a task that its create has not
/// returned yet; `ctr` would lose that.
#[derive(Debug, Default)]
enum Stdin {
    #[default]
    None,
    Waiting {
        path: String,
        expected: Expected,
        /// CloseIO came already.
        closed: bool,
    },
    Open {
        /// Keeps the FIFO from ending when the client goes away.
        writer: Option<OwnedFd>,
        _feed: Task,
    },
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where an output goes.
#[derive(Debug)]
enum Sink {
    Pipe(Output),
    File(Arc<File>),
}

impl Io {
    /// Opens the outputs that `stdio` names and waits in the background for the guest to
    /// connect to the ports that `expect` gives out, which are returned for the guest.
    pub async fn open(
        stdio: &Stdio,
        owner: Owner<'_>,
        mut expect: impl FnMut() -> Expected,
    ) -> Result<(Io, Terminal), Error> {
        let mut io = Io { stdin: Stdin::None, outputs: Vec::new(), logger: None };
        let (stdout, stderr) = io.open_outputs(stdio, owner).await?;
        let mut ports = Terminal { terminal: stdio.terminal, ..Terminal::default() };
        if !stdio.stdin.is_empty() {
            fifo::check(Path::new(&stdio.stdin))
                .context(|| format!("cannot open stdin {}", stdio.stdin))?;
            let expected = expect();
            ports.stdin_port = expected.port();
            let path = stdio.stdin.clone();
            io.stdin = Stdin::Waiting { path, expected, closed: false };
        }
        for (sink, port) in [(stdout, &mut ports.stdout_port), (stderr, &mut ports.stderr_port)] {
            if let Some(sink) = sink {
                let expected = expect();
                *port = expected.port();
                io.outputs.push(Task(tokio::spawn(carry(expected, sink))));
            }
        }
        Ok((io, ports))
    }

    /// Opens the client's input; the process is about to be started.
    pub fn open_stdin(&mut self) -> Result<(), Error> {
        match std::mem::take(&mut self.stdin) {
            Stdin::Waiting { path, expected, closed } => {
                let (input, writer) = fifo::open_input(Path::new(&path))
                    .context(|| format!("cannot open stdin {path}"))?;
                let feed = Task(tokio::spawn(feed(input, expected)));
                self.stdin = Stdin::Open { writer: (!closed).then_some(writer), _feed: feed };
            }
            other => self.stdin = other,
        }
        Ok(())
    }

    /// The client will write no more: stdin ends once what it wrote has been forwarded.
    pub fn close_stdin(&mut self) {
        match &mut self.stdin {
            Stdin::None => {}
            Stdin::Waiting { closed, .. } => *closed = true,
            Stdin::Open { writer, .. } => *writer = None,
        }
    }

    async fn open_outputs(
        &mut self,
        stdio: &Stdio,
        owner: Owner<'_>,
    ) -> Result<(Option<Sink>, Option<Sink>), Error> {
        let has_stderr = !stdio.terminal;
        match Uri::parse(&stdio.stdout)? {
            None => {
                let stderr = match has_stderr && !stdio.stderr.is_empty() {
                    true => Some(open_path(plain_path(&stdio.stderr)?)?),
                    false => None,
                };
                let stdout = match stdio.stdout.is_empty() {
                    true => None,
                    false => Some(open_path(plain_path(&stdio.stdout)?)?),
                };
                Ok((stdout, stderr))
            }
            Some(uri) if uri.scheme == "file" => {
                let file = Arc::new(open_log_file(Path::new(&uri.path))?);
                Ok((Some(Sink::File(file.clone())), has_stderr.then_some(Sink::File(file))))
            }
            Some(uri) if uri.scheme == "binary" => {
                let (logger, stdout, stderr) = Logger::start(&uri, owner).await?;
                self.logger = Some(logger);
                let pipe = |fd| Output::of_pipe(fd).context(|| "cannot watch a pipe".to_owned());
                let stderr = if has_stderr { Some(Sink::Pipe(pipe(stderr)?)) } else { None };
                Ok((Some(Sink::Pipe(pipe(stdout)?)), stderr))
            }
            Some(uri) => Err(Error::invalid(format!(
                "output to {}:// is not supported; use a FIFO, file:// or binary://",
                uri.scheme
            ))),
        }
    }
}

/// Waits until all output of all of them has reached its reader, for [`DRAIN_LIMIT`] at most,
/// then closes everything.
pub async fn drain(mut ios: Vec<Io>) {
    let limit = tokio::time::Instant::now() + DRAIN_LIMIT;
    for io in &mut ios {
        io.stdin = Stdin::None;
    }
    for io in &mut ios {
        if tokio::time::timeout_at(limit, ended(&mut io.outputs)).await.is_err() {
            log::warn("some output was dropped: nobody read it, or a process still holds it");
            for Task(output) in &io.outputs {
                output.abort();
            }
            ended(&mut io.outputs).await;
        }
    }
}

/// Waits until the tasks have ended and closed what they held.
async fn ended(tasks: &mut [Task]) {
    for Task(task) in tasks {
        if !task.is_finished() {
            // Only an abort, or a panic, and it is gone all the same.
            let _ = task.await;
        }
    }
}

/// The path of `path` or `fifo://path`.
fn plain_path(text: &str) -> Result<String, Error> {
    match Uri::parse(text)? {
        None => Ok(text.strip_prefix("fifo://").unwrap_or(text).to_owned()),
        Some(uri) => Err(Error::invalid(format!(
            "stderr to {}:// is not supported apart from stdout; use a FIFO",
            uri.scheme
        ))),
    }
}

fn open_path(path: String) -> Result<Sink, Error> {
    let what = || format!("cannot open the output {path}");
    let is_fifo = std::fs::metadata(&path).context(what)?.file_type().is_fifo();
    if is_fifo {
        return Ok(Sink::Pipe(fifo::open_output(Path::new(&path)).context(what)?));
    }
    let file = OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&path)
        .context(what)?;
    Ok(Sink::File(Arc::new(file)))
}

fn open_log_file(path: &Path) -> Result<File, Error> {
    let what = || format!("cannot open the log file {}", path.display());
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).context(what)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o644).open(path).context(what)
}

/// Carries the guest's stream to a sink until it ends.
async fn carry(expected: Expected, sink: Sink) {
    let stream = match connect(expected, Interest::READABLE).await {
        Ok(stream) => stream,
        Err(error) => return log::debug(&format!("an output of the guest: {error}")),
    };
    let done = match &sink {
        Sink::Pipe(output) => shovel::splice_all(&stream, output.fd()).await,
        Sink::File(file) => shovel::copy_to_file(&stream, file).await,
    };
    if let Err(error) = done {
        log::warn(&format!("an output ended early: {error}"));
    }
}

/// Carries the client's bytes to the guest until CloseIO, then ends the guest's stream.
async fn feed(input: Input, expected: Expected) {
    let stream = match connect(expected, Interest::WRITABLE).await {
        Ok(stream) => stream,
        Err(error) => return log::debug(&format!("stdin of the guest: {error}")),
    };
    match shovel::splice_all(input.fd(), &stream).await {
        Ok(()) => {}
        // The process has closed its stdin, as many do.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Err(error) => log::debug(&format!("stdin ended early: {error}")),
    }
    // Dropping the stream would do; this says that it is meant.
    let _ = nix::sys::socket::shutdown(
        std::os::fd::AsRawFd::as_raw_fd(&stream),
        nix::sys::socket::Shutdown::Write,
    );
}

async fn connect(expected: Expected, interest: Interest) -> Result<AsyncFd<OwnedFd>, Error> {
    let stream = expected.connected().await?;
    reactor::watch(stream.into(), interest)
        .map_err(|error| Error::new(Code::Internal, format!("cannot watch a stream: {error}")))
}

#[cfg(test)]
mod tests;
