// SPDX-License-Identifier: Apache-2.0

//! What runs out or goes away around a container: memory of the guest, room on the host's
//! disks, the host's directories.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use husk_tests::containerd::bundle::{Bundle, run};
use husk_tests::containerd::events::{Events, topics};
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{HUSK_SHIM, IMAGE, case, husk_case};
use husk_tests::temporary;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A tmpfs on a directory, until it is dropped.
struct Tmpfs<'a>(&'a Path);

impl Tmpfs<'_> {
    fn new<'a>(path: &'a Path, options: &str) -> Tmpfs<'a> {
        let none = MsFlags::empty();
        mount(Some("tmpfs"), path, Some("tmpfs"), none, Some(options)).expect("mount a tmpfs");
        Tmpfs(path)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn guest_memory_exhausted() {
    husk_case(
        "a container without a limit takes all of the guest's memory: it ends with 137 after an \
         OOM event; of an exec, the container and the agent go on",
        |lab| {
            let events = Events::listen(lab);
            lab.idle(&[], "crowded");
            lab.exec(&[], "crowded", &["tail", "/dev/zero"]).ended(137);
            assert_eq!(lab.exec_sh("crowded", "echo alive"), "alive");
            events.until("crowded", "/tasks/oom");
            assert_eq!(lab.status("crowded").as_deref(), Some("RUNNING"));
            lab.remove("crowded");

            lab.run(&[], "greedy", &["tail", "/dev/zero"]).ended(137);
            let heard = events.until("greedy", "/tasks/delete");
            assert_eq!(topics(&heard), "create start oom exit delete");
        },
    );
}

#[test]
fn full_root_file_system() {
    case(
        "a full disk below the root file system: writes fail, and work once there is room",
        |lab| {
            let directory = temporary("husk-full");
            let _tmpfs = Tmpfs::new(directory.path(), "size=8m");
            let rootfs = directory.path().join("rootfs");
            let copied = Command::new("cp").arg("-a").arg(lab.rootfs()).arg(&rootfs).status();
            assert!(copied.expect("cp").success(), "cp");
            let script = "
            dd if=/dev/zero of=/fill bs=64k 2>&1 | grep -o 'No space left on device'
            (echo x >/more) 2>/dev/null || echo refused; rm /fill /more
            echo room >/after && cat /after";
            let path = rootfs.display().to_string();
            let words = ["run", "--rm", "--runtime", lab.runtime(), "--rootfs", &path, "tight"];
            let output = lab.ctr(&[&words[..], &["/bin/sh", "-c", script]].concat()).ended(0);
            assert_eq!(
                output.text(),
                "No space left on device\nrefused\nroom",
                "{}",
                output.error()
            );
            assert_eq!(fs::read_to_string(rootfs.join("after")).expect("its file"), "room\n");
        },
    );
}

#[test]
fn full_state_directory() {
    husk_case("no room for the shim's own files: a reason, and nothing is left", |lab| {
        // As `start` sees its bundle.
        let shims = pids_of(HUSK_SHIM);
        let bundle = Bundle::new(lab, "cramped", &["true"]);
        for files in 1..=2 {
            let _tmpfs = Tmpfs::new(bundle.path(), &format!("nr_inodes={files}"));
            run(&mut bundle.command("start"), b"").failed_with("No space left on device");
            let none = eventually(LIMIT, || pids_of(HUSK_SHIM) == shims);
            assert!(none, "a daemon that nobody knows of, with room for {files} files");
        }
        drop(bundle);

        // As Create sees the directory of all pods.
        let directory = temporary("husk-cramped");
        let runtime = directory.path().join(HUSK_SHIM);
        let script = format!(
            "#!/bin/sh\nmkdir -p /run/husk\nexec unshare -m sh -c \
             'mount -t tmpfs -o nr_inodes=1 full /run/husk && exec \"$0\" \"$@\"' {HUSK_SHIM} \"$@\"\n"
        );
        fs::write(&runtime, script).expect("write");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("chmod");
        let runtime = runtime.display().to_string();
        lab.ctr(&["run", "--rm", "--runtime", &runtime, IMAGE, "cramped", "true"])
            .failed_with("No space left on device");
    });
}

#[test]
fn host_paths_removed() {
    case("a bind source removed on the host under a container: it goes on, and can end", |lab| {
        let directory = temporary("husk-removed");
        let source = directory.path().join("source");
        fs::create_dir_all(source.join("deep")).expect("make");
        fs::write(source.join("file"), "here").expect("write");
        let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", source.display());
        lab.idle(&["--mount", &mount], "robbed");
        assert_eq!(lab.exec_sh("robbed", "cat /mnt/file"), "here");
        fs::remove_dir_all(&source).expect("remove");
        // The guest may remember a name for a second.
        let script = "timeout 20 sh -c 'while cat /mnt/file; do :; done' >/dev/null 2>&1
            cat /mnt/file /mnt/deep/x 2>&1 | grep -c 'No such file'
            echo x 2>/dev/null >/mnt/new || echo refused
            ls /mnt | wc -l; echo fine >/elsewhere && cat /elsewhere";
        assert_eq!(lab.exec_sh("robbed", script), "2\nrefused\n0\nfine");
        // A new directory by that name is another one.
        fs::create_dir(&source).expect("make again");
        assert_eq!(lab.exec_sh("robbed", "ls /mnt | wc -l"), "0");
        lab.remove("robbed");
    });
}
