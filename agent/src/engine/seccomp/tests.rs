// SPDX-License-Identifier: Apache-2.0

//! Filters are looked at in two ways: an interpreter of BPF asks them about any call of any
//! ABI, and forked children load them and make calls.

use libc::{
    BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_LOG, SECCOMP_RET_TRACE,
    SECCOMP_RET_TRAP,
};
use nix::sys::signal::Signal;

use super::*;
use crate::engine::forked::{Ended, forked};

const EPERM: u32 = SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NONE: [u64; 6] = [0; 6];
const GETPID: u32 = libc::SYS_getpid as u32;
const GETPPID: u32 = libc::SYS_getppid as u32;

/// The newest call of the usual profile.
const NEWEST: u32 = libc::SYS_set_mempolicy_home_node as u32;

/// What the profiles of containerd and docker do not allow a container without privileges.
const DENIED: &str = "acct add_key bpf clock_adjtime clock_adjtime64 clock_settime \
    clock_settime64 create_module delete_module fanotify_init finit_module fsconfig fsmount \
    fsopen fspick get_kernel_syms get_mempolicy init_module io_uring_enter io_uring_register \
    io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind \
    mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree \
    perf_event_open pivot_root process_vm_readv process_vm_writev query_module quotactl \
    quotactl_fd reboot request_key set_mempolicy setdomainname sethostname setns settimeofday \
    stime swapoff swapon sysfs _sysctl umount umount2 unshare uselib userfaultfd ustat vhangup \
    vm86 vm86old vserver";

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).expect("a profile")
}

fn filter(json: &str) -> Filter {
    Filter::compile(&profile(json)).expect("a filter")
}

/// A profile of the size and the kind that containers have everywhere.
fn usual_profile() -> LinuxSeccomp {
    let special = ["personality", "clone", "clone3"];
    let denied = |name: &str| DENIED.split_ascii_whitespace().any(|denied| denied == name);
    let names = numbers::x86_64().chain(numbers::x86()).filter(|(_, number)| *number <= NEWEST);
    let names = names.map(|(name, _)| name);
    let names: std::collections::BTreeSet<&str> =
        names.filter(|name| !denied(name) && !special.contains(name)).collect();
    let allow = |names: serde_json::Value, args: serde_json::Value| serde_json::json!({"names": names, "action": "SCMP_ACT_ALLOW", "args": args});
    let mut calls = vec![allow(serde_json::json!(names), serde_json::json!([]))];
    for value in [0u64, 8, 0x20000, 0x20008, 0xffff_ffff] {
        let args = serde_json::json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
        calls.push(allow(serde_json::json!(["personality"]), args));
    }
    let namespaces = serde_json::json!([
        {"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    ]);
    calls.push(allow(serde_json::json!(["clone"]), namespaces));
    calls
        .push(serde_json::json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    serde_json::from_value(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": calls,
    }))
    .expect("a profile")
}

/// Runs a filter, as the kernel would.
fn answer(filter: &Filter, architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = vec![number, architecture, 0, 0];
    data.extend(args.iter().flat_map(|arg| [*arg as u32, (*arg >> 32) as u32]));
    let (mut at, mut a) = (0, 0u32);
    loop {
        let sock_filter { code, jt, jf, k } = filter.program[at];
        let code = u32::from(code);
        at += 1;
        let test = match code {
            0x20 => {
                a = data[k as usize / 4];
                continue;
            }
            0x54 => {
                a &= k;
                continue;
            }
            0x06 => return k,
            _ => code & 0xf0,
        };
        assert_eq!(code & 7, 5, "an instruction that is not expected: {code:#x}");
        at += match test {
            BPF_JA => k as usize,
            BPF_JEQ => usize::from(if a == k { jt } else { jf }),
            BPF_JGT => usize::from(if a > k { jt } else { jf }),
            BPF_JGE => usize::from(if a >= k { jt } else { jf }),
            _ => panic!("a jump that is not expected: {code:#x}"),
        };
    }
}

fn number(mut calls: impl Iterator<Item = (&'static str, u32)>, name: &str) -> u32 {
    calls.find(|(known, _)| *known == name).expect(name).1
}

#[test]
fn names_have_the_kernels_numbers() {
    for (name, want) in [
        ("read", libc::SYS_read),
        ("rt_sigaction", libc::SYS_rt_sigaction),
        ("getrandom", libc::SYS_getrandom),
        ("rseq", libc::SYS_rseq),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
        ("mseal", 462),
        ("file_setattr", 469),
    ] {
        assert_eq!(i64::from(number(numbers::x86_64(), name)), want, "{name}");
    }
    for (name, want) in [("exit", 1), ("socketcall", 102), ("socket", 359), ("statx", 383)] {
        assert_eq!(number(numbers::x86(), name), want, "{name}");
    }
    for (name, want) in [("read", 0), ("ioctl", 514), ("execveat", 545), ("mseal", 462)] {
        assert_eq!(number(numbers::x32(), name), want | numbers::X32_BIT, "{name}");
    }
    assert!(numbers::x32().all(|(name, _)| name != "uselib"));
    for calls in
        [numbers::x86_64().collect::<Vec<_>>(), numbers::x86().collect(), numbers::x32().collect()]
    {
        assert!(calls.is_sorted_by(|a, b| a.1 < b.1), "numbers ascend");
        let names: std::collections::HashSet<_> = calls.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), calls.len(), "no name is twice there");
    }
}

#[test]
fn actions_have_the_kernels_values() {
    for (action, errno, want) in [
        ("KILL", None, SECCOMP_RET_KILL_THREAD),
        ("KILL_THREAD", None, SECCOMP_RET_KILL_THREAD),
        ("KILL_PROCESS", None, SECCOMP_RET_KILL_PROCESS),
        ("TRAP", None, SECCOMP_RET_TRAP),
        ("ERRNO", None, EPERM),
        ("ERRNO", Some(38), SECCOMP_RET_ERRNO | 38),
        ("ERRNO", Some(0), SECCOMP_RET_ERRNO),
        ("TRACE", None, SECCOMP_RET_TRACE | 1),
        ("TRACE", Some(7), SECCOMP_RET_TRACE | 7),
        ("LOG", None, SECCOMP_RET_LOG),
    ] {
        let errno = errno.map_or(String::new(), |errno| format!(r#","errnoRet":{errno}"#));
        let filter = filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW",
            "syscalls":[{{"names":["getpid"],"action":"SCMP_ACT_{action}"{errno}}}]}}"#
        ));
        assert_eq!(answer(&filter, X86_64, GETPID, NONE), want, "{action}{errno}");
        assert_eq!(answer(&filter, X86_64, GETPPID, NONE), SECCOMP_RET_ALLOW);
    }
}

#[test]
fn operators_compare_all_64_bits() {
    let high = 5 << 32;
    let values = [0, 6, 7, 8, high, high + 6, high + 7, high + 8, high + high, u64::MAX];
    type Holds = fn(u64, u64) -> bool;
    let operators: [(&str, Holds); 6] = [
        ("NE", |a, v| a != v),
        ("LT", |a, v| a < v),
        ("LE", |a, v| a <= v),
        ("EQ", |a, v| a == v),
        ("GE", |a, v| a >= v),
        ("GT", |a, v| a > v),
    ];
    let with = |op: &str, value: u64, two: u64| {
        filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],
            "syscalls":[{{"names":["getpid"],"action":"SCMP_ACT_ERRNO",
            "args":[{{"index":3,"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{op}"}}]}}]}}"#
        ))
    };
    let action = |holds| if holds { EPERM } else { SECCOMP_RET_ALLOW };
    for (op, holds) in operators {
        for value in values {
            let filter = with(op, value, 0);
            for arg in values {
                let args = [1, 2, 3, arg, 5, 6];
                let got = answer(&filter, X86_64, GETPID, args);
                assert_eq!(got, action(holds(arg, value)), "{arg:#x} {op} {value:#x}");
                // i386 has 32 bits, whatever the profile says.
                let got = answer(&filter, X86, 20, args);
                let low = |value: u64| value & 0xffff_ffff;
                assert_eq!(got, action(holds(low(arg), low(value))), "{arg:#x} {op} {value:#x}");
            }
        }
    }
    for mask in values {
        for value in values {
            let filter = with("MASKED_EQ", mask, value);
            for arg in values {
                let got = answer(&filter, X86_64, GETPID, [0, 0, 0, arg, 0, 0]);
                let want = action(arg & mask == value & mask);
                assert_eq!(got, want, "{arg:#x} & {mask:#x} = {value:#x}");
            }
        }
    }
}

#[test]
fn conditions_hold_together_unless_they_share_an_argument() {
    let with = |second: usize| {
        filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["getpid"],
            "action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":1,"op":"SCMP_CMP_EQ"}},
            {{"index":{second},"value":2,"op":"SCMP_CMP_EQ"}}]}}]}}"#
        ))
    };
    for (second, args, want) in [
        (1, [1, 2, 0, 0, 0, 0], SECCOMP_RET_ALLOW),
        (1, [1, 0, 0, 0, 0, 0], EPERM),
        (1, [0, 2, 0, 0, 0, 0], EPERM),
        (0, [1, 0, 0, 0, 0, 0], SECCOMP_RET_ALLOW),
        (0, [2, 0, 0, 0, 0, 0], SECCOMP_RET_ALLOW),
        (0, [3, 0, 0, 0, 0, 0], EPERM),
    ] {
        assert_eq!(answer(&with(second), X86_64, GETPID, args), want, "{second} {args:?}");
    }
}

#[test]
fn a_rule_without_conditions_wins_over_those_with_them() {
    for (first, second) in [("", r#"{"index":0,"value":1,"op":"SCMP_CMP_EQ"}"#)]
        .into_iter()
        .flat_map(|(a, b)| [(a, b), (b, a)])
    {
        let filter = filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {{"names":["getpid"],"action":"SCMP_ACT_ALLOW","args":[{first}]}},
            {{"names":["getpid"],"action":"SCMP_ACT_ALLOW","args":[{second}]}},
            {{"names":["getpid"],"action":"SCMP_ACT_ERRNO"}}]}}"#
        ));
        assert_eq!(answer(&filter, X86_64, GETPID, [9; 6]), SECCOMP_RET_ALLOW);
    }
}

#[test]
fn calls_of_other_abis_kill() {
    let allow = filter(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
    let skipped = u32::MAX;
    assert_eq!(answer(&allow, X86_64, GETPID, NONE), SECCOMP_RET_ALLOW);
    assert_eq!(answer(&allow, X86_64, skipped, NONE), SECCOMP_RET_ALLOW);
    assert_eq!(answer(&allow, X86, 20, NONE), SECCOMP_RET_KILL_THREAD);
    assert_eq!(answer(&allow, X86_64, numbers::X32_BIT | 39, NONE), SECCOMP_RET_KILL_THREAD);
    let some = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO",
        "syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(answer(&some, X86, 20, NONE), SECCOMP_RET_KILL_THREAD);
    assert_eq!(answer(&some, X86_64, numbers::X32_BIT | 39, NONE), SECCOMP_RET_KILL_THREAD);
    assert_eq!(answer(&some, X86_64, skipped, NONE), ENOSYS);
    let aarch64 = 0xc000_00b7;
    assert_eq!(answer(&allow, aarch64, 1, NONE), SECCOMP_RET_KILL_THREAD);
    let all = filter(
        r#"{"defaultAction":"SCMP_ACT_ALLOW",
        "architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32","SCMP_ARCH_ARM"]}"#,
    );
    assert_eq!(answer(&all, X86, 20, NONE), SECCOMP_RET_ALLOW);
    assert_eq!(answer(&all, X86_64, numbers::X32_BIT | 39, NONE), SECCOMP_RET_ALLOW);
    assert_eq!(answer(&all, aarch64, 1, NONE), SECCOMP_RET_KILL_THREAD);
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let with = |default: &str, calls: &str| {
        filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_{default}","architectures":["SCMP_ARCH_X86_64"],
            "syscalls":[{{"names":["read","no_such_call",{calls}],"action":"SCMP_ACT_LOG"}}]}}"#
        ))
    };
    let openat2 = libc::SYS_openat2 as u32;
    for (default, want, older) in [
        ("ERRNO", ENOSYS, EPERM),
        (r#"ERRNO","defaultErrnoRet":1,"listenerMetadata":""#, ENOSYS, EPERM),
        ("KILL_PROCESS", ENOSYS, SECCOMP_RET_KILL_PROCESS),
        ("TRAP", ENOSYS, SECCOMP_RET_TRAP),
        (r#"ERRNO","defaultErrnoRet":38,"listenerMetadata":""#, ENOSYS, ENOSYS),
        ("ALLOW", SECCOMP_RET_ALLOW, SECCOMP_RET_ALLOW),
        ("LOG", SECCOMP_RET_LOG, SECCOMP_RET_LOG),
        ("TRACE", SECCOMP_RET_TRACE | 1, SECCOMP_RET_TRACE | 1),
    ] {
        let filter = with(default, r#""openat2""#);
        assert_eq!(answer(&filter, X86_64, openat2, NONE), SECCOMP_RET_LOG, "{default}");
        for newer in [openat2 + 1, 469, 5000] {
            assert_eq!(answer(&filter, X86_64, newer, NONE), want, "{default} {newer}");
        }
        assert_eq!(answer(&filter, X86_64, openat2 - 1, NONE), older, "{default}");
    }
    // A call that is named is known, although its rule says what the default says.
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO",
        "syscalls":[{"names":["mseal"],"action":"SCMP_ACT_ERRNO"}]}"#,
    );
    assert_eq!(answer(&filter, X86_64, 462, NONE), EPERM);
    assert_eq!(answer(&filter, X86_64, 463, NONE), ENOSYS);
}

#[test]
fn calls_in_calls_of_i386_are_no_way_around_a_rule() {
    let with = |default: &str, name: &str, action: &str, args: &str| {
        filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_{default}","architectures":["SCMP_ARCH_X86"],
            "syscalls":[{{"names":["{name}"],"action":"SCMP_ACT_{action}","args":[{args}]}}]}}"#
        ))
    };
    let vsock = r#"{"index":0,"value":40,"op":"SCMP_CMP_EQ"}"#;
    let no_vsock = r#"{"index":0,"value":40,"op":"SCMP_CMP_NE"}"#;
    let (socketcall, ipc) = (102, 117);
    let (socket, bind, shmget) = (1, 2, 23);
    for (filter, number, call, want) in [
        (with("ALLOW", "socket", "ERRNO", ""), socketcall, socket, EPERM),
        (with("ALLOW", "socket", "ERRNO", ""), socketcall, bind, SECCOMP_RET_ALLOW),
        (with("ALLOW", "socket", "ERRNO", vsock), socketcall, socket, EPERM),
        (with("ERRNO", "socket", "ALLOW", ""), socketcall, socket, SECCOMP_RET_ALLOW),
        (with("ERRNO", "socket", "ALLOW", ""), socketcall, bind, EPERM),
        (with("ERRNO", "socket", "ALLOW", no_vsock), socketcall, socket, EPERM),
        (with("ERRNO", "socketcall", "ALLOW", ""), socketcall, socket, SECCOMP_RET_ALLOW),
        (with("ALLOW", "shmget", "ERRNO", ""), ipc, shmget, EPERM),
        (with("ALLOW", "shmget", "ERRNO", ""), ipc, 1 << 16 | shmget, EPERM),
    ] {
        let got = answer(&filter, X86, number, [call, 40, 0, 0, 0, 0]);
        assert_eq!(got, want, "{number} {call:#x} {:?}", filter.program.len());
    }
}

#[test]
fn the_usual_profile_does_what_it_says() {
    let filter = Filter::compile(&usual_profile()).expect("a filter");
    println!("the usual profile makes {} instructions", filter.program.len());
    let denied = |name: &str| DENIED.split_ascii_whitespace().any(|denied| denied == name);
    let newer = numbers::x86_64().filter(|(_, number)| *number > NEWEST);
    let newer: std::collections::HashSet<&str> = newer.map(|(name, _)| name).collect();
    for (architecture, calls) in [
        (X86_64, numbers::x86_64().collect::<Vec<_>>()),
        (X86, numbers::x86().collect()),
        (X86_64, numbers::x32().collect()),
    ] {
        for (name, number) in calls {
            let x32 = number & numbers::X32_BIT != 0;
            let want = match name {
                "clone3" => ENOSYS,
                // x32 numbers old calls anew, above the new ones; so these are not the newest.
                _ if newer.contains(name) => {
                    if x32 {
                        EPERM
                    } else {
                        ENOSYS
                    }
                }
                _ if denied(name) => EPERM,
                _ => SECCOMP_RET_ALLOW,
            };
            assert_eq!(answer(&filter, architecture, number, NONE), want, "{name} {number:#x}");
        }
    }
    let mseal = 462;
    assert_eq!(answer(&filter, X86_64, mseal, NONE), ENOSYS);
    let clone = libc::SYS_clone as u32;
    let newuser = libc::CLONE_NEWUSER as u64;
    assert_eq!(answer(&filter, X86_64, clone, [newuser | 17, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(answer(&filter, X86_64, clone, [17, 0, 0, 0, 0, 0]), SECCOMP_RET_ALLOW);
}

#[test]
fn what_cannot_be_is_refused() {
    for (json, want) in [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW",
            "syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "SCMP_ACT_NOTIFY",
        ),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#, "listenerPath"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],
            "action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "argument 6",
        ),
    ] {
        let error = Filter::compile(&profile(json)).err().expect(json);
        assert!(error.contains(want), "{error}");
    }
    let rule = r#"{"names":["read"],"action":"SCMP_ACT_ERRNO",
        "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]}"#;
    let many = format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#,
        vec![rule; 1000].join(",")
    );
    let error = Filter::compile(&profile(&many)).err().expect("too long");
    assert!(error.contains("the kernel takes 4096"), "{error}");
}

/// Loads a filter in a child and makes a call there; returns its errno, or 0.
fn called(json: &str, number: i64, arg: u64) -> Result<i32, Ended> {
    let filter = filter(json);
    let done = forked(|| {
        // SAFETY: this prctl() takes no pointers, nor do the calls that are tested.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            filter.load()?;
            let result = libc::syscall(number, arg, 0, 0, 0, 0, 0);
            Err(if result < 0 { Errno::last_raw() } else { 0 }.to_string())
        }
    });
    match done {
        Err(Ended::Failed(errno)) => Ok(errno.parse().expect(&errno)),
        Err(killed) => Err(killed),
        Ok(()) => unreachable!("the child always returns an error"),
    }
}

#[test]
fn the_kernel_does_as_the_filter_says() {
    let with = |action: &str, args: &str| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW","SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],"syscalls":[{{
            "names":["getppid"],"action":"SCMP_ACT_{action}","args":[{args}]}}]}}"#
        )
    };
    let getppid = libc::SYS_getppid;
    let killed = || Err(Ended::Killed(Signal::SIGSYS));
    let seven = r#"{"index":0,"value":7,"op":"SCMP_CMP_EQ"}"#;
    for (action, args, number, arg, want) in [
        ("ALLOW", "", getppid, 0, Ok(0)),
        ("LOG", "", getppid, 0, Ok(0)),
        ("ERRNO", "", getppid, 0, Ok(libc::EPERM)),
        (r#"ERRNO","errnoRet":11,"x":""#, "", getppid, 0, Ok(libc::EAGAIN)),
        ("ERRNO", "", libc::SYS_getpid, 0, Ok(0)),
        ("ERRNO", seven, getppid, 7, Ok(libc::EPERM)),
        ("ERRNO", seven, getppid, 8, Ok(0)),
        // Without a tracer the call is said not to exist.
        ("TRACE", "", getppid, 0, Ok(libc::ENOSYS)),
        ("KILL", "", getppid, 0, killed()),
        ("KILL_THREAD", "", getppid, 0, killed()),
        ("KILL_PROCESS", "", getppid, 0, killed()),
        ("TRAP", "", getppid, 0, killed()),
    ] {
        assert_eq!(called(&with(action, args), number, arg), want, "{action} {args}");
    }
}

#[test]
fn the_kernel_takes_the_usual_profile() {
    let filter = Filter::compile(&usual_profile()).expect("a filter");
    let done = forked(|| {
        // SAFETY: these take no pointers.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            filter.load()?;
            let errno = |number| match libc::syscall(number, 0, 0, 0, 0, 0, 0) {
                -1 => Errno::last_raw(),
                _ => 0,
            };
            let got = [libc::SYS_getpid, libc::SYS_unshare, libc::SYS_clone3, 462].map(errno);
            let want = [0, libc::EPERM, libc::ENOSYS, libc::ENOSYS];
            if got == want { Ok(()) } else { Err(format!("{got:?} is not {want:?}")) }
        }
    });
    assert_eq!(done, Ok(()));
}
