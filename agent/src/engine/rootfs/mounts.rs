// SPDX-License-Identifier: Apache-2.0

//! The mounts of a spec, each made detached and then attached inside the root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::{CWD, FileType, OFlags, PROC_SUPER_MAGIC, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::options::Options;
use super::paths::{Kind, Why, clean, ensure, location, reason, resolve};
use super::sources::Source;
use super::{copy_up, has_namespace, mount};

/// The longest value that fsconfig(2) takes, with its NUL.
const MAX_VALUE: usize = 256;

/// What may be covered inside /proc: files that tools like lxcfs show their own way.
const PROC_FILES: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Makes the mounts inside `root` in order. Returns those to be made read-only at the end,
/// when there is nothing more to be made in them.
pub fn make(
    spec: &Spec,
    root: BorrowedFd,
    sources: Vec<Source>,
    cgroup: &Path,
) -> Result<Vec<OwnedFd>, String> {
    let own_cgroup = has_namespace(spec, LinuxNamespaceType::Cgroup);
    let mut late = Vec::new();
    for (entry, source) in spec.mounts().iter().flatten().zip(sources) {
        let read_only = source.options.read_only();
        let (made, writable) = match make_one(entry, root, source, cgroup, own_cgroup) {
            Ok(made) => made,
            Err(why) => return Err(failed(entry, &why)),
        };
        if read_only && writable {
            late.push(made);
        }
    }
    Ok(late)
}

/// Whether a mount is a bind, and then of the whole tree. With the option the type means
/// nothing.
pub fn bind(entry: &Mount, options: &Options) -> Option<bool> {
    options.bind.or_else(|| (entry.typ().as_deref() == Some("bind")).then_some(false))
}

pub fn failed(entry: &Mount, why: &str) -> String {
    let source = entry.source().as_deref().or(entry.typ().as_ref().map(Path::new));
    let source = source.unwrap_or(Path::new(""));
    format!("error mounting {source:?} to rootfs at {:?}: {why}", entry.destination())
}

/// Makes a mount. It is still writable, despite its options, if the second value is true.
fn make_one(
    entry: &Mount,
    root: BorrowedFd,
    source: Source,
    cgroup: &Path,
    own_cgroup: bool,
) -> Result<(OwnedFd, bool), String> {
    let Source { options, tree } = source;
    let destination = clean(entry.destination());
    if destination == Path::new("/") {
        return Err("the root itself cannot be covered".into());
    }
    let kind = match &tree {
        Some(_) => "bind",
        None => entry.typ().as_deref().unwrap_or_default(),
    };
    let (at, missed) = match &tree {
        Some(tree) => bind_point(root, &destination, tree)?,
        None => mount_point(root, &destination, kind)?,
    };
    if kind != "proc" {
        check_proc(root, at.as_fd(), &destination, tree.as_ref(), kind)?;
    }
    let mut late = false;
    let tree = match (tree, kind) {
        (Some(tree), _) => tree,
        (None, "cgroup" | "cgroup2") => cgroup_tree(entry, &options, cgroup, own_cgroup)?,
        (None, _) => {
            late = kind == "tmpfs" || destination == Path::new("/dev");
            let mode = (kind == "tmpfs" && !missed).then(|| fstat(&at)).transpose();
            let mode = mode.why(|| "read the mode of the mount point")?.map(|stat| stat.st_mode);
            let tree = file_system(kind, entry.source().as_deref(), &options, mode, late)?;
            if options.copy_up && kind == "tmpfs" {
                copy_up::copy(at.as_fd(), tree.as_fd())?;
            }
            tree
        }
    };
    mount::attach(&tree, &at).map_err(|errno| misfit(&tree, &at, errno)).why(|| "mount")?;
    for (flag, recursive) in options.propagation {
        let set = mount::set_propagation(&tree, recursive, flag);
        set.why(|| "set the mount's propagation")?;
    }
    Ok((tree, late))
}

/// Where a bind goes. What is missing is made like the source: a directory or a file.
fn bind_point(
    root: BorrowedFd,
    destination: &Path,
    tree: &OwnedFd,
) -> Result<(OwnedFd, bool), String> {
    let found = match resolve(root, destination, OFlags::empty()) {
        Err(Errno::NOENT) => {
            let stat = fstat(tree).why(|| "read the source's type")?;
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let kind = if directory { Kind::Directory } else { Kind::File };
            ensure(root, destination, kind)
        }
        result => result.map(|found| (found, false)),
    };
    found.why(|| "create the mount point")
}

/// mount(2) tells when one of the two is a directory and the other is not; move_mount(2)
/// does not, and people look for it.
fn misfit(tree: &OwnedFd, at: &OwnedFd, errno: Errno) -> Errno {
    let directory = |fd| {
        fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    if errno == Errno::INVAL && directory(tree) != directory(at) { Errno::NOTDIR } else { errno }
}

/// Where a file system goes. Those that tell about the system must not be redirected by a
/// link in the image.
fn mount_point(
    root: BorrowedFd,
    destination: &Path,
    kind: &str,
) -> Result<(OwnedFd, bool), String> {
    if matches!(kind, "proc" | "sysfs") {
        match resolve(root, destination, OFlags::NOFOLLOW | OFlags::DIRECTORY) {
            Ok(found) => return Ok((found, false)),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(format!("filesystem {kind:?} must be mounted on ordinary directory"));
            }
            // Made below, or fails again.
            Err(_) => {}
        }
    }
    ensure(root, destination, Kind::Directory).why(|| "create the mount point")
}

/// The container's /proc is the kernel's, or nothing the kernel is told through it could be
/// trusted; so only harmless files in it can be covered, and itself by another proc.
fn check_proc(
    root: BorrowedFd,
    at: BorrowedFd,
    destination: &Path,
    tree: Option<&OwnedFd>,
    kind: &str,
) -> Result<(), String> {
    let is_proc = |fd| fstatfs(fd).map(|info| info.f_type == PROC_SUPER_MAGIC);
    // Before there is a proc, the name tells; afterwards links may lead there, too.
    let inside = destination.starts_with("/proc")
        || is_proc(at).why(|| "find out where the mount point is")?;
    if !inside {
        return Ok(());
    }
    let place = location(at).and_then(|at| Ok((at, location(root)?)));
    let (place, root) = place.why(|| "find out where the mount point is")?;
    let place = Path::new("/").join(place.strip_prefix(&root).unwrap_or(&place));
    if !place.starts_with("/proc") || PROC_FILES.iter().any(|file| place == Path::new(file)) {
        return Ok(());
    }
    if place != Path::new("/proc") {
        // Hides, and cannot pretend to be anything.
        if kind == "tmpfs" {
            return Ok(());
        }
        return Err(format!("{place:?} cannot be mounted because it is inside /proc"));
    }
    match tree.map(|tree| is_proc(tree.as_fd())).transpose() {
        Ok(Some(true)) => Ok(()),
        _ => Err("\"/proc\" cannot be mounted because it is not of type proc".into()),
    }
}

/// The control group of the container as the root. Without a cgroup namespace a new mount
/// would show the groups of all others and change the options of everybody's mount.
fn cgroup_tree(
    entry: &Mount,
    options: &Options,
    cgroup: &Path,
    own: bool,
) -> Result<OwnedFd, String> {
    if own {
        return file_system("cgroup2", entry.source().as_deref(), options, None, false);
    }
    let tree =
        open_tree(CWD, cgroup, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let tree = tree.why(|| format!("open {}", cgroup.display()))?;
    let set = mount::set_attributes(&tree, false, options.attributes);
    set.why(|| "set the mount's attributes")?;
    Ok(tree)
}

/// A new, detached mount. `mode` is the root directory's, unless the options have one. With
/// `late` it is writable even if the options say otherwise.
fn file_system(
    kind: &str,
    source: Option<&Path>,
    options: &Options,
    mode: Option<u32>,
    late: bool,
) -> Result<OwnedFd, String> {
    let context = match fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => {
            return Err(format!(
                "the kernel has no file system {kind:?}: {}",
                reason(Errno::NODEV)
            ));
        }
        result => result.why(|| format!("open a file system {kind:?}"))?,
    };
    let told = |result: rustix::io::Result<()>, what: &str| {
        result.map_err(|errno| match complaint(&context) {
            Some(text) => format!("{what}: {text}: {}", reason(errno)),
            None => format!("{what}: {}", reason(errno)),
        })
    };
    if let Some(source) = source {
        told(fsconfig_set_string(&context, "source", source), "set the source")?;
    }
    if let Some(mode) = mode
        && options.data.iter().all(|(key, _)| key != "mode")
    {
        let mode = format!("{:o}", mode & 0o7777);
        told(fsconfig_set_string(&context, "mode", mode), "set the mode")?;
    }
    // Of the others the file system is the same for all, or has to be filled first.
    if options.read_only() && !late && !matches!(kind, "proc" | "sysfs" | "mqueue" | "cgroup2") {
        told(fsconfig_set_flag(&context, "ro"), "option ro")?;
    }
    for (key, value) in &options.data {
        let set = match value {
            Some(value) if value.len() >= MAX_VALUE => {
                return Err(format!(
                    "option {key} is longer than the {} bytes that the kernel takes",
                    MAX_VALUE - 1
                ));
            }
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        };
        told(set, &format!("option {key}"))?;
    }
    told(fsconfig_create(&context), &format!("make a file system {kind:?}"))?;
    let mut set = options.attributes.set | options.recursive.set;
    if late {
        set &= !libc::MOUNT_ATTR_RDONLY;
    }
    // The flags are all within 32 bits.
    let attributes = MountAttrFlags::from_bits_retain(set as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).why(|| "make the mount")
}

/// What the file system wrote about its configuration, if anything.
fn complaint(context: &OwnedFd) -> Option<String> {
    let mut text = [0; 256];
    let length = rustix::io::read(context, &mut text).ok()?;
    let text = String::from_utf8_lossy(&text[..length]);
    // After the kind of message, one letter, and a space.
    Some(text.trim_end().get(2..)?.to_owned())
}
