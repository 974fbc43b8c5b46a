// SPDX-License-Identifier: Apache-2.0

//! What config.json's `process` says a process is, for a container's first and for an exec.

use husk_tests::containerd::bundle::Bundle;
use husk_tests::containerd::config::{Check, Config, compare, script};
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{CTR_NAMESPACE, case, husk_case};
use serde_json::{Value, json};

const USER: Check = (
    "user, group and additional groups",
    "grep -E '^(Uid|Gid|Groups):' /proc/self/status",
    "Uid: 1000 1000 1000 1000 Gid: 2000 2000 2000 2000 Groups: 10 3000",
);
const UMASK: Check = ("umask", "umask", "0027");
const CAPABILITIES: Check = (
    "the five sets of capabilities, each its own, as a program of a user has them",
    "grep ^Cap /proc/self/status",
    "CapInh: 0000000000002020 CapPrm: 0000000000000020 CapEff: 0000000000000020
     CapBnd: 0000000000202021 CapAmb: 0000000000000020",
);
const NO_NEW_PRIVILEGES: Check =
    ("noNewPrivileges", "grep ^NoNewPrivs: /proc/self/status", "NoNewPrivs: 1");
const OOM_SCORE: Check = ("oomScoreAdj", "cat /proc/self/oom_score_adj", "123");
const ENVIRONMENT: Check = (
    "environment: as given, in full, the later of two winning, and HOME of the user",
    "tr '\\0' '\\n' </proc/$$/environ | sort",
    "EMPTY= HOME=/ NAME=second PATH=/bin SPACE= a  b ",
);
const DIRECTORY: Check = ("working directory, which was missing", "pwd", "/work/inner/most");
const DESCRIPTORS: Check =
    ("open files: the three streams and no more", "ls /proc/$$/fd | grep -v ^10$", "0 1 2");
/// The limits, each with values of its own, so that none is taken for another.
const LIMITS: [(&str, &str, u64, u64); 16] = [
    ("RLIMIT_CPU", "Max cpu time", 5000, 5001),
    ("RLIMIT_FSIZE", "Max file size", 8_000_000_001, 8_000_000_002),
    ("RLIMIT_DATA", "Max data size", 8_000_000_003, 8_000_000_004),
    ("RLIMIT_STACK", "Max stack size", 8_388_609, 8_388_610),
    ("RLIMIT_CORE", "Max core file size", 0, u64::MAX),
    ("RLIMIT_RSS", "Max resident set", 8_000_000_005, 8_000_000_006),
    ("RLIMIT_NPROC", "Max processes", 501, 502),
    ("RLIMIT_NOFILE", "Max open files", 503, 504),
    ("RLIMIT_MEMLOCK", "Max locked memory", 65_541, 65_542),
    ("RLIMIT_AS", "Max address space", 8_000_000_007, 8_000_000_008),
    ("RLIMIT_LOCKS", "Max file locks", 505, 506),
    ("RLIMIT_SIGPENDING", "Max pending signals", 507, 508),
    ("RLIMIT_MSGQUEUE", "Max msgqueue size", 65_543, 65_544),
    ("RLIMIT_NICE", "Max nice priority", 9, 11),
    ("RLIMIT_RTPRIO", "Max realtime priority", 12, 13),
    ("RLIMIT_RTTIME", "Max realtime timeout", 4_000_000, 4_000_001),
];

#[test]
fn identity() {
    case("a process is what config.json says, the first and an exec", |lab| {
        let limits =
            LIMITS.map(|(kind, _, soft, hard)| json!({"type": kind, "soft": soft, "hard": hard}));
        let number = |n: u64| if n == u64::MAX { "unlimited".to_owned() } else { n.to_string() };
        let lines = LIMITS
            .map(|(_, name, soft, hard)| format!("{name} {} {}\n", number(soft), number(hard)));
        let limits_check = (
            "each of the sixteen limits, soft and hard",
            // Without the column of units.
            "sed -E '1d; s/ +(seconds|bytes|processes|files|locks|signals|us) *$//' \
                 /proc/self/limits",
            lines.concat(),
        );
        let limits_check: Check = (limits_check.0, limits_check.1, &limits_check.2);

        let config = Config::new(lab)
            .set(
                "/process/user",
                json!({
                    "uid": 1000, "gid": 2000, "umask": 0o27, "additionalGids": [10, 3000],
                }),
            )
            .set("/process/args", json!(["sh", "-c", "", "zero", "", "a  b", "*", "\n\"\u{e9}'"]))
            .set(
                "/process/env",
                json!(["PATH=/bin", "NAME=first", "EMPTY=", "SPACE= a  b ", "NAME=second",]),
            )
            .add("/mounts", json!([{"destination": "/work", "type": "tmpfs", "source": "tmpfs"}]))
            .set("/process/cwd", json!("/work/inner/most"))
            .set(
                "/process/capabilities",
                json!({
                    "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_ADMIN"],
                    "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
                    "effective": ["CAP_CHOWN"],
                    "inheritable": ["CAP_KILL", "CAP_NET_RAW"],
                    "ambient": ["CAP_KILL"],
                }),
            )
            .set("/process/rlimits", json!(limits))
            .set("/process/oomScoreAdj", json!(123));
        let both = [
            USER,
            UMASK,
            CAPABILITIES,
            NO_NEW_PRIVILEGES,
            OOM_SCORE,
            ENVIRONMENT,
            DIRECTORY,
            DESCRIPTORS,
            limits_check,
        ];
        let mut first = both.to_vec();
        first.push((
            "arguments, whatever is in them",
            "printf '<%s>' \"$0\" \"$@\"",
            "<zero><><a b><*>< \"\u{e9}'>",
        ));
        first.push(("the missing directory is root's", "stat -c '%u %g %a' .", "0 0 755"));
        let mut further = both.to_vec();
        if !lab.is_husk() {
            // runc 1.1 forgets the umask of an exec.
            further.retain(|(what, ..)| *what != UMASK.0);
        }
        let checked = config.check(lab, "process", &first);
        checked.exec(&further);
        lab.exec(&["--cwd", "/nowhere"], "process", &["true"])
            .failed_with("chdir to cwd (\"/nowhere\") set in config.json failed: no such file");
        lab.exec(&["--cwd", "/work/inner"], "process", &["pwd"]).ended(0);
        checked.finish();
    });
}

#[test]
fn root_without_limits() {
    case(
        "a process that may gain privileges: root with all that its \
                 bounding set allows",
        |lab| {
            let of = |names: &[&str]| -> Value { json!(names) };
            let config = Config::new(lab)
                .set("/process/noNewPrivileges", json!(false))
                .set("/process/oomScoreAdj", json!(-500))
                .set(
                    "/process/capabilities",
                    json!({
                        // What no kernel has yet is left out.
                    "bounding": of(&["CAP_CHOWN", "CAP_SETPCAP", "CAP_BPF", "CAP_OF_LATER"]),
                        "permitted": of(&["CAP_CHOWN"]),
                        "effective": of(&["CAP_CHOWN"]),
                    }),
                );
            config
            .check(
                lab,
                "root",
                &[
                    (
                        "root gets its bounding set back with a new program",
                        "grep ^Cap /proc/self/status",
                        "CapInh: 0000000000000000 CapPrm: 0000008000000101 CapEff: 0000008000000101
                 CapBnd: 0000008000000101 CapAmb: 0000000000000000",
                    ),
                    ("no noNewPrivileges", "grep ^NoNewPrivs: /proc/self/status", "NoNewPrivs: 0"),
                    ("umask as runc has it without one", "umask", "0022"),
                    ("a lower oomScoreAdj", "cat /proc/self/oom_score_adj", "-500"),
                    ("HOME of the user file", "echo $HOME", "/root"),
                    (
                        "what is missing is denied: chroot",
                        "chroot / true",
                        "chroot: can't change root directory to '/': Operation not permitted",
                    ),
                ],
            )
            .finish();
        },
    );
}

#[test]
fn newer_fields() {
    husk_case(
        "scheduler, priorities, affinity, offsets of clocks: what ctr does not know",
        |lab| {
            let policy = "sed 's/.*) //' /proc/$$/stat | cut -d' ' -f17,39";
            let cpus = "grep ^Cpus_allowed_list: /proc/self/status";
            let both: [Check; 3] = [
                ("scheduler: nice 7 and SCHED_BATCH", policy, "7 3"),
                ("ioPriority", "ionice -p $$", "best-effort: prio 6"),
                (
                    "time offsets",
                    "cat /proc/self/timens_offsets; test $(cut -d. -f1 /proc/uptime) \
                 -ge 864000; echo $?",
                    "monotonic 86400 5 boottime 864000 0 0",
                ),
            ];
            let first = [
                &both[..],
                &[("no affinity for the first process", cpus, "Cpus_allowed_list: 0-1")],
            ]
            .concat();
            let further =
                [&both[..], &[("execCPUAffinity for an exec", cpus, "Cpus_allowed_list: 1")]]
                    .concat();
            let bundle = Bundle::with(lab, CTR_NAMESPACE, "newer", |spec| {
                let program = format!("({}) >/first 2>&1; exec sleep 100000", script(&first));
                let process = &mut spec["process"];
                process["terminal"] = false.into();
                process["env"] = json!(["PATH=/bin"]);
                process["args"] = json!(["sh", "-c", program]);
                process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
                process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
                process["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
                // Of the host, and dropped.
                process["apparmorProfile"] = "nowhere".into();
                process["selinuxLabel"] = "system_u:system_r:nothing_t:s0".into();
                let linux = &mut spec["linux"];
                // For as many CPUs of the VM.
                linux["resources"]["cpu"] = json!({"quota": 200_000, "period": 100_000});
                linux["namespaces"]
                    .as_array_mut()
                    .expect("namespaces")
                    .push(json!({"type": "time"}));
                linux["timeOffsets"] = json!({
                    "monotonic": {"secs": 86_400, "nanosecs": 5}, "boottime": {"secs": 864_000},
                });
            });
            bundle.launch();
            let program = format!("({}) >/further 2>&1", script(&further));
            bundle.exec("further", &["sh", "-c", &program]);
            bundle.wait("further").expect("Wait");
            let written =
                |name: &str| std::fs::read_to_string(bundle.path().join("upper").join(name));
            compare("exec in newer", &written("further").expect("its answers"), &further);
            let whole = || written("first").is_ok_and(|said| said.contains("== end"));
            assert!(eventually(LIMIT, whole), "the first process does not come to its end");
            compare("newer", &written("first").expect("its answers"), &first);
            bundle.remove_pod();
        },
    );
}
