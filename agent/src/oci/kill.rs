// SPDX-License-Identifier: Apache-2.0

//! Kill: a signal for the first process, or for all processes.

use std::os::fd::AsFd;
use std::str::FromStr;

use lexopt::prelude::*;
use nix::sys::signal::Signal;

use super::{Result, Runtime, needed, text};
use crate::engine::stage;

pub fn kill(runtime: &Runtime, mut args: lexopt::Parser) -> Result<()> {
    let (mut id, mut signal, mut all) = (None, None, false);
    while let Some(arg) = args.next().map_err(text)? {
        match arg {
            Long("all") | Short('a') => all = true,
            Value(value) if id.is_none() => id = Some(value.string().map_err(text)?),
            Value(value) if signal.is_none() => signal = Some(value.string().map_err(text)?),
            other => return Err(text(other.unexpected())),
        }
    }
    let container = runtime.container(&needed(id)?)?;
    let signal = number(signal.as_deref().unwrap_or("SIGTERM"))?;
    if all {
        return container.cgroup().signal(signal).map_err(text);
    }
    let process = container.process().ok_or("container not running")?;
    stage::kill(process.as_fd(), signal).map_err(|e| format!("cannot send signal {signal}: {e}"))
}

/// The number of a signal given as that, or as its name with or without SIG.
fn number(signal: &str) -> Result<i32> {
    let unknown = || format!("unknown signal {signal:?}");
    if let Ok(number) = signal.parse() {
        return if (1..=libc::SIGRTMAX()).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let name = signal.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_numbers_and_names() {
        for (text, signal) in [("9", 9), ("SIGTERM", 15), ("hup", 1), ("KILL", 9), ("34", 34)] {
            assert_eq!(number(text), Ok(signal));
        }
        for bad in ["", "0", "-1", "65", "SIG", "SIGNONE", "9 "] {
            assert!(number(bad).is_err(), "{bad:?}");
        }
    }
}
