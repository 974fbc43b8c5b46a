// SPDX-License-Identifier: Apache-2.0

//! A shared directory: both sides see each other's files, and the guest sees nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::{Noise, Run, hash};

pub fn host() {
    let outside = crate::temporary("outside");
    fs::write(outside.path().join("secret"), "host only").expect("write");
    let folder = crate::temporary("share");
    let share = folder.path();
    let noise = hash(io::Read::take(Noise::new(7), 5 << 20)).expect("hash");
    let mut file = fs::File::create(share.join("from-host")).expect("create");
    io::copy(&mut io::Read::take(Noise::new(7), 5 << 20), &mut file).expect("fill");
    symlink(outside.path().join("secret"), share.join("escape")).expect("symlink");
    fs::create_dir(share.join("many")).expect("mkdir");
    for i in 0..500 {
        fs::write(share.join(format!("many/{i}")), "").expect("write");
    }

    let outcome = Run::case("share", &["--share", &share.display().to_string()]).finish();
    assert_eq!(outcome.done(), format!("{noise} 500"), "{outcome}");
    let made = share.join("dir/from-guest");
    assert_eq!(fs::read_to_string(&made).expect("the guest's file"), "hello host\n");
    let metadata = fs::metadata(&made).expect("metadata");
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640, "mode that the guest set");
    assert_eq!((metadata.uid(), metadata.gid()), (1000, 2000), "owner that the guest set");
    assert_eq!(fs::read_link(share.join("link")).expect("link"), Path::new("dir/from-guest"));
    println!("files both ways by hash, 500 entries listed, no way out by a symbolic link");
}

pub fn guest() -> io::Result<String> {
    let root = Path::new("/mnt");
    fs::create_dir_all(root)?;
    nix::mount::mount(
        Some("husk"),
        root,
        Some("virtiofs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )?;
    let read = hash(fs::File::open(root.join("from-host"))?)?;
    let entries = fs::read_dir(root.join("many"))?.count();
    // The link leads to a path of the guest, where there is no such file.
    if fs::read(root.join("escape")).is_ok() {
        return Err(io::Error::other("a symbolic link led out of the share"));
    }
    fs::create_dir(root.join("dir"))?;
    let made = root.join("dir/from-guest");
    fs::write(root.join("dir/first-name"), "hello host\n")?;
    fs::rename(root.join("dir/first-name"), &made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o640))?;
    std::os::unix::fs::chown(&made, Some(1000), Some(2000))?;
    symlink("dir/from-guest", root.join("link"))?;
    Ok(format!("{read} {entries}"))
}
