// SPDX-License-Identifier: Apache-2.0

//! `husk check`: everything that husk needs of a machine, each with its remedy.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use husk_sandbox::{Config, config};
use husk_vmm::kvm::KvmError;
use serde::Serialize;

/// Least memory for one small pod beside the rest of the machine, in MiB.
const LEAST_MEMORY_MIB: u64 = 512;
/// Oldest kernel with all that husk uses: mount_setattr(2) came last.
const LEAST_KERNEL: (u32, u32) = (5, 12);

#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    ok: bool,
    /// What was found.
    text: String,
    /// What to do about it; empty when all is well.
    remedy: String,
}

impl Finding {
    fn line(&self) -> String {
        let Finding { name, ok, text, remedy } = self;
        let mark = if *ok { "ok" } else { "MISSING" };
        let remedy = if remedy.is_empty() { String::new() } else { format!("; {remedy}") };
        format!("{mark:8} {name:11} {text}{remedy}\n")
    }
}

fn good(name: &'static str, text: String) -> Finding {
    Finding { name, ok: true, text, remedy: String::new() }
}

fn bad(name: &'static str, text: String, remedy: &str) -> Finding {
    Finding { name, ok: false, text, remedy: remedy.to_owned() }
}

/// Checks everything and prints what it found.
pub fn run(json: bool) -> ExitCode {
    let findings = [
        kvm(),
        memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        cgroup(Path::new("/sys/fs/cgroup")),
        kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()),
        overlay(
            &fs::read_to_string("/proc/filesystems").unwrap_or_default(),
            Path::new("/lib/modules"),
        ),
        assets(),
        program("shim", "containerd-shim-husk-v2", "run 'make install', or put it on PATH"),
        program("containerd", "containerd", "install containerd 1.6 or newer"),
    ];
    let text = match json {
        // Plain strings and booleans always serialize.
        true => serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n",
        false => findings.iter().map(Finding::line).collect(),
    };
    // Whoever closes the pipe early has read enough.
    let _ = io::stdout().write_all(text.as_bytes());
    if findings.iter().all(|finding| finding.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn kvm() -> Finding {
    match husk_vmm::probe::check() {
        Ok(time) => good(
            "kvm",
            format!("a test guest ran, {:.1} ns an instruction", time.as_nanos() as f64),
        ),
        Err(error) => {
            let text = error.to_string();
            // The texts say what is wrong, then, after a semicolon, what to do.
            match (&error, text.split_once("; ")) {
                (KvmError::Unusable(_), _) | (_, None) => bad("kvm", text, "see the kernel's log"),
                (_, Some((what, remedy))) => bad("kvm", what.to_owned(), remedy),
            }
        }
    }
}

fn memory(meminfo: &str) -> Finding {
    let available = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    let mib = available.unwrap_or(0) >> 10;
    let text = format!("{mib} MiB available");
    if mib >= LEAST_MEMORY_MIB {
        good("memory", text)
    } else {
        bad("memory", text, "a pod needs 256 MiB by default; free some or add some")
    }
}

fn cgroup(root: &Path) -> Finding {
    if root.join("cgroup.controllers").exists() {
        good("cgroup", "version 2".to_owned())
    } else if root.join("memory").is_dir() || root.join("unified").is_dir() {
        // Containers' limits hold in the guest, which has its own version 2.
        good("cgroup", "version 1: limits of containers hold in the guest all the same".to_owned())
    } else {
        bad("cgroup", "none mounted".to_owned(), "mount cgroup2 at /sys/fs/cgroup")
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let text = format!("Linux {}", release.trim());
    if version >= LEAST_KERNEL {
        good("kernel", text)
    } else {
        bad("kernel", text, "husk needs Linux 5.12 or newer")
    }
}

/// containerd's usual snapshotter.
fn overlay(filesystems: &str, modules: &Path) -> Finding {
    let built_in = filesystems.lines().any(|line| line.trim() == "overlay");
    let module = fs::read_to_string("/proc/sys/kernel/osrelease")
        .is_ok_and(|release| modules.join(release.trim()).join("kernel/fs/overlayfs").is_dir());
    match (built_in, module) {
        (true, _) => good("overlayfs", "in the kernel".to_owned()),
        (false, true) => good("overlayfs", "as a module, loaded when it is used".to_owned()),
        (false, false) => {
            bad("overlayfs", "not in this kernel".to_owned(), "choose another snapshotter")
        }
    }
}

fn assets() -> Finding {
    let found = Config::load(Path::new(config::PATH)).and_then(|config| config.assets());
    match found {
        Ok(assets) => {
            let folder = assets.kernel.parent().unwrap_or(Path::new("/")).display().to_string();
            good("files", format!("husk-vmm, and vmlinux and guest.img in {folder}"))
        }
        // The text has the remedy.
        Err(error) => bad("files", error.to_string(), ""),
    }
}

fn program(name: &'static str, file: &str, remedy: &str) -> Finding {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    match search(file.as_ref(), beside.into_iter().chain(std::env::split_paths(&path))) {
        Some(path) => good(name, path.display().to_string()),
        None => bad(name, format!("{file} is not on PATH"), remedy),
    }
}

fn search(file: &OsStr, mut folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.find_map(|folder| Some(folder.join(file)).filter(|path| path.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kib_and_compared_in_mib() {
        assert!(memory("MemTotal: 9 kB\nMemAvailable:     524288 kB\n").ok);
        assert!(!memory("MemAvailable:     524287 kB\n").ok);
        assert!(!memory("").ok);
    }

    #[test]
    fn kernels_are_compared_by_number_and_not_by_text() {
        assert!(kernel("6.1.0-13-amd64\n").ok);
        assert!(kernel("5.12.0\n").ok);
        assert!(!kernel("5.11.22\n").ok);
        assert!(!kernel("5.9.16\n").ok);
        assert!(!kernel("").ok);
    }
}
