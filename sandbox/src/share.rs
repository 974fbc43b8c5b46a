// SPDX-License-Identifier: Apache-2.0

//! What the pod sees of the host: a small tmpfs in which each container has a directory,
//! with its root file system bound to `rootfs` and its bind sources behind `mounts/<n>`. These
//! are symbolic links to `.binds/<n>`, where a source is once for all containers of the pod: so
//! they see the same inodes, and meet at its FIFOs, sockets, locks and mappings.
//!
//! What is on huge pages of the host is not shared: the link leads to a volume that the guest
//! makes of huge pages of its own, one for each source, as long as the pod lives.
//!
//! The mount that the VMM serves is read-only, so the guest can neither fill it nor put a
//! symbolic link where we are about to mount. We make directories through a second mount of
//! the same tmpfs that only a descriptor of ours leads to. A container's part is undone when
//! its [`SharedContainer`] is dropped, the whole when the [`Share`] is.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use husk_protocol::HUGE_PAGES_PATH;
use husk_protocol::agent::HugePages;
use nix::mount::MsFlags;
use nix::sys::statfs::{HUGETLBFS_MAGIC, Statfs, statfs};

use crate::error::{Error, IoContext};
use crate::mount::{self, Mounted};
use crate::run_dir::checked_name;
use crate::size::HUGE_PAGE;
use crate::spec::BindSource;
use crate::volumes::{Volumes, Watch};

/// The directory of the containers' bind sources. No container's id begins with a dot.
const BINDS: &str = ".binds";

/// Limits of the tmpfs: it holds nothing but mount points. The root of a user namespace in
/// the guest is a user like others, and has to pass; on the host the directory above is closed.
const TMPFS_OPTIONS: &str = "size=4m,nr_inodes=16k,mode=0711";

/// The share of a pod.
#[derive(Debug)]
pub struct Share {
    path: PathBuf,
    /// The writable mount of the tmpfs.
    writer: OwnedFd,
    binds: Mutex<Binds>,
    /// Directories on huge pages that containers have or had, by device and inode, each with
    /// its number.
    huge_pages: Mutex<HashMap<(u64, u64), usize>>,
    volumes: Arc<Volumes>,
    _mounted: Mounted,
}

/// The sources that containers have in common.
#[derive(Debug, Default)]
struct Binds {
    /// Number of the next.
    next: u64,
    in_use: HashMap<Source, Weak<Bind>>,
}

/// A source, and which file its path has led to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Source {
    bind: BindSource,
    device: u64,
    inode: u64,
}

/// A source that is bound, or about to be, at `.binds/<number>`. The last container that uses
/// it takes it away.
#[derive(Debug)]
struct Bind {
    share: Arc<Share>,
    number: u64,
    /// Held while it is being bound: whoever wants the same source waits, and nobody else.
    bound: Mutex<bool>,
    /// If the host's changes are told to the guest.
    watch: OnceLock<Watch>,
}

/// One container's part of a share.
#[derive(Debug)]
pub struct SharedContainer {
    share: Arc<Share>,
    name: String,
    binds: Vec<Arc<Bind>>,
    huge_pages: Vec<HugePages>,
}

impl Share {
    /// Makes the share at `path`, which must not exist.
    pub fn create(path: PathBuf) -> Result<Share, Error> {
        fs::create_dir(&path).context(|| format!("cannot make {}", path.display()))?;
        nix::mount::mount(
            Some("husk"),
            &path,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(TMPFS_OPTIONS),
        )
        .context(|| format!("cannot mount a tmpfs on {}; husk must run as root", path.display()))?;
        let mounted = Mounted::at(path.clone());
        let writer = mount::clone_mount(&path, false)?;
        mount::set_read_only_and_shared(&path)?;
        let share = Share {
            path,
            writer,
            binds: Mutex::default(),
            huge_pages: Mutex::default(),
            volumes: Arc::default(),
            _mounted: mounted,
        };
        fs::create_dir(share.writable(BINDS)).context(|| "cannot fill the share".to_owned())?;
        Ok(share)
    }

    /// The directory for the VMM.
    pub fn open(&self) -> Result<File, Error> {
        File::open(&self.path).context(|| format!("cannot open {}", self.path.display()))
    }

    /// What the guest is to be told the host's changes of.
    pub fn volumes(&self) -> Arc<Volumes> {
        self.volumes.clone()
    }

    /// Gives a container its part: the directory `rootfs` of the host and its bind sources.
    /// Blocks.
    pub fn add(
        self: Arc<Self>,
        name: &str,
        rootfs: &Path,
        binds: &[BindSource],
    ) -> Result<SharedContainer, Error> {
        checked_name(name)?;
        let writable = self.writable(name);
        fs::create_dir(&writable)
            .context(|| format!("cannot make the share of container {name}"))?;
        let mut container = SharedContainer {
            share: self,
            name: name.to_owned(),
            binds: Vec::new(),
            huge_pages: Vec::new(),
        };
        let visible = container.share.path.join(name);
        let made = fs::create_dir(writable.join("rootfs"))
            .and_then(|()| fs::create_dir(writable.join("mounts")));
        made.context(|| format!("cannot make the share of container {name}"))?;
        let root = mount::Bind { source: rootfs, recursive: true, read_only: false, follows: true };
        mount::bind(root, &visible.join("rootfs"))
            .map_err(|error| error.context("cannot share the root file system"))?;
        for (n, source) in binds.iter().enumerate() {
            let what = || format!("cannot share the mount source {}", source.source.display());
            let link = writable.join("mounts").join(n.to_string());
            let metadata = fs::metadata(&source.source)
                .map_err(|error| Error::invalid(error.to_string()).context(what()))?;
            let found = huge_pages(source, &metadata).map_err(|error| error.context(what()))?;
            let place = match found {
                Some(found) => {
                    let volume = container.share.huge_volume(&metadata, &found);
                    let place = volume.path.clone();
                    container.huge_pages.push(volume);
                    place
                }
                None => {
                    let bind = container.share.bind(source, &metadata);
                    let bind = bind.map_err(|error| error.context(what()))?;
                    let place = format!("../../{BINDS}/{}", bind.number);
                    container.binds.push(bind);
                    place
                }
            };
            symlink(place, link).context(what)?;
        }
        Ok(container)
    }

    /// Binds a source, unless another container has it already.
    fn bind(
        self: &Arc<Self>,
        source: &BindSource,
        metadata: &Metadata,
    ) -> Result<Arc<Bind>, Error> {
        check(source, metadata)?;
        let key = Source { bind: source.clone(), device: metadata.dev(), inode: metadata.ino() };
        let bind = {
            let mut binds = lock(&self.binds);
            binds.in_use.retain(|_, bind| bind.strong_count() > 0);
            let Binds { next, in_use } = &mut *binds;
            match in_use.get(&key).and_then(Weak::upgrade) {
                Some(bind) => bind,
                None => {
                    *next += 1;
                    let share = self.clone();
                    let (bound, watch) = (Mutex::new(false), OnceLock::new());
                    let bind = Arc::new(Bind { share, number: *next, bound, watch });
                    in_use.insert(key, Arc::downgrade(&bind));
                    bind
                }
            }
        };
        bind.make(source, metadata.is_dir())?;
        Ok(bind)
    }

    /// The guest's volume in the place of a directory on huge pages of the host.
    fn huge_volume(&self, root: &Metadata, found: &Statfs) -> HugePages {
        let mut known = lock(&self.huge_pages);
        let next = known.len() + 1;
        let number = *known.entry((root.dev(), root.ino())).or_insert(next);
        HugePages {
            path: format!("{HUGE_PAGES_PATH}/{number}"),
            size: found.blocks() * HUGE_PAGE,
            uid: root.uid(),
            gid: root.gid(),
            mode: root.mode() & 0o7777,
            ..Default::default()
        }
    }

    /// A container's directory on the writable mount, where no other mount can be met.
    fn writable(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.writer.as_raw_fd())).join(name)
    }
}

impl Bind {
    fn make(&self, source: &BindSource, is_dir: bool) -> Result<(), Error> {
        let mut bound = lock(&self.bound);
        if *bound {
            return Ok(());
        }
        let point = self.point();
        match if is_dir { fs::create_dir(&point) } else { File::create(&point).map(drop) } {
            // Somebody before could make the point, but not the mount.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.context(|| "cannot make its mount point".to_owned()),
        }?;
        let BindSource { source: path, recursive, read_only, follows } = source;
        let (recursive, read_only, follows) = (*recursive, *read_only, *follows);
        mount::bind(mount::Bind { source: path, recursive, read_only, follows }, &self.visible())?;
        *bound = true;
        if source.read_only {
            let path = format!("{BINDS}/{}", self.number);
            if let Some(watch) = self.share.volumes.watch(&source.source, &path) {
                let _ = self.watch.set(watch);
            }
        }
        Ok(())
    }

    fn visible(&self) -> PathBuf {
        self.share.path.join(BINDS).join(self.number.to_string())
    }

    /// The mount point, where the mount is not seen.
    fn point(&self) -> PathBuf {
        self.share.writable(BINDS).join(self.number.to_string())
    }

    fn undo(&self) -> Result<(), Error> {
        if let Some(watch) = self.watch.get() {
            self.share.volumes.unwatch(watch);
        }
        mount::unmount_all(&self.visible())?;
        let point = self.point();
        let removed = if point.is_dir() { fs::remove_dir(&point) } else { fs::remove_file(&point) };
        removed.context(|| "cannot remove a mount point".to_owned())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        // A failure leaves a mount that the share's own end takes away.
        let _ = self.undo();
    }
}

impl SharedContainer {
    /// What the guest has to make for it.
    pub fn huge_pages(&self) -> &[HugePages] {
        &self.huge_pages
    }

    /// Takes the container's part away and reports what could not be.
    pub fn remove(mut self) -> Result<(), Error> {
        let mut done = self.undo();
        // Nothing is left for the drop.
        self.name.clear();
        for bind in self.binds.drain(..).filter_map(Arc::into_inner) {
            done = done.and(bind.undo());
        }
        done
    }

    fn undo(&self) -> Result<(), Error> {
        let visible = self.share.path.join(&self.name);
        let writable = self.share.writable(&self.name);
        let mut errors = Vec::new();
        errors.extend(mount::unmount_all(&visible.join("rootfs")).err());
        // No bind is visible on the writable mount: this removes mount points only.
        errors
            .extend(fs::remove_dir_all(&writable).context(|| "cannot remove it".to_owned()).err());
        match errors.into_iter().next() {
            None => Ok(()),
            Some(error) => Err(error.context(format!("the share of container {}", self.name))),
        }
    }
}

impl Drop for SharedContainer {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // The share's own end takes the mounts away in any case.
            let _ = self.undo();
        }
    }
}

/// Refuses what would be there and not work.
fn check(source: &BindSource, metadata: &Metadata) -> Result<(), Error> {
    // What a container has bound itself in the pod's own volume is no socket of the host.
    if metadata.file_type().is_socket() && !source.is_in_empty_dir() {
        return Err(Error::invalid(
            "it is a socket, and a VM cannot connect to a socket of the host; listen on an \
             address of the network instead",
        ));
    }
    Ok(())
}

/// What the source's file system has to say if it is huge pages. Refuses what the guest's own
/// cannot take the place of.
fn huge_pages(source: &BindSource, metadata: &Metadata) -> Result<Option<Statfs>, Error> {
    let found = statfs(&source.source).map_err(|error| Error::invalid(error.to_string()))?;
    if found.filesystem_type() != HUGETLBFS_MAGIC {
        return Ok(None);
    }
    if !metadata.is_dir() {
        return Err(Error::invalid(
            "it is a file in huge pages of the host, and the VM's memory is its own; share it by \
             other means",
        ));
    }
    let page = found.block_size() as u64;
    if page != HUGE_PAGE {
        return Err(Error::invalid(format!(
            "it is in huge pages of {} kB, and a VM has those of {} kB only; use medium: \
             HugePages-2Mi",
            page >> 10,
            HUGE_PAGE >> 10
        )));
    }
    Ok(Some(found))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is whole at every instant.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A share in a directory of its own; nothing where mounting is not permitted.
    fn share() -> Option<(tempfile::TempDir, Arc<Share>)> {
        let dir = tempfile::tempdir().expect("directory");
        match Share::create(dir.path().join("share")) {
            Ok(share) => Some((dir, Arc::new(share))),
            Err(error) if error.message.contains("EPERM") => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn mounts_below(path: &Path) -> usize {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let prefix = path.display().to_string();
        table
            .lines()
            .filter(|line| line.split(' ').nth(4).is_some_and(|p| p.starts_with(&prefix)))
            .count()
    }

    #[test]
    fn a_container_sees_its_files_and_leaves_nothing() {
        let Some((dir, share)) = share() else { return };
        let rootfs = dir.path().join("rootfs");
        fs::create_dir(&rootfs).expect("rootfs");
        fs::write(rootfs.join("hello"), b"x").expect("file");
        let file = dir.path().join("hosts");
        fs::write(&file, b"127.0.0.1").expect("file");
        let binds = [
            BindSource { source: file.clone(), recursive: true, read_only: true, follows: false },
            BindSource {
                source: rootfs.clone(),
                recursive: false,
                read_only: false,
                follows: false,
            },
        ];
        let container = share.clone().add("c1", &rootfs, &binds).expect("add");
        let view = dir.path().join("share/c1");
        assert_eq!(fs::read(view.join("rootfs/hello")).expect("read"), b"x");
        assert_eq!(fs::read(view.join("mounts/0")).expect("read"), b"127.0.0.1");
        fs::write(view.join("rootfs/new"), b"y").expect("writes reach the root file system");
        assert!(rootfs.join("new").exists());
        assert!(fs::write(view.join("mounts/0"), b"z").is_err(), "read-only");
        assert!(fs::write(dir.path().join("share/own"), b"z").is_err(), "the share is read-only");
        container.remove().expect("remove");
        assert!(!view.exists());
        assert!(rootfs.join("hello").exists() && file.exists());
        share.clone().add("c1", &rootfs, &binds).expect("the name is free again");
        drop(share);
        assert_eq!(mounts_below(dir.path()), 0);
    }

    #[test]
    fn containers_have_a_source_in_common() {
        let Some((dir, share)) = share() else { return };
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).expect("directory");
        let bind = BindSource {
            source: volume.clone(),
            recursive: true,
            read_only: false,
            follows: false,
        };
        let read_only = BindSource { read_only: true, ..bind.clone() };
        let add = |name, binds: &[_]| share.clone().add(name, &volume, binds).expect("add");
        let link = |name: &str, n: u32| {
            let link = dir.path().join(format!("share/{name}/mounts/{n}"));
            fs::read_link(link).expect("a link")
        };
        let (a, b) = (add("a", &[bind.clone(), read_only]), add("b", std::slice::from_ref(&bind)));
        assert_eq!(link("a", 0), link("b", 0));
        assert_ne!(link("a", 0), link("a", 1), "one is read-only");
        a.remove().expect("remove");
        fs::write(dir.path().join("share/b/mounts/0/file"), b"").expect("the other still has it");
        // Another directory that has taken the path is another source.
        fs::rename(&volume, dir.path().join("old")).expect("rename");
        fs::create_dir(&volume).expect("directory");
        let c = add("c", &[bind]);
        assert_ne!(link("b", 0), link("c", 0));
        b.remove().expect("remove");
        drop(c);
        assert_eq!(mounts_below(dir.path()), 1);
        let left = fs::read_dir(dir.path().join("share/.binds")).expect("list").count();
        assert_eq!(left, 0, "mount points are left");
    }

    #[test]
    fn a_missing_source_is_named_and_undone() {
        let Some((dir, share)) = share() else { return };
        let binds = [BindSource {
            source: "/nonexistent/x".into(),
            recursive: true,
            read_only: false,
            follows: false,
        }];
        let error = share.clone().add("c1", dir.path(), &binds).expect_err("missing");
        assert!(error.message.contains("/nonexistent/x"), "{error}");
        assert!(error.message.contains("No such file"), "{error}");
        assert_eq!(error.code, crate::error::Code::InvalidArgument);
        assert_eq!(mounts_below(dir.path()), 1);
        share.clone().add("../x", dir.path(), &[]).expect_err("a name that leads elsewhere");
    }

    #[test]
    fn a_socket_of_the_host_is_refused() {
        let Some((dir, share)) = share() else { return };
        let volume = dir.path().join("kubernetes.io~empty-dir");
        fs::create_dir(&volume).expect("directory");
        let add = |source: PathBuf| {
            std::os::unix::net::UnixListener::bind(&source).expect("a socket");
            let bind = BindSource { source, recursive: true, read_only: false, follows: false };
            share.clone().add("c1", dir.path(), &[bind])
        };
        let error = add(dir.path().join("host.sock")).expect_err("refused");
        assert!(error.message.contains("host.sock: it is a socket"), "{error}");
        assert_eq!(error.code, crate::error::Code::InvalidArgument);
        add(volume.join("own.sock")).expect("a socket of the pod itself");
    }

    #[test]
    fn huge_pages_are_the_guests_own() {
        let Some((dir, share)) = share() else { return };
        // Mounted from the first on; nothing where the kernel has none.
        let volume = |name: &str, options: &str| {
            let source = dir.path().join(name);
            fs::create_dir(&source).expect("directory");
            let (kind, flags) = (Some("hugetlbfs"), MsFlags::empty());
            nix::mount::mount(None::<&str>, &source, kind, flags, Some(options)).ok()?;
            Some((Mounted::at(source.clone()), source))
        };
        let options = "pagesize=2M,size=8M,uid=5,gid=6,mode=0750";
        let Some((_first, one)) = volume("one", options) else {
            return println!("not run: this kernel has no huge pages of 2 MiB");
        };
        let (_second, two) = volume("two", "pagesize=2M").expect("another");
        let bind = |source: &Path, read_only| BindSource {
            source: source.into(),
            recursive: true,
            read_only,
            follows: true,
        };
        let add = |name, binds: &[_]| share.clone().add(name, dir.path(), binds);
        let link = |name: &str, n: u32| {
            let link = dir.path().join(format!("share/{name}/mounts/{n}"));
            fs::read_link(link).expect("a link").display().to_string()
        };
        let a = add("a", &[bind(&one, false), bind(&two, false)]).expect("add");
        let [first, second] = a.huge_pages() else { panic!("{:?}", a.huge_pages()) };
        let facts = (first.size, first.uid, first.gid, first.mode);
        assert_eq!(facts, (8 << 20, 5, 6, 0o750));
        assert_eq!((second.size, second.uid, second.mode), (0, 0, 0o755));
        let (path, first) = ("/run/husk/huge-pages/", first.path.clone());
        assert!(first.starts_with(path) && second.path.starts_with(path), "{first}");
        assert_ne!(first, second.path);
        assert_eq!([link("a", 0), link("a", 1)], [first.clone(), second.path.clone()]);
        let b = add("b", &[bind(&one, true)]).expect("add");
        assert_eq!(link("b", 0), first, "one volume, read-only or not");
        a.remove().expect("remove");
        b.remove().expect("remove");
        let again = add("c", &[bind(&one, false)]).expect("add");
        assert_eq!(again.huge_pages()[0].path, first, "it is there as long as the pod is");

        let file = one.join("file");
        fs::write(&file, b"").expect("an empty file");
        let error = add("d", &[bind(&file, false)]).expect_err("a file");
        assert!(error.message.contains("one/file: it is a file in huge pages"), "{error}");
        assert_eq!(error.code, crate::error::Code::InvalidArgument);
        match volume("large", "pagesize=1G") {
            Some((_large, large)) => {
                let error = add("d", &[bind(&large, false)]).expect_err("another size");
                assert!(error.message.contains("huge pages of 1048576 kB"), "{error}");
            }
            None => println!("not run: this machine has no huge pages of 1 GiB"),
        }
    }

    #[test]
    fn mounts_below_a_source_survive_the_removal() {
        let Some((dir, share)) = share() else { return };
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("sub")).expect("directory");
        let sub = source.join("sub");
        nix::mount::mount(Some("t"), &sub, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("tmpfs");
        let _sub = Mounted::at(sub.clone());
        nix::mount::mount(None::<&str>, &sub, None::<&str>, MsFlags::MS_SHARED, None::<&str>)
            .expect("shared");
        fs::write(sub.join("file"), b"").expect("file");
        let writable = BindSource { source, recursive: true, read_only: false, follows: false };
        let binds = [writable.clone(), BindSource { read_only: true, ..writable }];
        let container = share.clone().add("c1", dir.path(), &binds).expect("add");
        let seen = |n: u32| dir.path().join(format!("share/c1/mounts/{n}/sub/file"));
        fs::write(seen(0), b"x").expect("it can be written");
        let refused = fs::write(seen(1), b"y").expect_err("read-only, and so is what is below");
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        container.remove().expect("remove");
        assert!(sub.join("file").exists());
    }
}
