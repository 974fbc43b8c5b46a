// SPDX-License-Identifier: Apache-2.0

//! Directories and files of the host in a container.

use std::fs;

use husk_tests::containerd::config::Config;
use husk_tests::containerd::{case, husk_case};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

#[test]
fn bind_mounts() {
    case(
        "bind mounts: a directory and a file, writable and read-only, seen from both sides",
        |lab| {
            let directory = husk_tests::temporary("husk-mounts");
            let path = |name: &str| directory.path().join(name);
            for name in ["shared", "fixed"] {
                fs::create_dir(path(name)).expect("make a directory");
                fs::write(path(name).join("file"), name).expect("write");
            }
            fs::write(path("single"), "single").expect("write");
            fs::write(path("single-fixed"), "single-fixed").expect("write");
            let mount = |name: &str, target: &str, mode: &str| {
                format!("type=bind,src={},dst={target},options=rbind:{mode}", path(name).display())
            };
            let mounts = [
                mount("shared", "/mnt/shared", "rw"),
                mount("fixed", "/mnt/fixed", "ro"),
                mount("single", "/etc/single", "rw"),
                mount("single-fixed", "/etc/passwd", "ro"),
                "type=tmpfs,dst=/mnt/memory,options=size=65536:mode=1777".to_owned(),
            ];
            let flags: Vec<_> = mounts.iter().flat_map(|mount| ["--mount", mount]).collect();
            lab.idle(&flags, "mounted");

            let said = lab.exec_sh(
                "mounted",
                "cat /mnt/shared/file /mnt/fixed/file /etc/single /etc/passwd; echo
            echo from the container >/mnt/shared/new && rm /mnt/shared/file
            echo more >>/etc/single
            (echo x >/mnt/fixed/new) 2>&1; (rm /mnt/fixed/file) 2>&1; (echo x >>/etc/passwd) 2>&1
            head -c 100000 /dev/zero 2>/dev/null >/mnt/memory/file; stat -c %s /mnt/memory/file
            grep -c ' /mnt/memory tmpfs' /proc/mounts",
            );
            let mut lines = said.lines();
            assert_eq!(lines.next(), Some("sharedfixedsinglesingle-fixed"));
            assert_eq!(said.matches("Read-only file system").count(), 3, "{said}");
            assert!(said.ends_with("65536\n1"), "{said}");
            let new = fs::read_to_string(path("shared").join("new")).expect("the new file");
            assert_eq!(new, "from the container\n");
            assert!(!path("shared").join("file").exists(), "the removed file");
            assert_eq!(fs::read_to_string(path("single")).expect("read"), "singlemore\n");

            fs::write(path("shared").join("late"), "from the host").expect("write");
            fs::write(path("fixed").join("late"), " too").expect("write");
            let said = lab.exec_sh("mounted", "cat /mnt/shared/late /mnt/fixed/late");
            assert_eq!(said, "from the host too");
            lab.remove("mounted");
            // The sources are whole, whatever was mounted where.
            assert_eq!(fs::read_to_string(path("fixed").join("file")).expect("read"), "fixed");
        },
    );
}

#[test]
fn missing_source() {
    case("a bind mount whose source is missing is refused by its name", |lab| {
        let mount = "type=bind,src=/nowhere/at-all,dst=/mnt,options=rbind:ro";
        lab.run(&["--mount", mount], "lacking", &["true"]).failed_with("/nowhere/at-all");
    });
}

/// A limit of the host's kernel that is as it was when this goes.
struct Limit(String, String);

impl Limit {
    fn set(path: String, value: &str) -> Limit {
        let before = fs::read_to_string(&path).expect("read a limit");
        fs::write(&path, value).expect("set a limit");
        Limit(path, before)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        fs::write(&self.0, &self.1).expect("set a limit back");
    }
}

#[test]
fn out_of_watches() {
    husk_case(
        "without inotify instances or watches on the host read-only files are there, and the log says once that nobody is told of changes, and what to raise",
        |lab| {
            let directory = husk_tests::temporary("husk-watches");
            let mounts = ["one", "two"].map(|name| {
                let path = directory.path().join(name);
                fs::write(&path, name).expect("write");
                format!("type=bind,src={},dst=/etc/{name},options=rbind:ro", path.display())
            });
            let flags = ["--mount", &mounts[0], "--mount", &mounts[1]];
            let source = directory.path().join("one").display().to_string();
            for (id, limit) in
                [("no-instance", "max_user_instances"), ("no-watch", "max_user_watches")]
            {
                let none_left = Limit::set(format!("/proc/sys/fs/inotify/{limit}"), "0");
                let said = lab.run(&flags, id, &["cat", "/etc/one", "/etc/two"]).ended(0).text();
                assert_eq!(said, "onetwo");
                drop(none_left);
                let (log, advice) = (lab.log(), format!("raise fs.inotify.{limit}"));
                let lines: Vec<_> = log.lines().filter(|line| line.contains(&advice)).collect();
                assert_eq!(lines.len(), 1, "{lines:?}");
                for part in [id, "level=warning", &source] {
                    assert!(lines[0].contains(part), "{part} in {}", lines[0]);
                }
            }
        },
    );
}

/// A directory of the host with a mount in it, which goes when this does.
struct Below(std::path::PathBuf);

impl Below {
    fn mount(path: std::path::PathBuf) -> Below {
        fs::create_dir(&path).expect("make a directory");
        let none = None::<&str>;
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs");
        Below(path)
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn kinds_of_mounts() {
    case(
        "each kind of mount, with its options, at places that were missing; \
                 masked paths",
        |lab| {
            let directory = husk_tests::temporary("husk-kinds");
            let tree = directory.path().join("tree");
            fs::create_dir(&tree).expect("make a directory");
            fs::write(directory.path().join("single"), "single").expect("write");
            let below = Below::mount(tree.join("below"));
            fs::write(below.0.join("file"), "below").expect("write");
            let config = Config::new(lab).own_root(lab, directory.path());
            let root = directory.path().join("rootfs");
            fs::create_dir(root.join("etc/secrets")).expect("make a directory");
            fs::create_dir(root.join("etc/fixed")).expect("make a directory");
            for name in ["etc/secret", "etc/secrets/one", "etc/fixed/one", "etc/fixed.conf"] {
                fs::write(root.join(name), name).expect("write");
            }
            std::os::unix::fs::symlink("/etc", root.join("link")).expect("a symbolic link");
            let bind = |target: &str, options: &[&str]| json!({"destination": target, "type": "bind", "source": tree, "options": options});
            let config = config
            .add("/linux/namespaces", json!([{"type": "cgroup"}]))
            .set("/root/readonly", json!(true))
            .set("/linux/maskedPaths", json!(["/etc/secret", "/etc/secrets", "/nowhere", "/proc/kcore"]))
            .set("/linux/readonlyPaths", json!(["/etc/fixed", "/etc/fixed.conf", "/nowhere", "/proc/sys"]))
            .add("/mounts", json!([
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["ro", "nosuid", "noexec", "nodev"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=128k"]},
                {"destination": "/made/deep/memory", "type": "tmpfs", "source": "memory",
                 "options": ["size=65536", "mode=1750", "uid=7", "gid=8",
                             "nosuid", "nodev", "noexec", "noatime"]},
                {"destination": "/made/fixed", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
                {"destination": "/link/inside", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/etc/secrets", "type": "tmpfs", "source": "tmpfs",
                 "options": ["tmpcopyup"]},
                {"destination": "/made/deep/memory/file", "type": "bind",
                 "source": directory.path().join("single"), "options": ["bind", "ro", "nosuid"]},
                bind("/b/alone", &["bind"]),
                bind("/b/tree", &["rbind"]),
                bind("/b/fixed", &["rbind", "ro"]),
                bind("/b/all-fixed", &["rbind", "rro"]),
                bind("/b/private", &["rbind", "rprivate"]),
                bind("/b/unbindable", &["bind", "unbindable"]),
                bind("/b/noexec", &["bind", "noexec", "nodev", "nosuid"]),
                {"destination": "/b/twice", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/b/twice/proc", "type": "proc", "source": "proc", "options": ["ro"]},
            ]));
            let write = |path: &str| format!("echo x >{path} && rm {path} && echo written");
            let (alone, in_tree) = (write("/b/alone/new"), write("/b/tree/below/new"));
            let (fixed, fixed_below) = (write("/b/fixed/new"), write("/b/fixed/below/new"));
            let (all, all_below) = (write("/b/all-fixed/new"), write("/b/all-fixed/below/new"));
            let refused_below = "sh: can't create /b/fixed/below/new: Read-only file system";
            let refused = |path: &str| format!("sh: can't create {path}: Read-only file system ");
            config.check(lab, "mounted", &[
            ("a read-only root, in which mount points were made", "(echo x >/new); echo x >/made/new",
                &(refused("/new") + &refused("/made/new"))),
            ("proc: the container's, its parameters read-only", "ls -d /proc/1; grep -c ' /proc proc rw,nosuid,nodev,noexec' /proc/mounts; \
                 echo x >/proc/sys/kernel/hostname",
                &("/proc/1 1 ".to_owned() + &refused("/proc/sys/kernel/hostname"))),
            ("sysfs, read-only", "mkdir /sys/kernel/x; grep -c ' /sys sysfs ro,nosuid,nodev,noexec' \
                 /proc/mounts",
                "mkdir: can't create directory '/sys/kernel/x': Read-only file system 1"),
            ("cgroup, read-only, the container's own", "cd /sys/fs/cgroup; grep -x $$ cgroup.procs; mkdir x",
                "1 mkdir: can't create directory 'x': Read-only file system"),
            ("devpts: an instance of its own, with its options",
                "ls /dev/pts; grep ' /dev/pts ' /proc/mounts | grep -o \
                 'gid=5,mode=620,ptmxmode=666'",
                "ptmx gid=5,mode=620,ptmxmode=666"),
            ("mqueue", "touch /dev/mqueue/queue && cut -d: -f1 /dev/mqueue/queue; stat -f \
                 -c %t /dev/mqueue", "QSIZE 19800202"),
            ("/dev/shm of the size that is asked, and the last of two wins",
                "df -k /dev/shm | tail -1 | awk '{ print $2 }'; stat -c %a /dev/shm", "128 1777"),
            ("tmpfs: size, mode and owner", "cd /made/deep/memory; stat -c '%a %u %g' .; df -k . | tail -1 | \
                 awk '{ print $2 }'", "1750 7 8 64"),
            ("tmpfs: the size holds", "head -c 100000 /dev/zero 2>/dev/null >/made/deep/memory/much; stat -c %s \
                 /made/deep/memory/much", "65536"),
            ("tmpfs: nosuid, nodev, noexec, noatime", "grep -o ' /made/deep/memory tmpfs rw,nosuid,nodev,noexec,noatime' \
                 /proc/mounts", "/made/deep/memory tmpfs rw,nosuid,nodev,noexec,noatime"),
            ("tmpfs, read-only", "echo x >/made/fixed/new", &refused("/made/fixed/new")),
            ("a symbolic link of the image is followed inside the root", "grep -o ' /etc/inside tmpfs' /proc/mounts", "/etc/inside tmpfs"),
            ("a file on a place that was missing, with options of its own",
                "cat /made/deep/memory/file; awk '$5 == \"/made/deep/memory/file\" { print \
                 \" \" $6 }' /proc/self/mountinfo | cut -d, -f1,2; echo x \
                 >/made/deep/memory/file",
                &("single ro,nosuid ".to_owned() + &refused("/made/deep/memory/file"))),
            ("bind: without the mounts below", &format!("ls /b/alone/below; {alone}"), "written"),
            ("rbind: with them", &format!("cat /b/tree/below/file; echo; {in_tree}"), "below written"),
            ("rbind, ro: read-only itself", &fixed, &refused("/b/fixed/new")),
            // A guest mounts what is below when it is first used, with the flags of the mount
            // above, so that with husk `ro` means `rro`.
            ("rbind, ro: the mounts below", &fixed_below, if lab.is_husk() { refused_below } else { "written" }),
            ("rbind, rro: all read-only", &format!("cat /b/all-fixed/below/file; echo; ({all}); {all_below}"),
                &("below ".to_owned() + &refused("/b/all-fixed/new") + &refused("/b/all-fixed/below/new"))),
            ("propagation: private, unbindable", "for kind in private unbindable; do \
                 grep \" /b/$kind \" /proc/self/mountinfo | cut -d' ' -f7 | cut -d: -f1; done",
                "- unbindable"),
            ("bind: noexec holds, and so do nodev and nosuid", "cp /bin/busybox /b/noexec/; /b/noexec/busybox true; rm /b/noexec/busybox; \
                 awk '$5 == \"/b/noexec\" { print $6 }' /proc/self/mountinfo | cut -d, -f1-4",
                "sh: /b/noexec/busybox: Permission denied rw,nosuid,nodev,noexec"),
            ("a mount in a mount, in their order", "ls -d /b/twice/proc/1; grep -c ' /b/twice/proc proc ro' /proc/mounts", "/b/twice/proc/1 1"),
            ("a masked file is empty, also for writers", "cat /etc/secret | wc -c; echo x >/etc/secret; cat /etc/secret | wc -c", "0 0"),
            ("a masked directory is empty and read-only", "ls -A /etc/secrets; echo x >/etc/secrets/new", &refused("/etc/secrets/new")),
            ("read-only paths: a directory and a file", "cat /etc/fixed/one; echo; (echo x >/etc/fixed/one); echo x >/etc/fixed.conf",
                &("etc/fixed/one ".to_owned() + &refused("/etc/fixed/one") + &refused("/etc/fixed.conf"))),
        ]).finish();
            assert_eq!(fs::read_to_string(root.join("etc/secret")).expect("read"), "etc/secret");
            assert!(fs::read_dir(root.join("made/deep/memory")).expect("made").next().is_none());
            println!("  mounted: what was written stayed in the container's mounts");
        },
    );
}

#[test]
fn mapped_mount() {
    husk_case("an ID-mapped mount is refused clearly", |lab| {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        let mount = json!([{"destination": "/mnt", "type": "bind", "source": "/etc",
            "options": ["bind", "idmap"], "uidMappings": map, "gidMappings": map}]);
        Config::new(lab)
            .add("/mounts", mount)
            .run(lab, "mapped")
            .failed_with("the mount on /mnt has ID mappings, which husk cannot do");
    });
}
