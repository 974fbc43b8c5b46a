// SPDX-License-Identifier: Apache-2.0

//! fstab style options, as mount(2) wants them: flags, propagation, and data for the file
//! system.

use nix::mount::MsFlags;

/// Options that mount(2) understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub flags: MsFlags,
    /// Set by a call of its own after the mount.
    pub propagation: Option<MsFlags>,
    /// What is left for the file system, comma-separated.
    pub data: String,
    /// The source is a file that has to be put behind a loop device.
    pub wants_loop: bool,
}

enum Meaning {
    Set(MsFlags),
    Clear(MsFlags),
    Propagation(MsFlags),
}

fn meaning(option: &str) -> Option<Meaning> {
    use Meaning::{Clear, Propagation, Set};
    Some(match option {
        "async" => Clear(MsFlags::MS_SYNCHRONOUS),
        "atime" => Clear(MsFlags::MS_NOATIME),
        "bind" => Set(MsFlags::MS_BIND),
        "defaults" => Set(MsFlags::empty()),
        "dev" => Clear(MsFlags::MS_NODEV),
        "diratime" => Clear(MsFlags::MS_NODIRATIME),
        "dirsync" => Set(MsFlags::MS_DIRSYNC),
        "exec" => Clear(MsFlags::MS_NOEXEC),
        "mand" => Set(MsFlags::MS_MANDLOCK),
        "noatime" => Set(MsFlags::MS_NOATIME),
        "nodev" => Set(MsFlags::MS_NODEV),
        "nodiratime" => Set(MsFlags::MS_NODIRATIME),
        "noexec" => Set(MsFlags::MS_NOEXEC),
        "nomand" => Clear(MsFlags::MS_MANDLOCK),
        "norelatime" => Clear(MsFlags::MS_RELATIME),
        "nostrictatime" => Clear(MsFlags::MS_STRICTATIME),
        "nosuid" => Set(MsFlags::MS_NOSUID),
        "rbind" => Set(MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "relatime" => Set(MsFlags::MS_RELATIME),
        "remount" => Set(MsFlags::MS_REMOUNT),
        "ro" => Set(MsFlags::MS_RDONLY),
        "rw" => Clear(MsFlags::MS_RDONLY),
        "strictatime" => Set(MsFlags::MS_STRICTATIME),
        "suid" => Clear(MsFlags::MS_NOSUID),
        "sync" => Set(MsFlags::MS_SYNCHRONOUS),
        "private" => Propagation(MsFlags::MS_PRIVATE),
        "rprivate" => Propagation(MsFlags::MS_PRIVATE.union(MsFlags::MS_REC)),
        "shared" => Propagation(MsFlags::MS_SHARED),
        "rshared" => Propagation(MsFlags::MS_SHARED.union(MsFlags::MS_REC)),
        "slave" => Propagation(MsFlags::MS_SLAVE),
        "rslave" => Propagation(MsFlags::MS_SLAVE.union(MsFlags::MS_REC)),
        "unbindable" => Propagation(MsFlags::MS_UNBINDABLE),
        "runbindable" => Propagation(MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC)),
        _ => return None,
    })
}

/// Sorts options into flags and data. Where two contradict each other the later one wins.
pub fn translate(options: &[String]) -> Options {
    let mut flags = MsFlags::empty();
    let mut propagation = None;
    let mut data = Vec::new();
    let mut wants_loop = false;
    for option in options {
        match meaning(option) {
            Some(Meaning::Set(flag)) => flags |= flag,
            Some(Meaning::Clear(flag)) => flags &= !flag,
            Some(Meaning::Propagation(flag)) => propagation = Some(flag),
            None if option == "loop" => wants_loop = true,
            // Comments for user space, never for the kernel: mount(8).
            None if option.starts_with("x-") || option.starts_with("X-") => {}
            None => data.push(option.as_str()),
        }
    }
    Options { flags, propagation, data: data.join(","), wants_loop }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Options {
        translate(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let options = of(&["ro", "nosuid", "index=off", "lowerdir=/a:/b", "x-tool.note"]);
        assert_eq!(options.flags, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID);
        assert_eq!(options.data, "index=off,lowerdir=/a:/b");
        assert_eq!(options.propagation, None);
        assert!(!options.wants_loop);
    }

    #[test]
    fn the_later_option_wins() {
        assert_eq!(of(&["ro", "rw"]).flags, MsFlags::empty());
        assert_eq!(of(&["rw", "ro"]).flags, MsFlags::MS_RDONLY);
        assert_eq!(
            of(&["rprivate", "rslave"]).propagation,
            Some(MsFlags::MS_SLAVE | MsFlags::MS_REC)
        );
    }

    #[test]
    fn binds_and_loops_are_recognized() {
        assert_eq!(of(&["rbind"]).flags, MsFlags::MS_BIND | MsFlags::MS_REC);
        assert!(of(&["loop"]).wants_loop);
    }
}
