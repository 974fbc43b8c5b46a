// SPDX-License-Identifier: Apache-2.0

//! The command line as containerd writes it: Go's flags, one dash or two, a value as the
//! next word or behind `=`, all before the action.

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make or find the pod's daemon and print its address.
    Start,
    /// Clean up after a daemon and print what to tell the client.
    Delete,
    /// Be the daemon; started by `start`, with the listening socket as descriptor 3.
    Daemon,
    /// Print the version.
    Version,
    /// Print what this runtime can do.
    Info,
}

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    pub action: Action,
    pub namespace: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// The container.
    pub id: String,
    /// Only given to `delete`.
    pub bundle: String,
    pub debug: bool,
}

/// Flags with a value that are of no use to us but that containerd may pass.
const IGNORED: [&str; 3] = ["publish-binary", "socket", "debug-socket"];

/// Reads the words after the program's name.
pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Args, String> {
    let mut args = Args {
        action: Action::Start,
        namespace: String::new(),
        address: String::new(),
        id: String::new(),
        bundle: String::new(),
        debug: false,
    };
    let mut words = words.into_iter();
    let action = loop {
        let Some(word) = words.next() else { break None };
        let Some(flag) = word.strip_prefix('-') else { break Some(word) };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        if flag.is_empty() {
            // A bare `-` or `--` ends the flags, as in Go.
            break words.next();
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let wanted = match name {
            "debug" | "v" | "version" | "info" => {
                let on = truth(name, value.as_deref())?;
                match name {
                    "debug" => args.debug = on,
                    "info" if on => return Ok(Args { action: Action::Info, ..args }),
                    _ if on => return Ok(Args { action: Action::Version, ..args }),
                    _ => {}
                }
                continue;
            }
            "namespace" => Some(&mut args.namespace),
            "address" => Some(&mut args.address),
            "id" => Some(&mut args.id),
            "bundle" => Some(&mut args.bundle),
            _ if IGNORED.contains(&name) => None,
            _ => return Err(format!("unknown flag -{name}")),
        };
        let value = match value.or_else(|| words.next()) {
            Some(value) => value,
            None => return Err(format!("flag -{name} needs a value")),
        };
        if let Some(wanted) = wanted {
            *wanted = value;
        }
    };
    args.action = match action.as_deref() {
        Some("start") => Action::Start,
        Some("delete") => Action::Delete,
        Some("daemon") => Action::Daemon,
        Some(other) => {
            return Err(format!("unknown action {other:?}; containerd uses start and delete"));
        }
        None => return Err("no action given; containerd uses start and delete".into()),
    };
    if let Some(extra) = words.next() {
        return Err(format!("unexpected argument {extra:?} after the action"));
    }
    for (name, value) in [("namespace", &args.namespace), ("id", &args.id)] {
        if value.is_empty() {
            return Err(format!("flag -{name} is required"));
        }
    }
    Ok(args)
}

/// Go's boolean flags.
fn truth(name: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!("flag -{name} is true or false, not {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Args, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerds_own_command_lines_are_understood() {
        let start = of("-namespace default -address /run/containerd/containerd.sock \
             -publish-binary /usr/bin/containerd -id c1 -debug start")
        .expect("start");
        assert_eq!(
            start,
            Args {
                action: Action::Start,
                namespace: "default".into(),
                address: "/run/containerd/containerd.sock".into(),
                id: "c1".into(),
                bundle: String::new(),
                debug: true,
            }
        );
        let delete =
            of("-namespace=a -address= -id=c1 -bundle=/b -debug=false delete").expect("delete");
        assert_eq!((delete.action, delete.bundle.as_str()), (Action::Delete, "/b"));
        assert!(!delete.debug);
    }

    #[test]
    fn version_and_info_need_nothing_else() {
        assert_eq!(of("-v").expect("v").action, Action::Version);
        assert_eq!(of("--version").expect("version").action, Action::Version);
        assert_eq!(of("-info").expect("info").action, Action::Info);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("", "no action"),
            ("-namespace a -id c", "no action"),
            ("-namespace a -id c stop", "stop"),
            ("-wrong x start", "-wrong"),
            ("-namespace a start", "-id is required"),
            ("-id c start", "-namespace is required"),
            ("-namespace", "needs a value"),
            ("-debug=maybe start", "maybe"),
            ("-namespace a -id c start now", "now"),
        ] {
            let error = of(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
