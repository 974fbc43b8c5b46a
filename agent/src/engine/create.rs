// SPDX-License-Identifier: Apache-2.0

//! In the helper: a container, made by libcontainer up to the point where its first
//! process waits to be started.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::Spec;

use super::helper::Inherited;
use super::{program, spec, state_root};

/// Returns the pid, and the terminal if the process has one. The text of an error is the
/// whole chain of causes that libcontainer knows of.
pub fn create(
    id: &str,
    bundle: &Path,
    inherited: &Inherited,
) -> Result<(i32, Option<OwnedFd>), String> {
    umask(Mode::from_bits_truncate(0o022));
    let file = bundle.join("config.json");
    let mut config = Spec::load(&file).map_err(|e| format!("cannot read {file:?}: {e}"))?;
    spec::complete(&mut config)?;
    config.save(&file).map_err(|e| format!("cannot write {file:?}: {e}"))?;
    let terminal = config.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);
    let console = terminal.then(|| Console::listen(bundle)).transpose()?;
    let container = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_executor(Program { result: inherited.result.as_raw_fd() })
        .with_root_path(state_root())
        .map_err(chain)?
        .with_console_socket(console.is_some().then(|| bundle.join(CONSOLE)))
        .as_init(bundle)
        .with_systemd(false)
        .as_sibling(true)
        .build()
        .map_err(chain)?;
    let pid = container.pid().ok_or("libcontainer made no process")?.as_raw();
    let terminal = console.map(|console| console.receive(&config)).transpose()?;
    Ok((pid, terminal))
}

/// An error with its causes, in one line.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// How the container's first process becomes its program, in place of libcontainer's way:
/// the errors are runc's, and the environment is passed on in the order it was given.
#[derive(Clone)]
struct Program {
    result: RawFd,
}

impl Program {
    fn tell(&self, why: &str) {
        // SAFETY: writes why.len() bytes from why. Whether it arrives cannot be helped.
        unsafe { libc::write(self.result, why.as_ptr().cast(), why.len()) };
    }
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let Some(process) = spec.process() else { return Ok(()) };
        program::find(process).map(drop).map_err(|why| {
            self.tell(&why);
            ExecutorValidationError::ArgValidationError(why)
        })
    }

    fn setup_envs(
        &self,
        _: std::collections::HashMap<String, String>,
    ) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let why = match spec.process() {
            Some(process) => program::execute(process),
            None => "the container has no process".to_owned(),
        };
        self.tell(&why);
        Err(ExecutorError::Other(why))
    }
}

const CONSOLE: &str = "console.sock";

/// The socket to which libcontainer sends the terminal that it makes in the container.
struct Console {
    listener: UnixListener,
}

impl Console {
    fn listen(bundle: &Path) -> Result<Self, String> {
        // From inside the directory, because a socket's path is limited to 107 bytes.
        let listen = || {
            std::env::set_current_dir(bundle)?;
            let listener = UnixListener::bind(CONSOLE)?;
            std::env::set_current_dir("/")?;
            Ok(Self { listener })
        };
        listen().map_err(|e: std::io::Error| format!("cannot listen for the terminal: {e}"))
    }

    /// Receives the terminal, and gives it to the process's user and its initial size.
    fn receive(self, spec: &Spec) -> Result<OwnedFd, String> {
        let failed = |why: &dyn std::fmt::Display| format!("cannot receive the terminal: {why}");
        let (stream, _) = self.listener.accept().map_err(|e| failed(&e))?;
        let mut name = [0; 256];
        let mut buffer = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!(RawFd);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffer, Some(&mut space), flags)
            .map_err(|e| failed(&e))?;
        let mut master = None;
        for rights in message.cmsgs().map_err(|e| failed(&e))? {
            if let ControlMessageOwned::ScmRights(fds) = rights {
                for fd in fds {
                    // SAFETY: the kernel has just made it for us.
                    master = Some(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        let master = master.ok_or_else(|| failed(&"none came"))?;
        program::own_terminal(&master, spec::host_uid(spec))?;
        Ok(master)
    }
}
