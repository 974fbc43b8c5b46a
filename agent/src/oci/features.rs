// SPDX-License-Identifier: Apache-2.0

//! Features: what this runtime can do, in the form of the specification (features.md).

use husk_protocol::features::features;

use super::Result;

pub fn show() -> Result<()> {
    let mut features = features();
    // Without a VM, a mount's file system is the host's, which may have them.
    features["linux"]["mountExtensions"]["idmap"]["enabled"] = true.into();
    println!("{features:#}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::mount_options;

    #[test]
    fn the_options_of_mounts_are_those_of_the_engine() {
        // These the kernel takes for any file system, so the engine need not know them.
        const KERNEL: [&str; 7] =
            ["async", "dirsync", "lazytime", "mand", "nolazytime", "nomand", "sync"];
        // These are refused in a VM, whose files are virtio-fs's.
        const IDMAP: [&str; 2] = ["idmap", "ridmap"];
        let features = features();
        let named = features["mountOptions"].as_array().expect("options");
        let named: BTreeSet<_> = named.iter().filter_map(|name| name.as_str()).collect();
        let known: BTreeSet<_> = mount_options().collect();
        let known = known.iter().map(String::as_str).filter(|name| !IDMAP.contains(name));
        assert_eq!(named, known.chain(KERNEL).collect());
    }
}
