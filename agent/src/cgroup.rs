// SPDX-License-Identifier: Apache-2.0

//! One container's cgroup (v2): its processes, its state and its files. What goes into the
//! limit files is decided in `resources`.

use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::boot::CGROUPS;
use crate::error::{Doing, Error, Result};

pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup of container `id`, whether or not it exists.
    pub fn of(id: &str) -> Self {
        Self::at(&Path::new(CGROUPS).join(id))
    }

    /// The cgroup whose directory is `path`.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn create(&self) -> Result<()> {
        std::fs::create_dir(&self.path).doing(format!("create {:?}", self.path))
    }

    /// Creates it with those above it, each with every controller that there is for it. It
    /// may exist, without processes.
    pub fn create_in_tree(&self) -> Result<()> {
        let mount = mount_point()?;
        let mut parent = mount.clone();
        for name in self.path.strip_prefix(&mount).doing("find the cgroup")?.components() {
            // A cgroup with processes cannot have its controllers used below; limits that
            // need one that is missing will say so.
            let above = Self::at(&parent);
            let offered = above.read("cgroup.controllers").unwrap_or_default();
            for controller in offered.split_whitespace() {
                let _ = above.write("cgroup.subtree_control", &format!("+{controller}"));
            }
            parent.push(name);
            match std::fs::create_dir(&parent) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(e).doing(format!("create {parent:?}"));
                }
                _ => {}
            }
        }
        if !self.path.join("cgroup.kill").exists() {
            return Err(Error::precondition(
                "this kernel cannot kill a cgroup; Linux 5.14 or later is needed",
            ));
        }
        match self.counter("cgroup.events", "populated") {
            0 => Ok(()),
            _ => Err(Error::exists(format!("the cgroup {:?} has processes already", self.path))),
        }
    }

    /// Content of one of its files. The error is the kernel's, for callers that know what
    /// a missing file means.
    pub fn read(&self, file: &str) -> io::Result<String> {
        std::fs::read_to_string(self.path.join(file))
    }

    pub fn write(&self, file: &str, value: &str) -> io::Result<()> {
        // Not created: a file that is missing is the kernel's to miss.
        let mut file = std::fs::OpenOptions::new().write(true).open(self.path.join(file))?;
        file.write_all(value.as_bytes())
    }

    /// The value of `key` in a file of `key value` lines; 0 where there is none.
    pub fn counter(&self, file: &str, key: &str) -> u64 {
        self.read(file).ok().and_then(|text| keyed(&text, key)).unwrap_or(0)
    }

    /// Pids of all processes in it and below.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for directory in self.tree() {
            let file = directory.join("cgroup.procs");
            match std::fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse::<u32>().ok())),
                // Threaded cgroups do not list processes; those that vanished have none.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV)) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).doing(format!("read {file:?}")),
            }
        }
        Ok(pids)
    }

    /// Sends SIGKILL to all processes in it and below, in one step. Nothing to do where
    /// there is no cgroup.
    pub fn kill(&self) -> Result<()> {
        match self.write("cgroup.kill", "1") {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).doing(format!("kill the processes of {:?}", self.path))
            }
            _ => Ok(()),
        }
    }

    /// Sends a signal to all processes in it and below.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        for pid in self.pids()? {
            // SAFETY: kill() takes no pointers. A process that has just ended is no error.
            unsafe { libc::kill(pid as i32, signal) };
        }
        Ok(())
    }

    /// Stops or continues all processes in it and below, and waits until that is so.
    pub async fn freeze(&self, frozen: bool, limit: Duration) -> Result<()> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value).doing(format!("freeze {:?}", self.path))?;
        if self.wait_for("frozen", u64::from(frozen), limit).await? {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "the container's processes did not {} within {} s",
            if frozen { "stop" } else { "continue" },
            limit.as_secs()
        )))
    }

    /// Waits until no process is left and removes it with all that is below.
    pub async fn remove(&self, limit: Duration) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        if !self.wait_for("populated", 0, limit).await? {
            return Err(Error::internal(format!(
                "processes of {:?} still run {} s after they were killed",
                self.path,
                limit.as_secs()
            )));
        }
        for directory in self.tree().iter().rev() {
            match std::fs::remove_dir(directory) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(e).doing(format!("remove {directory:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Watches one of its event files.
    pub fn watch(&self, file: &str) -> io::Result<Watch> {
        let file = std::fs::File::open(self.path.join(file))?;
        // SAFETY: a File's descriptor stays the same and open until it is dropped.
        Ok(Watch { file: unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY)? } })
    }

    /// Waits until `key` of cgroup.events has `value`; false when `limit` passed before.
    async fn wait_for(&self, key: &str, value: u64, limit: Duration) -> Result<bool> {
        let what = || format!("watch {:?}/cgroup.events", self.path);
        let deadline = Instant::now() + limit;
        let watch = self.watch("cgroup.events").doing(what())?;
        loop {
            if keyed(&watch.read().doing(what())?, key) == Some(value) {
                return Ok(true);
            }
            match tokio::time::timeout_at(deadline, watch.changed()).await {
                Ok(changed) => changed.doing(what())?,
                Err(_) => return Ok(false),
            }
        }
    }

    /// Its directory and those below, parents first.
    fn tree(&self) -> Vec<PathBuf> {
        let mut found = vec![self.path.clone()];
        let mut next = 0;
        while let Some(directory) = found.get(next) {
            next += 1;
            let Ok(entries) = std::fs::read_dir(directory) else { continue };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(entry.path());
                }
            }
        }
        found
    }
}

/// Where below the root of the cgroups a container's cgroup is to be. `linux.cgroupsPath` is
/// a path, or `slice:prefix:name` for what systemd would make of that; without one it is a
/// directory of ours.
pub fn cgroup_path(spec: &Spec, id: &str) -> std::result::Result<PathBuf, String> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let path = match path {
        Some(path) if path != Path::new("") => path,
        _ => return Ok(Path::new("husk").join(id)),
    };
    let text = path.to_str().ok_or_else(|| format!("cgroupsPath {path:?} is not UTF-8"))?;
    if !path.has_root()
        && let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..]
    {
        return unit_path(slice, prefix, name)
            .map_err(|why| format!("cgroupsPath {text:?}: {why}"));
    }
    let mut below = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => below.push(name),
            // Above the root is the root.
            Component::ParentDir => drop(below.pop()),
            _ => {}
        }
    }
    if below == Path::new("") {
        return Err(format!("cgroupsPath {text:?} is the root, which is everybody's"));
    }
    Ok(below)
}

/// The directory of a unit: a scope, unless its name is a slice's. `a-b.slice` is in `a.slice`.
fn unit_path(slice: &str, prefix: &str, name: &str) -> std::result::Result<PathBuf, String> {
    let unit = match (name, prefix) {
        ("", _) => return Err("there is no name".to_owned()),
        (name, _) if name.ends_with(".slice") => name.to_owned(),
        (name, "") => format!("{name}.scope"),
        (name, prefix) => format!("{prefix}-{name}.scope"),
    };
    if unit.contains('/') {
        return Err(format!("invalid unit name: {unit}"));
    }
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let invalid = || format!("invalid slice name: {slice}");
    let stem = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    let mut path = PathBuf::new();
    // The root has this name.
    if stem != "-" {
        if stem.contains('/') || stem.split('-').any(str::is_empty) {
            return Err(invalid());
        }
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        path.extend(ends.map(|end| format!("{}.slice", &stem[..end])));
    }
    Ok(path.join(unit))
}

/// An event file of a cgroup; the kernel reports changes as urgent data.
pub struct Watch {
    file: AsyncFd<std::fs::File>,
}

impl Watch {
    pub fn read(&self) -> io::Result<String> {
        let mut buffer = [0; 1024];
        let length = self.file.get_ref().read_at(&mut buffer, 0)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Returns when the file may have changed since it was last read.
    pub async fn changed(&self) -> io::Result<()> {
        self.file.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

/// Where the cgroup v2 hierarchy is mounted; at its usual place if there are several.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").doing("list the mounts")?;
    let points = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then(|| PathBuf::from(point.replace("\\040", " ")))
    });
    let usual = |point: &PathBuf| !point.starts_with("/sys/fs/cgroup");
    points.min_by_key(usual).ok_or_else(|| {
        Error::precondition(
            "there is no cgroup v2 hierarchy; mount it: mount -t cgroup2 none /sys/fs/cgroup",
        )
    })
}

/// The value of `key` in lines of `key value`.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    pairs(text).find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// All numeric `key value` lines.
pub fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_lines_are_found_by_their_whole_key() {
        let text = "populated 1\nfrozen 0\noom 3\noom_kill 2\n";
        assert_eq!(keyed(text, "populated"), Some(1));
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "max"), None);
        assert_eq!(keyed("max max\n", "max"), None);
    }

    #[test]
    fn a_container_without_a_cgroup_has_nothing_to_kill() {
        let cgroup = Cgroup::at(Path::new("/nonexistent/husk"));
        assert_eq!(cgroup.kill(), Ok(()));
        assert_eq!(cgroup.pids(), Ok(Vec::new()));
        assert_eq!(cgroup.counter("memory.events", "oom_kill"), 0);
    }

    #[test]
    fn a_cgroup_is_where_the_configuration_says() {
        let path = |path: Option<&str>| {
            let mut spec = Spec::default();
            let linux = spec.linux_mut().as_mut().expect("linux");
            linux.set_cgroups_path(path.map(PathBuf::from));
            cgroup_path(&spec, "c")
        };
        for (given, want) in [
            (None, "husk/c"),
            (Some(""), "husk/c"),
            (Some("/a/b"), "a/b"),
            (Some("a/b"), "a/b"),
            (Some("/a//./b/"), "a/b"),
            (Some("/../../a/../b"), "b"),
            (Some("/a:b:c"), "a:b:c"),
            (Some("a:b"), "a:b"),
            (Some("system.slice:docker:1"), "system.slice/docker-1.scope"),
            (Some(":docker:1"), "system.slice/docker-1.scope"),
            (Some("-.slice:cri:1"), "cri-1.scope"),
            (Some("user.slice::1"), "user.slice/1.scope"),
            (Some("a.slice:x:a-b.slice"), "a.slice/a-b.slice"),
            (
                Some("kubepods-burstable-pod1_2.slice:cri-containerd:c"),
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/\
                 cri-containerd-c.scope",
            ),
        ] {
            assert_eq!(path(given), Ok(want.into()), "{given:?}");
        }
        for (given, want) in [
            ("/", "is the root"),
            ("a/..", "is the root"),
            ("system:docker:1", "invalid slice name: system"),
            (".slice:docker:1", "invalid slice name: .slice"),
            ("a--b.slice:docker:1", "invalid slice name: a--b.slice"),
            ("a/b.slice:docker:1", "invalid slice name: a/b.slice"),
            ("a.slice:docker:../1", "invalid unit name: docker-../1.scope"),
            ("a.slice:docker:", "there is no name"),
        ] {
            let error = path(Some(given)).expect_err(given);
            assert!(error.contains(want), "{error}");
        }
    }
}
