// SPDX-License-Identifier: Apache-2.0

//! What a security context allows and forbids, for pods and containers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use husk_tests::cri::api::security_profile::ProfileType;
use husk_tests::cri::api::{ContainerConfig, NamespaceMode};
use husk_tests::cri::case;
use husk_tests::cri::container::{Container, mount, security};
use husk_tests::cri::pod::namespaces;

/// What the kubelet masks and makes read-only in each container that is not privileged.
const MASKED: [&str; 3] = ["/proc/kcore", "/proc/timer_list", "/sys/firmware"];
const READ_ONLY: [&str; 3] = ["/proc/sys", "/proc/irq", "/proc/sysrq-trigger"];

/// The exit code of a line for its shell.
fn code(container: &Container, line: &str) -> i32 {
    container.exec(&["sh", "-c", line], 0).expect("ExecSync").exit_code
}

/// A line of its /proc/self/status.
fn status(container: &Container, name: &str) -> String {
    container.exec_sh(&format!("awk '$1 == \"{name}:\" {{ print $2 }}' /proc/self/status"))
}

#[test]
fn seccomp() {
    case(
        "seccomp profiles: the runtime's own, none, and one of the node's, each for its container alone",
        |cri| {
            let pod = cri.pod("filtered", |_| {});
            let profile = pod.log_path("profile.json");
            let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                {"names": ["sethostname"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
            fs::write(&profile, text).expect("write");
            let [own, none, node] = [
                ("own", ProfileType::RuntimeDefault),
                ("none", ProfileType::Unconfined),
                ("node", ProfileType::Localhost),
            ]
            .map(|(name, kind)| {
                pod.start(name, &["sleep", "100000"], |config| {
                    let seccomp = security(config).seccomp.mut_or_insert_default();
                    seccomp.profile_type = kind.into();
                    if kind == ProfileType::Localhost {
                        seccomp.localhost_ref = profile.display().to_string();
                    }
                })
            });
            let filters = [&own, &none, &node].map(|container| status(container, "Seccomp"));
            assert_eq!(filters, ["2", "0", "2"]);
            assert_ne!(code(&own, "unshare -U true"), 0, "a new user namespace");
            assert_eq!(code(&none, "unshare -U true"), 0);
            assert_eq!(code(&own, "mkdir /d"), 0);
            let refused = node.exec(&["mkdir", "/d"], 0).expect("ExecSync");
            assert!(String::from_utf8_lossy(&refused.stderr).contains("not permitted"));
            // SIGSYS
            assert_eq!(node.exec(&["hostname", "x"], 0).expect("ExecSync").exit_code, 128 + 31);
            assert!(node.is_running());
            pod.remove();
        },
    );
}

#[test]
fn privileges() {
    case(
        "all capabilities and none, a user by name, masked and read-only paths, a privileged container beside them",
        |cri| {
            let pod = cri.pod("privileges", |config| {
                let linux = config.linux.mut_or_insert_default();
                linux.security_context.mut_or_insert_default().privileged = true;
            });
            let start = |name: &str, change: &dyn Fn(&mut ContainerConfig)| {
                pod.start(name, &["sleep", "100000"], |config| {
                    security(config).masked_paths = MASKED.map(str::to_owned).into();
                    security(config).readonly_paths = READ_ONLY.map(str::to_owned).into();
                    change(config);
                })
            };
            let all = start("all", &|config| {
                let capabilities = security(config).capabilities.mut_or_insert_default();
                capabilities.add_capabilities = vec!["ALL".to_owned()];
            });
            let user = start("user", &|config| {
                security(config).run_as_username = "nobody".to_owned();
            });
            let privileged = start("privileged", &|config| {
                let security = security(config);
                security.privileged = true;
                security.masked_paths.clear();
                security.readonly_paths.clear();
            });
            let every = all.exec_sh("cat /proc/sys/kernel/cap_last_cap");
            let every = (1_u64 << (every.parse::<u32>().expect("a number") + 1)) - 1;
            let bits = |container| {
                u64::from_str_radix(&status(container, "CapEff"), 16).expect("hexadecimal")
            };
            assert_eq!((bits(&all), bits(&privileged), bits(&user)), (every, every, 0));
            assert_eq!(user.exec_sh("id -u; id -g"), "65534\n65534");

            for container in [&all, &user] {
                assert_eq!(
                    container.exec_sh("cat /proc/timer_list | wc -c; ls /sys/firmware"),
                    "0"
                );
                assert_ne!(code(container, "echo 1 >/proc/sys/kernel/shm_rmid_forced"), 0);
                assert_ne!(code(container, "echo h >/proc/sysrq-trigger"), 0);
            }
            privileged.exec_sh("echo 1 >/proc/sys/kernel/shm_rmid_forced");
            assert_ne!(privileged.exec_sh("cat /proc/timer_list | wc -c"), "0");
            privileged.exec_sh("mkdir /cg && mount -t cgroup2 none /cg && mkdir /cg/inner");
            privileged.exec_sh("rmdir /cg/inner");
            assert_eq!(status(&privileged, "Seccomp"), "0");
            pod.remove();
        },
    );
}

#[test]
fn groups_of_volumes() {
    case(
        "fsGroup: who has the group writes to the volume, what is made there is the group's, nobody else writes",
        |cri| {
            let pod = cri.pod("grouped", |_| {});
            let volume = pod.volume("v");
            // What the kubelet does for an fsGroup.
            chown(&volume, None, Some(2000)).expect("chown");
            fs::set_permissions(&volume, fs::Permissions::from_mode(0o2775)).expect("chmod");
            let of = |name: &str, user: i64, groups: &[i64]| {
                pod.start(name, &["sleep", "100000"], |config| {
                    mount(config, &volume, "/v", false);
                    let security = security(config);
                    security.run_as_user.mut_or_insert_default().value = user;
                    security.run_as_group.mut_or_insert_default().value = user;
                    security.supplemental_groups = groups.to_vec();
                })
            };
            let member = of("member", 1000, &[2000, 4000]);
            let stranger = of("stranger", 1001, &[]);
            assert_eq!(member.exec_sh("id -u; id -g; id -G"), "1000\n1000\n1000 2000 4000");
            member.exec_sh("umask 002; echo x >/v/file; mkdir /v/dir; stat -c '%u %g' /v/file");
            let file = fs::metadata(volume.join("file")).expect("stat");
            assert_eq!((file.uid(), file.gid()), (1000, 2000));
            assert_eq!(member.exec_sh("stat -c '%g %a' /v/dir"), "2000 2775");
            assert_ne!(code(&stranger, "echo y >/v/other"), 0);
            assert_eq!(stranger.exec_sh("cat /v/file"), "x");
            assert_ne!(code(&stranger, "echo y >>/v/file"), 0);
            pod.remove();
        },
    );
}

#[test]
fn sysctls_and_limits_of_processes() {
    case(
        "sysctls of the pod hold in all its containers and cannot be changed there; limits of processes are those of a node",
        |cri| {
            let wanted = [
                ("net.ipv4.ip_unprivileged_port_start", "80"),
                ("net.ipv4.ping_group_range", "0\t0"),
                ("net.core.somaxconn", "333"),
                ("kernel.msgmax", "9000"),
                ("fs.mqueue.msg_max", "77"),
            ];
            let pod = cri.pod("tuned", |config| {
                namespaces(config).network = NamespaceMode::POD.into();
                let linux = config.linux.mut_or_insert_default();
                linux.sysctls =
                    wanted.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            });
            for name in ["a", "b"] {
                let container = pod.start(name, &["sleep", "100000"], |config| {
                    security(config).readonly_paths = READ_ONLY.map(str::to_owned).into();
                });
                for (key, value) in wanted {
                    let path = key.replace('.', "/");
                    assert_eq!(container.exec_sh(&format!("cat /proc/sys/{path}")), value, "{key}");
                    let line = format!("echo 1 >/proc/sys/{path}");
                    assert_ne!(code(&container, &line), 0, "{key} can be changed");
                }
                // Of the lab's containerd, which no service manager has started, runc's have less.
                if cri.lab.is_husk() {
                    let limits = "awk '/^Max (open files|processes)/ { print $(NF-2), $(NF-1) }'";
                    let found =
                        container.exec_sh(&format!("{limits} /proc/self/limits /proc/1/limits"));
                    let each = "unlimited unlimited\n1048576 1048576";
                    assert_eq!(found, format!("{each}\n{each}"), "processes and open files");
                }
            }
            pod.remove();
        },
    );
}
