// SPDX-License-Identifier: Apache-2.0

//! Block devices of the host in containers: volumes in block mode, and paths of the host that
//! are block devices.

use std::fs::File;
use std::os::unix::fs::FileExt;

use husk_tests::cri::api::ContainerConfig;
use husk_tests::cri::container::{device, mount, security};
use husk_tests::cri::{case, husk_case};
use husk_tests::loop_device::LoopDevice;

const SIZE: u64 = 8 << 20;

#[test]
fn block_volumes() {
    case(
        "a block volume has the device's size and contents, two containers share it, read-only is read-only, and it goes with them",
        |cri| {
            let pod = cri.pod("blocks", |_| {});
            let disk = LoopDevice::new(&pod.log_path("disk"), SIZE);
            let file = File::options().read(true).write(true).open(&disk.0).expect("open");
            file.write_all_at(b"from the host", 4096).expect("write");
            file.sync_all().expect("sync");
            let start = |name, permissions| {
                pod.start(name, &["sleep", "100000"], |config| {
                    device(config, &disk.0, "/dev/xvda", permissions)
                })
            };
            let a = start("a", "mrw");
            let read = "dd if=/dev/xvda bs=4096 skip=1 count=1 2>/dev/null | head -c 13";
            assert_eq!(a.exec_sh("blockdev --getsize64 /dev/xvda"), SIZE.to_string());
            assert_eq!(a.exec_sh(read), "from the host");
            assert_eq!(a.exec_sh("stat -c '%F' /dev/xvda"), "block special file");

            let b = start("b", "mrw");
            let write = |text: &str| {
                let to = "dd of=/dev/xvda bs=4096 seek=1 conv=notrunc,fsync 2>/dev/null";
                format!("printf '{text}' | {to}")
            };
            a.exec_sh(&write("from a"));
            assert_eq!(b.exec_sh(read), "from ahe host");
            let seen = || {
                let mut found = [0; 13];
                file.read_exact_at(&mut found, 4096).expect("read");
                String::from_utf8_lossy(&found).into_owned()
            };
            assert_eq!(seen(), "from ahe host");
            a.remove_running();
            b.exec_sh(&write("from b"));

            let fixed = start("fixed", "mr");
            assert_eq!(fixed.exec_sh(read), "from bhe host");
            let refused = fixed.exec(&["sh", "-c", &write("refused")], 0).expect("ExecSync");
            assert_ne!(refused.exit_code, 0, "{refused:?}");
            if cri.lab.is_husk() {
                assert_eq!(fixed.exec_sh("blockdev --getro /dev/xvda"), "1");
                // A container whose device it is not does not get at it either.
                let other = pod.idle("other");
                let disks = "grep -c ' vd' /proc/partitions";
                assert_eq!(other.exec_sh(disks), "2");
                b.remove_running();
                other.until_sh(&format!("test \"$({disks})\" = 1"));
            }
            assert_eq!(seen(), "from bhe host");
            pod.remove();
            drop(file);
        },
    );
}

#[test]
fn path_of_a_block_device() {
    case(
        "a path of the host that is a block device, where the container may use it; elsewhere it is refused by its name",
        |cri| {
            let pod = cri.pod("path", |_| {});
            let disk = LoopDevice::new(&pod.log_path("disk"), SIZE);
            let container = pod.start("main", &["sleep", "100000"], |config| {
                device(config, &disk.0, "/dev/xvda", "mrw");
                mount(config, &disk.0, "/disk", false);
            });
            assert_eq!(container.exec_sh("blockdev --getsize64 /disk"), SIZE.to_string());
            container.exec_sh("printf written | dd of=/disk seek=3 conv=notrunc,fsync 2>/dev/null");
            let mut found = [0; 7];
            let file = File::open(&disk.0).expect("open");
            file.read_exact_at(&mut found, 3 * 512).expect("read");
            assert_eq!(&found, b"written");
            if cri.lab.is_husk() {
                let other =
                    pod.create("other", &["true"], |config| mount(config, &disk.0, "/disk", false));
                let refused = other.try_start().expect_err("it cannot be started");
                let words = "the mount on /disk (b 7:";
                assert!(refused.message.contains(words), "{refused}");
            }
            pod.remove();
        },
    );
}

#[test]
fn privileged() {
    husk_case(
        "a privileged container has its block volume, and none that is not its own; a path of \
         the host that is a block device from containerd 1.7 on, before that it is refused",
        |cri| {
            let pod = cri.pod("privileged", |config| {
                let linux = config.linux.mut_or_insert_default();
                linux.security_context.mut_or_insert_default().privileged = true;
            });
            let disk = LoopDevice::new(&pod.log_path("disk"), SIZE);
            let other = LoopDevice::new(&pod.log_path("other"), 2 * SIZE);
            let create = |name, change: &dyn Fn(&mut ContainerConfig)| {
                pod.create(name, &["sleep", "100000"], |config| {
                    security(config).privileged = true;
                    change(config);
                })
            };
            let volume = create("volume", &|config| device(config, &disk.0, "/dev/xvda", "mrw"));
            volume.start();
            assert_eq!(volume.exec_sh("blockdev --getsize64 /dev/xvda"), SIZE.to_string());
            assert_eq!(volume.exec_sh("grep -c ' vd' /proc/partitions"), "1");

            let path = create("path", &|config| mount(config, &other.0, "/disk", false));
            if cri.lab.ctr(&["version"]).ended(0).text().contains(" 1.6.") {
                let refused = path.try_start().expect_err("it cannot be started");
                assert!(refused.message.contains("containerd 1.7"), "{refused}");
            } else {
                path.start();
                assert_eq!(path.exec_sh("blockdev --getsize64 /disk"), (2 * SIZE).to_string());
                path.exec_sh("printf written | dd of=/disk seek=3 conv=notrunc,fsync 2>/dev/null");
                let mut found = [0; 7];
                let file = File::open(&other.0).expect("open");
                file.read_exact_at(&mut found, 3 * 512).expect("read");
                assert_eq!(&found, b"written");
            }
            pod.remove();
        },
    );
}
