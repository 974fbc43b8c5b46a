// SPDX-License-Identifier: Apache-2.0

//! What a container finds in /dev besides its mounts (OCI runtime-spec 1.2,
//! config-linux.md, "Devices" and "Default Devices"; runtime-linux.md, "Dev symbolic
//! links").

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Spec};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, accessat, chownat, fstat, major,
    makedev, minor, mknodat, openat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::umask;

use super::paths::{Kind, Why, clean, ensure};
use super::sources::Sources;
use super::{has_namespace, mount};

/// The name in /dev and the minor number, of major number 1.
const MEMORY: &[(&str, u32)] =
    &[("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// A device node to be made.
struct Node<'a> {
    /// Absolute.
    path: &'a Path,
    kind: FileType,
    number: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Whether the container's /dev is for the runtime to fill. One that is bound from outside
/// is not.
pub fn wanted(spec: &Spec, sources: &Sources) -> bool {
    !spec.mounts().iter().flatten().zip(&sources.0).any(|(entry, source)| {
        source.tree.is_some() && clean(entry.destination()) == Path::new("/dev")
    })
}

/// Makes the devices and links.
pub fn make(spec: &Spec, root: BorrowedFd) -> Result<(), String> {
    let (dev, _) = ensure(root, Path::new("/dev"), Kind::Directory).why(|| "create /dev")?;
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref());
    let devices = devices.unwrap_or_default();
    let paths: Vec<_> = devices.iter().map(|device| clean(device.path())).collect();
    let maker =
        Maker { root, dev: dev.as_fd(), bind: has_namespace(spec, LinuxNamespaceType::User) };

    // The modes are meant as they are.
    let mask = umask(Mode::empty());
    let made: Result<(), String> = (|| {
        let memory = MEMORY.iter().map(|(name, minor)| (*name, makedev(1, *minor)));
        for (name, number) in memory.chain([("tty", makedev(5, 0))]) {
            let path = Path::new("/dev").join(name);
            if !paths.contains(&path) {
                let kind = FileType::CharacterDevice;
                maker.make(&Node { path: &path, kind, number, mode: 0o666, uid: 0, gid: 0 })?;
            }
        }
        for (device, path) in devices.iter().zip(&paths) {
            // Always the one of the container's own devpts, below.
            if path != Path::new("/dev/ptmx") {
                maker.make(&node(device, path)?)?;
            }
        }
        Ok(())
    })();
    umask(mask);
    made?;

    for (name, target) in LINKS {
        link(dev.as_fd(), name, target)?;
    }
    // A kernel may be built without it.
    if accessat(CWD, "/proc/kcore", Access::EXISTS, AtFlags::empty()).is_ok() {
        link(dev.as_fd(), "core", "/proc/kcore")?;
    }
    if symlinkat("pts/ptmx", &dev, "ptmx") == Err(Errno::EXIST) {
        let replaced = unlinkat(&dev, "ptmx", AtFlags::empty());
        replaced.and_then(|()| symlinkat("pts/ptmx", &dev, "ptmx")).why(|| "link /dev/ptmx")?;
    }
    Ok(())
}

/// Makes the file that the terminal will cover, while /dev can still be written.
pub fn make_console(root: BorrowedFd) -> Result<(), String> {
    let (dev, _) = ensure(root, Path::new("/dev"), Kind::Directory).why(|| "create /dev")?;
    let mode = Mode::from_raw_mode(0o600);
    match mknodat(&dev, "console", FileType::RegularFile, mode, 0) {
        Err(Errno::EXIST) => Ok(()),
        result => result.why(|| "create /dev/console"),
    }
}

/// Standard streams that are the runtime's /dev/null become the container's.
pub fn reopen_null() -> Result<(), String> {
    let null = makedev(1, 3);
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let mut own: Option<OwnedFd> = None;
    for (number, stream) in streams.into_iter().enumerate() {
        let stat = match fstat(stream) {
            Err(Errno::BADF) => continue,
            result => result.why(|| format!("look at descriptor {number}"))?,
        };
        let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        if !device || stat.st_rdev != null {
            continue;
        }
        let own = match &own {
            Some(own) => own,
            None => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
                let opened = openat(CWD, "/dev/null", flags, Mode::empty());
                own.insert(opened.why(|| "open the container's /dev/null")?)
            }
        };
        match number {
            0 => dup2_stdin(own),
            1 => dup2_stdout(own),
            _ => dup2_stderr(own),
        }
        .map_err(|e| format!("replace a standard stream: {e}"))?;
    }
    Ok(())
}

fn link(dev: BorrowedFd, name: &str, target: &str) -> Result<(), String> {
    match symlinkat(target, dev, name) {
        Err(Errno::EXIST) => Ok(()),
        result => result.why(|| format!("link /dev/{name}")),
    }
}

fn node<'a>(device: &LinuxDevice, path: &'a Path) -> Result<Node<'a>, String> {
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => {
            return Err(format!("a is not a valid device type for device {}", path.display()));
        }
    };
    let number = |value: i64| {
        let number = u32::try_from(value);
        number.map_err(|_| format!("device {} cannot have the number {value}", path.display()))
    };
    Ok(Node {
        path,
        kind,
        number: makedev(number(device.major())?, number(device.minor())?),
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

impl Node<'_> {
    /// The node of the same device that the runtime has. A disk may have another name there.
    fn runtimes(&self) -> PathBuf {
        let (major, minor) = (major(self.number), minor(self.number));
        let name = match self.kind {
            FileType::BlockDevice => {
                fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))
            }
            _ => return self.path.into(),
        };
        let name = name.ok().and_then(|text| {
            let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
            name.map(|name| Path::new("/dev").join(name))
        });
        name.unwrap_or_else(|| self.path.into())
    }
}

struct Maker<'a> {
    root: BorrowedFd<'a>,
    dev: BorrowedFd<'a>,
    /// In a user namespace device nodes cannot be made, and on files of the host they cannot
    /// either; the runtime's are bound, with the owner and mode that they have.
    bind: bool,
}

impl Maker<'_> {
    fn make(&self, node: &Node) -> Result<(), String> {
        let doing = || format!("create device node {}", node.path.display());
        let (Some(parent), Some(name)) = (node.path.parent(), node.path.file_name()) else {
            return Err(format!("device {} has no name", node.path.display()));
        };
        let other = match parent == Path::new("/dev") {
            true => None,
            false => Some(ensure(self.root, parent, Kind::Directory).why(doing)?.0),
        };
        let parent = other.as_ref().map_or(self.dev, AsFd::as_fd);
        if self.bind && node.kind != FileType::Fifo {
            return self.bind(node);
        }
        let mode = Mode::from_raw_mode(node.mode);
        match mknodat(parent, name, node.kind, mode, node.number) {
            // What the image or a mount has there is left.
            Err(Errno::EXIST) => return Ok(()),
            Err(Errno::PERM) => return self.bind(node),
            result => result.why(doing)?,
        }
        if (node.uid, node.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).why(doing)?;
        }
        Ok(())
    }

    fn bind(&self, node: &Node) -> Result<(), String> {
        let doing = || format!("bind device node {}", node.path.display());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let own = node.runtimes();
        let tree =
            open_tree(CWD, &own, flags).why(|| format!("{} ({})", doing(), own.display()))?;
        let (at, _) = ensure(self.root, node.path, Kind::File).why(doing)?;
        mount::attach(&tree, &at).why(doing)
    }
}
