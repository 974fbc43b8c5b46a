// SPDX-License-Identifier: Apache-2.0

//! How large a pod's VM is: a default, and what the container may use on top of it.

use husk_vmm::config::MAX_VCPUS;

use crate::spec::Resources;

/// vCPUs and memory of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub vcpus: u8,
    pub memory_mib: u64,
}

/// Memory of a VM whose containers have no limit, in MiB; guest kernel and agent included.
pub const DEFAULT_MEMORY_MIB: u64 = 256;

/// Most memory that is asked of the host for one VM, in MiB: the VMM's guests address 46
/// bits at least, and a limit beyond any host is meant as no limit.
const MAX_MEMORY_MIB: u64 = 1 << 22;

impl Size {
    /// The VM for a container with these limits, on a host with `host_cpus` CPUs and
    /// `host_memory_mib` of memory.
    ///
    /// The memory limit comes on top of the default, so that all of it can be used. A
    /// limit as large as the host is no limit.
    pub fn of(resources: &Resources, host_cpus: usize, host_memory_mib: u64) -> Size {
        let most = host_cpus.clamp(1, MAX_VCPUS as usize) as u64;
        let vcpus = match (resources.cpu_quota(), resources.cpu_period()) {
            (Some(quota), period) if quota > 0 => {
                (quota as u64).div_ceil(period.unwrap_or(100_000).max(1)).clamp(1, most)
            }
            _ => 1,
        };
        let limit_mib = match resources.memory_limit() {
            Some(limit) if limit > 0 => (limit as u64).div_ceil(1 << 20),
            _ => 0,
        };
        let limit_mib =
            if limit_mib >= host_memory_mib.min(MAX_MEMORY_MIB) { 0 } else { limit_mib };
        Size { vcpus: vcpus as u8, memory_mib: DEFAULT_MEMORY_MIB + limit_mib }
    }
}

/// CPUs that this process may run on, and the host's memory in MiB.
pub fn host_capacity() -> (usize, u64) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(MAX_MEMORY_MIB, |kib| kib >> 10);
    (cpus, memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> Resources {
        serde_json::from_str(json).expect("resources")
    }

    #[test]
    fn no_limits_give_the_default() {
        assert_eq!(Size::of(&resources("{}"), 8, 8192), Size { vcpus: 1, memory_mib: 256 });
        let unlimited = resources(r#"{"cpu":{"quota":-1},"memory":{"limit":-1}}"#);
        assert_eq!(Size::of(&unlimited, 8, 8192), Size { vcpus: 1, memory_mib: 256 });
    }

    #[test]
    fn limits_shape_the_vm() {
        let limits =
            resources(r#"{"cpu":{"quota":250000,"period":100000},"memory":{"limit":64000000}}"#);
        assert_eq!(Size::of(&limits, 8, 8192), Size { vcpus: 3, memory_mib: 256 + 62 });
        assert_eq!(Size::of(&limits, 2, 8192).vcpus, 2);
    }

    #[test]
    fn absurd_limits_are_no_limits() {
        let limits = resources(
            r#"{"cpu":{"quota":9223372036854775807,"period":0},"memory":{"limit":9223372036854771712}}"#,
        );
        assert_eq!(Size::of(&limits, 64, 8192), Size { vcpus: 32, memory_mib: 256 });
    }
}
