// SPDX-License-Identifier: Apache-2.0

//! What cannot be done fails with words that say why, and leaves nothing.

use husk_tests::containerd::{case, husk_case};

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
