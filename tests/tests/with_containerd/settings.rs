// SPDX-License-Identifier: Apache-2.0

//! A node's settings, by a file that the client names, and a pod's annotations.

use std::fs;

use husk_tests::containerd::husk_case;
use husk_tests::temporary;

/// Prints the number of CPUs, MiB of memory, and the last word of the kernel's command line.
const SIZE: &str = "nproc; awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo; \
                    awk '{ print $NF }' /proc/cmdline";

/// What SIZE says of a VM: the kernel and its tables take some of the memory.
#[track_caller]
fn assert_size(said: &str, vcpus: &str, memory_mib: u64, last: &str) {
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!((words[0], words[2]), (vcpus, last), "{said}");
    let mib: u64 = words[1].parse().expect("MiB");
    assert!((memory_mib * 7 / 8..memory_mib).contains(&mib), "{mib} MiB of {memory_mib}");
}

#[test]
fn of_a_file() {
    husk_case("a VM is as the settings in a file and its drop-ins want it", |lab| {
        let folder = temporary("settings");
        let file = folder.path().join("config.toml");
        fs::write(&file, "[vm]\nvcpus = 2\nmemory_mib = 300\n").expect("write");
        fs::create_dir(folder.path().join("config.toml.d")).expect("mkdir");
        let drop_in = folder.path().join("config.toml.d/10-memory.toml");
        fs::write(&drop_in, "[vm]\nmemory_mib = 400\nkernel_args = \"husk.word\"\n")
            .expect("write");
        let path = file.display().to_string();
        let flags = ["--runtime-config-path", path.as_str()];
        let said = lab.run(&flags, "settings", &["sh", "-c", SIZE]).ended(0).text();
        assert_size(&said, "2", 400, "husk.word");

        fs::write(&drop_in, "[vm]\nmemroy_mib = 400\n").expect("write");
        lab.run(&flags, "settings", &["true"]).failed_with(
            "10-memory.toml: it has an unknown key vm.memroy_mib; vm.memory_mib is known",
        );
        fs::write(&drop_in, "[vm]\nkernel = \"/nowhere/vmlinux\"\n").expect("write");
        lab.run(&flags, "settings", &["true"]).failed_with("/nowhere/vmlinux");
        fs::remove_file(&file).expect("remove");
        lab.run(&flags, "settings", &["true"]).failed_with("config.toml does not exist");
    });
}

#[test]
fn of_annotations() {
    husk_case("a pod's annotations size its VM, if the node allows them", |lab| {
        let flags = ["--annotation", "io.husk.vcpus=2", "--annotation", "io.husk.memory-mib=350"];
        let said = lab.run(&flags, "sized", &["sh", "-c", SIZE]).ended(0).text();
        let words: Vec<_> = said.split_whitespace().collect();
        assert_size(&said, "2", 350, words[2]);

        for (annotation, text) in [
            ("io.husk.vcpus=0", "no number of vCPUs from 1 to 32"),
            ("io.husk.memory-mib=1", "no number of MiB"),
            ("io.husk.cpus=1", "io.husk.vcpus is"),
            ("io.husk.kernel-args=x", "not allowed on this node"),
        ] {
            lab.run(&["--annotation", annotation], "refused", &["true"]).failed_with(text);
        }
    });
}
