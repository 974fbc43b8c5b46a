// SPDX-License-Identifier: Apache-2.0

//! The options of a mount (OCI runtime-spec 1.2, config.md, "Linux mount options"): which
//! are the mount's attributes, which its propagation, and which the file system's own.

use libc::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME, MOUNT_ATTR_STRICTATIME, MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE,
};

#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// A bind; of the whole tree if true.
    pub bind: Option<bool>,
    pub attributes: Attributes,
    /// The attributes for all mounts of a tree.
    pub recursive: Attributes,
    /// MS_PRIVATE and its like, and whether for all mounts of a tree, in the order given.
    pub propagation: Vec<(u64, bool)>,
    /// An ID-mapped mount; all mounts of a tree if true.
    pub id_mapped: Option<bool>,
    /// A new tmpfs gets what the directory has that it covers.
    pub copy_up: bool,
    /// What the file system is told.
    pub data: Vec<(String, Option<String>)>,
}

/// MOUNT_ATTR_ flags.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
}

#[derive(Clone, Copy)]
enum Effect {
    Set(u64),
    Clear(u64),
    /// One of several values of the same bits.
    AccessTime(u64),
    Propagation(u64),
    Bind,
    IdMap,
    CopyUp,
    Nothing,
}

/// Those with an effect on the mount also exist with an `r` in front, for all mounts of a
/// tree. The others are for the file system, among them `sync`, `dirsync` and `lazytime`.
const OPTIONS: &[(&str, Effect)] = &[
    ("ro", Effect::Set(MOUNT_ATTR_RDONLY)),
    ("rw", Effect::Clear(MOUNT_ATTR_RDONLY)),
    ("nosuid", Effect::Set(MOUNT_ATTR_NOSUID)),
    ("suid", Effect::Clear(MOUNT_ATTR_NOSUID)),
    ("nodev", Effect::Set(MOUNT_ATTR_NODEV)),
    ("dev", Effect::Clear(MOUNT_ATTR_NODEV)),
    ("noexec", Effect::Set(MOUNT_ATTR_NOEXEC)),
    ("exec", Effect::Clear(MOUNT_ATTR_NOEXEC)),
    ("nosymfollow", Effect::Set(MOUNT_ATTR_NOSYMFOLLOW)),
    ("symfollow", Effect::Clear(MOUNT_ATTR_NOSYMFOLLOW)),
    ("nodiratime", Effect::Set(MOUNT_ATTR_NODIRATIME)),
    ("diratime", Effect::Clear(MOUNT_ATTR_NODIRATIME)),
    ("noatime", Effect::AccessTime(MOUNT_ATTR_NOATIME)),
    ("atime", Effect::AccessTime(MOUNT_ATTR_RELATIME)),
    ("relatime", Effect::AccessTime(MOUNT_ATTR_RELATIME)),
    ("norelatime", Effect::AccessTime(MOUNT_ATTR_RELATIME)),
    ("strictatime", Effect::AccessTime(MOUNT_ATTR_STRICTATIME)),
    ("nostrictatime", Effect::AccessTime(MOUNT_ATTR_RELATIME)),
    ("private", Effect::Propagation(MS_PRIVATE)),
    ("slave", Effect::Propagation(MS_SLAVE)),
    ("shared", Effect::Propagation(MS_SHARED)),
    ("unbindable", Effect::Propagation(MS_UNBINDABLE)),
    ("bind", Effect::Bind),
    ("idmap", Effect::IdMap),
    ("tmpcopyup", Effect::CopyUp),
    ("", Effect::Nothing),
    ("defaults", Effect::Nothing),
    // An attribute given needs no second step here.
    ("remount", Effect::Nothing),
    // Flags of mount(2) that the newer calls have no use for.
    ("silent", Effect::Nothing),
    ("loud", Effect::Nothing),
    ("iversion", Effect::Nothing),
    ("noiversion", Effect::Nothing),
];

impl Options {
    pub fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            match find(option) {
                Some((effect, recursive)) => parsed.apply(effect, recursive),
                // mount(2) joins and splits them at commas.
                None => {
                    parsed.data.extend(option.split(',').map(
                        |option| match option.split_once('=') {
                            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                            None => (option.to_owned(), None),
                        },
                    ))
                }
            }
        }
        parsed
    }

    fn apply(&mut self, effect: Effect, recursive: bool) {
        let attributes = if recursive { &mut self.recursive } else { &mut self.attributes };
        match effect {
            Effect::Set(flag) => attributes.change(flag, flag),
            Effect::Clear(flag) => attributes.change(flag, 0),
            Effect::AccessTime(value) => {
                attributes.change(MOUNT_ATTR__ATIME, value);
                // The kernel takes one of these values only if all are cleared first.
                attributes.clear |= MOUNT_ATTR__ATIME;
            }
            Effect::Propagation(flag) => self.propagation.push((flag, recursive)),
            Effect::Bind => self.bind = Some(recursive),
            Effect::IdMap => self.id_mapped = Some(recursive),
            Effect::CopyUp => self.copy_up = true,
            Effect::Nothing => {}
        }
    }

    pub fn read_only(&self) -> bool {
        (self.attributes.set | self.recursive.set) & MOUNT_ATTR_RDONLY != 0
    }
}

impl Attributes {
    pub const READ_ONLY: Self = Self { set: MOUNT_ATTR_RDONLY, clear: 0 };

    fn change(&mut self, flags: u64, value: u64) {
        self.set = (self.set & !flags) | value;
        self.clear = (self.clear & !flags) | (flags & !value);
    }

    pub fn none(&self) -> bool {
        self.set | self.clear == 0
    }
}

/// The propagation that linux.rootfsPropagation names, and whether for all mounts.
pub fn propagation(name: &str) -> Option<(u64, bool)> {
    match find(name)? {
        (Effect::Propagation(flag), recursive) => Some((flag, recursive)),
        _ => None,
    }
}

/// The names of all that are not the file system's own.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = String> {
    let known = OPTIONS.iter().map(|(name, _)| (*name).to_owned());
    let recursive = OPTIONS.iter().map(|(name, _)| format!("r{name}"));
    known.chain(recursive).filter(|name| !name.is_empty() && find(name).is_some())
}

fn find(option: &str) -> Option<(Effect, bool)> {
    let entry = |name| OPTIONS.iter().find(|(known, _)| *known == name).map(|(_, effect)| *effect);
    if let Some(effect) = entry(option) {
        return Some((effect, false));
    }
    match entry(option.strip_prefix('r')?)? {
        Effect::CopyUp | Effect::Nothing => None,
        effect => Some((effect, true)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Options {
        Options::parse(&options.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    fn attributes(set: u64, clear: u64) -> Attributes {
        Attributes { set, clear }
    }

    #[test]
    fn attributes_are_set_and_cleared_in_order() {
        for (given, expected) in [
            ("defaults", attributes(0, 0)),
            ("ro", attributes(MOUNT_ATTR_RDONLY, 0)),
            ("ro rw", attributes(0, MOUNT_ATTR_RDONLY)),
            ("rw ro", attributes(MOUNT_ATTR_RDONLY, 0)),
            ("nosuid nodev", attributes(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0)),
            ("noexec exec nosymfollow", attributes(MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_NOEXEC)),
            ("relatime", attributes(0, MOUNT_ATTR__ATIME)),
            ("noatime", attributes(MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME)),
            ("noatime strictatime", attributes(MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME)),
            ("silent remount loud", attributes(0, 0)),
        ] {
            let parsed = parse(given);
            println!("{given}: {:?}", parsed.attributes);
            assert_eq!(parsed, Options { attributes: expected, ..Options::default() }, "{given}");
        }
    }

    #[test]
    fn an_r_in_front_means_all_mounts_of_the_tree() {
        let parsed = parse("rbind rro rnosuid rrelatime rw rprivate shared ridmap");
        assert_eq!(
            parsed,
            Options {
                bind: Some(true),
                attributes: attributes(0, MOUNT_ATTR_RDONLY),
                recursive: attributes(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, MOUNT_ATTR__ATIME),
                propagation: vec![(MS_PRIVATE, true), (MS_SHARED, false)],
                id_mapped: Some(true),
                ..Options::default()
            }
        );
        assert_eq!(parse("bind idmap").bind, Some(false));
        assert_eq!(parse("bind idmap").id_mapped, Some(false));
    }

    #[test]
    fn the_rest_is_for_the_file_system() {
        let parsed = parse("mode=1777,size=64k sync rdefaults tmpcopyup upperdir=a=b");
        let data = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert!(parsed.copy_up);
        assert_eq!(
            parsed.data,
            [
                data("mode", Some("1777")),
                data("size", Some("64k")),
                data("sync", None),
                data("rdefaults", None),
                data("upperdir", Some("a=b")),
            ]
        );
    }

    #[test]
    fn only_propagation_is_one_for_the_root() {
        assert_eq!(propagation("rslave"), Some((MS_SLAVE, true)));
        assert_eq!(propagation("shared"), Some((MS_SHARED, false)));
        assert_eq!(propagation("ro"), None);
        assert_eq!(propagation("rdefaults"), None);
    }
}
