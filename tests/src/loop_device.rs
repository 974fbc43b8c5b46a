// SPDX-License-Identifier: Apache-2.0

//! A block device of the host, for cases: a file behind a loop device.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// It goes when this does.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    /// Makes the file, of so many bytes, and puts it behind a free device.
    pub fn new(file: &Path, size: u64) -> LoopDevice {
        // A kernel that has it built in has no module.
        let _ = Command::new("modprobe").arg("loop").status();
        let made = File::create(file).and_then(|file| file.set_len(size));
        made.expect("make a file for the loop device");
        let free = run(Command::new("losetup").arg("-f"));
        let device = PathBuf::from(free.trim());
        run(Command::new("losetup").arg(&device).arg(file));
        LoopDevice(device)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

fn run(command: &mut Command) -> String {
    let done = command.output().expect("run losetup");
    assert!(done.status.success(), "{command:?}: {done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}
