// SPDX-License-Identifier: Apache-2.0

//! How large a pod's VM is: a default, and what the container may use on top of it.

use husk_vmm::config::MAX_VCPUS;

/// vCPUs and memory of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub vcpus: u8,
    pub memory_mib: u64,
}

/// What the containers of a pod may use; `None` or a negative number for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Microseconds of CPU per period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Bytes.
    pub memory: Option<i64>,
}

/// Most memory that is asked of the host for one VM, in MiB: the VMM's guests address 46
/// bits at least, and a limit beyond any host is meant as no limit.
const MAX_MEMORY_MIB: u64 = 1 << 22;

impl Size {
    /// The VM for containers with these limits, on a host with `host_cpus` CPUs and
    /// `host_memory_mib` of memory. Without limits it is `least`.
    ///
    /// The memory limit comes on top of the least memory, so that all of it can be used. A
    /// limit as large as the host is no limit.
    pub fn of(limits: &Limits, least: Size, host_cpus: usize, host_memory_mib: u64) -> Size {
        let most = host_cpus.clamp(1, MAX_VCPUS as usize) as u64;
        let vcpus = match limits.cpu_quota {
            Some(quota) if quota > 0 => {
                let period = limits.cpu_period.filter(|&period| period > 0).unwrap_or(100_000);
                (quota as u64).div_ceil(period).clamp(1, most) as u8
            }
            _ => least.vcpus,
        };
        let limit_mib = match limits.memory {
            Some(limit) if limit > 0 => (limit as u64).div_ceil(1 << 20),
            _ => 0,
        };
        let limit_mib =
            if limit_mib >= host_memory_mib.min(MAX_MEMORY_MIB) { 0 } else { limit_mib };
        Size { vcpus, memory_mib: least.memory_mib + limit_mib }
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

    const LEAST: Size = Size { vcpus: 1, memory_mib: 256 };

    fn limits(cpu_quota: i64, cpu_period: u64, memory: i64) -> Limits {
        Limits { cpu_quota: Some(cpu_quota), cpu_period: Some(cpu_period), memory: Some(memory) }
    }

    #[test]
    fn no_limits_give_the_least() {
        assert_eq!(Size::of(&Limits::default(), LEAST, 8, 8192), LEAST);
        assert_eq!(Size::of(&limits(-1, 100_000, -1), LEAST, 8, 8192), LEAST);
    }

    #[test]
    fn limits_shape_the_vm() {
        let limits = limits(250_000, 100_000, 64_000_000);
        let size = Size { vcpus: 3, memory_mib: 256 + 62 };
        assert_eq!(Size::of(&limits, LEAST, 8, 8192), size);
        assert_eq!(Size::of(&limits, LEAST, 2, 8192).vcpus, 2);
    }

    #[test]
    fn absurd_limits_are_no_limits() {
        let limits = limits(i64::MAX, 0, 9_223_372_036_854_771_712);
        let size = Size { vcpus: 32, memory_mib: 256 };
        assert_eq!(Size::of(&limits, LEAST, 64, 8192), size);
    }
}
