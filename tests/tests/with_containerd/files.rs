// SPDX-License-Identifier: Apache-2.0

//! Shared directories as programs use them, with `husk_tests::fs` on both sides.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use husk_tests::containerd::{Lab, case};
use husk_tests::fs::{SUBJECTS, tree};

const SIZES: &str = "--entries 300 --operations 150";

/// Starts a container that has the test program at /husk-test-fs and `share` at /mnt.
fn idle(lab: &Lab, share: &Path, id: &str) {
    let program = husk_tests::program("husk-test-fs");
    let program = format!("type=bind,src={},dst=/husk-test-fs,options=bind:ro", program.display());
    let share = format!("type=bind,src={},dst=/mnt,options=rbind:rw", share.display());
    lab.idle(&["--mount", &program, "--mount", &share], id);
}

/// Runs the cases of a subject on a directory in the container.
fn run(lab: &Lab, id: &str, directory: &str, subject: &str) {
    let rules = if lab.runtime() == "io.containerd.husk.v2" { "--husk" } else { "" };
    let line = format!("/husk-test-fs run {rules} {SIZES} {directory} {subject}/");
    let output = lab.exec(&[], id, &["sh", "-c", &line]);
    let said = output.text();
    for line in said.lines().filter(|line| !line.starts_with("ok ")) {
        println!("  {directory} {subject}: {line}");
    }
    output.ended(0);
}

#[test]
fn file_system_on_a_bind_mount() {
    case("a bind-mounted directory does what programs expect of a file system", |lab| {
        let share = husk_tests::temporary("husk-files");
        idle(lab, share.path(), "bound");
        for subject in SUBJECTS {
            run(lab, "bound", "/mnt", subject.0);
        }
        lab.remove("bound");
        let left: Vec<_> = fs::read_dir(share.path()).expect("read the share").collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    });
}

#[test]
fn file_system_on_the_root() {
    case("a container's root does what programs expect of a file system", |lab| {
        let share = husk_tests::temporary("husk-files");
        idle(lab, share.path(), "rooted");
        lab.exec_sh("rooted", "mkdir /own");
        for subject in ["access", "acl", "content", "names", "open", "renames", "xattrs"] {
            run(lab, "rooted", "/own", subject);
        }
        lab.remove("rooted");
    });
}

#[test]
fn trees_both_ways() {
    case(
        "owners, modes, times, contents, links and attributes are the same on both sides",
        |lab| {
            let share = husk_tests::temporary("husk-files");
            let (from_host, from_guest) = (share.path().join("host"), share.path().join("guest"));
            fs::create_dir(&from_host).expect("mkdir");
            tree::make(&from_host).expect("make the host's tree");
            let (wrong, digest) = tree::check(&from_host).expect("check one's own tree");
            assert!(wrong.is_empty(), "the host's own: {wrong:?}");
            idle(lab, share.path(), "trees");
            assert_eq!(lab.exec_sh("trees", "/husk-test-fs check /mnt/host"), digest);
            lab.exec_sh("trees", "mkdir /mnt/guest && /husk-test-fs make /mnt/guest");
            let (wrong, found) = tree::check(&from_guest).expect("check the guest's tree");
            assert!(wrong.is_empty(), "the guest's, seen from the host: {wrong:?}");
            assert_eq!(found, digest);
            lab.remove("trees");
        },
    );
}

#[test]
fn symbolic_links_resolve_inside() {
    case(
        "symbolic links in a shared directory resolve in the container, wherever they lead",
        |lab| {
            let outside = husk_tests::temporary("husk-outside");
            fs::write(outside.path().join("secret"), "of the host").expect("write");
            let share = husk_tests::temporary("husk-files");
            let link =
                |target: &Path, name| symlink(target, share.path().join(name)).expect("symlink");
            link(&outside.path().join("secret"), "absolute");
            link(outside.path(), "directory");
            let up = format!("../../../../../../..{}", outside.path().join("secret").display());
            link(Path::new(&up), "relative");
            link(Path::new("/proc/1/root"), "root");
            link(Path::new("/etc/marker"), "marker");
            link(Path::new("absolute"), "chain");
            idle(lab, share.path(), "linked");
            let said = lab.exec_sh(
                "linked",
                "echo of the container >/etc/marker
        cd /mnt
        for name in absolute relative chain directory/secret; do
            cat $name 2>/dev/null && echo \"$name leads out\"
        done
        echo overwritten 2>/dev/null >absolute
        ls directory/ 2>/dev/null; readlink absolute | grep -c secret
        cat marker; cat root/etc/marker",
            );
            assert_eq!(said, "1\nof the container\nof the container");
            lab.remove("linked");
            let secret = fs::read_to_string(outside.path().join("secret")).expect("read");
            assert_eq!(secret, "of the host");
        },
    );
}

#[test]
fn changes_of_the_host() {
    case("what the host changes in a shared directory is seen in the container", |lab| {
        let share = husk_tests::temporary("husk-files");
        let path = |name: &str| share.path().join(name);
        for name in ["grown", "replaced", "removed", "truncated"] {
            fs::write(path(name), "old content").expect("write");
        }
        idle(lab, share.path(), "watching");
        // Known to the guest, cached, and one of them held open.
        let said = lab.exec_sh("watching", "cd /mnt; cat *; (sleep 100000 <grown &)");
        assert_eq!(said, "old content".repeat(4));
        fs::write(path("grown"), "old content and more").expect("write");
        fs::write(path("new"), "new content").expect("write");
        fs::rename(path("new"), path("replaced")).expect("rename");
        fs::remove_file(path("removed")).expect("remove");
        fs::write(path("truncated"), "").expect("truncate");
        fs::create_dir(path("made")).expect("mkdir");
        // Attributes and names hold for a second.
        let waiting = lab.exec(
            &[],
            "watching",
            &[
                "sh",
                "-c",
                "cd /mnt
                until [ \"$(cat grown)\" = 'old content and more' ]; do sleep 0.1; done
                until [ \"$(cat replaced)\" = 'new content' ]; do sleep 0.1; done
                until [ ! -e removed ]; do sleep 0.1; done
                until [ ! -s truncated ]; do sleep 0.1; done
                until [ -d made ]; do sleep 0.1; done
                ls",
            ],
        );
        assert_eq!(waiting.ended(0).text(), "grown\nmade\nreplaced\ntruncated");
        lab.remove("watching");
    });
}

#[test]
fn large_directory() {
    case("a directory of 100,000 entries is listed whole, while the host removes from it", |lab| {
        const COUNT: usize = 100_000;
        let share = husk_tests::temporary("husk-files");
        for number in 0..COUNT {
            fs::File::create(share.path().join(format!("{number:06}"))).expect("create");
        }
        idle(lab, share.path(), "large");
        assert_eq!(lab.exec_sh("large", "/husk-test-fs count /mnt"), format!("{COUNT} names"));
        let listing = lab.exec_start(&[], "large", &["/husk-test-fs", "count", "/mnt"]);
        for number in (0..COUNT).step_by(100) {
            fs::remove_file(share.path().join(format!("{number:06}"))).expect("remove");
        }
        let said = listing.wait().ended(0).text();
        let count = said.strip_suffix(" names").and_then(|count| count.parse().ok());
        let left = COUNT - COUNT / 100;
        assert!(count.is_some_and(|count| (left..=COUNT).contains(&count)), "{said}");
        let said = lab.exec_sh("large", "rm /mnt/000001; /husk-test-fs count /mnt");
        assert_eq!(said, format!("{} names", left - 1));
        lab.remove("large");
    });
}
