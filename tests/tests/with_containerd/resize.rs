// SPDX-License-Identifier: Apache-2.0

//! A VM that follows the limits of its containers while they run.

use husk_tests::containerd::network::{DataPath, bridged, fetch, hash, serve_once};
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::task::Task;
use husk_tests::containerd::{Lab, husk_case};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::memory::resident_mib;

const MIB: u64 = 1 << 20;

fn memory(limit: u64) -> Value {
    json!({"memory": {"limit": limit * MIB}})
}

/// MiB that the guest has.
fn guest_mib(lab: &Lab, id: &str) -> u64 {
    let kib = lab.exec_sh(id, "awk '$1 == \"MemTotal:\" { print $2 }' /proc/meminfo");
    kib.trim().parse::<u64>().expect("a number") >> 10
}

#[test]
fn memory_up_and_down() {
    husk_case("a container's memory grows beyond the VM it began with, and shrinks again", |lab| {
        let flags = ["--memory-limit", "67108864", "--mount"];
        let big = ["type=tmpfs,dst=/big,options=size=600m"];
        lab.idle(&[flags.as_slice(), big.as_slice()].concat(), "grown");
        let vmm = Task::of_containerd(lab, "grown").state("").expect("State").pid;
        let shim = lab.shim_of("grown");
        let at_boot = guest_mib(lab, "grown");
        for round in 1..=3 {
            shim.update(&memory(576)).expect("grow");
            let large = guest_mib(lab, "grown");
            assert!(large >= at_boot + 490, "{at_boot} MiB at boot, {large} MiB in round {round}");
            lab.exec_sh("grown", "dd if=/dev/zero of=/big/file bs=1M count=500 2>&1");
            let full = resident_mib(vmm);
            assert!(full >= 500, "{full} MiB resident with 500 MiB in use");
            lab.exec_sh("grown", "rm /big/file");
            shim.update(&memory(64)).expect("shrink");
            let mut after = full;
            let freed = eventually(LIMIT, || {
                after = resident_mib(vmm);
                after < 340 && guest_mib(lab, "grown") < at_boot + 100
            });
            let small = guest_mib(lab, "grown");
            assert!(freed, "{small} MiB in the guest, {after} MiB resident");
            println!("{at_boot} MiB, {large} MiB, {small} MiB; resident {full}, {after}");
        }
        lab.remove("grown");
    });
}

#[test]
fn memory_that_is_sent() {
    husk_case(
        "a file in memory that came later is sent and received by hash, by vhost-net",
        |lab| {
            // What the VM has at boot is full of the first file.
            const FIRST: usize = 200 << 20;
            const LEN: usize = 16 << 20;
            let [_, path] = DataPath::of_husk();
            path.add_settings("memory_mib = 128\n");
            let netns = bridged("husk-grown");
            let (netns_flag, path_flags) = (netns.flag(), path.flags(lab));
            let mut flags = vec!["--memory-limit", "67108864", "--with-ns", &netns_flag];
            flags.extend(["--mount", "type=tmpfs,dst=/big,options=size=300m"]);
            flags.extend(path_flags.iter().map(String::as_str));
            lab.detached(&flags, "grown", &["httpd", "-f", "-p", "8080", "-h", "/big"]);
            lab.shim_of("grown").update(&memory(320)).expect("grow");
            let fill = format!(
                "head -c {FIRST} /dev/zero >/big/first; head -c {LEN} /dev/urandom >/big/data"
            );
            lab.exec_sh("grown", &fill);
            let data = fetch("10.88.0.2:8080", "/data");
            assert_eq!(data.len(), LEN);
            let theirs = lab.exec_sh("grown", "sha256sum </big/data | cut -c1-64");
            assert_eq!(theirs, hash(&data), "out of the guest");
            let port = serve_once("10.88.0.1", data);
            lab.exec_sh("grown", &format!("nc 10.88.0.1 {port} >/big/back"));
            let back = lab.exec_sh("grown", "sha256sum </big/back | cut -c1-64");
            assert_eq!(back, theirs, "into the guest");
            path.check(lab);
            lab.remove("grown");
            netns.until_left();
        },
    );
}

#[test]
fn cpus_up_and_down() {
    husk_case("the VM has as many CPUs as its container may use, if the host has them", |lab| {
        let host = std::thread::available_parallelism().expect("CPUs").get().to_string();
        lab.idle(&["--cpus", "1"], "counted");
        let shim = lab.shim_of("counted");
        let cpus = |quota: i64| {
            shim.update(&json!({"cpu": {"quota": quota, "period": 100_000}})).expect("Update");
            lab.exec_sh("counted", "grep -c ^cpu[0-9] /proc/stat").trim().to_owned()
        };
        for _ in 0..5 {
            assert_eq!(cpus(100_000), "1");
            assert_eq!(cpus(6_400_000), host);
        }
        // The default, without a limit.
        assert_eq!(cpus(-1), "1");
        lab.remove("counted");
    });
}

#[test]
fn vm_that_ends_meanwhile() {
    husk_case("a VM that is killed while it is resized fails the update and nothing else", |lab| {
        lab.idle(&["--memory-limit", "67108864"], "struck");
        let vmm = Task::of_containerd(lab, "struck").state("").expect("State").pid;
        let (vmm, shim) = (Pid::from_raw(vmm as i32), lab.shim_of("struck"));
        // So that the update is under way when its end comes.
        kill(vmm, Signal::SIGSTOP).expect("SIGSTOP");
        let updated = std::thread::spawn(move || shim.update(&memory(512)));
        kill(vmm, Signal::SIGKILL).expect("SIGKILL");
        let error = format!("{:?}", updated.join().expect("no panic").expect_err("no VM"));
        assert!(error.contains("husk-vmm was killed by signal 9"), "{error}");
        lab.until_status("struck", "STOPPED");
        lab.remove_task("struck");
        lab.ctr(&["containers", "rm", "struck"]).ended(0);
    });
}
