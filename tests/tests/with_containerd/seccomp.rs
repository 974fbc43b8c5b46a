// SPDX-License-Identifier: Apache-2.0

//! System call filters: each action, each operator, and the default profile of containerd,
//! which is docker's but for a few calls.

use husk_tests::containerd::case;
use husk_tests::containerd::config::{Check, Config};
use serde_json::{Value, json};

/// A call that fails with EBADF unless the filter has a say, with what the filter compares.
fn compared(name: &str, errno: u32, conditions: &[(u32, &str, u64, u64)]) -> Value {
    let conditions = conditions.iter().map(|(index, operator, value, second)| {
        json!({"index": index, "op": operator, "value": value, "valueTwo": second})
    });
    json!({
        "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno,
        "args": conditions.collect::<Vec<_>>(),
    })
}

#[test]
fn actions_and_operators() {
    case("seccomp: each action and each operator, for the first process and an exec", |lab| {
        let rule = |names: &[&str], action: &str| json!({"names": names, "action": action});
        let directory = husk_tests::temporary("husk-seccomp");
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                rule(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO"),
                json!({"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}),
                json!({"names": ["vhangup"], "action": "SCMP_ACT_TRACE", "errnoRet": 5}),
                rule(&["acct"], "SCMP_ACT_KILL"),
                rule(&["swapoff"], "SCMP_ACT_KILL_THREAD"),
                rule(&["swapon"], "SCMP_ACT_KILL_PROCESS"),
                rule(&["pivot_root"], "SCMP_ACT_TRAP"),
                rule(&["sync"], "SCMP_ACT_LOG"),
                rule(&["call_that_no_kernel_has"], "SCMP_ACT_KILL"),
                compared("fsync", 101, &[(0, "SCMP_CMP_EQ", 1000, 0)]),
                compared("fdatasync", 102, &[(0, "SCMP_CMP_NE", 1000, 0)]),
                compared("flock", 103, &[(0, "SCMP_CMP_LT", 1000, 0), (1, "SCMP_CMP_EQ", 8, 0)]),
                compared("fchdir", 104, &[(0, "SCMP_CMP_LE", 1000, 0)]),
                compared("syncfs", 105, &[(0, "SCMP_CMP_GT", 1000, 0)]),
                compared("ftruncate", 106, &[(1, "SCMP_CMP_GE", 0x1_0000_0001, 0)]),
                compared("fchmod", 107, &[(1, "SCMP_CMP_MASKED_EQ", 0o6000, 0o4000)]),
                compared("lseek", 108, &[(1, "SCMP_CMP_EQ", 0x2_0000_0003, 0)]),
                // Two rules for one call: either will do.
                compared("fallocate", 109, &[(1, "SCMP_CMP_EQ", 1, 0)]),
                compared("fallocate", 109, &[(1, "SCMP_CMP_EQ", 2, 0)]),
            ],
        });
        let config = Config::new(lab)
            .own_root(lab, directory.path())
            .add(
                "/mounts",
                json!([{
                                   "destination": "/probe", "type": "bind",
                "source": husk_tests::program("husk-test-call"),
                                   "options": ["bind", "ro"],
                               }]),
            )
            .set("/linux/seccomp", profile);
        let checks: [Check; 17] = [
            ("a filter is in force", "grep ^Seccomp: /proc/self/status", "Seccomp: 2"),
            (
                "ERRNO without a number is EPERM",
                "mkdir /tmp/made",
                "mkdir: can't create directory '/tmp/made': Operation not permitted",
            ),
            ("ERRNO with a number", "/probe 170 0 0", "-38"),
            ("TRACE without a tracer", "/probe 153", "-38"),
            (
                "KILL, KILL_THREAD, KILL_PROCESS and TRAP end the program by SIGSYS",
                "for call in 163 168 167 155; do /probe $call 0; echo $?; done 2>/dev/null",
                "159 159 159 159",
            ),
            ("LOG lets it pass", "/probe 162", "0"),
            ("what has no rule passes", "/probe 110", "1"),
            ("EQ", "/probe 74 1000; /probe 74 1001", "-101 -9"),
            ("NE", "/probe 75 1000; /probe 75 1001", "-9 -102"),
            (
                "LT, and with a second condition: both must hold",
                "/probe 73 999 8; /probe 73 1000 8; /probe 73 999 9",
                "-103 -9 -22",
            ),
            ("LE", "/probe 81 1000; /probe 81 1001", "-104 -9"),
            ("GT", "/probe 306 1001; /probe 306 1000", "-105 -9"),
            (
                "GE, of 64 bits",
                "/probe 77 1000 0x100000001; /probe 77 1000 0x100000000; /probe 77 \
                 1000 0x200000000",
                "-106 -9 -106",
            ),
            (
                "MASKED_EQ",
                "/probe 91 1000 0x800; /probe 91 1000 0xc00; /probe 91 1000 0x900",
                "-107 -9 -107",
            ),
            ("EQ, of 64 bits", "/probe 8 1000 0x200000003 0; /probe 8 1000 3 0", "-108 -9"),
            (
                "two rules about one call",
                "/probe 285 1000 1 0 1; /probe 285 1000 2 0 1; /probe 285 1000 3 0 1",
                "-109 -109 -9",
            ),
            (
                "calls of other conventions that the profile lists: x32",
                "/probe 0x40000050 0",
                "-38",
            ),
        ];
        let checked = config.check(lab, "filtered", &checks);
        checked.exec(&checks[..3]);
        checked.finish();
    });
}

#[test]
fn default_profile() {
    case("the default profile of containerd: what it forbids fails, all else works", |lab| {
        let mount = format!(
            "type=bind,src={},dst=/probe,options=bind:ro",
            husk_tests::program("husk-test-call").display()
        );
        let script = "
            set -e
            grep ^Seccomp: /proc/self/status
            echo keyctl $(/probe 250 0) add_key $(/probe 248) bpf $(/probe 321) acct $(/probe 163)
            echo swapon $(/probe 167) perf_event_open $(/probe 298) process_vm_readv $(/probe 310)
            echo unshare $(/probe 272 0x10000000) mount $(/probe 165) setns $(/probe 308 1000 0)
            echo clone-new-user $(/probe 56 0x10000000)
            echo personality $(/probe 135 0xffffffff) $(/probe 135 1)
            cd /tmp; mkdir d; touch d/f; ln -s f d/l; ln d/f d/h; mv d/f d/g; chmod 600 d/g
            chown 1:1 d/g; rm -r d; sleep 0; echo $(echo piped | cat)
            mknod fifo p; (echo through >fifo &); cat fifo; wait
            echo fine";
        let flags = ["--seccomp", "--mount", &mount];
        let said = lab.run(&flags, "default", &["sh", "-c", script]).ended(0).text();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            said,
            "Seccomp: 2 keyctl -1 add_key -1 bpf -1 acct -1 swapon -1 perf_event_open -1 \
             process_vm_readv -1 unshare -1 mount -1 setns -1 clone-new-user -1 personality 0 -1 \
             piped through fine"
        );
    });
}
