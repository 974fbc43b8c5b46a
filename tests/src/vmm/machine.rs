// SPDX-License-Identifier: Apache-2.0

//! vCPUs and memory: the guest has what was asked for, and can use all of it.

use std::io;

use super::Run;

/// Boots with `cpus` and `memory_mib`; the guest has run code on every vCPU and used
/// memory over its whole range.
pub fn host(cpus: u32, memory_mib: u64) {
    let memory = format!("{memory_mib}M");
    let outcome =
        Run::case("machine", &["--cpus", &cpus.to_string(), "--memory", &memory]).finish();
    let said: Vec<u64> =
        outcome.done().split(' ').map(|word| word.parse().expect("number")).collect();
    assert_eq!(said[0], u64::from(cpus), "vCPUs that ran code\n{outcome}");
    // The kernel keeps some for itself: its image and a page structure for every page.
    let least = memory_mib - memory_mib / 32 - 40;
    assert!((least..=memory_mib).contains(&said[1]), "{} MiB of {memory_mib}\n{outcome}", said[1]);
    println!("{cpus} vCPUs ran code; the guest counts {} MiB of {memory_mib}", said[1]);
}

pub fn guest() -> io::Result<String> {
    let cpus = std::thread::available_parallelism()?.get();
    let threads: Vec<_> = (0..cpus).map(|cpu| std::thread::spawn(move || pin(cpu))).collect();
    let ran = threads.into_iter().filter_map(|thread| thread.join().ok()?.ok()).count();
    let total = meminfo("MemTotal:")?;
    touch(meminfo("MemAvailable:")? * 3 / 4)?;
    Ok(format!("{ran} {}", total >> 20))
}

/// Runs on this CPU and makes sure of it.
pub fn pin(cpu: usize) -> io::Result<()> {
    use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    if sched_getcpu()? == cpu { Ok(()) } else { Err(io::Error::other("on another CPU")) }
}

/// Writes a word into one page of every 64 KiB of `bytes`, then reads them all back.
fn touch(bytes: u64) -> io::Result<()> {
    const STEP: usize = (64 << 10) / 8;
    let words = bytes as usize / 8;
    // Zeroed memory comes from the kernel untouched.
    let mut memory = vec![0u64; words];
    for at in (0..words).step_by(STEP) {
        memory[at] = at as u64 ^ 0x5555;
    }
    match (0..words).step_by(STEP).find(|&at| memory[at] != at as u64 ^ 0x5555) {
        Some(at) => Err(io::Error::other(format!("memory lost what was written at {at}"))),
        None => Ok(()),
    }
}

fn meminfo(name: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .map(|kib: u64| kib << 10)
        .ok_or_else(|| io::Error::other(format!("no {name} in meminfo")))
}
