// SPDX-License-Identifier: Apache-2.0

pub mod bench;
pub mod containerd;
pub mod fs;
pub mod vmm;

/// A directory that is gone when the value is.
pub fn temporary(name: &str) -> tempfile::TempDir {
    tempfile::Builder::new().prefix(name).tempdir().expect("temporary directory")
}
