// SPDX-License-Identifier: Apache-2.0

//! Where the installed parts are: husk-vmm, the guest kernel and the guest image.
//!
//! Beside the running executable first, so that a build directory works as it is, then the
//! installed layout: data in `../share/husk`, husk-vmm on PATH.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// The files that a VM is started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// The monitor's executable.
    pub vmm: PathBuf,
    /// The guest kernel, an uncompressed ELF.
    pub kernel: PathBuf,
    /// The guest image, an initramfs.
    pub image: PathBuf,
}

impl Assets {
    /// Finds them for the running executable.
    pub fn find() -> Result<Assets, Error> {
        let own = std::env::current_exe()
            .map_err(|error| Error::internal(format!("cannot tell where husk runs: {error}")))?;
        let bin = own.parent().unwrap_or(Path::new("/"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        Assets::find_from(bin, &std::env::split_paths(&path).collect::<Vec<_>>())
    }

    /// Finds them for an executable in `bin`, with `path` as the search path of programs.
    pub fn find_from(bin: &Path, path: &[PathBuf]) -> Result<Assets, Error> {
        let share = bin.parent().unwrap_or(Path::new("/")).join("share/husk");
        let data = [bin.to_path_buf(), share];
        let mut programs = vec![bin.to_path_buf()];
        programs.extend(path.iter().filter(|directory| directory.is_absolute()).cloned());
        Ok(Assets {
            vmm: locate("husk-vmm", &programs)?,
            kernel: locate("vmlinux", &data)?,
            image: locate("guest.img", &data)?,
        })
    }
}

fn locate(name: &str, directories: &[PathBuf]) -> Result<PathBuf, Error> {
    directories.iter().map(|directory| directory.join(name)).find(|file| file.is_file()).ok_or_else(
        || {
            let places: Vec<_> = directories.iter().map(|d| d.display().to_string()).collect();
            Error::precondition(format!(
                "{name} is not installed (looked in {}); run `make install`, or put it beside \
                 the husk executables",
                places.join(", ")
            ))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn touch(path: PathBuf) -> PathBuf {
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(&path, b"").expect("file");
        path
    }

    #[test]
    fn a_build_directory_works_as_it_is() {
        let dir = tempfile::tempdir().expect("directory");
        let bin = dir.path();
        let expected = Assets {
            vmm: touch(bin.join("husk-vmm")),
            kernel: touch(bin.join("vmlinux")),
            image: touch(bin.join("guest.img")),
        };
        assert_eq!(Assets::find_from(bin, &[]).expect("found"), expected);
    }

    #[test]
    fn the_installed_layout_is_found() {
        let dir = tempfile::tempdir().expect("directory");
        let bin = dir.path().join("bin");
        let expected = Assets {
            vmm: touch(dir.path().join("sbin/husk-vmm")),
            kernel: touch(dir.path().join("share/husk/vmlinux")),
            image: touch(dir.path().join("share/husk/guest.img")),
        };
        let path = [PathBuf::from("relative"), dir.path().join("sbin")];
        assert_eq!(Assets::find_from(&bin, &path).expect("found"), expected);
    }

    #[test]
    fn what_is_missing_is_named_with_a_remedy() {
        let dir = tempfile::tempdir().expect("directory");
        touch(dir.path().join("husk-vmm"));
        let error = Assets::find_from(dir.path(), &[]).expect_err("missing");
        assert!(error.message.contains("vmlinux is not installed"), "{error}");
        assert!(error.message.contains("make install"), "{error}");
    }
}
