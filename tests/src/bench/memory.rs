// SPDX-License-Identifier: Apache-2.0

//! Memory of our processes beside guest RAM: Pss, which counts a page that several processes
//! share by its share.

use std::fs;

use serde::Serialize;

/// Memory of one process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Without the guest's RAM.
    pub pss: u64,
    /// Of what is in `pss`, what no other process shares and no file backs.
    pub anonymous: u64,
    /// Guest RAM: how much of it the guest has touched.
    pub guest_resident: u64,
    /// Guest RAM: how large it is.
    pub guest_size: u64,
}

/// A mapping without a file of at least this size is guest RAM: nothing else of ours is as
/// large, and the smallest VM is.
const GUEST_RAM: u64 = 128 << 20;

/// Memory of a process.
pub fn of_process(pid: i32) -> Result<Memory, String> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    Ok(sum(&text))
}

fn sum(smaps: &str) -> Memory {
    let mut memory = Memory::default();
    let mut is_guest = false;
    let mut size = 0;
    for line in smaps.lines() {
        let Some((field, rest)) = line.split_once(':') else { continue };
        let kib = rest.trim().strip_suffix(" kB").and_then(|number| number.trim().parse().ok());
        let Some(bytes) = kib.map(|kib: u64| kib << 10) else {
            // The head of a mapping: addresses, rights, offset, device, inode, path.
            let words: Vec<_> = line.split_whitespace().collect();
            let ram = |path: &&str| path.contains("memfd") || path.starts_with("/dev/zero");
            // What it could be given while it runs is no RAM yet, and not accessible.
            is_guest = words.get(5).is_none_or(ram) && words.get(1) != Some(&"---p");
            size = 0;
            continue;
        };
        match field {
            "Size" => size = bytes,
            "Rss" if is_guest && size >= GUEST_RAM => {
                memory.guest_resident += bytes;
                memory.guest_size += size;
            }
            "Pss" if !(is_guest && size >= GUEST_RAM) => memory.pss += bytes,
            "Anonymous" if !(is_guest && size >= GUEST_RAM) => memory.anonymous += bytes,
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_told_from_the_rest() {
        let smaps = "\
7f0000000000-7f0010000000 rw-p 00000000 00:00 0 
Size:             262144 kB
Rss:               30000 kB
Pss:               30000 kB
Anonymous:         30000 kB
7f0020000000-7f0020010000 r-xp 00001000 08:01 42                         /bin/husk-vmm
Size:                 64 kB
Rss:                  40 kB
Pss:                  20 kB
Anonymous:             4 kB
VmFlags: rd ex mr
";
        let expected = Memory {
            pss: 20 << 10,
            anonymous: 4 << 10,
            guest_resident: 30000 << 10,
            guest_size: 256 << 20,
        };
        assert_eq!(sum(smaps), expected);
    }
}
