// SPDX-License-Identifier: Apache-2.0

//! What cannot be done fails with words that say why, and leaves nothing.

use husk_tests::containerd::config::Config;
use husk_tests::containerd::{case, husk_case};
use serde_json::json;

#[test]
fn programs_that_cannot_run() {
    case("a missing or unfit program is refused by the words that clients look for", |lab| {
        let not_found = "executable file not found in $PATH";
        lab.run(&[], "absent", &["nosuch-program"]).failed_with(not_found);
        let missing = "no such file or directory";
        lab.run(&[], "absent", &["/bin/nosuch-program"]).failed_with(missing);
        lab.run(&[], "unfit", &["/etc/passwd"]).failed_with("permission denied");

        lab.idle(&[], "sound");
        lab.exec(&[], "sound", &["nosuch-program"]).failed_with(not_found);
        lab.exec(&[], "sound", &["/bin/nosuch-program"]).failed_with(missing);
        lab.exec(&[], "sound", &["/etc/passwd"]).failed_with("permission denied");
        // An ELF file of another architecture, and a script that does not say whose.
        lab.exec_sh(
            "sound",
            "printf '\\177ELF\\2\\1\\1\\0\\0\\0\\0\\0\\0\\0\\0\\0\\2\\0\\267\\0' >/foreign
             head -c 100 /dev/zero >>/foreign; echo 'echo x' >/script; chmod +x /foreign /script",
        );
        for program in ["/foreign", "/script"] {
            let words = format!("exec {program}: exec format error");
            lab.exec(&[], "sound", &[program]).failed_with(&words);
        }
        assert_eq!(lab.exec_sh("sound", "echo still here"), "still here");
        lab.remove("sound");
    });
}

#[test]
fn unknown_and_existing() {
    case("unknown ids are not found, existing ones are not made twice", |lab| {
        lab.ctr(&["tasks", "kill", "nobody"]).failed_with("not found");
        lab.ctr(&["tasks", "metrics", "nobody"]).failed_with("not found");
        lab.ctr(&["tasks", "rm", "nobody"]).failed_with("not found");
        lab.exec(&[], "nobody", &["true"]).failed_with("not found");

        lab.idle(&[], "one");
        lab.run(&[], "one", &["true"]).failed_with("already exists");
        lab.ctr(&["tasks", "start", "-d", "one"]).failed_with("already exists");
        let exec = ["tasks", "kill", "-s", "KILL", "--exec-id", "nobody", "one"];
        lab.ctr(&exec).failed_with("not found");
        assert_eq!(lab.exec_sh("one", "echo unharmed"), "unharmed");
        lab.remove("one");
    });
}

#[test]
fn checkpoint() {
    husk_case("a checkpoint is refused as not implemented, and the container goes on", |lab| {
        lab.idle(&[], "whole");
        lab.ctr(&["tasks", "checkpoint", "whole"]).failed_with("not implemented");
        assert_eq!(lab.exec_sh("whole", "echo whole"), "whole");
        lab.remove("whole");
    });
}

#[test]
fn specs_that_cannot_be() {
    case("a config.json that cannot be is refused by the name of what is wrong", |lab| {
        let base = Config::new(lab).script("echo never");
        let mount = json!([{"destination": "/mnt", "type": "nosuchfs", "source": "nothing"}]);
        for (what, config, words) in [
            (
                "a missing rootfs",
                base.clone().set("/root/path", json!("/nowhere/rootfs")),
                &["/nowhere/rootfs", "no such file or directory"][..],
            ),
            (
                "an unknown mount type",
                base.clone().add("/mounts", mount),
                &["/mnt", "no such device"],
            ),
            (
                "CPUs that are not there",
                base.set("/linux/resources/cpu", json!({"cpus": "60-63"})),
                &["cpuset.cpus", "60-63"],
            ),
        ] {
            let output = config.run(lab, "impossible").failed_with("");
            for words in words {
                let said = output.error().to_lowercase();
                assert!(said.contains(words), "no {words:?}: {said}");
            }
            assert_eq!(output.text(), "", "{what}");
            println!("  {what}: {}", output.error());
        }
    });
}
