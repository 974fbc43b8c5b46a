// SPDX-License-Identifier: Apache-2.0

//! The pod's cgroup on the host: husk-vmm and the process that supervises it live where the
//! pod's first container has its `linux.cgroupsPath`, so that what the host gives the pod
//! (its parent, for Kubernetes) holds for all of it and is counted there. Limits are not
//! written here: those of containers hold in the guest, those of a pod are its parent's.
//! Version 2, or every hierarchy of version 1.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext};

/// Where they are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// What a cgroup of version 2 hands down to the pods below it, where it has it.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Where version 2 and version 1 limit huge pages of 2 MiB, from [`ROOT`] on: what is before
/// the cgroup's path, and the file in it.
const HUGE_PAGES: [(&str, &str); 2] =
    [("", "hugetlb.2MB.max"), ("hugetlb", "hugetlb.2MB.limit_in_bytes")];

/// How long a cgroup may take to lose processes that have been killed.
const EMPTY_LIMIT: Duration = Duration::from_secs(1);

/// Where a cgroup is on this host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Places {
    /// One for version 2; one for each hierarchy of version 1.
    places: Vec<Place>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    directory: PathBuf,
    /// Where its makers were before, and go when it is removed.
    home: PathBuf,
}

/// Where version 2 and version 1 count what the host's OOM killer took from a cgroup: lines of
/// names and numbers.
const OOM_FILES: [&str; 2] = ["memory.events", "memory.oom_control"];

/// What the host's OOM killer takes from a cgroup.
#[derive(Debug, Clone, Default)]
pub struct OomKills {
    /// None where it is not counted.
    file: Option<PathBuf>,
    before: u64,
}

/// A pod's cgroup; dropping it moves its processes to where its maker was, and removes it.
#[derive(Debug)]
pub struct Cgroup(Places);

impl Places {
    /// Where a `cgroupsPath` is on this host. None for a container without one, and on a
    /// host without cgroups.
    pub fn of(cgroups_path: &str) -> Result<Places, Error> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Places::below(Path::new(ROOT), cgroups_path, &own)
    }

    fn below(root: &Path, cgroups_path: &str, own: &str) -> Result<Places, Error> {
        let Some(path) = relative(cgroups_path)? else { return Ok(Places { places: Vec::new() }) };
        let place = |root: PathBuf, own: &str| Place {
            directory: root.join(&path),
            home: root.join(own.trim_start_matches('/')),
        };
        let mut places = Vec::new();
        // hierarchy:controllers:path, with neither number nor controllers for version 2.
        for line in own.lines() {
            let mut words = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(own)) = (words.next(), words.next()) else { continue };
            let mounted = root.join(controllers.trim_start_matches("name="));
            match controllers {
                "" if root.join("cgroup.controllers").exists() => {
                    places.push(place(root.to_owned(), own));
                }
                "" | "cpuset" => {} // of version 1 it takes no process before it is set up
                _ if mounted.is_dir() => places.push(place(mounted, own)),
                _ => {}
            }
        }
        Ok(Places { places })
    }

    /// Refuses cgroups in which processes of others are: they would be counted and limited
    /// with the pod, and moved away at its end.
    pub fn refuse_others(&self) -> Result<(), Error> {
        let own = std::process::id().to_string();
        for Place { directory, .. } in &self.places {
            if let Some(other) = processes_below(directory).iter().find(|pid| **pid != own) {
                return Err(Error::precondition(format!(
                    "linux.cgroupsPath of the container's config.json names a cgroup that has \
                     other processes: {} has {other}; give the container one of its own",
                    directory.display()
                )));
            }
        }
        Ok(())
    }

    /// Moves what is still in there to where the makers were, and removes the directories.
    pub fn remove(&self) -> Result<(), Error> {
        let mut errors = Vec::new();
        for place in &self.places {
            if let Err(error) = place.remove() {
                errors.push(format!("cannot remove {}: {error}", place.directory.display()));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join("; "))) }
    }
}

impl Cgroup {
    /// Makes the directories and moves this process there. Of what fails nothing is left.
    pub fn enter(places: Places) -> Result<Cgroup, Error> {
        let cgroup = Cgroup(places);
        for place in &cgroup.0.places {
            let directory = &place.directory;
            make(directory).context(|| format!("cannot make {}", directory.display()))?;
            write(&directory.join("cgroup.procs"), "0")
                .context(|| format!("cannot move to the cgroup {}", directory.display()))?;
        }
        Ok(cgroup)
    }

    /// Begins to count.
    pub fn oom_kills(&self) -> OomKills {
        let files = self
            .0
            .places
            .iter()
            .flat_map(|place| OOM_FILES.iter().map(move |file| place.directory.join(file)));
        let mut counted = files.map(|file| OomKills { before: oom_kills(&file), file: Some(file) });
        let exists = |kills: &OomKills| kills.file.as_ref().is_some_and(|file| file.exists());
        counted.find(exists).unwrap_or_default()
    }

    /// Removes it and reports what could not be removed. What has been killed there may take
    /// its time, so it is waited for beside the caller's thread.
    pub async fn remove(mut self) -> Result<(), Error> {
        let places = Places { places: std::mem::take(&mut self.0.places) };
        let work = tokio::task::spawn_blocking(move || places.remove());
        work.await.map_err(|_| Error::internal("the removal of a cgroup was given up"))?
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // `delete` repeats this and reports.
        let _ = self.0.remove();
    }
}

impl OomKills {
    /// Whether a process was taken since this was made.
    pub fn happened(&self) -> bool {
        self.file.as_deref().is_some_and(|file| oom_kills(file) > self.before)
    }
}

/// Bytes in huge pages that a pod may use, by the cgroup above that of its first container: the
/// kubelet writes there what its containers may use together. None without a limit.
pub fn huge_pages_of_pod(cgroups_path: &str) -> Option<u64> {
    huge_pages_above(Path::new(ROOT), cgroups_path)
}

fn huge_pages_above(root: &Path, cgroups_path: &str) -> Option<u64> {
    let path = relative(cgroups_path).ok()??;
    let limit = HUGE_PAGES.iter().find_map(|(hierarchy, file)| {
        fs::read_to_string(root.join(hierarchy).join(path.parent()?).join(file)).ok()
    })?;
    // Version 1 has a number for no limit, too: as many pages as fit.
    limit.trim().parse().ok().filter(|&bytes| bytes < 1 << 62)
}

fn oom_kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
    count.unwrap_or(0)
}

impl Place {
    fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + EMPTY_LIMIT;
        loop {
            let processes = match fs::read_to_string(self.directory.join("cgroup.procs")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                processes => processes?,
            };
            for process in processes.lines() {
                // One that has ended meanwhile is where it should be.
                let _ = write(&self.home.join("cgroup.procs"), process);
            }
            match fs::remove_dir(&self.directory) {
                // Processes that were killed and are not quite gone.
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                removed => return removed,
            }
        }
    }
}

/// The processes of a cgroup and of all below it; none of one that is not there.
fn processes_below(directory: &Path) -> Vec<String> {
    let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<_> = processes.lines().map(str::to_owned).collect();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes_below(&entry.path()));
        }
    }
    found
}

/// The path below a hierarchy's root. `slice:prefix:name` is systemd's notation.
fn relative(cgroups_path: &str) -> Result<Option<PathBuf>, Error> {
    if cgroups_path.is_empty() {
        return Ok(None);
    }
    let words: Vec<&str> = cgroups_path.split(':').collect();
    let path = match words[..] {
        [slice, prefix, name] if !cgroups_path.contains('/') => {
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            below_slices(slice).join(match name.ends_with(".slice") {
                true => name.to_owned(),
                false => format!("{prefix}-{name}.scope"),
            })
        }
        _ => PathBuf::from(cgroups_path.trim_start_matches('/')),
    };
    let inside = |part| matches!(part, Component::Normal(_));
    match path.components().all(inside) && path.components().next().is_some() {
        true => Ok(Some(path)),
        false => Err(Error::invalid(format!(
            "linux.cgroupsPath {cgroups_path:?} of the container's config.json is no path of a \
             cgroup"
        ))),
    }
}

/// `a-b.slice` is in `a.slice`.
fn below_slices(slice: &str) -> PathBuf {
    let name = slice.trim_end_matches(".slice");
    let dashes = name.match_indices('-').map(|(at, _)| at);
    dashes.chain([name.len()]).map(|end| format!("{}.slice", &name[..end])).collect()
}

/// Makes it and what is above; each one above hands its controllers down.
fn make(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let above: Vec<_> = directory.ancestors().skip(1).collect();
    for parent in above.into_iter().rev() {
        let control = parent.join("cgroup.subtree_control");
        for controller in CONTROLLERS {
            // One that is not there, or not to be had, limits and counts nothing.
            let _ = write(&control, &format!("+{controller}"));
        }
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).open(file)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(cgroups_path: &str) -> String {
        let path = relative(cgroups_path).expect(cgroups_path);
        path.expect("a path").display().to_string()
    }

    #[test]
    fn both_notations_are_paths() {
        assert_eq!(path("/default/c1"), "default/c1");
        assert_eq!(path("kubepods/pod1/c1"), "kubepods/pod1/c1");
        assert_eq!(
            path("kubepods-burstable-podX.slice:cri-containerd:c1"),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/\
             cri-containerd-c1.scope"
        );
        assert_eq!(path(":docker:c1"), "system.slice/docker-c1.scope");
        assert!(relative("").expect("none").is_none());
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for bad in ["/", "/a/../../b", ".."] {
            let error = relative(bad).expect_err(bad);
            assert!(error.message.contains(bad), "{error}");
        }
    }

    #[test]
    fn the_limit_of_huge_pages_is_that_of_the_cgroup_above() {
        let root = tempfile::tempdir().expect("directory");
        let limit = |text: &str, file: &str| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().expect("a directory")).expect("mkdir");
            fs::write(file, text).expect("write");
            huge_pages_above(root.path(), "/pods/pod1/c1")
        };
        assert_eq!(huge_pages_above(root.path(), "/pods/pod1/c1"), None);
        assert_eq!(huge_pages_above(root.path(), ""), None);
        let v1 = "hugetlb/pods/pod1/hugetlb.2MB.limit_in_bytes";
        assert_eq!(limit("9223372036852678656\n", v1), None);
        assert_eq!(limit("4194304\n", v1), Some(4 << 20));
        let v2 = "pods/pod1/hugetlb.2MB.max";
        assert_eq!(limit("max\n", v2), None);
        assert_eq!(limit("0\n", v2), Some(0));
        assert_eq!(limit("2097152\n", v2), Some(2 << 20));
    }

    #[test]
    fn places_are_those_of_the_hosts_version() {
        let root = tempfile::tempdir().expect("directory");
        let directories = |own| {
            let places = Places::below(root.path(), "/pod/c", own).expect("places").places;
            let below =
                |path: &Path| path.strip_prefix(root.path()).expect("below").display().to_string();
            places
                .iter()
                .map(|place| (below(&place.directory), below(&place.home)))
                .collect::<Vec<_>>()
        };
        let both = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(directories("0::/service\n"), []);
        for hierarchy in ["memory", "cpu,cpuacct", "systemd", "cpuset"] {
            fs::create_dir(root.path().join(hierarchy)).expect("mkdir");
        }
        assert_eq!(
            directories("4:memory:/s\n3:cpu,cpuacct:/\n2:cpuset:/\n1:name=systemd:/s\n0::/s\n"),
            [
                both("memory/pod/c", "memory/s"),
                both("cpu,cpuacct/pod/c", "cpu,cpuacct"),
                both("systemd/pod/c", "systemd/s"),
            ]
        );
        fs::write(root.path().join("cgroup.controllers"), "").expect("write");
        assert_eq!(directories("0::/service\n"), [both("pod/c", "service")]);
    }

    /// A cgroup with these processes: a directory with the file that lists them.
    fn cgroup(directory: &Path, processes: &str) -> Places {
        fs::create_dir_all(directory).expect("mkdir");
        fs::write(directory.join("cgroup.procs"), processes).expect("write");
        Places { places: vec![Place { directory: directory.into(), home: "/nonexistent".into() }] }
    }

    #[test]
    fn processes_of_others_are_refused() {
        let root = tempfile::tempdir().expect("directory");
        let pod = root.path().join("pod");
        let own = format!("{}\n", std::process::id());
        let places = cgroup(&pod, &own);
        places.refuse_others().expect("this process alone");
        cgroup(&pod.join("below"), "");
        places.refuse_others().expect("empty ones below");
        cgroup(&pod.join("below/further"), "4194305\n");
        let error = places.refuse_others().expect_err("another below");
        assert!(error.message.contains("cgroupsPath") && error.message.contains("4194305"));
        cgroup(&pod, &format!("{own}4194306\n"));
        let error = places.refuse_others().expect_err("another beside this one");
        assert!(error.message.contains("4194306"), "{error}");
    }

    #[tokio::test]
    async fn removal_waits_beside_the_callers_thread() {
        let root = tempfile::tempdir().expect("directory");
        // What is in the way goes only if this thread goes on meanwhile.
        let busy = root.path().join("busy");
        let removal = Cgroup(cgroup(&busy, "")).remove();
        let (removed, ()) = tokio::join!(removal, async {
            fs::remove_file(busy.join("cgroup.procs")).expect("remove");
        });
        removed.expect("it is removed");
    }

    #[test]
    fn what_is_not_there_is_removed() {
        let places = Places {
            places: vec![Place { directory: "/nonexistent/a".into(), home: "/nonexistent".into() }],
        };
        places.remove().expect("nothing to do");
    }

    #[test]
    fn what_the_oom_killer_takes_is_counted_from_now_on() {
        for file in OOM_FILES {
            let root = tempfile::tempdir().expect("directory");
            let place = Place { directory: root.path().into(), home: "/nonexistent".into() };
            let cgroup = Cgroup(Places { places: vec![place] });
            let count = |kills: u32| {
                let text = format!("max 9\noom_kill {kills}\noom_group_kill 5\n");
                fs::write(root.path().join(file), text).expect("write");
            };
            count(3);
            let kills = cgroup.oom_kills();
            assert!(!kills.happened(), "{file}");
            count(4);
            assert!(kills.happened(), "{file}");
        }
        assert!(!OomKills::default().happened());
    }
}
