// SPDX-License-Identifier: Apache-2.0

//! `husk-agent oci`: the engine as an OCI runtime of any host with cgroup v2. Commands,
//! options, exit statuses and the errors that callers match on are runc's, so that
//! containerd's runc shim and others take it for one. What a container is, is kept in a
//! directory per container (`state`); there is no daemon.

mod console;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod foreground;
mod kill;
mod list;
mod log;
mod pause;
mod ps;
mod reports;
mod spec;
mod start;
mod state;
mod update;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::*;

use log::Log;
use state::Container;

/// A process in the kernel stops or ends when it leaves it; this long may that take.
const LIMIT: Duration = Duration::from_secs(10);

const HELP: &str = "\
husk-agent oci runs containers on this machine by the OCI runtime specification.

usage: husk-agent oci [--root DIR] [--log FILE] [--log-format text|json] COMMAND [OPTIONS]

  create ID            make the container of a bundle, up to its program's start
    -b, --bundle DIR        where config.json is; default: the current directory
    --console-socket PATH   socket that is sent the master side of the terminal
    --pid-file FILE         file to write the process id to
    --no-pivot              take the root by chroot(2), for a root that is a ramdisk
    --no-new-keyring        share the caller's session keyring
    --preserve-fds N        pass N descriptors from 3 on to the program
  start ID             run the program of a created container
  run ID               create, start, wait, delete; options of create, and
    -d, --detach            do not wait
    --keep                  do not delete
  exec ID PROGRAM...   run a further program in a container
    -p, --process FILE      all of it as JSON, instead of the options and PROGRAM
    -d, --detach            do not wait
    -t, --tty               with a terminal
    -e, --env NAME=VALUE    -u, --user UID[:GID]    -g, --additional-gids GID
    --cwd DIR               -c, --cap CAPABILITY    --no-new-privs
    --cgroup PATH           in that cgroup below the container's
    --ignore-paused         also in a paused container
    --console-socket PATH   --pid-file FILE         --preserve-fds N
  kill ID [SIGNAL]     send a signal, SIGTERM by default; -a, --all: to all processes
  delete ID            remove a container that does not run; -f, --force: or does
  pause ID, resume ID  stop and continue all its processes
  update ID            change limits
    -r, --resources FILE    all of them as JSON, from - for stdin, or single ones:
    --memory --memory-swap --memory-reservation --cpu-period --cpu-quota --cpu-burst
    --cpu-share --cpu-idle --cpuset-cpus --cpuset-mems --pids-limit --blkio-weight
  state ID             show the state as JSON
  list                 show all containers; -q, --quiet: ids only; -f, --format table|json
  ps ID [PS OPTIONS]   show the processes of a container; -f, --format table|json
  events --stats ID    show what its cgroup has counted as JSON
  spec                 write an example config.json; -b, --bundle DIR
  features             show what this runtime can do as JSON

  --root DIR           where containers are kept; default: /run/husk-oci
  --log FILE           append errors to a file, too
  --debug, --rootless, --criu   accepted, without effect
  --help, --version
";

type Result<T> = std::result::Result<T, String>;

/// What all commands share.
struct Runtime {
    /// Holds a directory for each container.
    root: PathBuf,
    log: Log,
}

impl Runtime {
    fn container(&self, id: &str) -> Result<Container> {
        Container::find(&self.root, id)?.ok_or_else(|| "container does not exist".to_owned())
    }

    /// The container that is a command's only argument.
    fn only_container(&self, args: lexopt::Parser) -> Result<Container> {
        self.container(&only_id(args)?)
    }
}

/// Runs a command line without the program's name. The status is the command's.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut runtime = Runtime { root: "/run/husk-oci".into(), log: Log::default() };
    let mut args = lexopt::Parser::from_args(arguments);
    let command = match globals(&mut runtime, &mut args) {
        Ok(Some(command)) => command,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            runtime.log.error(&why);
            return ExitCode::FAILURE;
        }
    };
    match dispatch(&runtime, &command, args) {
        Ok(status) => ExitCode::from(status),
        Err(why) if command == "exec" => {
            runtime.log.error(&format!("exec failed: {why}"));
            // What the program itself could return must not be mistaken for this.
            ExitCode::from(255)
        }
        Err(why) => {
            runtime.log.error(&why);
            ExitCode::FAILURE
        }
    }
}

/// Reads what comes before the command. None if that was all that was asked for.
fn globals(runtime: &mut Runtime, args: &mut lexopt::Parser) -> Result<Option<String>> {
    while let Some(arg) = args.next().map_err(text)? {
        match arg {
            Long("root") => runtime.root = path(args)?,
            Long("log") => runtime.log.file = Some(path(args)?),
            Long("log-format") => match string(args)?.as_str() {
                "text" => runtime.log.json = false,
                "json" => runtime.log.json = true,
                other => return Err(format!("--log-format is text or json, not {other:?}")),
            },
            Long("rootless" | "criu") => drop(string(args)?),
            Long("debug") => {}
            Long("systemd-cgroup") => {
                return Err("--systemd-cgroup is not supported: cgroups are made by this \
                            runtime itself; set the caller's cgroup driver to cgroupfs"
                    .to_owned());
            }
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            Long("version") | Short('v') => {
                println!("husk-oci version {}", env!("CARGO_PKG_VERSION"));
                println!("spec: {}", husk_protocol::features::OCI_VERSION);
                return Ok(None);
            }
            Value(command) if command == "help" => {
                print!("{HELP}");
                return Ok(None);
            }
            Value(command) => return command.string().map(Some).map_err(text),
            other => return Err(text(other.unexpected())),
        }
    }
    Err("a command is missing; --help lists them".to_owned())
}

fn dispatch(runtime: &Runtime, command: &str, args: lexopt::Parser) -> Result<u8> {
    let done = match command {
        "run" => return create::run(runtime, args),
        "exec" => return exec::exec(runtime, args),
        "create" => create::create(runtime, args),
        "start" => start::start(&runtime.only_container(args)?),
        "kill" => kill::kill(runtime, args),
        "delete" => delete::delete(runtime, args),
        "pause" => pause::pause(&runtime.only_container(args)?),
        "resume" => pause::resume(&runtime.only_container(args)?),
        "update" => update::update(runtime, args),
        "state" => list::state(&runtime.only_container(args)?),
        "list" => list::list(runtime, args),
        "ps" => ps::ps(runtime, args),
        "events" => events::events(runtime, args),
        "spec" => spec::write(args),
        "features" => features::show(),
        other => Err(format!("there is no command {other:?}; --help lists them")),
    };
    done.map(|()| 0)
}

fn only_id(mut args: lexopt::Parser) -> Result<String> {
    let mut id = None;
    while let Some(arg) = args.next().map_err(text)? {
        take_id(&mut id, arg)?;
    }
    needed(id)
}

/// Takes an argument that is no option for the container's id.
fn take_id(id: &mut Option<String>, arg: lexopt::Arg) -> Result<()> {
    match arg {
        Value(value) if id.is_none() => *id = Some(value.string().map_err(text)?),
        other => return Err(text(other.unexpected())),
    }
    Ok(())
}

fn needed(id: Option<String>) -> Result<String> {
    id.ok_or_else(|| "the container's id is missing".to_owned())
}

/// The value of the option that was just read.
fn string(args: &mut lexopt::Parser) -> Result<String> {
    args.value().and_then(|value| value.string()).map_err(text)
}

fn path(args: &mut lexopt::Parser) -> Result<PathBuf> {
    args.value().map(PathBuf::from).map_err(text)
}

fn number<T>(args: &mut lexopt::Parser) -> Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    args.value().and_then(|value| value.parse()).map_err(text)
}

/// Waits for something that the agent does, too, but without waiting.
fn wait<T>(work: impl Future<Output = crate::error::Result<T>>) -> Result<T> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().map_err(text)?;
    runtime.block_on(work).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
