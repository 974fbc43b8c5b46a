// SPDX-License-Identifier: Apache-2.0

//! What bind mounts show. It is opened before the container has a mount namespace, where
//! the runtime's files are and its privileges hold: each source becomes a detached mount,
//! with its attributes and ID mapping, which `mounts` only has to attach.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use libc::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY,
};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::options::Options;
use super::paths::{Why, reason};
use super::{has_namespace, mount, mounts, root_propagation};

/// One for each entry of the spec's mounts.
pub struct Sources(pub(super) Vec<Source>);

pub(super) struct Source {
    pub options: Options,
    /// None if it is not a bind.
    pub tree: Option<OwnedFd>,
}

impl Sources {
    /// To be called with the runtime's privileges and in its mount namespace, before the
    /// container's namespaces exist.
    pub fn open(spec: &Spec, bundle: &Path) -> Result<Self, String> {
        let (propagation, everywhere) = root_propagation(spec)?.unwrap_or((libc::MS_SLAVE, true));
        let own_user = has_namespace(spec, LinuxNamespaceType::User);
        let mut ids = IdMappings { spec, last: None };
        let entries = spec.mounts().iter().flatten().map(|entry| {
            let options = Options::parse(entry.options().as_deref().unwrap_or_default());
            let opened = open(entry, &options, bundle, &mut ids).and_then(|tree| {
                let Some(tree) = tree else { return Ok(None) };
                // A copy is of the same peer group as the original; the container's mount
                // namespace would have made it what the root is.
                if everywhere {
                    let set = mount::set_propagation(&tree, true, propagation);
                    set.why(|| "set the propagation")?;
                }
                let set = set_attributes(&tree, &options, own_user);
                set.why(|| "set the mount's attributes")?;
                Ok(Some(tree))
            });
            let tree = opened.map_err(|why| mounts::failed(entry, &why))?;
            Ok(Source { options, tree })
        });
        Ok(Self(entries.collect::<Result<_, String>>()?))
    }
}

/// The source of a bind, with its IDs mapped.
fn open(
    entry: &Mount,
    options: &Options,
    bundle: &Path,
    ids: &mut IdMappings,
) -> Result<Option<OwnedFd>, String> {
    let Some(recursive) = mounts::bind(entry, options) else {
        if options.id_mapped.is_some() || entry.uid_mappings().is_some() {
            return Err("only bind mounts can be ID-mapped".into());
        }
        return Ok(None);
    };
    let source = entry.source().as_ref().ok_or("a bind mount needs a source")?;
    let path = bundle.join(source);
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = open_tree(CWD, &path, flags).why(|| format!("open {}", path.display()))?;
    if let Some((namespace, all)) = ids.namespace(entry, options)? {
        match mount::map_ids(&tree, all, namespace) {
            Err(Errno::INVAL) => {
                return Err(format!(
                    "the file system of {} does not support ID-mapped mounts: {}",
                    path.display(),
                    reason(Errno::INVAL),
                ));
            }
            result => result.why(|| "map the IDs")?,
        }
    }
    Ok(Some(tree))
}

/// As mount(2) does when it remounts a bind: without options the source's attributes stay;
/// with any, those not given are cleared, except the times, which stay unless one is given.
/// In a user namespace it would keep them, since they were set outside.
fn set_attributes(tree: &OwnedFd, options: &Options, own_user: bool) -> Result<(), Errno> {
    let mut attributes = options.attributes;
    if !attributes.none() {
        if !own_user {
            attributes.clear |= !attributes.set
                & (MOUNT_ATTR_RDONLY
                    | MOUNT_ATTR_NOSUID
                    | MOUNT_ATTR_NODEV
                    | MOUNT_ATTR_NOEXEC
                    | MOUNT_ATTR_NOSYMFOLLOW);
            if attributes.clear & MOUNT_ATTR__ATIME != 0 {
                attributes.clear |= !attributes.set & MOUNT_ATTR_NODIRATIME;
            }
        }
        mount::set_attributes(tree, false, attributes)?;
    }
    if !options.recursive.none() {
        mount::set_attributes(tree, true, options.recursive)?;
    }
    Ok(())
}

/// User namespaces that hold ID mappings. Most specs map all mounts alike, so the last one
/// is kept.
struct IdMappings<'a> {
    spec: &'a Spec,
    last: Option<(Maps, OwnedFd)>,
}

/// The text of uid_map and gid_map.
pub(super) type Maps = (String, String);

impl IdMappings<'_> {
    /// The user namespace whose mapping a mount is to have, and whether all of its tree.
    fn namespace(
        &mut self,
        entry: &Mount,
        options: &Options,
    ) -> Result<Option<(&OwnedFd, bool)>, String> {
        let maps = match (entry.uid_mappings(), entry.gid_mappings(), options.id_mapped) {
            (Some(uids), Some(gids), _) => (lines(uids), lines(gids)),
            (None, None, None) => return Ok(None),
            (None, None, Some(_)) => {
                let linux = self.spec.linux().as_ref();
                let uids = linux.and_then(|linux| linux.uid_mappings().as_ref());
                let gids = linux.and_then(|linux| linux.gid_mappings().as_ref());
                match (uids, gids) {
                    (Some(uids), Some(gids)) => (lines(uids), lines(gids)),
                    _ => return Err("there are no ID mappings for it".into()),
                }
            }
            _ => return Err("uidMappings and gidMappings go together".into()),
        };
        if self.last.as_ref().is_none_or(|(known, _)| *known != maps) {
            let namespace = user_namespace(&maps);
            let namespace = namespace.map_err(|e| format!("make its ID mappings: {e}"))?;
            self.last = Some((maps, namespace));
        }
        let all = options.id_mapped == Some(true);
        Ok(self.last.as_ref().map(|(_, namespace)| (namespace, all)))
    }
}

fn lines(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut lines, mapping| {
        let (inside, outside) = (mapping.container_id(), mapping.host_id());
        let _ = writeln!(lines, "{inside} {outside} {}", mapping.size());
        lines
    })
}

/// A user namespace only exists with a process in it, or a descriptor of it; so a process
/// lives for as long as it takes to get the latter.
pub(super) fn user_namespace((uids, gids): &Maps) -> io::Result<OwnedFd> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: as fork(): the child has its own memory and stack, and only waits.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        ..0 => return Err(io::Error::last_os_error()),
        // SAFETY: both take numbers only. The signal ends it if its parent is killed.
        0 => unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        },
        _ => {}
    }
    let opened = fs::write(format!("/proc/{pid}/uid_map"), uids)
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), gids))
        .and_then(|()| fs::File::open(format!("/proc/{pid}/ns/user")));
    // SAFETY: the process is our child and not waited for, so the pid is its own; waitpid()
    // is told that the status is not wanted.
    unsafe {
        libc::kill(pid as i32, libc::SIGKILL);
        libc::waitpid(pid as i32, std::ptr::null_mut(), 0);
    }
    opened.map(OwnedFd::from)
}
