// SPDX-License-Identifier: Apache-2.0

//! Stats: what cgroups have counted, for many containers at once. Those that do not exist
//! are left out, and what a kernel does not count is 0.

use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::{
    ContainerStats, CpuStats, IoStats, MemoryStats, PidsStats, Stats, StatsList,
};

use crate::agent::Agent;
use crate::cgroup::{Cgroup, keyed, pairs};
use crate::error::{Error, Result};

pub fn stats(agent: &Agent, request: &Stats) -> Result<Outcome> {
    let containers = agent.containers.borrow();
    let found: Vec<ContainerStats> = request
        .containers
        .iter()
        .filter_map(|id| containers.get(id))
        .map(|c| of(&c.id, &c.cgroup))
        .collect();
    if found.is_empty() && !request.containers.is_empty() {
        return Err(Error::not_found(format!(
            "container {:?} does not exist",
            request.containers.join(", ")
        )));
    }
    Ok(Outcome::Stats(StatsList { stats: found, ..Default::default() }))
}

/// What the cgroup of container `id` has counted.
pub fn of(id: &str, cgroup: &Cgroup) -> ContainerStats {
    ContainerStats {
        container: id.to_owned(),
        cpu: Some(cpu(cgroup)).into(),
        memory: Some(memory(cgroup)).into(),
        pids: Some(PidsStats {
            current: number(cgroup, "pids.current"),
            limit: number(cgroup, "pids.max"),
            ..Default::default()
        })
        .into(),
        io: cgroup.read("io.stat").map(|text| io(&text)).unwrap_or_default(),
        ..Default::default()
    }
}

fn cpu(cgroup: &Cgroup) -> CpuStats {
    let text = cgroup.read("cpu.stat").unwrap_or_default();
    let value = |key| keyed(&text, key).unwrap_or(0);
    CpuStats {
        usage_usec: value("usage_usec"),
        user_usec: value("user_usec"),
        system_usec: value("system_usec"),
        nr_periods: value("nr_periods"),
        nr_throttled: value("nr_throttled"),
        throttled_usec: value("throttled_usec"),
        ..Default::default()
    }
}

fn memory(cgroup: &Cgroup) -> MemoryStats {
    let stat = cgroup.read("memory.stat").unwrap_or_default();
    let events = cgroup.read("memory.events").unwrap_or_default();
    let event = |key| keyed(&events, key).unwrap_or(0);
    MemoryStats {
        usage: number(cgroup, "memory.current"),
        usage_limit: number(cgroup, "memory.max"),
        swap_usage: number(cgroup, "memory.swap.current"),
        swap_limit: number(cgroup, "memory.swap.max"),
        stat: pairs(&stat).map(|(key, value)| (key.to_owned(), value)).collect(),
        low: event("low"),
        high: event("high"),
        max: event("max"),
        oom: event("oom"),
        oom_kill: event("oom_kill"),
        ..Default::default()
    }
}

/// A file of one number; "max" is the largest there is.
fn number(cgroup: &Cgroup, file: &str) -> u64 {
    match cgroup.read(file).as_deref().map(str::trim) {
        Ok("max") => u64::MAX,
        Ok(text) => text.parse().unwrap_or(0),
        Err(_) => 0,
    }
}

/// Lines of `major:minor key=value ...`.
fn io(text: &str) -> Vec<IoStats> {
    text.lines().filter_map(io_line).collect()
}

fn io_line(line: &str) -> Option<IoStats> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut stats =
        IoStats { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Default::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let Ok(value) = value.parse() else { continue };
        match key {
            "rbytes" => stats.rbytes = value,
            "wbytes" => stats.wbytes = value,
            "rios" => stats.rios = value,
            "wios" => stats.wios = value,
            _ => {}
        }
    }
    Some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_lines_are_read_and_oddities_left_out() {
        let text = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nwhat\n259:1 \n";
        let stats = io(text);
        assert_eq!(stats.len(), 2);
        assert_eq!((stats[0].major, stats[0].rbytes, stats[0].wbytes), (8, 1, 2));
        assert_eq!((stats[0].rios, stats[0].wios), (3, 4));
        assert_eq!((stats[1].major, stats[1].minor, stats[1].rbytes), (259, 1, 0));
    }
}
