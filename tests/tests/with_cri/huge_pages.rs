// SPDX-License-Identifier: Apache-2.0

//! Huge pages of a pod: the volume, and the limits of the pod and of its containers.

use std::fs;
use std::path::{Path, PathBuf};

use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::container::{Container, mount, resources};
use husk_tests::cri::{api, husk_case};
use husk_tests::program;
use nix::mount::{MntFlags, MsFlags, umount2};
use protobuf::MessageField;

/// A volume as the kubelet makes it for the medium HugePages-2Mi; it goes when this does.
struct Volume(PathBuf);

impl Volume {
    fn mount(path: PathBuf) -> Volume {
        let (kind, options) = (Some("hugetlbfs"), Some("pagesize=2Mi"));
        nix::mount::mount(None::<&str>, &path, kind, MsFlags::empty(), options).expect("hugetlbfs");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o2777);
        fs::set_permissions(&path, mode).expect("chmod");
        std::os::unix::fs::chown(&path, None, Some(1234)).expect("chown");
        Volume(path)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn total(container: &Container) -> String {
    container.exec_sh("awk '/HugePages_Total/ { print $2 }' /proc/meminfo")
}

#[test]
fn of_a_pod() {
    husk_case(
        "huge pages that the kubelet allows a pod: containers share a volume of them, which outlives each; MAP_HUGETLB; all of them and no more",
        |cri| {
            let cgroup = Path::new("/sys/fs/cgroup/husk-pod-huge");
            fs::create_dir(cgroup).expect("make the pod's cgroup");
            fs::write(cgroup.join("hugetlb.2MB.max"), (32 << 20).to_string()).expect("limit it");
            let pod = cri.pod("paged", |config| {
                config.linux.mut_or_insert_default().cgroup_parent = "/husk-pod-huge".to_owned();
            });
            let volume = Volume::mount(pod.volume("v"));
            let with_volume = |config: &mut api::ContainerConfig| {
                mount(config, &program("husk-test-huge"), "/huge", true);
                mount(config, &volume.0, "/pages", false);
            };
            let [a, b] = ["a", "b"].map(|name| pod.start(name, &["sleep", "100000"], with_volume));
            assert_eq!(total(&a), "16");
            assert_eq!(a.exec_sh("stat -c '%g %a' /pages"), "1234 2777");
            assert_eq!(a.exec_sh("/huge /pages/file 8 from-a"), "4 pages");
            assert_eq!(
                b.exec_sh("head -c 6 /pages/file; stat -c ' %s' /pages/file"),
                "from-a 8388608"
            );
            assert_eq!(b.exec_sh("/huge - 24 x"), "12 pages");
            let beyond = b.exec(&["/huge", "-", "26", "x"], 0).expect("ExecSync");
            let said = String::from_utf8_lossy(&beyond.stdout).into_owned();
            assert_eq!(
                (beyond.exit_code, said.trim()),
                (1, "Cannot allocate memory (os error 12)")
            );
            a.remove_running();
            b.remove_running();
            let again = pod.start("again", &["sleep", "100000"], with_volume);
            assert_eq!(again.exec_sh("head -c 6 /pages/file"), "from-a");
            assert_eq!(again.exec_sh("rm /pages/file; /huge - 32 x"), "16 pages");
            assert_eq!(fs::read_dir(&volume.0).expect("list").count(), 0, "none is the host's");
            pod.remove();
            fs::remove_dir(cgroup).expect("nothing is left in the pod's cgroup");
        },
    );
}

/// Limits as the kubelet gives them: one for each size that the node's CPUs have.
fn limits(mib: u64) -> Vec<api::HugepageLimit> {
    let limit = |size: &str, limit| api::HugepageLimit {
        page_size: size.to_owned(),
        limit,
        ..Default::default()
    };
    vec![limit("1GB", 0), limit("2MB", mib << 20)]
}

#[test]
fn of_containers() {
    husk_case(
        "huge pages that containers are allowed are there for them, follow updates, and go with them",
        |cri| {
            let pod = cri.pod("turns", |_| {});
            let watcher = pod.idle("watcher");
            assert_eq!(total(&watcher), "0");
            let [a, b] = ["a", "b"].map(|name| {
                pod.start(name, &["sleep", "100000"], |config| {
                    mount(config, &program("husk-test-huge"), "/huge", true);
                    resources(config).hugepage_limits = limits(8);
                })
            });
            assert_eq!(total(&watcher), "8");
            assert_eq!(a.exec_sh("/huge - 8 x"), "4 pages");
            let beyond = a.exec(&["/huge", "-", "10", "x"], 0).expect("ExecSync");
            assert_eq!(beyond.exit_code, 1, "the others are b's: {beyond:?}");
            let request = api::UpdateContainerResourcesRequest {
                container_id: a.id.clone(),
                linux: MessageField::some(api::LinuxContainerResources {
                    hugepage_limits: limits(64),
                    ..Default::default()
                }),
                ..Default::default()
            };
            cri.ask::<api::UpdateContainerResourcesResponse>("UpdateContainerResources", &request)
                .expect("UpdateContainerResources");
            assert_eq!(total(&watcher), "36");
            assert_eq!(a.exec_sh("/huge - 64 x"), "32 pages");
            a.remove_running();
            assert!(eventually(LIMIT, || total(&watcher) == "4"), "{} pages", total(&watcher));
            assert_eq!(b.exec_sh("/huge - 8 x"), "4 pages");
            b.remove_running();
            assert!(eventually(LIMIT, || total(&watcher) == "0"), "{} pages", total(&watcher));
            pod.remove();
        },
    );
}
