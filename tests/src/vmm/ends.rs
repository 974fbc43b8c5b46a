// SPDX-License-Identifier: Apache-2.0

//! How a VM ends, and how that is told.

use std::io;

use nix::sys::reboot::{RebootMode, reboot};

use super::Run;

pub fn power_off() {
    let outcome = Run::case("machine", &[]).finish();
    outcome.done();
    assert_eq!(outcome.errors, "", "a power-off is nothing to complain about");
    println!("power-off ends husk-vmm with status 0");
}

pub fn reset() {
    let outcome = Run::case("reset", &[]).finish();
    assert_eq!((outcome.status, outcome.errors.as_str()), (0, ""), "{outcome}");
    println!("a reset ends husk-vmm with status 0");
}

pub fn guest_resets() -> io::Result<String> {
    match reboot(RebootMode::RB_AUTOBOOT)? {}
}

pub fn panic() {
    let outcome = Run::case("panic", &[]).finish();
    outcome.refused(1, "the guest kernel panicked");
    assert!(outcome.console.contains("Attempted to kill init"), "{outcome}");
    println!("a guest panic ends husk-vmm with status 1, its text on the console");
}

pub fn guest_panics() -> io::Result<String> {
    // The end of PID 1 panics the kernel.
    std::process::exit(3)
}

pub fn triple_fault() {
    let cmdline = "console=hvc0 quiet panic=-1 reboot=triple case=reset";
    Run::with_cmdline(cmdline, &[]).finish().refused(1, "triple fault");
    println!("a triple fault ends husk-vmm with status 1");
}
