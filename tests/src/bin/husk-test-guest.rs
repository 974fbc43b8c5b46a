// SPDX-License-Identifier: Apache-2.0

//! The guest of the suite for husk-vmm alone: /init of its own image. Does the guest's half
//! of the case that the kernel command line names, says what came of it, and powers off.

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

fn main() {
    if std::process::id() != 1 {
        eprintln!("husk-test-guest is the /init of a guest; it would switch off this machine");
        std::process::exit(2);
    }
    for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        // The kernel may have mounted /dev by itself.
        let _ = mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>);
    }
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let name = cmdline.split_whitespace().find_map(|word| word.strip_prefix("case="));
    let case = husk_tests::vmm::GUEST_CASES.iter().find(|(known, _)| Some(*known) == name);
    match case.map(|(_, half)| half()) {
        Some(Ok(said)) => println!("done: {said}"),
        Some(Err(error)) => println!("failed: {error}"),
        None => println!("failed: no case {name:?}"),
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
}
