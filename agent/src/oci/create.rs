// SPDX-License-Identifier: Apache-2.0

//! Create and run: a container from its bundle. A failure undoes everything that was made.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lexopt::prelude::*;
use oci_spec::runtime::{Hook, Process, Spec};

use super::delete::destroy;
use super::foreground::Foreground;
use super::state::{Container, Record, Status, write_whole};
use super::{Result, Runtime, console, log, needed, number, path, reports, start, take_id, text};
use crate::cgroup;
use crate::engine::seccomp::Filter;
use crate::engine::stage::Stage;
use crate::engine::{self, Progress, Step, channel, hooks, spec, users};
use crate::resources;

struct Options {
    id: String,
    bundle: PathBuf,
    console_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    pivot: bool,
    keyring: bool,
    /// Descriptors that were passed to this process as sockets to listen at.
    listen: u32,
    preserved: u32,
    detach: bool,
    keep: bool,
}

pub fn create(runtime: &Runtime, args: lexopt::Parser) -> Result<()> {
    let options = Options { detach: true, ..Options::parse(args, false)? };
    make(runtime, &options).map(drop)
}

pub fn run(runtime: &Runtime, args: lexopt::Parser) -> Result<u8> {
    let options = Options::parse(args, true)?;
    let foreground = (!options.detach).then(Foreground::begin).transpose()?;
    let (container, terminal) = make(runtime, &options)?;
    let ran = start::start(&container).and_then(|()| match foreground {
        Some(foreground) => foreground.wait(container.record.pid, terminal),
        None => Ok(0),
    });
    match ran {
        Ok(status) if options.detach || options.keep => Ok(status),
        Ok(status) => destroy(&container, &runtime.log).map(|()| status),
        Err(why) => Err(undo(runtime, &container, why)),
    }
}

impl Options {
    fn parse(mut args: lexopt::Parser, run: bool) -> Result<Self> {
        let (mut id, mut asked) = (None, 0);
        let mut options = Self {
            id: String::new(),
            bundle: ".".into(),
            console_socket: None,
            pid_file: None,
            pivot: true,
            keyring: true,
            listen: listen_fds(),
            preserved: 0,
            detach: false,
            keep: false,
        };
        while let Some(arg) = args.next().map_err(text)? {
            match arg {
                Long("bundle") | Short('b') => options.bundle = path(&mut args)?,
                Long("console-socket") => options.console_socket = Some(path(&mut args)?),
                Long("pid-file") => options.pid_file = Some(path(&mut args)?),
                Long("no-pivot") => options.pivot = false,
                Long("no-new-keyring") => options.keyring = false,
                Long("preserve-fds") => asked = number(&mut args)?,
                Long("detach") | Short('d') if run => options.detach = true,
                Long("keep") if run => options.keep = true,
                // This process is a parent only of the container's first.
                Long("no-subreaper") if run => {}
                other => take_id(&mut id, other)?,
            }
        }
        options.id = needed(id)?;
        options.preserved = reports::preserved(options.listen, asked)?;
        Ok(options)
    }
}

/// How many sockets to listen at were passed to this process (sd_listen_fds(3)).
fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}

/// Makes a container whose first process waits for its start. Returns its terminal, too, if
/// it has one that was not sent to anybody.
fn make(runtime: &Runtime, options: &Options) -> Result<(Container, Option<OwnedFd>)> {
    let bundle = std::fs::canonicalize(&options.bundle)
        .map_err(|e| format!("cannot find the bundle {:?}: {e}", options.bundle))?;
    let mut spec = load(&bundle)?;
    if options.listen > 0
        && let Some(process) = spec.process_mut()
    {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend([format!("LISTEN_FDS={}", options.listen), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
    }
    let process = process(&spec)?;
    let terminal = process.terminal() == Some(true);
    console::check(terminal, options.detach, options.console_socket.as_ref())?;
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = seccomp.map(Filter::compile).transpose()?;
    let below = cgroup::cgroup_path(&spec, &options.id)?;
    let record = Record {
        id: options.id.clone(),
        bundle,
        cgroup: cgroup::mount_point().map_err(text)?.join(below),
        created: log::time(SystemTime::now()),
        pid: 0,
        began: 0,
        keyring: options.keyring,
        spec,
    };
    let mut container = Container::claim(&runtime.root, record)?;
    if let Err(error) = container.cgroup().create_in_tree() {
        // What is in the cgroup is not this container's to kill.
        container.forget()?;
        return Err(text(error));
    }
    match build(&mut container, options, filter.as_ref()) {
        Ok(terminal) => Ok((container, terminal)),
        Err(why) => Err(undo(runtime, &container, why)),
    }
}

fn undo(runtime: &Runtime, container: &Container, why: String) -> String {
    match destroy(container, &runtime.log) {
        Ok(()) if container.record.pid != 0 => reports::reap(container.record.pid),
        Ok(()) => {}
        Err(left) => runtime.log.warning(&left),
    }
    why
}

fn load(bundle: &Path) -> Result<Spec> {
    let file = bundle.join("config.json");
    let json = std::fs::read(&file).map_err(|e| format!("cannot read {file:?}: {e}"))?;
    let spec: Spec =
        spec::read(&json, "/process").map_err(|e| format!("cannot make sense of {file:?}: {e}"))?;
    spec::check(&spec, false)?;
    let root = spec.root().as_ref().map(|root| bundle.join(root.path())).unwrap_or_default();
    match nix::sys::stat::stat(&root) {
        Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => Ok(spec),
        Ok(_) => Err(format!("invalid rootfs: {root:?} is not a directory")),
        Err(e) => {
            let why = e.desc().to_lowercase();
            Err(format!("invalid rootfs: stat {}: {why}", root.display()))
        }
    }
}

fn process(spec: &Spec) -> Result<&Process> {
    spec.process().as_ref().ok_or_else(|| "the spec has no process".to_owned())
}

fn build(
    container: &mut Container,
    options: &Options,
    filter: Option<&Filter>,
) -> Result<Option<OwnedFd>> {
    let cgroup = container.cgroup();
    let spec = container.record.spec.clone();
    let limits = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    if let Some(limits) = limits {
        resources::apply(&cgroup, limits).map_err(text)?;
    }
    let process = process(&spec)?;
    let stdio = console::stdio(process);
    if let engine::Stdio::Inherited = stdio {
        reports::own_stdio(users::host_uid(&spec));
    }
    let gate = container.gate()?;
    let bundle = container.record.bundle.clone();
    let create = engine::Create {
        id: &options.id,
        spec: &spec,
        bundle: &bundle,
        cgroup: cgroup.path(),
        filter,
        stdio,
        gate: Some(&gate),
        runtime_hooks: runtime_hooks(&spec).iter().any(|(_, all)| all.is_some()),
        pivot: options.pivot,
        keyring: options.keyring,
        preserved: options.preserved,
    };
    let stage = create.start().map_err(|e| format!("cannot fork the engine: {e}"))?;
    let mut progress = Progress::default();
    let followed = follow(container, &stage, &mut progress);
    reports::end(stage)?;
    followed?;
    let wanted = process.terminal() == Some(true);
    let terminal = wanted.then(|| reports::terminal(&mut progress)).transpose()?;
    let terminal = console::hand_over(terminal, options.console_socket.as_deref())?;
    container.created()?;
    if let Some(file) = &options.pid_file {
        write_whole(file, container.record.pid.to_string().as_bytes())?;
    }
    Ok(terminal)
}

/// Does what is due until the first process waits for its start.
fn follow(container: &mut Container, stage: &Stage, progress: &mut Progress) -> Result<()> {
    loop {
        let step = reports::next(stage.channel.as_fd(), progress)?;
        if let Some(pid) = progress.pid.filter(|pid| *pid != container.record.pid) {
            container.set_process(pid)?;
        }
        match step {
            Step::More => {}
            Step::Ready => return Ok(()),
            Step::Over => return Err(reports::why(progress.failure())),
            Step::Hooks => {
                for (kind, hooks) in runtime_hooks(&container.record.spec) {
                    hooks::run(kind, hooks, &container.told(Status::Creating))?;
                }
                channel::go(stage.channel.as_fd()).map_err(text)?;
            }
        }
    }
}

fn runtime_hooks(spec: &Spec) -> [(&'static str, Option<&Vec<Hook>>); 2] {
    let hooks = spec.hooks().as_ref();
    [
        ("prestart", hooks.and_then(|hooks| hooks.prestart().as_ref())),
        ("createRuntime", hooks.and_then(|hooks| hooks.create_runtime().as_ref())),
    ]
}
