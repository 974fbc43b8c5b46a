// SPDX-License-Identifier: Apache-2.0

//! Disks: the guest reads what is in the file, its writes get there, and a read-only disk
//! stays as it is.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use super::{Noise, Run, hash};

const SIZE: u64 = 32 << 20;

pub fn host() {
    let folder = crate::temporary("disk");
    let path = |name: &str| folder.path().join(name);
    for (name, seed) in [("ro", 1), ("rw", 2)] {
        let mut file = File::create(path(name)).expect("create");
        io::copy(&mut Noise::new(seed).take(SIZE), &mut file).expect("fill");
    }
    let before = hash(File::open(path("ro")).expect("open")).expect("hash");
    let ro = format!("{},ro", path("ro").display());
    let rw = path("rw").display().to_string();
    let outcome = Run::case("disk", &["--disk", &ro, "--disk", &rw]).finish();

    assert_eq!(outcome.done(), format!("{before} {SIZE}"), "what the guest read\n{outcome}");
    let after = hash(File::open(path("ro")).expect("open")).expect("hash");
    assert_eq!(after, before, "the read-only disk changed");
    let written = hash(File::open(path("rw")).expect("open")).expect("hash");
    assert_eq!(written, hash(Noise::new(3).take(SIZE)).expect("hash"), "what the guest wrote");
    println!("read {SIZE} bytes and wrote {SIZE} bytes by hash; a read-only disk refused writes");
}

pub fn guest() -> io::Result<String> {
    let read = hash(File::open("/dev/vda")?)?;
    let refused = OpenOptions::new().write(true).open("/dev/vda").and_then(|mut disk| {
        disk.write_all(&[0; 4096])?;
        disk.sync_all()
    });
    if refused.is_ok() {
        return Err(io::Error::other("the read-only disk took a write"));
    }
    let mut disk = OpenOptions::new().write(true).open("/dev/vdb")?;
    let written = io::copy(&mut Noise::new(3).take(SIZE), &mut disk)?;
    disk.sync_all()?;
    Ok(format!("{read} {written}"))
}
