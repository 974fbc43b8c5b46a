// SPDX-License-Identifier: Apache-2.0

//! Seccomp filters: an OCI profile becomes classic BPF (`bpf`), and that is loaded into the
//! calling thread. What a profile means follows libseccomp and runc, so that the profiles of
//! containerd and docker do here what they do there; `numbers` knows the system calls.
//!
//! The machine's own ABI is always part of a filter. A call of an ABI that the profile does
//! not list kills the thread, and one that is newer than everything that the profile names
//! fails with ENOSYS, because programs fall back on older calls then (and not on EPERM).

mod bpf;
mod numbers;

use std::collections::HashMap;

use libc::sock_filter;
use nix::errno::Errno;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::program::text;
use bpf::{Condition, Rule, Verdict};

/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_I386.
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

/// Arguments of a system call.
const MAX_ARGUMENTS: usize = 6;

const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

pub struct Filter {
    program: Vec<sock_filter>,
    /// Of seccomp(2).
    flags: libc::c_ulong,
}

impl Filter {
    pub fn compile(seccomp: &LinuxSeccomp) -> Result<Self, String> {
        if seccomp.listener_path().is_some() {
            return Err(no_notify("listenerPath"));
        }
        let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
        let profile = Profile { rules: rules(seccomp, default)?, default, newer: newer(default) };
        let listed = |arch| seccomp.architectures().iter().flatten().any(|listed| *listed == arch);
        let mut program = vec![bpf::load(bpf::ARCHITECTURE)];
        let mut ranges = profile.ranges(numbers::x86_64());
        if listed(Arch::ScmpArchX32) {
            ranges.0.extend(profile.ranges(numbers::x32()).0);
        } else {
            ranges.begin(numbers::X32_BIT, Verdict::always(libc::SECCOMP_RET_KILL_THREAD));
        }
        // A tracer skips a call by making its number -1.
        ranges.begin(u32::MAX, Verdict::always(profile.newer.unwrap_or(default)));
        if_architecture(&mut program, X86_64, bpf::search(&ranges.0, true));
        if listed(Arch::ScmpArchX86) {
            let ranges = profile.ranges(numbers::x86());
            if_architecture(&mut program, X86, bpf::search(&ranges.0, false));
        }
        program.push(bpf::ret(libc::SECCOMP_RET_KILL_THREAD));
        if program.len() > libc::BPF_MAXINSNS as usize {
            return Err(format!(
                "the seccomp profile makes a filter of {} instructions, and the kernel takes {}",
                program.len(),
                libc::BPF_MAXINSNS
            ));
        }
        Ok(Self { program, flags: flags(seccomp) })
    }

    /// Takes effect at once. Needs CAP_SYS_ADMIN or no_new_privs.
    pub fn load(&self) -> Result<(), String> {
        let program = libc::sock_fprog {
            len: self.program.len() as u16,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads the program, which is alive during the call, and copies
        // it; `len` is its length and fits, because `compile` limits it.
        let loaded = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, self.flags, &program)
        };
        match loaded {
            0 => Ok(()),
            -1 => Err(format!("cannot load the seccomp filter: {}", text(Errno::last()))),
            thread => Err(format!("cannot load the seccomp filter into thread {thread}")),
        }
    }
}

/// Appends code that looks at the system call's number if it is one of this architecture.
fn if_architecture(program: &mut Vec<sock_filter>, architecture: u32, code: Vec<sock_filter>) {
    program.push(bpf::jump(libc::BPF_JEQ, architecture, 1, 0));
    program.push(bpf::skip(1 + code.len() as u32));
    program.push(bpf::load(bpf::NUMBER));
    program.extend(code);
}

/// What a profile says, independent of the ABI.
struct Profile<'a> {
    /// By the system call's name. Those that change nothing are left out, their names not.
    rules: HashMap<&'a str, Vec<Rule>>,
    default: u32,
    /// Answer to calls that the profile cannot know, if it is not the default.
    newer: Option<u32>,
}

impl Profile<'_> {
    /// The verdicts for an ABI, whose calls are given by ascending number.
    fn ranges(&self, calls: impl Iterator<Item = (&'static str, u32)>) -> Ranges {
        let mut ranges = Ranges(Vec::new());
        let mut newest = None;
        for (name, number) in calls {
            if ranges.0.is_empty() {
                ranges.begin(number, Verdict::always(self.default));
            }
            let verdict = match name {
                "socketcall" => self.many_in_one(name, numbers::socketcall()),
                "ipc" => self.many_in_one(name, numbers::ipc()),
                _ => self.verdict(name),
            };
            ranges.begin(number, verdict);
            ranges.begin(number + 1, Verdict::always(self.default));
            if self.rules.contains_key(name) {
                newest = Some(number);
            }
        }
        if let (Some(newest), Some(newer)) = (newest, self.newer) {
            ranges.begin(newest + 1, Verdict::always(newer));
        }
        ranges
    }

    /// A rule without conditions makes those with conditions meaningless.
    fn verdict(&self, name: &str) -> Verdict {
        let rules = self.rules.get(name).map(Vec::as_slice).unwrap_or_default();
        match rules.iter().find(|rule| rule.conditions.is_empty()) {
            Some(rule) => Verdict::always(rule.action),
            None => Verdict { rules: rules.to_vec(), otherwise: self.default },
        }
    }

    /// For a call whose first argument is the number of the call that is meant. That one's
    /// own arguments are in memory, where a filter cannot look: what a rule forbids under
    /// some condition is forbidden, what it allows is not allowed.
    fn many_in_one(&self, name: &str, calls: impl Iterator<Item = (&'static str, u32)>) -> Verdict {
        let mut verdict = self.verdict(name);
        if verdict.rules.is_empty() && verdict.otherwise != self.default {
            return verdict;
        }
        for (name, number) in calls {
            let call = self.verdict(name);
            let stricter = |action: &u32| (*action as i32) < (call.otherwise as i32);
            let actions = call.rules.iter().map(|rule| rule.action).filter(stricter);
            let action = actions.min_by_key(|action| *action as i32).unwrap_or(call.otherwise);
            if action != self.default {
                // ipc(2) has a version in the upper half.
                let condition = Condition {
                    argument: 0,
                    operator: LinuxSeccompOperator::ScmpCmpMaskedEq,
                    mask: 0xffff,
                    value: number.into(),
                };
                verdict.rules.push(Rule { conditions: vec![condition], action });
            }
        }
        verdict
    }
}

/// Verdicts by the first number that each is for, ascending.
struct Ranges(Vec<(u32, Verdict)>);

impl Ranges {
    /// From `start` on it is `verdict`, whatever was said before.
    fn begin(&mut self, start: u32, verdict: Verdict) {
        while self.0.last().is_some_and(|(last, _)| *last >= start) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|(_, last)| *last != verdict) {
            self.0.push((start, verdict));
        }
    }
}

/// The rules of a profile for each name. Unknown names do no harm.
fn rules(seccomp: &LinuxSeccomp, default: u32) -> Result<HashMap<&str, Vec<Rule>>, String> {
    let mut rules: HashMap<&str, Vec<Rule>> = HashMap::new();
    for call in seccomp.syscalls().iter().flatten() {
        let action = action(call.action(), call.errno_ret())?;
        let conditions = conditions(call)?;
        for name in call.names() {
            let of_name = rules.entry(name).or_default();
            // What is the default anyway is left out, as runc does: it could only get into
            // the way of other rules.
            if action != default {
                let conditions = conditions.iter().cloned();
                of_name.extend(conditions.map(|conditions| Rule { conditions, action }));
            }
        }
    }
    Ok(rules)
}

/// The conditions under which a rule holds: one set that must hold together, but where two
/// are about the same argument, any of them alone, as runc does.
fn conditions(call: &LinuxSyscall) -> Result<Vec<Vec<Condition>>, String> {
    let args = call.args().as_deref().unwrap_or_default();
    if let Some(arg) = args.iter().find(|arg| arg.index() >= MAX_ARGUMENTS) {
        return Err(format!(
            "the seccomp rule for {} is about argument {}, and there are arguments 0 to {}",
            call.names().join(", "),
            arg.index(),
            MAX_ARGUMENTS - 1
        ));
    }
    let twice = (1..args.len()).any(|i| args[..i].iter().any(|a| a.index() == args[i].index()));
    let conditions = args.iter().map(Condition::from);
    Ok(if twice {
        conditions.map(|condition| vec![condition]).collect()
    } else {
        vec![conditions.collect()]
    })
}

/// The answer to calls that are newer than the profile. Where the default lets calls pass it
/// is that for them too; so it is where the default says what they are to get.
fn newer(default: u32) -> Option<u32> {
    match default & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG | libc::SECCOMP_RET_TRACE => None,
        _ if default == ENOSYS => None,
        _ => Some(ENOSYS),
    }
}

/// The kernel's value of an action. Without an errno it is EPERM.
fn action(action: Action, errno: Option<u32>) -> Result<u32, String> {
    let errno = errno.unwrap_or(libc::EPERM as u32) & libc::SECCOMP_RET_DATA;
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Action::ScmpActErrno => libc::SECCOMP_RET_ERRNO | errno,
        Action::ScmpActTrace => libc::SECCOMP_RET_TRACE | errno,
        Action::ScmpActLog => libc::SECCOMP_RET_LOG,
        Action::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        Action::ScmpActNotify => return Err(no_notify("SCMP_ACT_NOTIFY")),
    })
}

fn no_notify(what: &str) -> String {
    format!(
        "the seccomp profile has {what}, but system calls cannot be handed to another program \
         for a decision; use SCMP_ACT_ERRNO or SCMP_ACT_ALLOW"
    )
}

fn flags(seccomp: &LinuxSeccomp) -> libc::c_ulong {
    let flag = |flag: &Flag| match flag {
        Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        // About waiting for notifications, of which there are none.
        Flag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    seccomp.flags().iter().flatten().map(flag).fold(0, |flags, flag| flags | flag)
}

#[cfg(test)]
mod tests;
