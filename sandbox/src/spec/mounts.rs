// SPDX-License-Identifier: Apache-2.0

//! The mounts of config.json: which of them bind files of the host, and how these are shared.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::devices::Device;
use crate::error::Error;

/// The directory of a pod's volumes of that type in the kubelet's: files of nobody but the pod.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Where shared memory is, in a container and in the guest.
pub const SHARED_MEMORY: &str = "/dev/shm";

/// The words for it, without their recursive forms. An unbindable mount is private, too.
const PROPAGATION: [&str; 4] = ["private", "slave", "shared", "unbindable"];

/// Host trees whose bind means the kernel's own files: the guest's are used, not shared.
const KERNEL_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// An OCI mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    destination: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A bind mount of the container whose source has to be shared with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BindSource {
    /// On the host.
    pub source: PathBuf,
    /// With the mounts below it.
    pub recursive: bool,
    /// The guest cannot write to it even if it escapes the container.
    pub read_only: bool,
    /// With mounts that the host makes below it later (mount propagation).
    pub follows: bool,
}

impl BindSource {
    /// Whether it is, or is in, a volume that the pod has to itself.
    pub fn is_in_empty_dir(&self) -> bool {
        self.source.iter().any(|component| component == EMPTY_DIR)
    }
}

impl Mount {
    pub fn check(&self) -> Result<(), Error> {
        let mapped = ["uidMappings", "gidMappings"].iter().any(|name| {
            self.rest.get(*name).and_then(Value::as_array).is_some_and(|list| !list.is_empty())
        });
        if mapped || self.has("idmap") || self.has("ridmap") {
            return Err(Error::invalid(format!(
                "the mount on {} has ID mappings, which husk cannot do; use a directory that \
                 belongs to the users of the container",
                self.destination
            )));
        }
        let is_hosts = self.bind_source().is_some_and(|bind| !bind.is_in_empty_dir());
        if is_hosts && self.propagation() == Some("shared") {
            return Err(Error::invalid(format!(
                "what is mounted below {} would have to appear on the host (rshared, \
                 Bidirectional), and a VM cannot mount there; use HostToContainer (rslave), or \
                 run the pod without a VM",
                self.destination
            )));
        }
        Ok(())
    }

    /// Whether it is the shared memory that CRI makes for a pod: `.../<pod>/.../shm`.
    pub fn is_shared_memory_of(&self, pod: &str) -> bool {
        let source = Path::new(self.source.as_deref().unwrap_or_default());
        self.destination == SHARED_MEMORY
            && source.ends_with("shm")
            && source.components().any(|component| component.as_os_str() == pod)
    }

    pub fn bind(destination: &str, source: &Path, options: &[&str]) -> Mount {
        Mount {
            destination: destination.into(),
            kind: Some("bind".into()),
            source: Some(source.display().to_string()),
            options: options.iter().map(|&option| option.into()).collect(),
            rest: Map::new(),
        }
    }

    pub fn is_on(&self, destination: &str) -> bool {
        Path::new(&self.destination) == Path::new(destination)
    }

    /// Whether it is shared memory that no other container would see.
    pub fn is_private_memory(&self) -> bool {
        self.destination == SHARED_MEMORY && self.kind.as_deref() == Some("tmpfs")
    }

    /// What it binds, if it is a bind mount.
    fn bound(&self) -> Option<PathBuf> {
        let is_bind = self.kind.as_deref() == Some("bind") || self.has("rbind") || self.has("bind");
        is_bind.then(|| self.source.as_deref().map(|source| lexical(Path::new(source))))?
    }

    fn has(&self, name: &str) -> bool {
        self.options.iter().any(|option| option == name)
    }

    /// `rw` after `ro` wins, as in mount(8).
    fn is_read_only(&self) -> bool {
        let word = self.options.iter().rev().find_map(|option| match option.as_str() {
            "ro" | "rro" => Some(true),
            "rw" => Some(false),
            _ => None,
        });
        word.unwrap_or(false)
    }

    /// How mounts spread from and to others: the last word on it, without the `r` of those
    /// that mean the mounts below, too.
    fn propagation(&self) -> Option<&str> {
        let words = self.options.iter().rev();
        words.map(|word| word.strip_prefix('r').unwrap_or(word)).find(|w| PROPAGATION.contains(w))
    }

    /// A node like the block device of the host that it binds, if it does, and whether it is
    /// to be read-only.
    pub fn block_device(&self) -> Option<(Device, bool)> {
        // Elsewhere a look may take as long as somebody's server likes.
        let source = self.bound().filter(|source| source.starts_with("/dev"))?;
        let metadata = fs::metadata(source).ok()?;
        let is_block_device = metadata.file_type().is_block_device();
        is_block_device.then(|| (Device::like(&self.destination, &metadata), self.is_read_only()))
    }

    /// What has to be shared for this mount; nothing unless it binds a host file.
    pub fn bind_source(&self) -> Option<BindSource> {
        let source = self.bound()?;
        let of_kernel = KERNEL_TREES.iter().any(|tree| source.starts_with(tree));
        // Not /dev/hugepages, which the guest has only if it is a volume of the pod.
        if of_kernel && !(source.starts_with("/dev") && is_on_huge_pages(&source)) {
            return None;
        }
        // What nothing is said of is the root's slave, and so the host's.
        let follows = matches!(self.propagation(), None | Some("slave" | "shared"));
        let read_only = self.is_read_only();
        let bind = BindSource { source, recursive: self.has("rbind"), read_only, follows };
        // What the pod has to itself it may write to anyhow; and containers that see a
        // directory by two mounts, one read-only, do not meet at its FIFOs and sockets.
        Some(BindSource { read_only: read_only && !bind.is_in_empty_dir(), ..bind })
    }
}

fn is_on_huge_pages(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == HUGETLBFS_MAGIC)
}

/// The path without `.`, `..` and repeated slashes; symbolic links are not looked at.
fn lexical(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}
