// SPDX-License-Identifier: Apache-2.0

//! How large a pod's VM is, when it starts and while it runs: a default, and what the
//! containers may use on top of it.

use std::fmt;

use husk_vmm::config::MAX_VCPUS;

use crate::error::Error;

/// Bytes of a huge page of the guest: it can have no others while it runs.
pub const HUGE_PAGE: u64 = 2 << 20;

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
    /// Bytes in huge pages, which no limit of memory counts.
    pub huge_pages: Option<u64>,
}

/// What [`Limits::cpu`] counts as one.
const CPU: u64 = 1_000_000;

/// Most memory that is asked of the host for one VM, in MiB: the VMM's guests address 46
/// bits at least, and a limit beyond any host is meant as no limit.
const MAX_MEMORY_MIB: u64 = 1 << 22;

/// Between which sizes a pod's VM can be while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// vCPUs for containers without a limit, and memory beside all limits.
    pub base: Size,
    pub least: Size,
    pub most: Size,
    /// Bytes in huge pages that the containers may use together, whatever their own limits.
    pub huge_pages: u64,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} vCPUs and {} MiB", self.vcpus, self.memory_mib)
    }
}

impl Limits {
    /// These, as an update changes them: what is absent in it, or 0, stays, but of huge pages.
    pub fn updated(self, change: Limits) -> Limits {
        Limits {
            cpu_quota: change.cpu_quota.filter(|&quota| quota != 0).or(self.cpu_quota),
            cpu_period: change.cpu_period.filter(|&period| period != 0).or(self.cpu_period),
            memory: change.memory.filter(|&memory| memory != 0).or(self.memory),
            // 0 is a limit here.
            huge_pages: change.huge_pages.or(self.huge_pages),
        }
    }

    /// Millionths of a CPU; `None` without a limit.
    fn cpu(&self) -> Option<u64> {
        let quota = u64::try_from(self.cpu_quota?).ok().filter(|&quota| quota > 0)?;
        let period = self.cpu_period.filter(|&period| period > 0).unwrap_or(100_000);
        Some(
            u64::try_from(u128::from(quota) * CPU as u128 / u128::from(period)).unwrap_or(u64::MAX),
        )
    }

    /// MiB; 0 without a limit, and for one as large as the host.
    fn memory_mib(&self, host_memory_mib: u64) -> u64 {
        match self.memory {
            Some(limit) if limit > 0 => Some((limit as u64).div_ceil(1 << 20)),
            _ => None,
        }
        .filter(|&mib| mib < host_memory_mib.min(MAX_MEMORY_MIB))
        .unwrap_or(0)
    }
}

impl Growth {
    /// The VM for the containers with these limits.
    pub fn size_for(&self, containers: &[Limits]) -> Size {
        let limited = || containers.iter().filter_map(Limits::cpu);
        let cpus = limited().fold(0, u64::saturating_add).div_ceil(CPU);
        let all_limited = !containers.is_empty() && limited().count() == containers.len();
        let vcpus = match all_limited {
            true => cpus,
            false => cpus.max(self.base.vcpus.into()),
        };
        let more = containers.iter().map(|limits| limits.memory_mib(self.most.memory_mib));
        let memory_mib = more
            .chain([self.huge_pages(containers) * (HUGE_PAGE >> 20)])
            .fold(self.base.memory_mib, u64::saturating_add);
        let Growth { least, most, .. } = self;
        Size {
            vcpus: vcpus.clamp(least.vcpus.into(), most.vcpus.into()) as u8,
            memory_mib: memory_mib.clamp(least.memory_mib, most.memory_mib),
        }
    }

    /// How many huge pages the guest has to have for the containers with these limits.
    pub fn huge_pages(&self, containers: &[Limits]) -> u64 {
        let limited = containers.iter().filter_map(|limits| limits.huge_pages);
        limited.fold(0, u64::saturating_add).max(self.huge_pages) / HUGE_PAGE
    }

    /// Refuses huge pages that the largest VM has no room for: the guest would have too little
    /// memory beside them.
    pub fn check_huge_pages(&self, containers: &[Limits]) -> Result<(), Error> {
        let mib = self.huge_pages(containers) * (HUGE_PAGE >> 20);
        let room = self.most.memory_mib.saturating_sub(self.base.memory_mib);
        if mib <= room {
            return Ok(());
        }
        Err(Error::precondition(format!(
            "the pod is to have {mib} MiB in huge pages, and its VM has room for {room} MiB: it can \
             have {} MiB, and needs {} MiB besides; lower the limits of huge pages, or raise \
             io.husk.memory-mib if the pod has that annotation",
            self.most.memory_mib, self.base.memory_mib
        )))
    }
}

impl Size {
    /// The VM for containers with these limits, on a host with `host_cpus` CPUs and
    /// `host_memory_mib` of memory. Without limits it is `least`.
    ///
    /// The memory limit comes on top of the least memory, so that all of it can be used, and so
    /// do huge pages. A limit of memory as large as the host is no limit.
    pub fn of(limits: &Limits, least: Size, host_cpus: usize, host_memory_mib: u64) -> Size {
        let most = host_cpus.clamp(1, MAX_VCPUS as usize) as u64;
        let vcpus = match limits.cpu() {
            Some(cpu) => cpu.div_ceil(CPU).clamp(1, most) as u8,
            None => least.vcpus,
        };
        let huge_mib = limits.huge_pages.unwrap_or(0) >> 20;
        let memory_mib = least.memory_mib + limits.memory_mib(host_memory_mib) + huge_mib;
        Size { vcpus, memory_mib }
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
        Limits {
            cpu_quota: Some(cpu_quota),
            cpu_period: Some(cpu_period),
            memory: Some(memory),
            huge_pages: None,
        }
    }

    fn huge(mib: u64) -> Limits {
        Limits { huge_pages: Some(mib << 20), ..Limits::default() }
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

    const GROWTH: Growth = Growth {
        base: LEAST,
        least: LEAST,
        most: Size { vcpus: 4, memory_mib: 2048 },
        huge_pages: 0,
    };

    #[test]
    fn huge_pages_come_on_top_of_memory() {
        let both = Limits { memory: Some(100 << 20), ..huge(64) };
        assert_eq!(Size::of(&both, LEAST, 8, 8192).memory_mib, 256 + 100 + 64);
        let of = |growth: Growth, containers: &[Limits]| {
            (growth.huge_pages(containers), growth.size_for(containers).memory_mib)
        };
        assert_eq!(of(GROWTH, &[]), (0, 256));
        assert_eq!(of(GROWTH, &[both, huge(2), Limits::default()]), (33, 256 + 100 + 66));
        let of_pod = Growth { huge_pages: 64 << 20, ..GROWTH };
        assert_eq!(of(of_pod, &[huge(2)]), (32, 256 + 64), "its containers have them in common");
        assert_eq!(of(of_pod, &[huge(66)]), (33, 256 + 66));
    }

    #[test]
    fn more_huge_pages_than_the_largest_vm_has_room_for_are_refused() {
        GROWTH.check_huge_pages(&[huge(1000), huge(2048 - 256 - 1000)]).expect("they fit");
        let error = GROWTH.check_huge_pages(&[huge(1000), huge(794)]).expect_err("2 MiB too many");
        let wanted = "1794 MiB in huge pages, and its VM has room for 1792 MiB";
        assert!(error.message.contains(wanted), "{error}");
        GROWTH.check_huge_pages(&[huge(u64::MAX >> 20), huge(u64::MAX >> 20)]).expect_err("absurd");
    }

    #[test]
    fn a_running_vm_is_for_all_its_containers_together() {
        let mib = |mib: i64| mib << 20;
        let none = Limits::default();
        let of = |containers: &[Limits]| {
            let Size { vcpus, memory_mib } = GROWTH.size_for(containers);
            (vcpus, memory_mib)
        };
        assert_eq!(of(&[]), (1, 256));
        assert_eq!(of(&[none, none]), (1, 256));
        let half = limits(50_000, 100_000, mib(100));
        assert_eq!(of(&[half]), (1, 356));
        assert_eq!(of(&[half, half]), (1, 456));
        assert_eq!(of(&[half, half, half]), (2, 556));
        assert_eq!(of(&[limits(300_000, 100_000, -1), none]), (3, 256));
        assert_eq!(of(&[limits(900_000, 100_000, mib(2000))]), (4, 2048), "at most");
        assert_eq!(of(&[limits(i64::MAX, 1, i64::MAX), half]), (4, 356), "as good as none");
        let base = Size { vcpus: 2, ..LEAST };
        let growth = Growth { base, ..GROWTH };
        assert_eq!(growth.size_for(&[half]).vcpus, 1);
        assert_eq!(growth.size_for(&[half, none]).vcpus, 2, "one may use all that are there");
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let before = limits(50_000, 100_000, 1000);
        assert_eq!(before.updated(Limits::default()), before);
        assert_eq!(before.updated(limits(0, 0, 0)), before);
        let quota = Limits { cpu_quota: Some(-1), ..Default::default() };
        assert_eq!(before.updated(quota), limits(-1, 100_000, 1000));
        assert_eq!(before.updated(limits(1, 2, 3)), limits(1, 2, 3));
        assert_eq!(huge(2).updated(limits(1, 2, 3)).huge_pages, Some(2 << 20));
        assert_eq!(huge(2).updated(huge(0)).huge_pages, Some(0));
    }
}
