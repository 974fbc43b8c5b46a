// SPDX-License-Identifier: Apache-2.0

//! What a failed case shows.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::Lab;

/// Lines of containerd's log and of a guest's console, from the end.
const LOG_LINES: usize = 60;
const CONSOLE_LINES: usize = 30;

/// Prints commands, log and consoles to stderr.
pub fn print(lab: &Lab, subject: &str) {
    eprintln!("--- failed: {subject}");
    for trace in lab.traces().iter() {
        eprintln!("{trace}");
    }
    eprintln!("--- containerd's log since the case began:");
    eprintln!("{}", tail(&text_from(&lab.log, lab.log_start), LOG_LINES));
    for console in consoles() {
        eprintln!("--- {}:", console.display());
        eprintln!("{}", tail(&text_from(&console, 0), CONSOLE_LINES));
    }
    eprintln!("---");
}

fn consoles() -> Vec<std::path::PathBuf> {
    let directories = |path: &Path| -> Vec<_> {
        fs::read_dir(path).map_or(Vec::new(), |list| list.flatten().map(|e| e.path()).collect())
    };
    let pods = directories(Path::new("/run/husk")).into_iter().flat_map(|ns| directories(&ns));
    pods.map(|pod| pod.join("console.log")).filter(|log| log.exists()).collect()
}

fn text_from(path: &Path, start: u64) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(start))?;
        file.read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("cannot read {}: {error}", path.display()),
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
