// SPDX-License-Identifier: Apache-2.0

//! What a microVM gives: a kernel of the container's own, and no view of the host.

use std::fs;

use husk_tests::containerd::husk_case;

#[test]
fn own_kernel_and_no_view_of_the_host() {
    husk_case("the kernel is the guest's own; nothing of the host is seen", |lab| {
        let canary =
            tempfile::Builder::new().prefix("husk-canary").tempfile_in("/run").expect("file");
        let name = canary.path().file_name().and_then(|name| name.to_str()).expect("a name");
        let script = "
            echo release $(uname -r)
            echo boot $(cat /proc/sys/kernel/random/boot_id)
            echo memory $(grep MemTotal /proc/meminfo)
            echo mounts; cat /proc/mounts; cat /proc/self/mountinfo
            echo disks; cat /proc/partitions
            echo found $(find / -xdev -name \"$1\" 2>/dev/null | grep -v ^/proc | wc -l)";
        let said = lab.run(&[], "own", &["sh", "-c", script, "sh", name]).ended(0).text();

        let value = |key: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("no {key} in:\n{said}")).trim().to_owned()
        };
        let host = |path: &str| fs::read_to_string(path).expect("read").trim().to_owned();
        assert!(value("release ").ends_with("-husk"), "kernel {}", value("release "));
        assert_ne!(value("release "), host("/proc/sys/kernel/osrelease"));
        assert_ne!(value("boot "), host("/proc/sys/kernel/random/boot_id"));
        assert_ne!(value("memory "), host("/proc/meminfo").lines().next().unwrap_or_default());
        assert_eq!(value("found "), "0");
        let directory = lab.containerd_path("").display().to_string();
        for word in [directory.trim_end_matches('/'), "/run/containerd", "/run/husk", "snapshots"] {
            assert!(!said.contains(word), "{word} of the host is seen:\n{said}");
        }
    });
}
