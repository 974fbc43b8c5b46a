// SPDX-License-Identifier: Apache-2.0

//! Memory of the VM on the host.

use std::fs;

use husk_tests::containerd::husk_case;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::task::Task;

/// MiB that a process of the host has in memory.
pub fn resident_mib(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).expect("statm");
    let pages = statm.split(' ').nth(1).expect("resident").parse::<u64>().expect("pages");
    (pages * 4096) >> 20
}

#[test]
fn what_is_freed_goes_back() {
    husk_case("memory that the guest has freed goes back to the host by itself", |lab| {
        lab.idle(
            &[
                "--annotation",
                "io.husk.memory-mib=800",
                "--mount",
                "type=tmpfs,dst=/big,options=size=600m",
            ],
            "greedy",
        );
        let vmm = Task::of_containerd(lab, "greedy").state("").expect("State").pid;
        let before = resident_mib(vmm);
        lab.exec_sh("greedy", "dd if=/dev/zero of=/big/file bs=1M count=512 2>&1");
        let full = resident_mib(vmm);
        assert!(full >= before + 500, "{before} MiB before, {full} MiB with 512 MiB in use");
        lab.exec_sh("greedy", "rm /big/file");
        let mut after = full;
        let freed = eventually(LIMIT, || {
            after = resident_mib(vmm);
            after <= full - 450
        });
        assert!(freed, "{before} MiB before, {full} MiB with 512 MiB in use, {after} MiB after");
        println!("resident: {before} MiB, {full} MiB with 512 MiB in use, {after} MiB later");
        lab.remove("greedy");
    });
}
