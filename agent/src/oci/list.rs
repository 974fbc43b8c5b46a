// SPDX-License-Identifier: Apache-2.0

//! State and list: what there is.

use lexopt::prelude::*;
use serde_json::Value as Json;

use super::state::{Container, Status};
use super::{Result, Runtime, string, text};

pub fn state(container: &Container) -> Result<()> {
    println!("{:#}", container.json());
    Ok(())
}

pub fn list(runtime: &Runtime, mut args: lexopt::Parser) -> Result<()> {
    let (mut quiet, mut json) = (false, false);
    while let Some(arg) = args.next().map_err(text)? {
        match arg {
            Long("quiet") | Short('q') => quiet = true,
            Long("format") | Short('f') => json = is_json(&string(&mut args)?)?,
            other => return Err(text(other.unexpected())),
        }
    }
    let containers = Container::all(&runtime.root)?;
    if quiet {
        containers.iter().for_each(|container| println!("{}", container.record.id));
    } else if json {
        println!("{}", Json::from_iter(containers.iter().map(Container::json)));
    } else {
        print!("{}", table(&containers));
    }
    Ok(())
}

/// Whether a value of --format asks for JSON, or for a table.
pub fn is_json(format: &str) -> Result<bool> {
    match format {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(format!("--format is table or json, not {other:?}")),
    }
}

fn table(containers: &[Container]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(containers.iter().map(|container| {
        let (record, status) = (&container.record, container.status());
        let pid = if status == Status::Stopped { 0 } else { record.pid };
        let bundle = record.bundle.display().to_string();
        let (id, created) = (record.id.clone(), record.created.clone());
        [id, pid.to_string(), status.to_string(), bundle, created, container.owner()]
    }));
    let widths: [usize; 6] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].len() + 3).max().unwrap_or(0).max(12)
    });
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}
