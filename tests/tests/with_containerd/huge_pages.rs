// SPDX-License-Identifier: Apache-2.0

//! Huge pages: limits of a container, which its VM has room for, and file systems of them.

use std::fs;
use std::path::PathBuf;

use husk_tests::containerd::config::Config;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{Lab, husk_case};
use husk_tests::program;
use nix::mount::{MntFlags, MsFlags, umount2};
use serde_json::{Value, json};

const KIB: &str = "awk '$1 == \"MemTotal:\" { print $2 }' /proc/meminfo";

/// A file system of huge pages of the host, without a page; it goes when this does.
struct OfHost(PathBuf);

impl OfHost {
    fn mount(path: PathBuf) -> OfHost {
        fs::create_dir(&path).expect("make a directory");
        let (kind, options) = (Some("hugetlbfs"), Some("pagesize=2M,uid=7,gid=8,mode=0770"));
        nix::mount::mount(None::<&str>, &path, kind, MsFlags::empty(), options).expect("hugetlbfs");
        OfHost(path)
    }
}

impl Drop for OfHost {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn limits(page: &str, mib: u64) -> Value {
    json!([{ "pageSize": page, "limit": mib << 20 }])
}

/// A container that has the program for huge pages.
fn container(lab: &Lab) -> Config {
    let program = json!([{
        "destination": "/bin/huge", "type": "bind", "source": program("husk-test-huge"),
        "options": ["bind", "ro"],
    }]);
    Config::new(lab).add("/mounts", program)
}

#[test]
fn of_a_container() {
    husk_case(
        "a container has its limit in huge pages and no more: in a file system of its own, in one of the host's places, without a file",
        |lab| {
            let directory = husk_tests::temporary("husk-huge");
            let of_host = OfHost::mount(directory.path().join("pages"));
            let plain = lab.run(&[], "plain", &["sh", "-c", KIB]).ended(0).text();
            let config = container(lab)
                .own_root(lab, directory.path())
                .set("/linux/resources/hugepageLimits", limits("2MB", 8))
                .add("/mounts", json!([
                    {"destination": "/own", "type": "hugetlbfs", "source": "hugetlbfs", "options": ["pagesize=2M", "size=2M", "nr_inodes=9"]},
                    {"destination": "/volume", "type": "bind", "source": of_host.0, "options": ["rbind", "rw"]},
                ]));
            let checks = [
                (
                    "all of them are there",
                    "grep HugePages_Total: /proc/meminfo",
                    "HugePages_Total: 4",
                ),
                (
                    "a file of a volume",
                    "huge /volume/file 4 word; head -c 4 /volume/file",
                    "2 pages word",
                ),
                ("its owner and mode are the host's", "stat -c '%u %g %a' /volume", "7 8 770"),
                ("one without a file", "huge - 4 word", "2 pages"),
                ("more than the limit", "huge - 6 word", "Cannot allocate memory (os error 12)"),
                (
                    "a file system of its own",
                    "huge /own/file 2 word; head -c 4 /own/file; rm /own/file",
                    "1 pages word",
                ),
                (
                    "more than that holds",
                    "huge /own/file 4 word; rm /own/file",
                    "Cannot allocate memory (os error 12)",
                ),
                (
                    "the VM is larger by that",
                    &format!("test $(($({KIB}) - {plain})) -gt 4000 && echo yes"),
                    "yes",
                ),
            ];
            config.check(lab, "paged", &checks).finish();
            assert_eq!(fs::read_dir(&of_host.0).expect("list").count(), 0, "none is the host's");
        },
    );
}

#[test]
fn updated() {
    husk_case(
        "huge pages follow the limit while the container runs, as far as it is possible",
        |lab| {
            let directory = husk_tests::temporary("husk-huge");
            let config = container(lab).own_root(lab, directory.path());
            let running = config.check(
                lab,
                "followed",
                &[("none", "huge - 2 x", "Cannot allocate memory (os error 12)")],
            );
            let shim = lab.shim_of("followed");
            let update = |page, mib| shim.update(&json!({ "hugepageLimits": limits(page, mib) }));
            let total =
                || lab.exec_sh("followed", "awk '/HugePages_Total/ { print $2 }' /proc/meminfo");
            update("2MB", 200).expect("more");
            assert_eq!(total(), "100");
            assert_eq!(lab.exec_sh("followed", "huge - 200 x"), "100 pages");
            for (page, mib, why) in [
                ("2MB", 3, "is no multiple of the page's size"),
                ("1GB", 1024, "a VM has huge pages of 2MB only"),
                ("2MB", 1 << 30, "MiB in huge pages, and its VM has room for"),
            ] {
                let error = format!("{:?}", update(page, mib).expect_err("refused"));
                assert!(error.contains(why), "{error}");
            }
            assert_eq!(total(), "100", "a refusal changes nothing");
            update("1GB", 0).expect("none of those is what there is");
            update("2MB", 2).expect("less");
            assert!(eventually(LIMIT, || total() == "1"), "{} pages", total());
            running.finish();
        },
    );
}

#[test]
fn refused() {
    husk_case("huge pages that a VM cannot have are refused by their size", |lab| {
        for (page, mib, why) in [
            ("1GB", 1024, "huge pages of 1GB in linux.resources cannot be had"),
            ("2MB", 1 << 30, "MiB in huge pages, and its VM has room for"),
        ] {
            let config = container(lab).set("/linux/resources/hugepageLimits", limits(page, mib));
            config.run(lab, "greedy").failed_with(why);
        }
    });
}
