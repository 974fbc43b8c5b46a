// SPDX-License-Identifier: Apache-2.0

//! Events: what a container's cgroup has counted, in runc's form of it.

use husk_protocol::agent::{ContainerStats, IoStats};
use lexopt::prelude::*;
use serde_json::{Value as Json, json};

use super::state::Status;
use super::{Result, Runtime, needed, take_id, text};
use crate::verbs::stats;

pub fn events(runtime: &Runtime, mut args: lexopt::Parser) -> Result<()> {
    let (mut id, mut once) = (None, false);
    while let Some(arg) = args.next().map_err(text)? {
        match arg {
            Long("stats") => once = true,
            other => take_id(&mut id, other)?,
        }
    }
    if !once {
        return Err("events are shown once only, with --stats".to_owned());
    }
    let container = runtime.container(&needed(id)?)?;
    if container.status() == Status::Stopped {
        return Err("container not running".to_owned());
    }
    let id = &container.record.id;
    let data = data(&stats::of(id, &container.cgroup()));
    println!("{}", json!({"type": "stats", "id": id, "data": data}));
    Ok(())
}

fn data(stats: &ContainerStats) -> Json {
    let (cpu, memory, pids) = (&stats.cpu, &stats.memory, &stats.pids);
    let unlimited = |limit: u64| if limit == u64::MAX { 0 } else { limit };
    json!({
        "cpu": {
            "usage": {
                "total": cpu.usage_usec * 1000,
                "kernel": cpu.system_usec * 1000,
                "user": cpu.user_usec * 1000,
            },
            "throttling": {
                "periods": cpu.nr_periods,
                "throttledPeriods": cpu.nr_throttled,
                "throttledTime": cpu.throttled_usec * 1000,
            },
        },
        "memory": {
            "cache": memory.stat.get("file"),
            "usage": {
                "limit": memory.usage_limit, "usage": memory.usage, "failcnt": memory.max,
            },
            "swap": {"limit": memory.swap_limit, "usage": memory.swap_usage},
            "raw": memory.stat,
        },
        "pids": {"current": pids.current, "limit": unlimited(pids.limit)},
        "blkio": {
            "ioServiceBytesRecursive": io(&stats.io, |io| [io.rbytes, io.wbytes]),
            "ioServicedRecursive": io(&stats.io, |io| [io.rios, io.wios]),
        },
    })
}

fn io(stats: &[IoStats], counted: impl Fn(&IoStats) -> [u64; 2]) -> Vec<Json> {
    let entries = stats.iter().flat_map(|io| {
        ["Read", "Write"].into_iter().zip(counted(io)).map(
            move |(op, value)| json!({"major": io.major, "minor": io.minor, "op": op, "value": value}),
        )
    });
    entries.collect()
}
