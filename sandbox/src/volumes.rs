// SPDX-License-Identifier: Apache-2.0

//! Tells the guest of the host's changes in what it may only read: ConfigMaps, Secrets and
//! the like. The guest's kernel knows of no change that is not made through it, so those who
//! wait for one there (inotify) would wait forever. What the guest can write is not watched:
//! its own changes would come back to it.
//!
//! Each bind source that is shared read-only is watched, a directory with its entries and not
//! what is deeper; so a volume whose links lead to a new directory (the kubelet's atomic
//! update) is one watch. A pod without such sources has no inotify instance.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use husk_protocol::agent::request::Verb;
use husk_protocol::agent::{Changed, Wake};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::sync::Notify;

use crate::agent::{Agent, done};
use crate::error::Error;
use crate::reactor;

/// Changes come in bursts; the guest is told of one that is over. Also how often it is told at
/// most, whatever somebody does to the files.
const SETTLE: Duration = Duration::from_millis(100);

/// Most files and directories that are watched in a pod.
const MAX_WATCHES: usize = 256;

/// Most names of a directory that the guest is told at a time; of more it is told that the
/// directory has changed.
const MAX_NAMES: usize = 64;

/// Most reads of the kernel's queue before the guest is told.
const MAX_READS: usize = 256;

/// The sources of a pod that are watched.
#[derive(Debug, Default)]
pub struct Volumes {
    state: Mutex<State>,
    /// There is something to watch.
    begun: Notify,
}

#[derive(Debug, Default)]
struct State {
    inotify: Option<Inotify>,
    /// The sources of a watch: paths to the same file have one watch in common.
    watches: HashMap<WatchDescriptor, Vec<String>>,
    failure: Failure,
}

/// Of a watch. The first of a pod says what is to be said of all.
#[derive(Debug, Default)]
enum Failure {
    #[default]
    None,
    Untold(Error),
    Told,
}

impl Volumes {
    /// Watches what is at `source`, which the guest finds at `path` of the share. Without a
    /// watch the files are there all the same, and [`Volumes::failure`] tells why.
    pub fn watch(&self, source: &Path, path: &str) -> Option<Watch> {
        let mut state = self.state();
        let watched = self.try_watch(&mut state, source, path);
        if let (Err(why), Failure::None) = (&watched, &state.failure) {
            state.failure = Failure::Untold(Error::internal(format!(
                "programs that watch {} (inotify) are not told when the host changes it: {why}",
                source.display()
            )));
        }
        watched.ok()
    }

    /// Why a source is not watched: the first failure of the pod, once.
    pub fn failure(&self) -> Option<Error> {
        let mut state = self.state();
        match std::mem::replace(&mut state.failure, Failure::Told) {
            Failure::Untold(error) => Some(error),
            before => {
                state.failure = before;
                None
            }
        }
    }

    fn try_watch(&self, state: &mut State, source: &Path, path: &str) -> Result<Watch, String> {
        if state.watches.len() >= MAX_WATCHES {
            return Err(format!("a pod has {MAX_WATCHES} watches at most; give it fewer volumes"));
        }
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE;
        let inotify = match &state.inotify {
            Some(inotify) => inotify,
            None => {
                let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
                let inotify = Inotify::init(flags).map_err(|errno| match errno {
                    Errno::EMFILE => format!("{errno}; raise fs.inotify.max_user_instances"),
                    _ => errno.to_string(),
                })?;
                self.begun.notify_one();
                state.inotify.insert(inotify)
            }
        };
        let descriptor = inotify.add_watch(source, flags).map_err(|errno| match errno {
            Errno::ENOSPC => format!("{errno}; raise fs.inotify.max_user_watches"),
            _ => errno.to_string(),
        })?;
        state.watches.entry(descriptor).or_default().push(path.to_owned());
        Ok(Watch { descriptor, path: path.to_owned() })
    }

    pub fn unwatch(&self, watch: &Watch) {
        let mut state = self.state();
        let Some(paths) = state.watches.get_mut(&watch.descriptor) else { return };
        paths.retain(|path| *path != watch.path);
        if paths.is_empty() {
            state.watches.remove(&watch.descriptor);
            if let Some(inotify) = &state.inotify {
                // The file may be gone, and its watch with it.
                let _ = inotify.rm_watch(watch.descriptor);
            }
        }
    }

    /// Tells the guest of changes until it is gone. Does nothing until there is a watch.
    pub async fn follow(&self, agent: &Agent) {
        tokio::select! {
            () = self.begun.notified() => {}
            () = agent.lost() => return,
        }
        let events =
            self.state().inotify.as_ref().map(|inotify| inotify.as_fd().try_clone_to_owned());
        let Some(Ok(events)) = events else { return };
        let Ok(events) = reactor::watch(events, Interest::READABLE) else { return };
        loop {
            let mut ready = tokio::select! {
                Ok(ready) = events.readable() => ready,
                () = agent.lost() => return,
            };
            tokio::time::sleep(SETTLE).await;
            let (changed, more) = self.take();
            if !more {
                ready.clear_ready();
            }
            if !changed.is_empty() {
                let wake = Wake { changed, ..Default::default() };
                // The guest has said itself what it could not tell, unless it is gone.
                let _ = agent.call(Verb::Wake(wake)).await.and_then(done);
            }
        }
    }

    /// What has changed since the last time, and whether there may be more.
    fn take(&self) -> (Vec<Changed>, bool) {
        let state = self.state();
        let Some(inotify) = &state.inotify else { return (Vec::new(), false) };
        let mut changes = BTreeMap::new();
        for _ in 0..MAX_READS {
            match inotify.read_events() {
                Ok(events) => events.iter().for_each(|event| state.add(&mut changes, event)),
                Err(Errno::EINTR) => {}
                Err(_) => return (changes.into_values().collect(), false),
            }
        }
        (changes.into_values().collect(), true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it guards is whole at every instant.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Adds an event to the changes of the paths that it is of.
    fn add<'a>(&'a self, changes: &mut BTreeMap<&'a str, Changed>, event: &InotifyEvent) {
        let all = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
        let concerned = self.watches.iter().filter(|(wd, _)| all || **wd == event.wd);
        for path in concerned.flat_map(|(_, paths)| paths) {
            let changed = changes
                .entry(path)
                .or_insert_with(|| Changed { path: path.clone(), ..Default::default() });
            note(changed, event.mask, event.name.as_deref());
        }
    }
}

/// Adds an event to what has changed at a path. The last thing that became of a name counts.
fn note(changed: &mut Changed, mask: AddWatchFlags, name: Option<&OsStr>) {
    let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
    let came = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    let Some(name) = name.map(OsStr::as_bytes) else {
        // Not that the watch has ended.
        changed.itself |= !mask.contains(AddWatchFlags::IN_IGNORED);
        return;
    };
    let is_new = changed.replaced.iter().any(|known| known == name);
    if !is_new || mask.intersects(gone | came) {
        for names in [&mut changed.replaced, &mut changed.modified, &mut changed.removed] {
            names.retain(|known| known != name);
        }
    } else {
        // It is read when it is found.
        return;
    }
    let known = [&changed.replaced, &changed.modified, &changed.removed];
    let full = known.iter().map(|names| names.len()).sum::<usize>() >= MAX_NAMES;
    changed.itself |= full || mask.intersects(gone);
    match () {
        () if full => {}
        () if mask.intersects(gone) => changed.removed.push(name.to_vec()),
        () if mask.intersects(came) => changed.replaced.push(name.to_vec()),
        () => changed.modified.push(name.to_vec()),
    }
}

/// A source that is watched, until [`Volumes::unwatch`].
#[derive(Debug)]
pub struct Watch {
    descriptor: WatchDescriptor,
    path: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn names(list: &[Vec<u8>]) -> Vec<String> {
        list.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    #[test]
    fn the_names_are_the_servers() {
        use husk_vmm::virtio::fs;
        assert_eq!(husk_protocol::WAKE_NAME.as_bytes(), fs::WAKE_NAME);
        assert_eq!(husk_protocol::WAKE_SECOND, fs::WAKE_SECOND);
        assert_eq!(husk_protocol::GONE_NAME.as_bytes(), fs::GONE_NAME);
    }

    #[test]
    fn an_atomic_update_is_one_change_with_the_link_that_is_new() {
        let dir = tempfile::tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("..1")).expect("directory");
        symlink("..1", path("..data")).expect("link");
        let volumes = Volumes::default();
        assert_eq!(volumes.take(), (vec![], false));
        let watch = volumes.watch(dir.path(), ".binds/1").expect("watch");
        let again = volumes.watch(dir.path(), ".binds/2").expect("watch");
        fs::create_dir(path("..2")).expect("directory");
        fs::write(path("..2/key"), "x").expect("file");
        symlink("..2", path("..data_tmp")).expect("link");
        fs::rename(path("..data_tmp"), path("..data")).expect("rename");
        fs::remove_dir(path("..1")).expect("remove");
        let (changed, more) = volumes.take();
        assert!(!more);
        assert_eq!(changed.len(), 2);
        assert_eq!((&*changed[0].path, &*changed[1].path), (".binds/1", ".binds/2"));
        assert_eq!(names(&changed[0].replaced), ["..2", "..data"]);
        assert_eq!(names(&changed[0].removed), ["..data_tmp", "..1"]);
        assert!(changed[0].modified.is_empty() && changed[0].itself);

        volumes.unwatch(&again);
        fs::write(path("plain"), "x").expect("file");
        let (changed, _) = volumes.take();
        assert_eq!((changed.len(), names(&changed[0].replaced)), (1, vec!["plain".to_owned()]));
        fs::write(path("plain"), "y").expect("file");
        let (changed, _) = volumes.take();
        assert_eq!(names(&changed[0].modified), ["plain"]);
        assert!(changed[0].replaced.is_empty() && !changed[0].itself);
        volumes.unwatch(&watch);
        fs::write(path("plain"), "z").expect("file");
        assert_eq!(volumes.take(), (vec![], false));
    }

    #[test]
    fn a_file_is_watched_itself_and_many_names_are_cut() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("file");
        fs::write(&file, "x").expect("file");
        let volumes = Volumes::default();
        volumes.watch(&file, ".binds/1").expect("watch");
        fs::write(&file, "y").expect("file");
        let (changed, _) = volumes.take();
        assert_eq!((changed.len(), changed[0].itself), (1, true));

        let many = dir.path().join("many");
        fs::create_dir(&many).expect("directory");
        volumes.watch(&many, ".binds/2").expect("watch");
        (0..=MAX_NAMES).for_each(|n| fs::write(many.join(n.to_string()), "").expect("file"));
        let (changed, _) = volumes.take();
        assert_eq!((changed[0].replaced.len(), changed[0].itself), (MAX_NAMES, true));
    }

    #[test]
    fn a_pod_has_so_many_watches_and_no_more() {
        let dir = tempfile::tempdir().expect("directory");
        let volumes = Volumes::default();
        for n in 0..=MAX_WATCHES {
            let file = dir.path().join(n.to_string());
            fs::write(&file, "").expect("file");
            assert_eq!(volumes.watch(&file, "x").is_some(), n < MAX_WATCHES);
            assert_eq!(volumes.failure().is_some(), n == MAX_WATCHES);
        }
        assert!(volumes.watch(dir.path(), "y").is_none());
        assert!(volumes.failure().is_none(), "it is said once");
    }
}
