// SPDX-License-Identifier: Apache-2.0
//! What is in the guest image.

use crate::cpio::Archive;

/// busybox for a debug image: the program and the names it answers to.
pub struct Busybox {
    pub program: Vec<u8>,
    pub applets: Vec<String>,
}

/// Mount points and the directories the agent writes to, parents first.
const DIRECTORIES: [(&str, u32); 9] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// Builds the initramfs with `agent` as `/init`.
pub fn build(agent: &[u8], busybox: Option<&Busybox>) -> Vec<u8> {
    let mut archive = Archive::default();
    for (path, mode) in DIRECTORIES {
        archive.directory(path, mode);
    }
    // The kernel opens /dev/console for /init before /init can mount devtmpfs.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    if let Some(busybox) = busybox {
        archive.directory("bin", 0o755);
        archive.file("bin/busybox", 0o755, &busybox.program);
        let mut applets: Vec<_> =
            busybox.applets.iter().filter(|name| *name != "busybox").collect();
        applets.sort();
        for name in applets {
            archive.symlink(&format!("bin/{name}"), "busybox");
        }
    }
    archive.file("init", 0o755, agent);
    archive.finish()
}

/// Checks that `program` is an x86-64 ELF file without an interpreter; the error finishes a
/// sentence that begins with its name.
pub fn check_static(program: &[u8]) -> Result<(), &'static str> {
    const NOT_A_PROGRAM: &str = "is not an x86-64 ELF program";
    const MACHINE_X86_64: u64 = 62;
    const SEGMENT_INTERPRETER: u64 = 3;

    let field = |offset: usize, size: usize| -> Option<u64> {
        let bytes = program.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let segment_types = || -> Option<Vec<u64>> {
        if !program.starts_with(b"\x7fELF\x02\x01") || field(18, 2)? != MACHINE_X86_64 {
            return None;
        }
        let (table, size, count) =
            (usize::try_from(field(32, 8)?).ok()?, field(54, 2)? as usize, field(56, 2)? as usize);
        (0..count).map(|index| field(table.checked_add(index * size)?, 4)).collect()
    };
    match segment_types() {
        None => Err(NOT_A_PROGRAM),
        Some(types) if types.contains(&SEGMENT_INTERPRETER) => {
            Err("is linked dynamically; the guest has no libraries, so link it statically")
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busybox(applets: &[&str]) -> Busybox {
        Busybox {
            program: b"busybox".to_vec(),
            applets: applets.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// Names of the entries of a newc archive.
    fn names(archive: &[u8]) -> Vec<String> {
        let number = |at: usize| {
            let digits = std::str::from_utf8(&archive[at..at + 8]).unwrap();
            usize::from_str_radix(digits, 16).unwrap()
        };
        let mut names = Vec::new();
        let mut at = 0;
        while at < archive.len() {
            let (data, name) = (number(at + 54), number(at + 94));
            names.push(String::from_utf8(archive[at + 110..at + 109 + name].to_vec()).unwrap());
            at = (at + 110 + name).next_multiple_of(4) + data;
            at = at.next_multiple_of(4);
        }
        names
    }

    /// An ELF header and one program header of type `segment`.
    fn elf(segment: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = segment;
        bytes
    }

    #[test]
    fn has_the_agent_and_no_shell() {
        let names = names(&build(b"agent", None));
        assert!(names.contains(&"init".to_owned()));
        assert!(names.contains(&"dev/console".to_owned()));
        assert!(!names.iter().any(|name| name.starts_with("bin")));
    }

    #[test]
    fn every_parent_precedes_its_children() {
        let names = names(&build(b"agent", Some(&busybox(&["sh", "ls"]))));
        for (index, name) in names.iter().enumerate() {
            if let Some((parent, _)) = name.rsplit_once('/') {
                assert!(names[..index].iter().any(|earlier| earlier == parent), "{name}");
            }
        }
    }

    #[test]
    fn the_order_of_applets_does_not_matter() {
        let one = build(b"agent", Some(&busybox(&["sh", "busybox", "ls"])));
        let other = build(b"agent", Some(&busybox(&["ls", "sh"])));
        assert_eq!(one, other);
    }

    #[test]
    fn tells_static_from_dynamic_and_from_garbage() {
        assert_eq!(check_static(&elf(1)), Ok(()));
        assert!(check_static(&elf(3)).unwrap_err().contains("dynamically"));
        assert!(check_static(b"#!/bin/sh\n").is_err());
        assert!(check_static(&elf(1)[..70]).is_ok());
        assert!(check_static(&elf(1)[..66]).is_err());
        let mut far = elf(1);
        far[32..40].fill(0xff);
        assert!(check_static(&far).is_err());
    }
}
