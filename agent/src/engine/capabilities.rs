// SPDX-License-Identifier: Apache-2.0

//! The capabilities of a container's process. What the kernel does not know, or the runtime
//! itself does not have, a process does not get; that is no error, so that a profile for a
//! newer kernel or a runtime with less privileges works.

use nix::errno::Errno;
use oci_spec::runtime::{Capability, LinuxCapabilities};

use super::program::text;

/// In the order of the kernel's numbers, from 0.
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// _LINUX_CAPABILITY_VERSION_3: sets of 64 bits, in two words.
const VERSION: u32 = 0x2008_0522;

/// One bit for each capability, at its number.
#[derive(Debug, Default, PartialEq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// One word of each set.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Sets {
    /// As the configuration says; without one there are none.
    pub fn of(capabilities: Option<&LinuxCapabilities>) -> Self {
        let Some(capabilities) = capabilities else { return Self::default() };
        let bits = |set: &Option<std::collections::HashSet<Capability>>| {
            let has = |capability| set.iter().any(|set| set.contains(capability));
            let numbers = ALL.iter().enumerate().filter(|(_, capability)| has(capability));
            numbers.fold(0, |bits, (number, _)| bits | 1 << number)
        };
        Self {
            bounding: bits(capabilities.bounding()),
            effective: bits(capabilities.effective()),
            permitted: bits(capabilities.permitted()),
            inheritable: bits(capabilities.inheritable()),
            ambient: bits(capabilities.ambient()),
        }
    }

    /// Takes from the bounding set what is not in it here. Needs CAP_SETPCAP if that is
    /// anything.
    pub fn drop_bounding(&self) -> Result<(), String> {
        for number in 0..64 {
            // SAFETY: these prctl()s take no pointers.
            match unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } {
                1 if self.bounding & 1 << number == 0 => {
                    let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
                    check(dropped.into(), "drop a capability from the bounding set")?;
                }
                // The kernel knows no more.
                -1 => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// Sets all but the bounding set. After a change of the user id it needs what
    /// PR_SET_KEEPCAPS keeps.
    pub fn apply(&self) -> Result<(), String> {
        // SAFETY: this prctl() takes no pointers.
        let cleared =
            unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
        check(cleared.into(), "clear the ambient capabilities")?;
        let own = own_permitted()?;
        let effective = self.effective & own;
        let permitted = self.permitted & own;
        let inheritable = self.inheritable & own;
        let words = [0, 32].map(|shift| Words {
            effective: (effective >> shift) as u32,
            permitted: (permitted >> shift) as u32,
            inheritable: (inheritable >> shift) as u32,
        });
        let header = Header { version: VERSION, pid: 0 };
        // SAFETY: the kernel reads a header and, at this version, two times three words; both
        // are alive during the call.
        let set = unsafe { libc::syscall(libc::SYS_capset, &header, &words) };
        check(set, "set the capabilities")?;
        // Only what is permitted and inheritable can be ambient; runc leaves out the rest
        // without a word, and so do profiles count on it.
        let ambient = self.ambient & permitted & inheritable;
        for number in (0..64).filter(|number| ambient & 1 << number != 0) {
            // SAFETY: this prctl() takes no pointers.
            let raised = unsafe {
                libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0)
            };
            check(raised.into(), "raise an ambient capability")?;
        }
        Ok(())
    }
}

fn own_permitted() -> Result<u64, String> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut words = [Words::default(); 2];
    // SAFETY: the kernel reads and may write a header, and at this version writes two times
    // three words; both are alive during the call.
    let got = unsafe { libc::syscall(libc::SYS_capget, &mut header, &mut words) };
    check(got, "read the capabilities")?;
    Ok(u64::from(words[1].permitted) << 32 | u64::from(words[0].permitted))
}

fn check(result: libc::c_long, what: &str) -> Result<(), String> {
    if result < 0 { Err(format!("cannot {what}: {}", text(Errno::last()))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::forked::{forked, is_root};

    const CHOWN: u64 = 1;
    const KILL: u64 = 1 << 5;
    const SETPCAP: u64 = 1 << 8;
    const BPF: u64 = 1 << 39;
    /// No kernel has it.
    const UNKNOWN: u64 = 1 << 60;

    /// What the kernel says of this process: the sets in the order of `Sets`.
    fn own() -> Sets {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a set");
            u64::from_str_radix(line.trim(), 16).expect("a hexadecimal number")
        };
        Sets {
            bounding: set("CapBnd:"),
            effective: set("CapEff:"),
            permitted: set("CapPrm:"),
            inheritable: set("CapInh:"),
            ambient: set("CapAmb:"),
        }
    }

    /// Applies sets in a child as `uid` and compares with what it has then.
    fn applied(sets: Sets, uid: u32, want: Sets) {
        if !is_root() {
            return;
        }
        let done = forked(|| {
            // SAFETY: these take no pointers. The system call changes one thread only.
            unsafe {
                // The ambient set is not empty before, so that it must be emptied.
                let all = Sets { permitted: !0, effective: !0, inheritable: !0, ..own() };
                Sets { ambient: KILL, ..all }.apply()?;
                sets.drop_bounding()?;
                check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into(), "keep")?;
                check(libc::syscall(libc::SYS_setresuid, uid, uid, uid), "setresuid")?;
            }
            sets.apply()?;
            let have = own();
            if have == want { Ok(()) } else { Err(format!("{have:x?} is not {want:x?}")) }
        });
        assert_eq!(done, Ok(()));
    }

    #[test]
    fn numbers_are_the_kernels() {
        let json = r#"{"bounding":["CAP_CHOWN","CAP_KILL"],"permitted":["CAP_BPF"],
            "effective":["CAP_CHECKPOINT_RESTORE"],"ambient":["CAP_SETPCAP"]}"#;
        let capabilities: LinuxCapabilities = serde_json::from_str(json).expect("json");
        let want = Sets {
            bounding: CHOWN | KILL,
            permitted: BPF,
            effective: 1 << 40,
            inheritable: 0,
            ambient: SETPCAP,
        };
        assert_eq!(Sets::of(Some(&capabilities)), want);
        assert_eq!(Sets::of(None), Sets::default());
        let distinct: std::collections::HashSet<_> = ALL.iter().collect();
        assert_eq!(distinct.len(), ALL.len());
    }

    #[test]
    fn a_user_has_exactly_what_is_given() {
        let sets = || Sets {
            bounding: CHOWN | KILL | BPF,
            permitted: CHOWN | KILL | BPF,
            effective: CHOWN,
            inheritable: KILL | BPF,
            ambient: BPF,
        };
        applied(sets(), 1000, sets());
        applied(sets(), 0, sets());
    }

    #[test]
    fn a_process_can_have_none() {
        applied(Sets::default(), 1000, Sets::default());
        applied(Sets::default(), 0, Sets::default());
    }

    #[test]
    fn what_cannot_be_had_is_left_out() {
        let known = CHOWN | KILL;
        let sets = Sets {
            bounding: known | UNKNOWN,
            permitted: known | UNKNOWN,
            effective: known | UNKNOWN,
            inheritable: KILL | UNKNOWN,
            // Neither the first, for it is not inheritable, nor the second.
            ambient: CHOWN | UNKNOWN,
        };
        let want = Sets {
            bounding: known,
            permitted: known,
            effective: known,
            inheritable: KILL,
            ambient: 0,
        };
        applied(sets, 1000, want);
    }

    #[test]
    fn what_the_runtime_does_not_have_is_left_out() {
        if !is_root() {
            return;
        }
        let done = forked(|| {
            let less =
                Sets { bounding: !0, permitted: KILL, effective: KILL, inheritable: 0, ambient: 0 };
            less.apply()?;
            // Nothing to drop, so that the missing CAP_SETPCAP does not matter.
            Sets { bounding: !0, ..Default::default() }.drop_bounding()?;
            let more = CHOWN | KILL;
            Sets {
                bounding: !0,
                permitted: more,
                effective: more,
                inheritable: more,
                ambient: more,
            }
            .apply()?;
            let have = own();
            let want = Sets {
                bounding: have.bounding,
                permitted: KILL,
                effective: KILL,
                inheritable: KILL,
                ambient: KILL,
            };
            if have == want { Ok(()) } else { Err(format!("{have:x?} is not {want:x?}")) }
        });
        assert_eq!(done, Ok(()));
    }

    #[test]
    fn the_bounding_set_cannot_be_lowered_without_the_right_to() {
        if !is_root() {
            return;
        }
        let done = forked(|| {
            Sets { bounding: !0, ..Default::default() }.apply()?;
            match Sets::default().drop_bounding() {
                Err(why) if why.contains("operation not permitted") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        assert_eq!(done, Ok(()));
    }
}
