// SPDX-License-Identifier: Apache-2.0

//! A shared directory: both sides see each other's files, and the guest sees nothing else.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::mount::MsFlags;

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
    mount(root)?;
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

fn mount(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    let (source, kind) = (Some("husk"), Some("virtiofs"));
    nix::mount::mount(source, root, kind, MsFlags::empty(), None::<&str>)?;
    Ok(())
}

/// How often the guest unmounts what is below the share.
const UNMOUNTS: usize = 300;

/// A mount below the share is a mount of the guest's own, and it goes while the host is
/// still reading or writing for it.
pub fn unmount_host() {
    let folder = crate::temporary("unmount");
    let below = folder.path().join("below");
    fs::create_dir(&below).expect("mkdir");
    let tmpfs = Some("tmpfs");
    nix::mount::mount(tmpfs, &below, tmpfs, MsFlags::empty(), None::<&str>).expect("mount");
    let _mounted = Mounted(&below);
    fs::write(below.join("file"), vec![7; 2 << 20]).expect("write");

    let outcome = Run::case("unmount", &["--share", &folder.path().display().to_string()]).finish();
    assert_eq!(outcome.done(), format!("{UNMOUNTS}"), "{outcome}");
    println!("{UNMOUNTS} times unmounted under reads ahead and writes of a mapping");
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        nix::mount::umount(self.0).expect("unmount what was shared");
    }
}

pub fn unmount_guest() -> io::Result<String> {
    let root = Path::new("/mnt");
    mount(root)?;
    for round in 0..UNMOUNTS {
        let file = fs::OpenOptions::new().read(true).write(true).open(root.join("below/file"))?;
        if round % 2 == 0 {
            // SAFETY: takes numbers only.
            let failed = unsafe { libc::readahead(file.as_raw_fd(), 0, 2 << 20) } < 0;
            if failed {
                return Err(io::Error::last_os_error());
            }
        } else {
            dirty(&file)?;
        }
        drop(file);
        nix::mount::umount(&root.join("below"))?;
    }
    Ok(UNMOUNTS.to_string())
}

/// Writes a byte to each page by a mapping.
fn dirty(file: &fs::File) -> io::Result<()> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    let length = NonZeroUsize::new(2 << 20).ok_or_else(|| io::Error::other("no length"))?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping of a file that has this length; it is used within it, and
    // nowhere once it is unmapped.
    unsafe {
        let start = mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0)?;
        for page in (0..length.get()).step_by(4096) {
            start.cast::<u8>().add(page).write_volatile(1);
        }
        munmap(start, length.get())?;
    }
    Ok(())
}
