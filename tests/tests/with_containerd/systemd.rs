// SPDX-License-Identifier: Apache-2.0

//! systemd as a container's first process: it makes cgroups and mounts of its own, supervises,
//! and ends by signals that only a first process understands.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use husk_tests::containerd::config::Config;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{Lab, case};
use husk_tests::temporary;
use serde_json::json;

/// A unit that ends, and one with limits that is started again at its end.
const UNITS: [(&str, &str); 2] = [
    (
        "once",
        "Type=oneshot\nRemainAfterExit=yes\n\
         ExecStart=/bin/sh -c 'busybox cat /proc/self/cgroup >/once'",
    ),
    (
        "again",
        "Restart=always\nRestartSec=0\nPrivateTmp=yes\nMemoryMax=64M\nTasksMax=50\n\
         ExecStart=/bin/sh -c 'busybox mkdir /first 2>/dev/null && exit 3; exec busybox sleep 100000'",
    ),
];

/// Debian's systemd with these units, in a directory.
fn root_file_system(directory: &Path) {
    let archive = env::current_exe().expect("own path").with_file_name("systemd.tar");
    let unpacked = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(directory).status();
    assert!(unpacked.expect("tar").success(), "tar");
    let units = directory.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted).expect("directory of units");
    for (name, service) in UNITS {
        let unit = format!("{name}.service");
        fs::write(units.join(&unit), format!("[Service]\n{service}\n")).expect("unit");
        symlink(Path::new("..").join(&unit), wanted.join(&unit)).expect("symlink");
    }
    let multi_user = "/lib/systemd/system/multi-user.target";
    symlink(multi_user, units.join("default.target")).expect("symlink");
}

fn config(lab: &Lab, rootfs: &Path) -> Config {
    let more = || json!(["CAP_SYS_ADMIN", "CAP_SYS_BOOT"]);
    Config::new(lab)
        .set("/root", json!({ "path": rootfs }))
        .set("/process/args", json!(["/lib/systemd/systemd"]))
        .set("/process/env", json!(["PATH=/bin:/sbin", "container=containerd"]))
        .add("/process/capabilities/bounding", more())
        .add("/process/capabilities/permitted", more())
        .add("/process/capabilities/effective", more())
        .add("/linux/namespaces", json!([{ "type": "cgroup" }]))
        .add(
            "/mounts",
            json!([
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["rw", "nosuid", "nodev", "noexec"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ]),
        )
}

#[test]
fn systemd() {
    case(
        "systemd runs units in cgroups of their own, starts one again, and ends when told",
        |lab| {
            let directory = temporary("husk-systemd");
            let rootfs = directory.path().join("rootfs");
            fs::create_dir(&rootfs).expect("directory");
            root_file_system(&rootfs);
            let running = config(lab, &rootfs).start(lab, "system");
            let started = || lab.status("system").as_deref() == Some("RUNNING");
            assert!(eventually(LIMIT, started), "it is not running");
            let begun = "until [ -S /run/systemd/private ]; do busybox sleep 0.1; done; \
                         systemctl is-system-running --wait; systemctl --failed --no-legend";
            assert_eq!(lab.exec_sh("system", begun), "running", "and the units that failed");
            let once = fs::read_to_string(rootfs.join("once")).expect("the unit's file");
            assert_eq!(once, "0::/system.slice/once.service\n");
            let again = lab.exec_sh("system", "systemctl show -p ActiveState,NRestarts again");
            assert_eq!(again, "NRestarts=1\nActiveState=active");
            // The machine that runc is compared on gives its containers no controllers to share out.
            if lab.is_husk() {
                let limits = "cd /sys/fs/cgroup/system.slice/again.service; \
                          busybox cat memory.max pids.max";
                assert_eq!(lab.exec_sh("system", limits), "67108864\n50");
            }
            // It halts its machine at the end, which is SIGINT for a namespace's first process.
            lab.kill("SIGRTMIN+3", "system");
            running.wait().ended(130);
        },
    );
}
