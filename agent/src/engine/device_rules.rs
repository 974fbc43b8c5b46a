// SPDX-License-Identifier: Apache-2.0

//! Which devices a cgroup (v2) may use. There is no file for it: the kernel asks an eBPF
//! program about each access. The program is the list of rules read backwards, so that for
//! each kind of access (read, write, make a node) the last rule about it decides. What no
//! rule is about is denied.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::program::text;

/// Kinds of access and of devices, as the kernel tells them to the program.
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// Always allowed, whatever the rules say, as runc does: making nodes (which gives no access),
/// null, zero, full, random, urandom, tty, ptmx and terminals.
const ALWAYS: [Rule; 10] = [
    Rule { access: MAKE, ..Rule::character(None, None) },
    Rule { access: MAKE, kind: Some(BLOCK), ..Rule::character(None, None) },
    Rule::character(Some(1), Some(3)),
    Rule::character(Some(1), Some(5)),
    Rule::character(Some(1), Some(7)),
    Rule::character(Some(1), Some(8)),
    Rule::character(Some(1), Some(9)),
    Rule::character(Some(5), Some(0)),
    Rule::character(Some(5), Some(2)),
    Rule::character(Some(136), None),
];

/// None is any.
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: i32,
}

/// Replaces the rules of a cgroup.
pub fn apply(cgroup: BorrowedFd, rules: &[LinuxDeviceCgroup]) -> Result<(), String> {
    let rules = rules.iter().map(Rule::of).collect::<Result<Vec<_>, _>>()?;
    let program = load(&program(rules.into_iter().chain(ALWAYS)))?;
    let failed = |e| format!("cannot set the rules about devices: {}", text(e));
    let before = attached(cgroup).map_err(failed)?;
    attach(cgroup, &program).map_err(failed)?;
    // Until the last is gone a device must be allowed by all; never is one by mistake.
    for id in before {
        detach(cgroup, id).map_err(failed)?;
    }
    Ok(())
}

impl Rule {
    const fn character(major: Option<u32>, minor: Option<u32>) -> Self {
        Self { allow: true, kind: Some(CHARACTER), major, minor, access: ALL }
    }

    fn of(rule: &LinuxDeviceCgroup) -> Result<Self, String> {
        let refused = |why: &str| format!("the rule {:?} about devices {why}", rule.to_string());
        let kind = match rule.typ().unwrap_or_default() {
            // Whatever else it says, it is about all access to all devices.
            LinuxDeviceType::A => {
                let all = Self::character(None, None);
                return Ok(Self { allow: rule.allow(), kind: None, ..all });
            }
            LinuxDeviceType::B => BLOCK,
            LinuxDeviceType::C => CHARACTER,
            LinuxDeviceType::U | LinuxDeviceType::P => {
                return Err(refused("has a type that is neither a, b nor c"));
            }
        };
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => match u32::try_from(number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(refused("has a number that no device has")),
            },
        };
        let mut access = 0;
        for letter in rule.access().iter().flat_map(|access| access.chars()) {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MAKE,
                _ => return Err(refused("has an access that is neither r, w nor m")),
            };
        }
        if access == 0 {
            return Err(refused("has no access"));
        }
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        Ok(Self { allow: rule.allow(), kind: Some(kind), major, minor, access })
    }

    fn is_about_all(&self) -> bool {
        self.kind.is_none()
    }
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the lower, source in the upper half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Registers: the context and then the answer, the kind, the access that nothing has been
/// said about yet, major and minor number, and one for calculations.
const CONTEXT: u8 = 1;
const ANSWER: u8 = 0;
const KIND: u8 = 2;
const LEFT: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Operations on 32 bits (`BPF_ALU`, `BPF_JMP32`) with a number, or else with a register.
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const LOAD: u8 = 0x61;
const IF_EQUAL: u8 = 0x16;
const UNLESS_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

fn program(rules: impl DoubleEndedIterator<Item = Rule>) -> Vec<Instruction> {
    let op = |code, to, immediate| Instruction { code, registers: to, offset: 0, immediate };
    let skip = |code, of, immediate, offset: usize| Instruction {
        offset: offset as i16,
        ..op(code, of, immediate)
    };
    let from = |code, to, from: u8, offset| Instruction {
        registers: to | from << 4,
        offset,
        ..op(code, 0, 0)
    };
    let answer = |allow: bool| [op(MOVE, ANSWER, allow.into()), op(EXIT, 0, 0)];
    // struct bpf_cgroup_dev_ctx: access and kind in one word, major, minor.
    let mut code = vec![
        from(LOAD, KIND, CONTEXT, 0),
        from(MOVE_REGISTER, LEFT, KIND, 0),
        op(AND, KIND, 0xffff),
        op(SHIFT_RIGHT, LEFT, 16),
        from(LOAD, MAJOR, CONTEXT, 4),
        from(LOAD, MINOR, CONTEXT, 8),
    ];
    for rule in rules.rev() {
        if rule.is_about_all() {
            // Nothing before it matters, and the kernel refuses code that is never reached.
            code.extend(answer(rule.allow));
            return code;
        }
        let mut body = if rule.allow {
            vec![op(AND, LEFT, !rule.access), skip(UNLESS_EQUAL, LEFT, 0, 2)]
        } else {
            vec![
                from(MOVE_REGISTER, SCRATCH, LEFT, 0),
                op(AND, SCRATCH, rule.access),
                skip(IF_EQUAL, SCRATCH, 0, 2),
            ]
        };
        body.extend(answer(rule.allow));
        let number = |number: Option<u32>| number.map(|number| number as i32);
        for (register, wanted) in
            [(MINOR, number(rule.minor)), (MAJOR, number(rule.major)), (KIND, rule.kind)]
        {
            if let Some(wanted) = wanted {
                body.insert(0, skip(UNLESS_EQUAL, register, wanted, body.len()));
            }
        }
        code.append(&mut body);
    }
    code.extend(answer(false));
    code
}

/// bpf(2): its commands, and the parts of `union bpf_attr` that they use.
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const PROG_QUERY: i32 = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
/// The kernel takes no more for one cgroup.
const MAX_ATTACHED: usize = 64;

#[repr(C)]
struct Load {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Attach {
    target: i32,
    program: i32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Query {
    target: i32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
}

/// The kernel takes a command's attributes as far as they reach, and zeros for the rest.
///
/// SAFETY: pointers in `attributes` must be good for what the command does with them.
unsafe fn bpf<T>(command: i32, attributes: &mut T) -> Result<i32, Errno> {
    let size = size_of::<T>();
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    Errno::result(result).map(|result| result as i32)
}

fn load(program: &[Instruction]) -> Result<OwnedFd, String> {
    let mut attributes = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        length: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"husk_devices\0\0\0\0",
    };
    // SAFETY: the kernel reads `length` instructions and a C string, alive during the call;
    // the descriptor that it returns is new and nobody else's.
    unsafe { bpf(PROG_LOAD, &mut attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
        .map_err(|e| format!("cannot load the program of the rules about devices: {}", text(e)))
}

/// The ids of the programs of a cgroup itself, without those of its parents.
fn attached(cgroup: BorrowedFd) -> Result<Vec<u32>, Errno> {
    let mut ids = vec![0u32; MAX_ATTACHED];
    let mut query = Query {
        target: cgroup.as_raw_fd(),
        kind: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
    };
    // SAFETY: the kernel writes at most `count` ids, for which there is room.
    unsafe { bpf(PROG_QUERY, &mut query)? };
    ids.truncate(query.count as usize);
    Ok(ids)
}

fn attach(cgroup: BorrowedFd, program: &OwnedFd) -> Result<(), Errno> {
    let (target, program) = (cgroup.as_raw_fd(), program.as_raw_fd());
    let mut attach = Attach { target, program, kind: CGROUP_DEVICE, flags: ALLOW_MULTI };
    // SAFETY: there are no pointers in the attributes.
    unsafe { bpf(PROG_ATTACH, &mut attach) }.map(drop)
}

fn detach(cgroup: BorrowedFd, id: u32) -> Result<(), Errno> {
    // SAFETY: there are no pointers in the attributes; the descriptor is new.
    let program = unsafe { OwnedFd::from_raw_fd(bpf(PROG_GET_FD_BY_ID, &mut [id, 0, 0])?) };
    let (target, program) = (cgroup.as_raw_fd(), program.as_raw_fd());
    let mut attach = Attach { target, program, kind: CGROUP_DEVICE, flags: 0 };
    // SAFETY: as above.
    unsafe { bpf(PROG_DETACH, &mut attach) }.map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};

    use nix::mount::{MsFlags, mount};
    use nix::sys::stat::{Mode, SFlag, mknod};

    use super::*;
    use crate::engine::forked::{forked, is_root};

    type Device = (SFlag, u32, u32);

    /// Rules, and the access to devices that is left then.
    type Step<'a> = (&'a str, &'a [(Device, &'a str)]);

    fn rules(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).expect("rules")
    }

    /// What a process in the cgroup can do with the device node at `path`: some of "rwm",
    /// where "m" is to make such a node.
    fn access(node: &Path, (kind, major, minor): Device) -> Result<String, String> {
        let mut found = String::new();
        let open = std::fs::OpenOptions::new();
        for (letter, result) in
            [('r', open.clone().read(true).open(node)), ('w', open.clone().write(true).open(node))]
        {
            match result {
                // Allowed, and then there is no such device.
                Ok(_) => found.push(letter),
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) => found.push(letter),
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
                Err(e) => return Err(format!("{letter}: {e}")),
            }
        }
        let made = node.with_extension("made");
        match mknod(&made, kind, Mode::empty(), libc::makedev(major, minor)) {
            Ok(()) => {
                found.push('m');
                std::fs::remove_file(&made).map_err(|e| e.to_string())?;
            }
            Err(Errno::EPERM) => {}
            Err(e) => return Err(format!("mknod: {e}")),
        }
        Ok(found)
    }

    const NULL: Device = (SFlag::S_IFCHR, 1, 3);
    const KMSG: Device = (SFlag::S_IFCHR, 1, 11);
    /// Numbers for local use, behind which there is no device.
    const CHARACTER_240: Device = (SFlag::S_IFCHR, 240, 7);
    const BLOCK_240: Device = (SFlag::S_IFBLK, 240, 7);

    /// In a child with its own mounts: applies each list of rules to the same cgroup, moves
    /// into it, and compares what it can do with devices.
    fn check(steps: &[Step]) {
        if !is_root() {
            return;
        }
        assert_eq!(forked(|| in_cgroup(steps)), Ok(()));
    }

    fn in_cgroup(steps: &[Step]) -> Result<(), String> {
        let told = |what: &'static str| move |e: Errno| format!("{what}: {e}");
        // SAFETY: unshare() takes no pointers.
        Errno::result(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map_err(told("unshare"))?;
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).map_err(told("make mounts private"))?;
        let [nodes, cgroups] = [Path::new("/tmp"), Path::new("/tmp/cgroups")];
        for (place, kind) in [(nodes, "tmpfs"), (cgroups, "cgroup2")] {
            std::fs::create_dir_all(place).map_err(|e| e.to_string())?;
            mount(Some("none"), place, Some(kind), MsFlags::empty(), none)
                .map_err(told("mount"))?;
        }
        let cgroup = cgroups.join(format!("husk-test-{}", std::process::id()));
        std::fs::create_dir(&cgroup).map_err(|e| e.to_string())?;
        let before = own_cgroup(cgroups)?;
        let result = in_steps(&cgroup, nodes, steps);
        std::fs::write(before.join("cgroup.procs"), "0").map_err(|e| e.to_string())?;
        std::fs::remove_dir(&cgroup).map_err(|e| e.to_string())?;
        result
    }

    fn own_cgroup(cgroups: &Path) -> Result<PathBuf, String> {
        let own = std::fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        Ok(cgroups.join(own.ok_or("no cgroup")?))
    }

    fn in_steps(cgroup: &Path, nodes: &Path, steps: &[Step]) -> Result<(), String> {
        let directory = File::open(cgroup).map_err(|e| e.to_string())?;
        let node =
            |(kind, major, minor): Device| nodes.join(format!("{}-{major}-{minor}", kind.bits()));
        for device in steps.iter().flat_map(|(_, devices)| devices.iter().map(|(d, _)| *d)) {
            let number = libc::makedev(device.1, device.2);
            match mknod(&node(device), device.0, Mode::all(), number) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(format!("mknod {device:?}: {e}")),
            }
        }
        std::fs::write(cgroup.join("cgroup.procs"), "0").map_err(|e| e.to_string())?;
        for (json, devices) in steps {
            apply(directory.as_fd(), &rules(json))?;
            let count = attached(directory.as_fd()).map_err(|e| e.to_string())?.len();
            if count != 1 {
                return Err(format!("{count} programs are attached after {json}"));
            }
            for (device, want) in *devices {
                let have = access(&node(*device), *device)?;
                if have != *want {
                    return Err(format!("{device:?} is {have:?} and not {want:?} with {json}"));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_not_allowed_is_denied() {
        check(&[
            ("[]", &[(NULL, "rwm"), (KMSG, "m"), (CHARACTER_240, "m"), (BLOCK_240, "m")]),
            (
                r#"[{"allow":false,"access":"rwm"}]"#,
                &[(NULL, "rwm"), (KMSG, "m"), (CHARACTER_240, "m"), (BLOCK_240, "m")],
            ),
        ]);
    }

    #[test]
    fn rules_allow_by_type_number_and_access() {
        let with = |rule: &str| format!(r#"[{{"allow":false,"access":"rwm"}},{rule}]"#);
        let kmsg = with(r#"{"allow":true,"type":"c","major":1,"minor":11,"access":"rw"}"#);
        let read = with(r#"{"allow":true,"type":"c","major":240,"minor":7,"access":"r"}"#);
        let write = with(r#"{"allow":true,"type":"c","major":240,"minor":-1,"access":"w"}"#);
        let block = with(r#"{"allow":true,"type":"b","access":"rwm"}"#);
        let all = with(r#"{"allow":true,"type":"a","access":"rwm"}"#);
        let other = with(r#"{"allow":true,"type":"c","major":240,"minor":8,"access":"rwm"}"#);
        check(&[
            (&kmsg, &[(KMSG, "rwm"), (CHARACTER_240, "m"), (BLOCK_240, "m")]),
            (&read, &[(KMSG, "m"), (CHARACTER_240, "rm"), (BLOCK_240, "m")]),
            (&write, &[(KMSG, "m"), (CHARACTER_240, "wm"), (BLOCK_240, "m")]),
            (&block, &[(KMSG, "m"), (CHARACTER_240, "m"), (BLOCK_240, "rwm")]),
            (&all, &[(KMSG, "rwm"), (CHARACTER_240, "rwm"), (BLOCK_240, "rwm")]),
            (&other, &[(KMSG, "m"), (CHARACTER_240, "m"), (BLOCK_240, "m")]),
        ]);
    }

    #[test]
    fn the_last_rule_about_an_access_decides() {
        let all = r#"{"allow":true,"access":"rwm"}"#;
        let none = r#"{"allow":false,"access":"rwm"}"#;
        let number = r#""type":"c","major":240,"minor":7"#;
        let no_write = format!(r#"{{"allow":false,{number},"access":"w"}}"#);
        let write = format!(r#"{{"allow":true,{number},"access":"w"}}"#);
        let read = format!(r#"{{"allow":true,{number},"access":"r"}}"#);
        let character = r#"{"allow":true,"type":"c","access":"rw"}"#;
        check(&[
            (&format!("[{all},{no_write}]"), &[(CHARACTER_240, "rm"), (BLOCK_240, "rwm")]),
            (&format!("[{no_write},{all}]"), &[(CHARACTER_240, "rwm")]),
            (&format!("[{all},{none}]"), &[(CHARACTER_240, "m"), (KMSG, "m")]),
            (&format!("[{none},{character},{no_write}]"), &[(CHARACTER_240, "rm"), (KMSG, "rwm")]),
            (&format!("[{none},{no_write},{character}]"), &[(CHARACTER_240, "rwm")]),
            (&format!("[{none},{read},{write}]"), &[(CHARACTER_240, "rwm"), (KMSG, "m")]),
        ]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (json, want) in [
            (r#"[{"allow":true,"type":"p","access":"r"}]"#, "neither a, b nor c"),
            (r#"[{"allow":true,"type":"c","access":"x"}]"#, "neither r, w nor m"),
            (r#"[{"allow":true,"type":"c"}]"#, "has no access"),
            (r#"[{"allow":true,"type":"c","major":-2,"access":"r"}]"#, "no device has"),
        ] {
            // Refused before the descriptor is looked at.
            let file = File::open("/").expect("a file");
            let error = apply(file.as_fd(), &rules(json)).expect_err(json);
            assert!(error.contains(want), "{error}");
        }
    }
}
