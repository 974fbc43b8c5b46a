// SPDX-License-Identifier: Apache-2.0

pub mod bench;
pub mod containerd;
pub mod cri;
pub mod fs;
pub mod loop_device;
pub mod vmm;

/// A directory that is gone when the value is.
pub fn temporary(name: &str) -> tempfile::TempDir {
    tempfile::Builder::new().prefix(name).tempdir().expect("temporary directory")
}

/// A program of the tests: beside the one that runs, or one directory up.
pub fn program(name: &str) -> std::path::PathBuf {
    let own = std::env::current_exe().expect("path of this program");
    let found = own.ancestors().skip(1).take(2).map(|place| place.join(name)).find(|p| p.exists());
    found.unwrap_or_else(|| panic!("{name} is not beside the tests; run tests/lab/collect-tests"))
}
