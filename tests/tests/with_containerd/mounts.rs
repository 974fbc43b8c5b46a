// SPDX-License-Identifier: Apache-2.0

//! Directories and files of the host in a container.

use std::fs;

use husk_tests::containerd::case;

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
