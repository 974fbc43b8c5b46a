// SPDX-License-Identifier: Apache-2.0

//! OCI resource limits as files of a cgroup (v2). The OCI names come from cgroup v1, so
//! some values are converted; where runc and the specification differ, runc is followed,
//! because that is what people compare with. Device rules are the engine's.

use std::collections::BTreeMap;
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

/// What a file says now; None where there is no such file.
type Current<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Writes the limits. Stops at the first that the kernel refuses and says which.
pub fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    for limit in limits(resources, &|file| cgroup.read(file).ok())? {
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
        return if limit.optional { Ok(()) } else { Err(no_file(cgroup, file, value)) };
    }
    if error.raw_os_error() == Some(libc::EINVAL) || error.raw_os_error() == Some(libc::ERANGE) {
        return Err(Error::invalid(format!("{value:?} is no valid {file}: {error}")));
    }
    Err(Error::internal(format!("cannot write {value:?} to {file}: {error}")))
}

fn missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Why there is nothing to write a value to.
fn no_file(cgroup: &Cgroup, file: &str, value: &str) -> Error {
    let controllers = cgroup.read("cgroup.controllers").unwrap_or_default();
    let controller = file.split('.').next().unwrap_or_default();
    let available = controllers.split_ascii_whitespace().any(|name| name == controller);
    Error::invalid(match file {
        "memory.swap.max" if available => format!(
            "swap cannot be limited to {value} bytes, because the kernel does not account for it; \
             leave out memory.swap or make it equal to memory.limit"
        ),
        _ if available || controller == "cgroup" => {
            format!("the kernel has no {file} to set to {value:?}")
        }
        _ => {
            format!("{file} cannot be set to {value:?}: controller {controller:?} not available")
        }
    })
}

fn limits(resources: &LinuxResources, current: Current) -> Result<Vec<Limit>> {
    let mut limits = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_limits(memory, current, &mut limits)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_limits(cpu, current, &mut limits);
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
        let (size, limit) = (page.page_size(), number(page.limit()));
        // None of a size that the kernel does not have is what there is.
        let optional = page.limit() == 0;
        let used = Limit::new(format!("hugetlb.{size}.max"), &limit);
        limits.push(Limit { optional, ..used });
        // Pages that are promised count too. Kernels before 5.7 do not know.
        let promised = Limit::new(format!("hugetlb.{size}.rsvd.max"), limit);
        limits.push(Limit { optional: true, ..promised });
    }
    for (device, rdma) in resources.rdma().iter().flatten() {
        let part = |name, value: Option<u32>| value.map(|value| format!(" {name}={value}"));
        let parts =
            [part("hca_handle", rdma.hca_handles()), part("hca_object", rdma.hca_objects())];
        let parts: String = parts.into_iter().flatten().collect();
        limits.push(Limit::new("rdma.max", format!("{device}{parts}")));
    }
    // After what they may overrule; in an order that is the same each time.
    let unified: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
    for (file, value) in unified {
        if !file.contains('.') {
            return Err(Error::invalid(format!(
                "unified resource {file:?} must be in the form CONTROLLER.PARAMETER"
            )));
        }
        limits.push(Limit::new(file, value));
    }
    if let Some(limit) = limits.iter().find(|limit| limit.file.contains('/')) {
        let file = &limit.file;
        return Err(Error::invalid(format!("{file:?} must be a file name (no slashes)")));
    }
    Ok(limits)
}

fn memory_limits(memory: &LinuxMemory, current: Current, limits: &mut Vec<Limit>) -> Result<()> {
    let limit = memory.limit().unwrap_or(0);
    let both = memory.swap().unwrap_or(0);
    if limit < -1 || both < -1 || memory.reservation().is_some_and(|r| r < -1) {
        return Err(Error::invalid("a memory limit is below -1"));
    }
    // OCI's swap is memory and swap together; the file is swap alone.
    let swap = match (limit, both) {
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
    if memory.check_before_update() == Some(true) {
        let used = current("memory.current").and_then(|used| used.trim().parse::<i64>().ok());
        for (what, limit) in [("memory", limit), ("memory+swap", both)] {
            if let Some(used) = used.filter(|used| limit > 0 && limit <= *used) {
                return Err(Error::invalid(format!(
                    "rejecting {what} limit {limit} <= usage {used}"
                )));
            }
        }
    }
    let mut sizes = Vec::new();
    if let Some(swap) = swap {
        // Without swap in the kernel there is none, and both "none" and "all there is" hold.
        let optional = swap <= 0;
        sizes.push(Limit { optional, ..Limit::new("memory.swap.max", number(swap)) });
    }
    if limit != 0 {
        sizes.push(Limit::new("memory.max", number(limit)));
    }
    // What grows comes first, so that there is never less than before and after: a process
    // would be killed for that.
    sizes.sort_by_key(|size| {
        let bytes = |text: &str| text.trim().parse().unwrap_or(u64::MAX);
        current(&size.file).is_some_and(|current| bytes(&size.value) < bytes(&current))
    });
    limits.append(&mut sizes);
    if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
        limits.push(Limit::new("memory.low", number(reservation)));
    }
    Ok(())
}

fn cpu_limits(cpu: &LinuxCpu, current: Current, limits: &mut Vec<Limit>) {
    if let Some(idle) = cpu.idle() {
        limits.push(Limit::new("cpu.idle", idle));
    }
    // The kernel refuses a weight for an idle cgroup.
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle() != Some(1)) {
        limits.push(Limit::new("cpu.weight", weight_of_shares(shares)));
    }
    let max = current("cpu.max").unwrap_or_default();
    let max = match (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0)) {
        (0, 0) => None,
        // The period stays as it is.
        (quota, 0) => Some(number(quota)),
        (0, period) => {
            let quota = max.split_ascii_whitespace().next().unwrap_or("max");
            Some(format!("{quota} {period}"))
        }
        (quota, period) => Some(format!("{} {period}", number(quota))),
    };
    let max = max.map(|max| Limit::new("cpu.max", max));
    let burst = cpu.burst().map(|burst| Limit::new("cpu.max.burst", burst));
    // The quota is never below the burst: a burst that shrinks goes ahead.
    let before = current("cpu.max.burst").and_then(|before| before.trim().parse::<u64>().ok());
    if cpu.burst() < before {
        limits.extend(burst.into_iter().chain(max));
    } else {
        limits.extend(max.into_iter().chain(burst));
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
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let of = |weight| format!("{}:{} {weight}", device.major(), device.minor());
            limits.push(Limit {
                or: Some(("io.weight".to_owned(), of(weight_of_blkio(weight)))),
                ..Limit::new("io.bfq.weight", of(weight.into()))
            });
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

    /// What is written for `json` to a cgroup whose files say `now`.
    fn written_to(now: &[(&str, &str)], json: &str) -> Result<Vec<(String, String)>> {
        let resources: LinuxResources = serde_json::from_str(json).expect("json");
        let current = |file: &str| {
            now.iter().find(|(name, _)| *name == file).map(|(_, value)| format!("{value}\n"))
        };
        let limits = limits(&resources, &current)?;
        Ok(limits.into_iter().map(|limit| (limit.file, limit.value)).collect())
    }

    fn written(json: &str) -> Result<Vec<(String, String)>> {
        written_to(&[], json)
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
            (r#""reservation":-1"#, vec![("memory.low", "max")]),
            // These do not exist in version 2.
            (
                r#""limit":9,"kernel":5,"kernelTCP":5,"swappiness":3,"disableOOMKiller":true"#,
                vec![("memory.max", "9")],
            ),
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
    fn memory_that_grows_is_given_before_some_is_taken() {
        let now = [("memory.max", "100"), ("memory.swap.max", "100")];
        let (memory, swap) = ("memory.max", "memory.swap.max");
        for (json, want) in [
            (r#""limit":200,"swap":250"#, [(memory, "200"), (swap, "50")]),
            (r#""limit":50,"swap":300"#, [(swap, "250"), (memory, "50")]),
            (r#""limit":-1,"swap":-1"#, [(swap, "max"), (memory, "max")]),
            (r#""limit":50,"swap":-1"#, [(swap, "max"), (memory, "50")]),
        ] {
            let got = written_to(&now, &format!(r#"{{"memory":{{{json}}}}}"#));
            assert_eq!(got, files(&want), "{json}");
        }
        let unlimited = [("memory.max", "max"), ("memory.swap.max", "0")];
        let got = written_to(&unlimited, r#"{"memory":{"limit":50,"swap":60}}"#);
        assert_eq!(got, files(&[(swap, "10"), (memory, "50")]));
    }

    #[test]
    fn memory_in_use_is_not_taken_if_the_configuration_says_so() {
        let now = [("memory.current", "100")];
        for (json, want) in [
            (r#""limit":100"#, Some("rejecting memory limit 100 <= usage 100")),
            (r#""limit":101"#, None),
            (r#""limit":-1"#, None),
            (r#""limit":50,"swap":60"#, Some("rejecting memory limit 50 <= usage 100")),
        ] {
            let with = |check: bool| {
                let json = format!(r#"{{"memory":{{{json},"checkBeforeUpdate":{check}}}}}"#);
                written_to(&now, &json).err().map(|error| error.message)
            };
            assert_eq!(with(true).as_deref(), want, "{json}");
            assert_eq!(with(false), None, "{json}");
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
            // The kernel keeps its period.
            (r#""quota":50000"#, vec![("cpu.max", "50000")]),
            (r#""quota":-1"#, vec![("cpu.max", "max")]),
            (r#""quota":50000,"period":20000"#, vec![("cpu.max", "50000 20000")]),
            (r#""period":20000"#, vec![("cpu.max", "max 20000")]),
            (r#""quota":-1,"period":1000"#, vec![("cpu.max", "max 1000")]),
            (r#""cpus":"0-1","mems":"""#, vec![("cpuset.cpus", "0-1")]),
            (r#""idle":1"#, vec![("cpu.idle", "1")]),
            (r#""idle":1,"shares":1024"#, vec![("cpu.idle", "1")]),
            (r#""idle":0,"shares":1024"#, vec![("cpu.idle", "0"), ("cpu.weight", "39")]),
            (r#""realtimeRuntime":1,"realtimePeriod":2"#, vec![]),
        ] {
            assert_eq!(written(&format!(r#"{{"cpu":{{{cpu}}}}}"#)), files(&want), "{cpu}");
        }
    }

    #[test]
    fn the_quota_is_never_below_the_burst() {
        let now = [("cpu.max", "50000 100000"), ("cpu.max.burst", "20000")];
        let (max, burst) = ("cpu.max", "cpu.max.burst");
        for (json, want) in [
            (r#""quota":10000,"burst":5000"#, vec![(burst, "5000"), (max, "10000")]),
            (r#""quota":90000,"burst":60000"#, vec![(max, "90000"), (burst, "60000")]),
            (r#""quota":30000"#, vec![(max, "30000")]),
            (r#""period":50000"#, vec![(max, "50000 50000")]),
            (r#""burst":0"#, vec![(burst, "0")]),
        ] {
            let got = written_to(&now, &format!(r#"{{"cpu":{{{json}}}}}"#));
            assert_eq!(got, files(&want), "{json}");
        }
    }

    #[test]
    fn pids_io_hugepages_and_rdma() {
        let device = r#"{"major":8,"minor":0,"#;
        for (json, want) in [
            (r#""pids":{"limit":9}"#.to_owned(), vec![("pids.max", "9")]),
            (r#""pids":{"limit":-1}"#.to_owned(), vec![("pids.max", "max")]),
            (r#""pids":{"limit":0}"#.to_owned(), vec![]),
            (
                r#""blockIO":{"weight":10,"leafWeight":500}"#.to_owned(),
                vec![("io.bfq.weight", "10")],
            ),
            (
                format!(r#""blockIO":{{"weightDevice":[{device}"weight":10,"leafWeight":9}}]}}"#),
                vec![("io.bfq.weight", "8:0 10")],
            ),
            (
                format!(
                    r#""blockIO":{{"throttleReadBpsDevice":[{device}"rate":1}}],
                    "throttleWriteBpsDevice":[{device}"rate":2}}],
                    "throttleReadIOPSDevice":[{device}"rate":3}}],
                    "throttleWriteIOPSDevice":[{device}"rate":0}}]}}"#
                ),
                vec![
                    ("io.max", "8:0 rbps=1"),
                    ("io.max", "8:0 wbps=2"),
                    ("io.max", "8:0 riops=3"),
                    ("io.max", "8:0 wiops=max"),
                ],
            ),
            (
                r#""hugepageLimits":[{"pageSize":"2MB","limit":4}]"#.to_owned(),
                vec![("hugetlb.2MB.max", "4"), ("hugetlb.2MB.rsvd.max", "4")],
            ),
            (
                r#""rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000}}"#.to_owned(),
                vec![("rdma.max", "mlx5_1 hca_handle=3 hca_object=10000")],
            ),
            (r#""rdma":{"a":{"hcaObjects":1}}"#.to_owned(), vec![("rdma.max", "a hca_object=1")]),
            (r#""network":{"classID":1}"#.to_owned(), vec![]),
        ] {
            assert_eq!(written(&format!("{{{json}}}")), files(&want), "{json}");
        }
        assert_eq!(weight_of_blkio(10), 1);
        assert_eq!(weight_of_blkio(1000), 10_000);
    }

    #[test]
    fn unified_files_come_last_and_are_named_when_they_cannot_be() {
        assert_eq!(
            written(r#"{"unified":{"memory.max":"7","a.b":"x"},"memory":{"limit":5}}"#),
            files(&[("memory.max", "5"), ("a.b", "x"), ("memory.max", "7")])
        );
        for (json, want) in [
            (r#"{"unified":{"../x.y":"7"}}"#, r#""../x.y" must be a file name (no slashes)"#),
            (
                r#"{"unified":{"x":"7"}}"#,
                r#"unified resource "x" must be in the form CONTROLLER.PARAMETER"#,
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"/x","limit":4}]}"#,
                r#""hugetlb./x.max" must be a file name (no slashes)"#,
            ),
        ] {
            assert_eq!(written(json).expect_err(json).message, want);
        }
    }

    /// Applies to a directory that has the files of a cgroup; returns those it has then.
    fn applied(now: &[(&str, &str)], json: &str) -> Result<Vec<(String, String)>> {
        let directory = tempfile::tempdir().expect("a directory");
        for (file, value) in now {
            std::fs::write(directory.path().join(file), value).expect("write");
        }
        let resources: LinuxResources = serde_json::from_str(json).expect("json");
        apply(&Cgroup::at(directory.path()), &resources)?;
        let read = |file| std::fs::read_to_string(directory.path().join(file)).expect("read");
        Ok(now.iter().map(|(file, _)| (file.to_string(), read(file))).collect())
    }

    #[test]
    fn files_that_the_kernel_lacks_are_told_where_they_matter() {
        let memory = [("cgroup.controllers", "cpu memory pids\n"), ("memory.max", "0")];
        for swap in [-1, 9] {
            let json = format!(r#"{{"memory":{{"limit":9,"swap":{swap}}}}}"#);
            let want = [("cgroup.controllers", "cpu memory pids\n"), ("memory.max", "9")];
            assert_eq!(applied(&memory, &json), files(&want), "{json}");
        }
        for (json, want) in [
            (
                r#"{"memory":{"limit":9,"swap":10}}"#,
                "swap cannot be limited to 1 bytes, because the kernel does not account for it; \
                 leave out memory.swap or make it equal to memory.limit",
            ),
            (
                r#"{"unified":{"misc.max":"1"}}"#,
                r#"misc.max cannot be set to "1": controller "misc" not available"#,
            ),
            (
                r#"{"unified":{"memory.nonsense":"1"}}"#,
                r#"the kernel has no memory.nonsense to set to "1""#,
            ),
            (
                r#"{"blockIO":{"weight":10}}"#,
                r#"io.weight cannot be set to "1": controller "io" not available"#,
            ),
        ] {
            assert_eq!(applied(&memory, json).expect_err(json).message, want);
        }
        let weight = [("io.weight", "x")];
        let got = applied(&weight, r#"{"blockIO":{"weight":1000}}"#);
        assert_eq!(got, files(&[("io.weight", "10000")]));
    }
}
