// SPDX-License-Identifier: Apache-2.0

//! Files that the host gives a pod and changes while it runs: ConfigMaps and the like, paths
//! of the host and the mounts below them.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use husk_tests::cri::api::{self, MountPropagation};
use husk_tests::cri::container::{mount, security};
use husk_tests::cri::{Cri, case, husk_case};
use husk_tests::program;
use nix::mount::{MntFlags, MsFlags, umount2};

/// The kubelet's way with a ConfigMap: files in a new directory, and then a link to that
/// takes the old one's place.
fn publish(volume: &Path, version: &str) {
    let directory = volume.join(format!("..{version}"));
    fs::create_dir(&directory).expect("make a directory");
    fs::write(directory.join("key"), version).expect("write");
    let old = fs::read_link(volume.join("..data"));
    symlink(directory.file_name().expect("a name"), volume.join("..data_tmp")).expect("link");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("rename");
    match old {
        Ok(old) => fs::remove_dir_all(volume.join(old)).expect("remove the old directory"),
        Err(_) => symlink("..data/key", volume.join("key")).expect("link"),
    }
}

#[test]
fn config_map() {
    case(
        "who watches a ConfigMap is woken by its atomic updates, all containers of the pod, and reads what is new at once",
        |cri| {
            let pod = cri.pod("configured", |_| {});
            let volume = pod.volume_of("kubernetes.io~configmap", "c");
            publish(&volume, "one");
            let watchers = ["a", "b"].map(|name| {
                pod.start(name, &["/watch", "/config", "/config/key"], |config| {
                    mount(config, &program("husk-test-watch"), "/watch", true);
                    mount(config, &volume, "/config", true);
                })
            });
            for watcher in &watchers {
                watcher.until_logged("watching");
                assert_eq!(watcher.exec_sh("cat /config/key"), "one");
            }
            for version in ["two", "thr"] {
                publish(&volume, version);
                for watcher in &watchers {
                    watcher.until_logged(&format!("moved-to ..data: {version}"));
                    assert_eq!(
                        watcher.exec_sh("cat /config/key; ls /config"),
                        format!("{version}key")
                    );
                    assert_eq!(watcher.exec_sh("readlink /config/..data"), format!("..{version}"));
                }
            }
            pod.remove();
        },
    );
}

#[test]
fn watched_by_the_file() {
    case(
        "who watches a ConfigMap's file and not its directory is told of the end of that file by each update, and finds the new one",
        |cri| {
            let pod = cri.pod("reloading", |_| {});
            let volume = pod.volume_of("kubernetes.io~secret", "s");
            publish(&volume, "one");
            let watcher = pod.start("main", &["/watch", "/config/key", "/config/key"], |config| {
                mount(config, &program("husk-test-watch"), "/watch", true);
                mount(config, &volume, "/config", true);
            });
            watcher.until_logged("watching");
            for version in ["two", "thr"] {
                publish(&volume, version);
                watcher.until_logged(&format!("delete-self : {version}"));
            }
            pod.remove();
        },
    );
}

#[test]
fn changed_in_place() {
    case(
        "who watches a file that the host writes in place is woken, by the directory and by the file itself",
        |cri| {
            let pod = cri.pod("rewritten", |_| {});
            let volume = pod.volume_of("kubernetes.io~projected", "p");
            fs::write(volume.join("key"), "one").expect("write");
            let watcher = |name, path: PathBuf, place| {
                pod.start(name, &["/watch", place, place_of_key(place)], |config| {
                    mount(config, &program("husk-test-watch"), "/watch", true);
                    mount(config, &path, place, true);
                })
            };
            let directory = watcher("directory", volume.clone(), "/config");
            let file = watcher("file", volume.join("key"), "/key");
            for container in [&directory, &file] {
                container.until_logged("watching");
            }
            for version in ["two", "thr"] {
                fs::write(volume.join("key"), version).expect("write");
                directory.until_logged(&format!("modify key: {version}"));
                file.until_logged(&format!("modify : {version}"));
            }
            pod.remove();
        },
    );
}

fn place_of_key(place: &str) -> &str {
    if place == "/key" { place } else { "/config/key" }
}

/// A mount of the host that others see what is mounted below; it goes when this does.
struct Mounted(PathBuf);

impl Mounted {
    fn memory(path: PathBuf, options: &str) -> Mounted {
        fs::create_dir_all(&path).expect("make a directory");
        let options = Some(options).filter(|text| !text.is_empty());
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), options)
            .expect("tmpfs");
        Mounted(path)
    }

    fn shared(path: PathBuf) -> Mounted {
        let mounted = Mounted::memory(path, "");
        let none = None::<&str>;
        nix::mount::mount(none, &mounted.0, none, MsFlags::MS_SHARED, none).expect("shared");
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn with_propagation(
    config: &mut api::ContainerConfig,
    source: &Path,
    place: &str,
    propagation: MountPropagation,
) {
    mount(config, source, place, false);
    config.mounts.last_mut().expect("the mount").propagation = propagation.into();
}

#[test]
fn propagation() {
    case(
        "mounts that the host makes and removes below a volume show with HostToContainer, and not without; what is there before shows, read-only if the volume is",
        |cri| {
            let pod = cri.pod("following", |_| {});
            let source = Mounted::shared(pod.log_path("source"));
            let early = Mounted::memory(source.0.join("early"), "");
            fs::write(early.0.join("file"), "early").expect("write");
            fs::create_dir(source.0.join("late")).expect("make a directory");
            let container = pod.start("main", &["sleep", "100000"], |config| {
                let follow = MountPropagation::PROPAGATION_HOST_TO_CONTAINER;
                with_propagation(config, &source.0, "/following", follow);
                let private = MountPropagation::PROPAGATION_PRIVATE;
                with_propagation(config, &source.0, "/private", private);
                mount(config, &source.0, "/fixed", true);
            });
            assert_eq!(container.exec_sh("cat /following/early/file"), "early");
            assert_eq!(container.exec_sh("cat /private/early/file"), "early");
            assert_eq!(container.exec_sh("cat /fixed/early/file"), "early");
            if cri.lab.is_husk() {
                let refused = container.exec(&["touch", "/fixed/early/x"], 0).expect("ExecSync");
                assert_ne!(refused.exit_code, 0, "the mount below is read-only, too");
            }
            container.exec_sh("echo x >/following/early/new");
            assert!(early.0.join("new").exists());

            let late = Mounted::memory(source.0.join("late"), "");
            fs::write(late.0.join("file"), "late").expect("write");
            container.until_sh("test \"$(cat /following/late/file)\" = late");
            assert_eq!(container.exec_sh("ls /private/late"), "");
            drop(late);
            container.until_sh("test ! -e /following/late/file");
            pod.remove();
        },
    );
}

/// Containers of the pod may be privileged: Bidirectional is for those only.
fn allow_privileged(config: &mut api::PodSandboxConfig) {
    let linux = config.linux.mut_or_insert_default();
    linux.security_context.mut_or_insert_default().privileged = true;
}

#[test]
fn bidirectional_in_the_pod() {
    case(
        "what a container mounts below an emptyDir that is Bidirectional shows in another that follows it, and goes again",
        |cri| {
            let pod = cri.pod("mounting", allow_privileged);
            let volume = Mounted::shared(pod.volume("v"));
            let follower = |name, propagation| {
                pod.start(name, &["sleep", "100000"], |config| {
                    with_propagation(config, &volume.0, "/v", propagation)
                })
            };
            let before = follower("before", MountPropagation::PROPAGATION_HOST_TO_CONTAINER);
            let private = follower("private", MountPropagation::PROPAGATION_PRIVATE);
            let mounter = pod.start("mounter", &["sleep", "100000"], |config| {
                with_propagation(
                    config,
                    &volume.0,
                    "/v",
                    MountPropagation::PROPAGATION_BIDIRECTIONAL,
                );
                security(config).privileged = true;
            });
            mounter.exec_sh("mkdir /v/m; mount -t tmpfs m /v/m; echo mounted >/v/m/file");
            let after = follower("after", MountPropagation::PROPAGATION_HOST_TO_CONTAINER);
            for container in [&before, &after] {
                assert_eq!(container.exec_sh("cat /v/m/file"), "mounted");
            }
            assert_eq!(private.exec_sh("ls /v/m"), "");
            mounter.exec_sh("umount /v/m");
            for container in [&before, &after] {
                assert_eq!(container.exec_sh("ls /v/m"), "");
            }
            if cri.lab.is_husk() {
                // What it leaves mounted is no obstacle to the end of the pod.
                mounter.exec_sh("mount -t tmpfs m /v/m");
            }
            pod.remove();
        },
    );
}

#[test]
fn bidirectional_to_the_host() {
    husk_case(
        "a path of the host that is Bidirectional is refused by its name, with what to do instead",
        |cri: &Cri| {
            let pod = cri.pod("plugging", allow_privileged);
            let source = Mounted::shared(pod.log_path("plugins"));
            let container = pod.create("main", &["true"], |config| {
                with_propagation(
                    config,
                    &source.0,
                    "/plugins",
                    MountPropagation::PROPAGATION_BIDIRECTIONAL,
                );
                security(config).privileged = true;
            });
            let refused = container.try_start().expect_err("it cannot be started");
            for part in ["below /plugins", "Bidirectional", "HostToContainer"] {
                assert!(refused.message.contains(part), "{refused}");
            }
            pod.remove();
        },
    );
}

#[test]
fn memory_medium() {
    case(
        "an emptyDir in memory holds as much as its limit, and then says that it is full",
        |cri| {
            let pod = cri.pod("filling", |_| {});
            let volume = Mounted::memory(pod.volume("memory"), "size=1m");
            let container = pod.start("main", &["sleep", "100000"], |config| {
                mount(config, &volume.0, "/memory", false)
            });
            let line = "dd if=/dev/zero of=/memory/file bs=64k count=40";
            let full = container.exec(&["sh", "-c", line], 0).expect("ExecSync");
            assert_ne!(full.exit_code, 0);
            assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"), "{full:?}");
            assert_eq!(container.exec_sh("stat -c %s /memory/file"), (1 << 20).to_string());
            assert_eq!(container.exec_sh("df -k /memory | tail -1 | awk '{ print $2 }'"), "1024");
            pod.remove();
        },
    );
}

#[test]
fn kinds_of_paths() {
    case(
        "a file, a directory's part (subPath, as the kubelet binds it), a termination log, and the pod's own /dev/shm",
        |cri| {
            let pod = cri.pod("various", |_| {});
            let volume = pod.volume("v");
            fs::create_dir_all(volume.join("deep/part")).expect("make a directory");
            fs::write(volume.join("deep/part/file"), "in part").expect("write");
            // The kubelet binds what a subPath leads to elsewhere, and gives that place.
            let place = pod.log_path("volume-subpaths/v/main/0");
            fs::create_dir_all(&place).expect("make a directory");
            let none = None::<&str>;
            let part = volume.join("deep/part");
            nix::mount::mount(Some(&part), &place, none, MsFlags::MS_BIND, none).expect("bind");
            let part = Mounted(place);
            let log = pod.log_path("termination-log");
            fs::write(&log, "").expect("write");
            let start = |name| {
                pod.start(name, &["sleep", "100000"], |config| {
                    mount(config, &part.0, "/part", false);
                    mount(config, &volume.join("deep/part/file"), "/etc/single", true);
                    mount(config, &log, "/dev/termination-log", false);
                })
            };
            let (a, b) = (start("a"), start("b"));
            assert_eq!(a.exec_sh("cat /part/file /etc/single"), "in partin part");
            a.exec_sh("echo new >/part/new; echo 'the reason' >/dev/termination-log");
            assert_eq!(fs::read_to_string(volume.join("deep/part/new")).expect("read"), "new\n");
            assert_eq!(fs::read_to_string(&log).expect("read"), "the reason\n");
            a.exec_sh("echo shared >/dev/shm/file");
            assert_eq!(b.exec_sh("cat /dev/shm/file /part/new"), "shared\nnew");
            pod.remove();
        },
    );
}

#[test]
fn socket_of_the_host() {
    husk_case(
        "a socket of the host is refused by its name, with what to do instead",
        |cri: &Cri| {
            let pod = cri.pod("calling", |_| {});
            let path = pod.log_path("host.sock");
            let _listener = UnixListener::bind(&path).expect("a socket");
            let container =
                pod.create("main", &["true"], |config| mount(config, &path, "/host.sock", false));
            let refused = container.try_start().expect_err("it cannot be started");
            assert!(refused.message.contains("host.sock: it is a socket"), "{refused}");
            pod.remove();
        },
    );
}
