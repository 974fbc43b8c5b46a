// SPDX-License-Identifier: Apache-2.0

//! The guest's figures of a container as containerd's cgroup v2 metrics.

use containerd_shim_protos::cgroups_v2::metrics as cgroup;
use husk_protocol::agent::ContainerStats;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

/// The type that containerd knows them by; a bare name, without a host in front.
const TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";

/// Block devices that are taken over from the guest; a VM has fewer.
const MAX_DEVICES: usize = 64;

/// Packs the figures for a StatsResponse.
pub fn to_any(stats: &ContainerStats) -> Result<Any, protobuf::Error> {
    let value = metrics(stats).write_to_bytes()?;
    Ok(Any { type_url: TYPE_URL.into(), value, ..Default::default() })
}

/// Adds what a container uses to that of others; limits have no sum.
pub fn add(total: &mut ContainerStats, stats: &ContainerStats) {
    let cpu = total.cpu.mut_or_insert_default();
    cpu.usage_usec += stats.cpu.usage_usec;
    cpu.user_usec += stats.cpu.user_usec;
    cpu.system_usec += stats.cpu.system_usec;
    let memory = total.memory.mut_or_insert_default();
    memory.usage += stats.memory.usage;
    memory.swap_usage += stats.memory.swap_usage;
    for (name, value) in &stats.memory.stat {
        *memory.stat.entry(name.clone()).or_default() += value;
    }
    total.pids.mut_or_insert_default().current += stats.pids.current;
}

fn metrics(stats: &ContainerStats) -> cgroup::Metrics {
    cgroup::Metrics {
        pids: MessageField::some(cgroup::PidsStat {
            current: stats.pids.current,
            limit: stats.pids.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(cgroup::CPUStat {
            usage_usec: stats.cpu.usage_usec,
            user_usec: stats.cpu.user_usec,
            system_usec: stats.cpu.system_usec,
            nr_periods: stats.cpu.nr_periods,
            nr_throttled: stats.cpu.nr_throttled,
            throttled_usec: stats.cpu.throttled_usec,
            ..Default::default()
        }),
        memory: MessageField::some(memory(stats)),
        memory_events: MessageField::some(cgroup::MemoryEvents {
            low: stats.memory.low,
            high: stats.memory.high,
            max: stats.memory.max,
            oom: stats.memory.oom,
            oom_kill: stats.memory.oom_kill,
            ..Default::default()
        }),
        io: MessageField::some(cgroup::IOStat {
            usage: stats.io.iter().take(MAX_DEVICES).map(device).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(stats: &ContainerStats) -> cgroup::MemoryStat {
    let of = |name: &str| stats.memory.stat.get(name).copied().unwrap_or(0);
    cgroup::MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        // The kernel has counted these two kinds apart since 5.9.
        workingset_refault: of("workingset_refault_anon")
            .saturating_add(of("workingset_refault_file")),
        workingset_activate: of("workingset_activate_anon")
            .saturating_add(of("workingset_activate_file")),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: stats.memory.usage,
        usage_limit: stats.memory.usage_limit,
        swap_usage: stats.memory.swap_usage,
        swap_limit: stats.memory.swap_limit,
        ..Default::default()
    }
}

fn device(io: &husk_protocol::agent::IoStats) -> cgroup::IOEntry {
    cgroup::IOEntry {
        major: io.major,
        minor: io.minor,
        rbytes: io.rbytes,
        wbytes: io.wbytes,
        rios: io.rios,
        wios: io.wios,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::agent::{CpuStats, IoStats, MemoryStats, PidsStats};

    #[test]
    fn figures_arrive_where_containerd_looks() {
        let stats = ContainerStats {
            container: "c1".into(),
            cpu: MessageField::some(CpuStats { usage_usec: 11, ..Default::default() }),
            memory: MessageField::some(MemoryStats {
                usage: 22,
                usage_limit: u64::MAX,
                oom_kill: 1,
                stat: [
                    ("anon".into(), 33),
                    ("workingset_refault_anon".into(), u64::MAX),
                    ("workingset_refault_file".into(), 1),
                    ("no such field".into(), 5),
                ]
                .into(),
                ..Default::default()
            }),
            pids: MessageField::some(PidsStats { current: 4, limit: 100, ..Default::default() }),
            io: vec![IoStats { major: 254, rbytes: 55, ..Default::default() }; 1000],
            ..Default::default()
        };
        let any = to_any(&stats).expect("any");
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = cgroup::Metrics::parse_from_bytes(&any.value).expect("metrics");
        assert_eq!(metrics.cpu.usage_usec, 11);
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (22, u64::MAX));
        assert_eq!((metrics.memory.anon, metrics.memory.workingset_refault), (33, u64::MAX));
        assert_eq!(metrics.memory_events.oom_kill, 1);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (4, 100));
        assert_eq!(metrics.io.usage.len(), MAX_DEVICES);
        assert_eq!(metrics.io.usage[0].rbytes, 55);
    }

    #[test]
    fn a_guest_that_tells_nothing_gives_zeroes() {
        let any = to_any(&ContainerStats::default()).expect("any");
        let metrics = cgroup::Metrics::parse_from_bytes(&any.value).expect("metrics");
        assert_eq!(metrics.memory.usage, 0);
    }
}
