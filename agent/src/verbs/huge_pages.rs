// SPDX-License-Identifier: Apache-2.0

//! SetHugePages: how many of its pages the guest keeps for huge ones; and the file systems in
//! which the pod's containers have them in common, which Create names. Pages that a file has
//! are counted in the pool, whoever wrote it, until it is removed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::{HugePages, SetHugePages};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::time::{Instant, sleep};

use crate::agent::Agent;
use crate::engine::wait;
use crate::error::{Doing, Error, Result};
use crate::verbs::done;

/// The kernel's pool of huge pages of 2 MiB.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// How long memory that was added a moment ago may take to be on line. Nothing tells.
const LIMIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

pub async fn set_huge_pages(agent: &Agent, request: &SetHugePages) -> Result<Outcome> {
    let _resizing = agent.resizing.lock().await;
    let (pool, wanted) = (Path::new(POOL), request.pages);
    let before = kept(pool)?;
    let deadline = Instant::now() + LIMIT;
    let most = loop {
        // The kernel moves what is in the way, and gives up by itself.
        wait::apart(|| keep(pool, wanted)).await?;
        match kept(pool)? {
            kept if kept >= wanted => return Ok(done()),
            kept if Instant::now() >= deadline => break kept,
            _ => sleep(PAUSE).await,
        }
    };
    wait::apart(|| keep(pool, before)).await?;
    Err(Error::unavailable(format!(
        "the guest has memory for {most} huge pages in one piece each, and not for {wanted}; give \
         its VM more (vm.memory_mib in husk's settings), or the containers lower limits"
    )))
}

fn keep(pool: &Path, pages: u64) -> std::result::Result<(), String> {
    let file = pool.join("nr_hugepages");
    fs::write(&file, pages.to_string())
        .map_err(|error| format!("cannot write {pages} to {file:?}: {error}"))
}

/// How many pages the pool keeps when they are free. Of more it lets go then.
fn kept(pool: &Path) -> Result<u64> {
    let number = |name: &str| {
        let text = fs::read_to_string(pool.join(name)).doing(format!("read {POOL}/{name}"))?;
        text.trim().parse::<u64>().doing(format!("understand {POOL}/{name}: {text:?}"))
    };
    Ok(number("nr_hugepages")?.saturating_sub(number("surplus_hugepages")?))
}

/// Makes the file systems that are not there yet.
pub fn mount_all(volumes: &[HugePages]) -> Result<()> {
    volumes.iter().try_for_each(|volume| {
        let path = Path::new(&volume.path);
        let parent = path.parent().unwrap_or(path);
        fs::create_dir_all(parent).doing(format!("create {parent:?}"))?;
        match fs::create_dir(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
            made => made.doing(format!("create {path:?}"))?,
        }
        let made = mount_one(volume, path);
        if made.is_err() {
            // The next container that wants it tries again.
            let _ = umount2(path, MntFlags::MNT_DETACH);
            let _ = fs::remove_dir(path);
        }
        made
    })
}

fn mount_one(volume: &HugePages, path: &Path) -> Result<()> {
    let size = match volume.size {
        0 => String::new(),
        bytes => format!(",size={bytes}"),
    };
    let (flags, kind) = (MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "hugetlbfs");
    let options = format!("pagesize=2M{size}");
    mount(Some(kind), path, Some(kind), flags, Some(options.as_str()))
        .doing(format!("mount huge pages ({options}) on {path:?}"))?;
    // As an option the mode would lose its set-ID bits, which pass the group on.
    chown(path, Some(volume.uid), Some(volume.gid))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(volume.mode)))
        .doing(format!("give {path:?} its owner and mode"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_beyond_the_pool_are_not_kept() {
        let pool = tempfile::tempdir().expect("directory");
        let write = |name: &str, text: &str| {
            fs::write(pool.path().join(name), text).expect("write");
        };
        write("surplus_hugepages", "3\n");
        keep(pool.path(), 8).expect("write");
        assert_eq!(kept(pool.path()), Ok(5));
        write("nr_hugepages", "many\n");
        let error = kept(pool.path()).expect_err("no number");
        assert!(error.message.contains("nr_hugepages: \"many\\n\""), "{}", error.message);
    }
}
