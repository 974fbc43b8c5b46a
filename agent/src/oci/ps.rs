// SPDX-License-Identifier: Apache-2.0

//! Ps: the processes of a container, as this machine's ps(1) shows them.

use std::process::Command;

use lexopt::prelude::*;
use serde_json::json;

use super::list::is_json;
use super::{Result, Runtime, needed, string, text};

pub fn ps(runtime: &Runtime, mut args: lexopt::Parser) -> Result<()> {
    let (mut id, mut json, mut options) = (None, false, vec!["-ef".into()]);
    while let Some(arg) = args.next().map_err(text)? {
        match arg {
            Long("format") | Short('f') => json = is_json(&string(&mut args)?)?,
            Value(value) => {
                id = Some(value.string().map_err(text)?);
                let rest: Vec<_> = args.raw_args().map_err(text)?.collect();
                if !rest.is_empty() {
                    options = rest;
                }
            }
            other => return Err(text(other.unexpected())),
        }
    }
    let pids = runtime.container(&needed(id)?)?.cgroup().pids().map_err(text)?;
    if json {
        println!("{}", json!(pids));
        return Ok(());
    }
    let output = Command::new("ps").args(&options).output();
    let output = output.map_err(|e| format!("cannot run ps: {e}"))?;
    if !output.status.success() {
        return Err(format!("ps failed: {}", String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    print!("{}", select(&String::from_utf8_lossy(&output.stdout), &pids)?);
    Ok(())
}

/// The header of a table and its lines of certain processes.
fn select(table: &str, pids: &[u32]) -> Result<String> {
    let header = table.lines().next().unwrap_or_default();
    let column = header.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or("the output of ps with these options has no column PID")?;
    let own = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let lines = std::iter::once(header).chain(table.lines().skip(1).filter(own));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_selected_by_pid() {
        let table = "UID   PID PPID CMD\nroot    1    0 init\nroot   17    1 sh 1\n";
        assert_eq!(select(table, &[17]).expect("ps"), "UID   PID PPID CMD\nroot   17    1 sh 1\n");
        assert!(select("UID CMD\n", &[1]).is_err());
    }
}
