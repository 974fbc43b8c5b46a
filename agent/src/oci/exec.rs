// SPDX-License-Identifier: Apache-2.0

//! Exec: a further process in a container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use lexopt::prelude::*;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};
use serde_json::json;

use super::foreground::Foreground;
use super::state::{Container, Status, write_whole};
use super::{Result, Runtime, console, needed, number, path, reports, string, text};
use crate::engine::seccomp::Filter;
use crate::engine::{self, Join, Progress, Step, namespaces, spec, users};

#[derive(Default)]
struct Options {
    id: Option<String>,
    /// The whole process as JSON; then the rest that describes it is not looked at.
    process: Option<PathBuf>,
    args: Vec<String>,
    tty: bool,
    env: Vec<String>,
    user: Option<(u32, Option<u32>)>,
    groups: Vec<u32>,
    cwd: Option<PathBuf>,
    capabilities: Vec<Capability>,
    no_new_privs: bool,
    cgroup: Option<PathBuf>,
    ignore_paused: bool,
    detach: bool,
    console_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    preserved: u32,
}

pub fn exec(runtime: &Runtime, args: lexopt::Parser) -> Result<u8> {
    let options = Options::parse(args)?;
    let container = runtime.container(&needed(options.id.clone())?)?;
    match container.status() {
        Status::Created | Status::Running => {}
        Status::Paused if options.ignore_paused => {}
        Status::Paused => {
            return Err(
                "cannot exec in a paused container (use --ignore-paused to override)".into()
            );
        }
        Status::Stopped => return Err("cannot exec in a stopped container".to_owned()),
        Status::Creating => return Err("cannot exec in a container in the creating state".into()),
    }
    let process = options.process(&container)?;
    spec::check_process(&process)?;
    let terminal = process.terminal() == Some(true);
    console::check(terminal, options.detach, options.console_socket.as_ref())?;
    let foreground = (!options.detach).then(Foreground::begin).transpose()?;
    let mut progress = join(&container, &process, &options)?;
    let pid = progress.pid.ok_or("the engine made no process")?;
    let terminal = terminal.then(|| reports::terminal(&mut progress)).transpose()?;
    let told = tell(&options, pid, terminal);
    if let (Err(_), Some(pidfd)) = (&told, &progress.pidfd) {
        let _ = engine::stage::kill(pidfd.as_fd(), libc::SIGKILL);
        reports::reap(pid);
    }
    let terminal = told?;
    foreground.map_or(Ok(0), |foreground| foreground.wait(pid, terminal))
}

/// Tells of the process what is to be told.
fn tell(options: &Options, pid: i32, terminal: Option<OwnedFd>) -> Result<Option<OwnedFd>> {
    let terminal = console::hand_over(terminal, options.console_socket.as_deref())?;
    if let Some(file) = &options.pid_file {
        write_whole(file, pid.to_string().as_bytes())?;
    }
    Ok(terminal)
}

/// Makes the process. Returns when it runs its program.
fn join(container: &Container, process: &Process, options: &Options) -> Result<Progress> {
    let record = &container.record;
    let seccomp = record.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = seccomp.map(Filter::compile).transpose()?;
    let below = options.cgroup.as_deref().unwrap_or(Path::new(""));
    let stdio = console::stdio(process);
    if let engine::Stdio::Inherited = stdio {
        reports::own_stdio(users::mapped_uid(&record.spec, process.user().uid()));
    }
    let join = Join {
        id: &record.id,
        init: record.pid,
        pidfd: &container.process().ok_or("cannot exec in a stopped container")?,
        namespaces: namespaces::flags(&record.spec),
        cgroup: &record.cgroup.join(below),
        process,
        filter: filter.as_ref(),
        stdio,
        keyring: record.keyring,
        preserved: options.preserved,
    };
    let stage = join.start().map_err(|e| format!("cannot fork the engine: {e}"))?;
    let mut progress = Progress::default();
    let over = loop {
        match reports::next(stage.channel.as_fd(), &mut progress) {
            Ok(Step::Over) => break Ok(()),
            Ok(_) => {}
            Err(why) => break Err(why),
        }
    };
    reports::end(stage)?;
    over?;
    match progress.failure() {
        None if progress.pid.is_some() => Ok(progress),
        failure => {
            progress.pid.iter().for_each(|pid| reports::reap(*pid));
            Err(reports::why(failure))
        }
    }
}

impl Options {
    fn parse(mut args: lexopt::Parser) -> Result<Self> {
        let (mut options, mut asked) = (Self::default(), 0);
        while let Some(arg) = args.next().map_err(text)? {
            match arg {
                Long("process") | Short('p') => options.process = Some(path(&mut args)?),
                Long("tty") | Short('t') => options.tty = true,
                Long("env") | Short('e') => options.env.push(string(&mut args)?),
                Long("user") | Short('u') => options.user = Some(user(&string(&mut args)?)?),
                Long("additional-gids") | Short('g') => options.groups.push(number(&mut args)?),
                Long("cwd") => options.cwd = Some(path(&mut args)?),
                Long("cap") | Short('c') => {
                    options.capabilities.push(capability(&string(&mut args)?)?);
                }
                Long("no-new-privs") => options.no_new_privs = true,
                Long("cgroup") => options.cgroup = Some(below(&path(&mut args)?)?),
                Long("ignore-paused") => options.ignore_paused = true,
                Long("detach") | Short('d') => options.detach = true,
                Long("console-socket") => options.console_socket = Some(path(&mut args)?),
                Long("pid-file") => options.pid_file = Some(path(&mut args)?),
                Long("preserve-fds") => asked = number(&mut args)?,
                Long("no-subreaper") => {}
                Long(name @ ("apparmor" | "process-label")) => {
                    return Err(format!("--{name} is not supported"));
                }
                // What follows the id is the program's.
                Value(value) => {
                    options.id = Some(value.string().map_err(text)?);
                    let rest = args.raw_args().map_err(text)?.map(|arg| arg.string().map_err(text));
                    options.args = rest.collect::<Result<_>>()?;
                }
                other => return Err(text(other.unexpected())),
            }
        }
        options.preserved = reports::preserved(0, asked)?;
        Ok(options)
    }

    /// What is to run: as the container's first process, except for what the options say.
    fn process(&self, container: &Container) -> Result<Process> {
        if let Some(file) = &self.process {
            let json = std::fs::read(file).map_err(|e| format!("cannot read {file:?}: {e}"))?;
            let process = spec::read(&json, "");
            return process.map_err(|e| format!("cannot make sense of {file:?}: {e}"));
        }
        let process = container.record.spec.process().clone();
        let mut process = process.ok_or("the container has no process to be like")?;
        process.set_args(Some(self.args.clone())).set_terminal(Some(self.tty));
        process.set_console_size(None);
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(self.env.iter().cloned());
        process.set_env(Some(env));
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        if let Some((uid, gid)) = self.user {
            process.user_mut().set_uid(uid);
            if let Some(gid) = gid {
                process.user_mut().set_gid(gid);
            }
        }
        let mut groups = process.user().additional_gids().clone().unwrap_or_default();
        groups.extend(&self.groups);
        process.user_mut().set_additional_gids(Some(groups));
        if !self.capabilities.is_empty() {
            let before = process.capabilities().clone();
            // The default is not empty.
            let mut sets = before.unwrap_or_else(|| {
                let none = || Some(Capabilities::new());
                let mut sets = LinuxCapabilities::default();
                sets.set_bounding(none()).set_effective(none()).set_permitted(none());
                sets.set_inheritable(none()).set_ambient(none());
                sets
            });
            let with = |set: &Option<Capabilities>| {
                let set = set.iter().flatten().chain(&self.capabilities);
                Some(set.copied().collect())
            };
            // Not inheritable, which would let files give what the program is not to have.
            let (bounding, effective) = (with(sets.bounding()), with(sets.effective()));
            let (permitted, ambient) = (with(sets.permitted()), with(sets.ambient()));
            sets.set_bounding(bounding).set_effective(effective);
            sets.set_permitted(permitted).set_ambient(ambient);
            process.set_capabilities(Some(sets));
        }
        Ok(process)
    }
}

/// A user as UID[:GID].
fn user(text: &str) -> Result<(u32, Option<u32>)> {
    let wrong = |_| format!("{text:?} is no UID[:GID]");
    match text.split_once(':') {
        Some((uid, gid)) => Ok((uid.parse().map_err(wrong)?, Some(gid.parse().map_err(wrong)?))),
        None => Ok((text.parse().map_err(wrong)?, None)),
    }
}

fn capability(name: &str) -> Result<Capability> {
    let upper = name.to_uppercase();
    let full = format!("CAP_{}", upper.strip_prefix("CAP_").unwrap_or(&upper));
    serde_json::from_value(json!(full)).map_err(|_| format!("unknown capability {name:?}"))
}

/// A cgroup below another.
fn below(path: &Path) -> Result<PathBuf> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(relative.to_owned());
    }
    Err(format!("{path:?} is no cgroup below the container's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_options_are_checked() {
        assert_eq!(user("7"), Ok((7, None)));
        assert_eq!(user("7:8"), Ok((7, Some(8))));
        for bad in ["", "root", "7:", ":8", "-1", "7:8:9"] {
            assert!(user(bad).is_err(), "{bad:?}");
        }
        assert_eq!(capability("net_admin"), Ok(Capability::NetAdmin));
        assert_eq!(capability("CAP_KILL"), Ok(Capability::Kill));
        assert!(capability("CAP_NONE").is_err());
        assert_eq!(below(Path::new("/a/b")), Ok("a/b".into()));
        assert!(below(Path::new("a/../..")).is_err());
    }
}
