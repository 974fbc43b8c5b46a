// SPDX-License-Identifier: Apache-2.0

//! The container's file system: `Sources::open` in the runtime's mount namespace, then, in
//! the container's first process and its namespaces, `build`, `Root::enter` and `restrict`.
//!
//! Mounts are made detached and attached by descriptor, and every path of the container is
//! resolved inside its root (`paths`), so nothing that an image or a volume contains can
//! lead a mount out of it. mountinfo is only read where the root cannot be pivoted to.

mod copy_up;
mod devices;
mod mount;
mod mounts;
mod options;
mod paths;
mod restrict;
mod sources;
mod views;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use options::Attributes;
use paths::{Kind, Why, clean, ensure};

#[cfg(test)]
pub use options::names as mount_options;
pub use restrict::restrict;
pub use sources::Sources;

/// A complete root, not entered yet.
pub struct Root {
    root: OwnedFd,
    /// Mounts to be made read-only when all is in place.
    late: Vec<OwnedFd>,
    fill_dev: bool,
}

/// Builds the container's root with its mounts and devices. `cgroup` is the directory of
/// the container's control group, as the runtime sees it.
///
/// To be called in the container's first process, in its mount namespace, user namespace
/// and cgroup namespace.
pub fn build(spec: &Spec, bundle: &Path, sources: Sources, cgroup: &Path) -> Result<Root, String> {
    let path = spec.root().as_ref().ok_or("the spec has no root")?.path();
    let path = bundle.join(path);
    let root = match has_namespace(spec, LinuxNamespaceType::Mount) {
        true => detach_root(spec, &path)?,
        false => open_root(&path)?,
    };
    let fill_dev = devices::wanted(spec, &sources);
    let late = mounts::make(spec, root.as_fd(), sources.0, cgroup)?;
    if fill_dev {
        devices::make(spec, root.as_fd())?;
    }
    if let Some(process) = spec.process() {
        if process.terminal().unwrap_or(false) {
            devices::make_console(root.as_fd())?;
        }
        // Like runc, not with the user's privileges.
        let cwd = clean(process.cwd());
        let made = ensure(root.as_fd(), &cwd, Kind::Directory);
        made.why(|| format!("mkdir {}", cwd.display()))?;
    }
    Ok(Root { root, late, fill_dev })
}

impl Root {
    /// Makes it the process's root and working directory, with pivot_root(2), or by moving
    /// it over the old one if `pivot` is false: a root in an initramfs cannot be pivoted.
    /// Without a mount namespace of its own only chroot(2) remains.
    pub fn enter(self, spec: &Spec, pivot: bool) -> Result<(), String> {
        let own = has_namespace(spec, LinuxNamespaceType::Mount);
        match (own, pivot) {
            (true, true) => self.pivot().why(|| "pivot_root")?,
            (true, false) => self.cover_old()?,
            (false, _) => self.change()?,
        }
        if self.fill_dev {
            devices::reopen_null()?;
        }
        for mount in &self.late {
            let set = mount::set_attributes(mount, false, Attributes::READ_ONLY);
            set.why(|| "make a mount read-only")?;
        }
        if spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
            let set = mount::set_attributes(&self.root, false, Attributes::READ_ONLY);
            // Without a mount namespace the root is no mount of its own.
            set.why(|| "make the root read-only")?;
        }
        // It was private for pivot_root, and so that nothing above was seen elsewhere.
        match root_propagation(spec)? {
            Some((flag, recursive)) if own && flag != libc::MS_PRIVATE => {
                let set = mount::set_propagation(&self.root, recursive, flag);
                set.why(|| "set the propagation of the root")
            }
            _ => Ok(()),
        }
    }

    fn pivot(&self) -> rustix::io::Result<()> {
        let old = openat(CWD, "/", DIRECTORY, Mode::empty())?;
        fchdir(&self.root)?;
        // Puts the old root on top of the new one, so no directory is needed for it.
        pivot_root(".", ".")?;
        fchdir(&old)?;
        // That it is let go of is nobody else's concern.
        mount::set_propagation(&old, true, libc::MS_SLAVE)?;
        unmount(".", UnmountFlags::DETACH)?;
        chdir("/")
    }

    fn cover_old(&self) -> Result<(), String> {
        views::hide(self.root.as_fd())?;
        fchdir(&self.root).why(|| "enter the root")?;
        let top = openat(CWD, "/", DIRECTORY, Mode::empty()).why(|| "open the old root")?;
        mount::attach(&self.root, top).why(|| "move the root over the old one")?;
        self.change()
    }

    fn change(&self) -> Result<(), String> {
        let changed = fchdir(&self.root).and_then(|()| chroot(".")).and_then(|()| chdir("/"));
        changed.why(|| "chroot")
    }
}

/// Shows a terminal as the container's /dev/console. To be called after `enter`, with a
/// terminal of the container's own devpts: that of another mount namespace cannot be bound.
pub fn bind_console(slave: BorrowedFd) -> Result<(), String> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let at = openat(CWD, "/dev/console", flags, Mode::empty()).why(|| "open /dev/console")?;
    let tree = mount::clone(slave, false).why(|| "open the terminal")?;
    mount::attach(tree, at).why(|| "bind the terminal over /dev/console")
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_root(path: &Path) -> Result<OwnedFd, String> {
    openat(CWD, path, DIRECTORY, Mode::empty()).why(|| format!("open rootfs {}", path.display()))
}

/// Detaches the mount namespace from others' and puts a private mount of the root over
/// its directory.
fn detach_root(spec: &Spec, path: &Path) -> Result<OwnedFd, String> {
    let (flag, recursive) = root_propagation(spec)?.unwrap_or((libc::MS_SLAVE, true));
    let top = openat(CWD, "/", DIRECTORY, Mode::empty()).why(|| "open /")?;
    mount::set_propagation(top, recursive, flag).why(|| "set the propagation of /")?;
    if !recursive || !matches!(flag, libc::MS_SLAVE | libc::MS_PRIVATE) {
        make_private(path)?;
    }
    let at = open_root(path)?;
    let root = mount::clone(&at, true).and_then(|root| {
        mount::set_propagation(&root, false, libc::MS_PRIVATE)?;
        mount::attach(&root, &at)?;
        Ok(root)
    });
    root.why(|| format!("bind rootfs {}", path.display()))
}

/// Makes the mount that a path is on private: what is mounted there would be seen in other
/// namespaces, and pivot_root does not take a shared one.
fn make_private(path: &Path) -> Result<(), String> {
    let doing = || format!("make the mount of {} private", path.display());
    let path = path.canonicalize().map_err(|e| format!("find rootfs {}: {e}", path.display()))?;
    for place in path.ancestors() {
        let set = openat(CWD, place, DIRECTORY, Mode::empty())
            .and_then(|at| mount::set_propagation(at, false, libc::MS_PRIVATE));
        match set {
            // Not where a mount begins.
            Err(Errno::INVAL) => {}
            result => return result.why(doing),
        }
    }
    Err(doing())
}

fn root_propagation(spec: &Spec) -> Result<Option<(u64, bool)>, String> {
    let linux = spec.linux().as_ref();
    match linux.and_then(|linux| linux.rootfs_propagation().as_deref()) {
        None | Some("") => Ok(None),
        Some(name) => match options::propagation(name) {
            None => Err(format!("rootfsPropagation={name} is not supported")),
            known => Ok(known),
        },
    }
}

fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
    namespaces.unwrap_or_default().iter().any(|namespace| namespace.typ() == kind)
}
