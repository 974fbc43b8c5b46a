// SPDX-License-Identifier: Apache-2.0

//! When and where a process runs (runtime-spec 1.2, config.md "Linux Process": scheduler,
//! ioPriority, execCPUAffinity).

use oci_spec::runtime::{
    IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler,
};

use super::stage::check;

/// linux/sched/types.h: struct sched_attr of 5.3 and later.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// No machine has more CPUs than bits in this mask.
const MAX_CPUS: usize = 8192;

/// Sets scheduler and I/O priority of this process.
pub fn apply(process: &Process) -> Result<(), String> {
    if let Some(scheduler) = process.scheduler() {
        set_scheduler(scheduler)?;
    }
    let Some(priority) = process.io_priority() else { return Ok(()) };
    let class: i64 = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    const WHO_PROCESS: i32 = 1;
    let value = class << 13 | priority.priority();
    // SAFETY: ioprio_set() takes no pointers.
    let set = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) };
    check(set as i32, &format!("set ioPriority {}", priority.priority()))
}

fn set_scheduler(scheduler: &Scheduler) -> Result<(), String> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy,
        flags: scheduler.flags().iter().flatten().map(flag).fold(0, |all, flag| all | flag),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0) as u32,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..Attributes::default()
    };
    // SAFETY: reads a sched_attr of the size that it names, alive during the call.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check(set as i32, &format!("set the scheduler to {:?}", scheduler.policy()))
}

fn flag(flag: &LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// Binds this process to CPUs given as `0-3,7`. Nothing to do for none.
pub fn set_affinity(cpus: Option<&str>) -> Result<(), String> {
    let Some(list) = cpus.filter(|list| !list.is_empty()) else { return Ok(()) };
    let mask = mask(list).ok_or_else(|| format!("{list:?} is no list of CPUs"))?;
    let size = size_of_val(mask.as_slice());
    // SAFETY: reads size bytes of the mask.
    let set = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size, mask.as_ptr()) };
    check(set as i32, &format!("run on the CPUs {list:?}"))
}

fn mask(list: &str) -> Option<Vec<u64>> {
    let mut mask = vec![0u64; MAX_CPUS / 64];
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= MAX_CPUS {
            return None;
        }
        for cpu in first..=last {
            mask[cpu / 64] |= 1 << (cpu % 64);
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_become_masks() {
        assert_eq!(mask("0-3,7").map(|mask| mask[0]), Some(0x8f));
        assert_eq!(mask("64").map(|mask| mask[1]), Some(1));
        for bad in ["", "x", "3-1", "8192", "1,,2", "-1"] {
            assert_eq!(mask(bad), None, "{bad}");
        }
    }
}
