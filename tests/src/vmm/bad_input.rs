// SPDX-License-Identifier: Apache-2.0

//! Bad input: one line that says what is wrong, exit status 2, nothing left.

use std::fs;

use super::{Run, kernel, test_guest};

pub fn files() {
    let folder = crate::temporary("bad");
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("text"), "not a kernel").expect("write");
    fs::write(path("empty"), "").expect("write");
    let kernel = kernel().display().to_string();
    let busybox = "/proc/self/exe";
    let missing = path("missing");
    let image = test_guest().display().to_string();
    for (arguments, text) in [
        (vec!["--kernel", &missing], "No such file"),
        (vec!["--kernel", &path("text")], "not an ELF"),
        (vec!["--kernel", &path("empty")], "not an ELF"),
        (vec!["--kernel", busybox], "no PVH entry"),
        (vec!["--kernel", "/"], "not a regular file"),
        (vec!["--kernel", &kernel, "--initramfs", &missing], "initramfs"),
        (vec!["--kernel", &kernel, "--disk", &missing], "disk"),
        (vec!["--kernel", &kernel, "--share", &missing], "shared directory"),
        (vec!["--kernel", &kernel, "--share", &image], "shared directory"),
        (vec!["--kernel", &kernel, "--vsock", "/nowhere/sock"], "/nowhere/sock"),
        (vec!["--kernel", &kernel, "--cmdline", &"x".repeat(5000)], "command line"),
    ] {
        Run::bare(&arguments).finish().refused(2, text);
    }
    println!("missing, unreadable and wrong files are named, with status 2");
}

pub fn sizes() {
    let kernel = kernel().display().to_string();
    let image = test_guest().display().to_string();
    for (arguments, text) in [
        (["--memory", "8M"], "8 MiB"),
        (["--memory", "0"], "0 MiB"),
        (["--memory", "900000G"], "more than this host has"),
        (["--cpus", "0"], "--cpus 0"),
        (["--cpus", "33"], "--cpus 33"),
    ] {
        let mut all = vec!["--kernel", &kernel, "--initramfs", &image];
        all.extend(arguments);
        Run::bare(&all).finish().refused(2, text);
    }
    println!("impossible memory sizes and vCPU counts are refused, with status 2");
}

/// /dev/kvm that is missing or may not be opened: two texts, each with its remedy. The
/// third, a KVM that does not virtualize, cannot be had where these tests run.
pub fn no_kvm() {
    let kernel = kernel().display().to_string();
    let mode = fs::metadata("/dev/kvm").expect("/dev/kvm").permissions();
    let closed = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
    fs::set_permissions("/dev/kvm", closed).expect("chmod");
    let denied = Run::bare(&["--kernel", &kernel]).uid(65534).finish();
    fs::set_permissions("/dev/kvm", mode).expect("chmod");
    denied.refused(2, "may not be opened");

    fs::rename("/dev/kvm", "/dev/kvm.away").expect("rename");
    let missing = Run::bare(&["--kernel", &kernel]).finish();
    fs::rename("/dev/kvm.away", "/dev/kvm").expect("rename");
    missing.refused(2, "/dev/kvm is missing");
    println!("a missing and a closed /dev/kvm are told apart, with status 2");
}
