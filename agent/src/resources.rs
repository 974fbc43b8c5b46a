// SPDX-License-Identifier: Apache-2.0

//! OCI resource limits as files of a cgroup (v2). The OCI names come from cgroup v1, so
//! some values are converted; where runc and the specification differ, runc is followed,
//! because that is what people compare with. Device rules are the engine's.

use std::io;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};

/// One value for one file.
#[derive(Debug, PartialEq)]
struct Limit {
    file: String,
    value: String,
    /// The same in terms of another file, for kernels that have that one instead.
    or: Option<(String, String)>,
    /// A kernel without the file is as good: what it would limit does not exist there.
    optional: bool,
}

impl Limit {
    fn new(file: impl Into<String>, value: impl ToString) -> Self {
        Self { file: file.into(), value: value.to_string(), or: None, optional: false }
    }
}

/// Writes the limits. Stops at the first that the kernel refuses and says which.
pub fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    for limit in limits(resources)? {
        write(cgroup, &limit)?;
    }
    Ok(())
}

fn write(cgroup: &Cgroup, limit: &Limit) -> Result<()> {
    let (file, value, error) = match cgroup.write(&limit.file, &limit.value) {
        Ok(()) => return Ok(()),
        Err(error) if missing(&error) => match &limit.or {
            Some((file, value)) => match cgroup.write(file, value) {
                Ok(()) => return Ok(()),
                Err(error) => (file, value, error),
            },
            None => (&limit.file, &limit.value, error),
        },
        Err(error) => (&limit.file, &limit.value, error),
    };
    if missing(&error) {
        if limit.optional {
            return Ok(());
        }
        return Err(Error::invalid(format!("the guest kernel has no {file} to set to {value}")));
    }
    if error.raw_os_error() == Some(libc::EINVAL) || error.raw_os_error() == Some(libc::ERANGE) {
        return Err(Error::invalid(format!("{value:?} is no valid {file}: {error}")));
    }
    Err(Error::internal(format!("cannot write {value:?} to {file}: {error}")))
}

fn missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn limits(resources: &LinuxResources) -> Result<Vec<Limit>> {
    let mut limits = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_limits(memory, &mut limits)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_limits(cpu, &mut limits);
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            0 => {}
            limit => limits.push(Limit::new("pids.max", number(limit))),
        }
    }
    if let Some(io) = resources.block_io() {
        io_limits(io, &mut limits);
    }
    for page in resources.hugepage_limits().iter().flatten() {
        limits.push(Limit::new(format!("hugetlb.{}.max", page.page_size()), number(page.limit())));
    }
    for (file, value) in resources.unified().iter().flatten() {
        if file.contains('/') || !file.contains('.') {
            return Err(Error::invalid(format!("{file:?} in unified is no cgroup file")));
        }
        limits.push(Limit::new(file, value));
    }
    Ok(limits)
}

fn memory_limits(memory: &LinuxMemory, limits: &mut Vec<Limit>) -> Result<()> {
    let limit = memory.limit().unwrap_or(0);
    let swap = memory.swap().unwrap_or(0);
    if limit < -1 || swap < -1 || memory.reservation().is_some_and(|r| r < -1) {
        return Err(Error::invalid("a memory limit is below -1"));
    }
    // OCI's swap is memory and swap together; the file is swap alone.
    let swap = match (limit, swap) {
        (-1, 0) => Some(-1),
        (_, 0) => None,
        (_, -1) => Some(-1),
        (0, _) => return Err(Error::invalid("a swap limit needs a memory limit")),
        (-1, _) => return Err(Error::invalid("a swap limit cannot be below unlimited memory")),
        (limit, both) if both < limit => {
            return Err(Error::invalid("memory and swap together are limited below memory alone"));
        }
        (limit, both) => Some(both - limit),
    };
    if let Some(swap) = swap {
        // Without swap in the kernel any limit of it holds.
        limits.push(Limit { optional: true, ..Limit::new("memory.swap.max", number(swap)) });
    }
    if limit != 0 {
        limits.push(Limit::new("memory.max", number(limit)));
    }
    if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
        limits.push(Limit::new("memory.low", number(reservation)));
    }
    Ok(())
}

fn cpu_limits(cpu: &LinuxCpu, limits: &mut Vec<Limit>) {
    if let Some(idle) = cpu.idle() {
        limits.push(Limit::new("cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        limits.push(Limit::new("cpu.weight", weight_of_shares(shares)));
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota != 0 || period != 0 {
        let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
        let period = if period == 0 { 100_000 } else { period };
        limits.push(Limit::new("cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst() {
        limits.push(Limit::new("cpu.max.burst", burst));
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            limits.push(Limit::new(file, list));
        }
    }
}

fn io_limits(io: &LinuxBlockIo, limits: &mut Vec<Limit>) {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        limits.push(Limit {
            or: Some(("io.weight".to_owned(), weight_of_blkio(weight).to_string())),
            ..Limit::new("io.bfq.weight", weight)
        });
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            limits.push(Limit::new("io.bfq.weight", value));
        }
    }
    let throttles: [(&str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ];
    for (name, devices) in throttles {
        for device in devices.iter().flatten() {
            let rate = if device.rate() == 0 { "max".into() } else { device.rate().to_string() };
            let value = format!("{}:{} {name}={rate}", device.major(), device.minor());
            limits.push(Limit::new("io.max", value));
        }
    }
}

/// Shares 2..262144 as weight 1..10000.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Block I/O weight 10..1000 as weight 1..10000.
fn weight_of_blkio(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

fn number(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Result<Vec<(String, String)>> {
        let resources: LinuxResources = serde_json::from_str(json).expect("json");
        Ok(limits(&resources)?.into_iter().map(|limit| (limit.file, limit.value)).collect())
    }

    fn files(pairs: &[(&str, &str)]) -> Result<Vec<(String, String)>> {
        Ok(pairs.iter().map(|(f, v)| (f.to_string(), v.to_string())).collect())
    }

    #[test]
    fn swap_is_what_is_left_beside_memory() {
        for (memory, want) in [
            (r#""limit":100,"swap":300"#, vec![("memory.swap.max", "200"), ("memory.max", "100")]),
            (r#""limit":100,"swap":100"#, vec![("memory.swap.max", "0"), ("memory.max", "100")]),
            (r#""limit":100,"swap":-1"#, vec![("memory.swap.max", "max"), ("memory.max", "100")]),
            (r#""limit":100"#, vec![("memory.max", "100")]),
            (r#""limit":-1"#, vec![("memory.swap.max", "max"), ("memory.max", "max")]),
            (r#""limit":0,"reservation":50"#, vec![("memory.low", "50")]),
        ] {
            assert_eq!(written(&format!(r#"{{"memory":{{{memory}}}}}"#)), files(&want), "{memory}");
        }
    }

    #[test]
    fn impossible_memory_is_refused() {
        for memory in [r#""swap":10"#, r#""limit":10,"swap":5"#, r#""limit":-2"#] {
            let error = written(&format!(r#"{{"memory":{{{memory}}}}}"#)).expect_err(memory);
            assert_eq!(error.code, husk_protocol::agent::error::Code::INVALID_ARGUMENT);
        }
    }

    #[test]
    fn cpu_converts() {
        for (cpu, want) in [
            (r#""shares":1024"#, vec![("cpu.weight", "39")]),
            (r#""shares":2"#, vec![("cpu.weight", "1")]),
            (r#""shares":262144"#, vec![("cpu.weight", "10000")]),
            (r#""shares":1000000"#, vec![("cpu.weight", "10000")]),
            (r#""shares":0"#, vec![]),
            (r#""quota":50000"#, vec![("cpu.max", "50000 100000")]),
            (r#""quota":-1,"period":1000"#, vec![("cpu.max", "max 1000")]),
            (r#""cpus":"0-1","mems":"""#, vec![("cpuset.cpus", "0-1")]),
            (r#""idle":1"#, vec![("cpu.idle", "1")]),
        ] {
            assert_eq!(written(&format!(r#"{{"cpu":{{{cpu}}}}}"#)), files(&want), "{cpu}");
        }
    }

    #[test]
    fn pids_io_hugepages_and_unified() {
        assert_eq!(written(r#"{"pids":{"limit":9}}"#), files(&[("pids.max", "9")]));
        assert_eq!(written(r#"{"pids":{"limit":-1}}"#), files(&[("pids.max", "max")]));
        assert_eq!(
            written(r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]}}"#),
            files(&[("io.max", "8:0 rbps=1")])
        );
        assert_eq!(
            written(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4}]}"#),
            files(&[("hugetlb.2MB.max", "4")])
        );
        assert_eq!(written(r#"{"unified":{"memory.high":"7"}}"#), files(&[("memory.high", "7")]));
        assert!(written(r#"{"unified":{"../x.y":"7"}}"#).is_err());
        assert_eq!(weight_of_blkio(10), 1);
        assert_eq!(weight_of_blkio(1000), 10_000);
    }
}
