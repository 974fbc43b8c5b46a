// SPDX-License-Identifier: Apache-2.0

//! What programs expect of a file system, as named cases that run on any directory: on ext4,
//! where all of them hold, and on what a container sees. A file is a subject. Each case is a
//! process of its own, in an empty directory of its own that is its working directory, so
//! names in cases are relative.

mod access;
mod acl;
mod calls;
mod content;
pub mod directories;
mod locks;
mod mapping;
mod names;
mod open;
mod process;
mod random;
mod renames;
mod sockets;
mod space;
mod times;
pub mod tree;
mod xattrs;

use std::fmt::Display;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::panic::Location;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use process::Ended;

/// How a case comes out.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Why a case did not pass. Any error becomes one, with the line where it came up.
pub enum Failure {
    Differs(String),
    /// It cannot be tried here.
    Skipped(String),
}

impl<E: Display> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Failure {
        Failure::Differs(format!("{error} ({})", Location::caller()))
    }
}

pub type Case = (&'static str, fn() -> Outcome);

/// Subjects by name, with their cases.
pub const SUBJECTS: [(&str, &[Case]); 14] = [
    ("access", access::CASES),
    ("acl", acl::CASES),
    ("content", content::CASES),
    ("directories", directories::CASES),
    ("locks", locks::CASES),
    ("mapping", mapping::CASES),
    ("names", names::CASES),
    ("open", open::CASES),
    ("random", random::CASES),
    ("renames", renames::CASES),
    ("sockets", sockets::CASES),
    ("space", space::CASES),
    ("times", times::CASES),
    ("xattrs", xattrs::CASES),
];

/// What cases may be told about where they run.
#[derive(Default)]
pub struct Setting {
    /// In a container of husk, whose rules are stricter in the points that
    /// docs/architecture.md names.
    pub husk: bool,
    /// How many entries a large directory has.
    pub entries: usize,
    /// How many operations a random case makes.
    pub operations: usize,
}

static SETTING: OnceLock<Setting> = OnceLock::new();

fn setting() -> &'static Setting {
    SETTING.get_or_init(Setting::default)
}

/// Runs the cases whose `subject/name` starts with one of the words, or all if there are none,
/// below `directory`; prints a line for each. True when none failed.
pub fn run(directory: &Path, words: &[String], setting: Setting) -> std::io::Result<bool> {
    let _ = SETTING.set(setting);
    let (mut passed, mut skipped, mut failed) = (0, 0, 0);
    for (subject, cases) in SUBJECTS {
        for (name, body) in cases {
            let name = format!("{subject}/{name}");
            if !words.is_empty() && !words.iter().any(|word| name.starts_with(word)) {
                continue;
            }
            let started = Instant::now();
            let own = directory.join(name.replace('/', "-"));
            std::fs::DirBuilder::new().mode(0o755).create(&own)?;
            // Whatever the umask and the directory's own set-group-ID say.
            std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755))?;
            let ended = process::run(|| {
                std::env::set_current_dir(&own)?;
                body()
            })?;
            let removed = std::fs::remove_dir_all(&own);
            let ended = match (ended, removed) {
                (Ended::Passed, Err(error)) => Ended::Failed(format!("cannot remove it: {error}")),
                (ended, _) => ended,
            };
            let (count, line) = match ended {
                Ended::Passed => (&mut passed, format!("ok {name}")),
                Ended::Skipped(why) => (&mut skipped, format!("skipped {name}: {why}")),
                Ended::Failed(why) => (&mut failed, format!("FAILED {name}: {why}")),
            };
            *count += 1;
            println!("{line} [{} ms]", started.elapsed().as_millis());
            std::io::stdout().flush()?;
        }
    }
    println!("{passed} passed, {skipped} skipped, {failed} failed");
    Ok(failed == 0 && passed > 0)
}
