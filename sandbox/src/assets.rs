// SPDX-License-Identifier: Apache-2.0

//! Where the installed parts are: husk-vmm, the guest kernel and the guest image.
//!
//! Where the node's settings say; else beside the running executable, so that a build
//! directory works as it is, then the installed layout: data in `../share/husk`, husk-vmm on
//! PATH.

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
    /// Finds those that are not given, for the running executable.
    pub fn find(
        vmm: Option<&Path>,
        kernel: Option<&Path>,
        image: Option<&Path>,
    ) -> Result<Assets, Error> {
        let own = std::env::current_exe()
            .map_err(|error| Error::internal(format!("cannot tell where husk runs: {error}")))?;
        let bin = own.parent().unwrap_or(Path::new("/"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = Places::of(bin, &std::env::split_paths(&path).collect::<Vec<_>>());
        Ok(Assets {
            vmm: given_or("husk-vmm", vmm, &places.programs)?,
            kernel: given_or("vmlinux", kernel, &places.data)?,
            image: given_or("guest.img", image, &places.data)?,
        })
    }
}

/// Directories to look in.
struct Places {
    programs: Vec<PathBuf>,
    data: Vec<PathBuf>,
}

impl Places {
    /// For an executable in `bin`, with `path` as the search path of programs.
    fn of(bin: &Path, path: &[PathBuf]) -> Places {
        let share = bin.parent().unwrap_or(Path::new("/")).join("share/husk");
        let mut programs = vec![bin.to_path_buf()];
        programs.extend(path.iter().filter(|directory| directory.is_absolute()).cloned());
        Places { programs, data: vec![bin.to_path_buf(), share] }
    }
}

fn given_or(name: &str, given: Option<&Path>, places: &[PathBuf]) -> Result<PathBuf, Error> {
    match given {
        Some(file) if file.is_file() => Ok(file.to_owned()),
        Some(file) => Err(Error::precondition(format!(
            "{}, which husk's configuration gives for {name}, is no file",
            file.display()
        ))),
        None => locate(name, places),
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
        let vmm = touch(dir.path().join("husk-vmm"));
        let kernel = touch(dir.path().join("vmlinux"));
        let places = Places::of(dir.path(), &[]);
        assert_eq!(given_or("husk-vmm", None, &places.programs).expect("found"), vmm);
        assert_eq!(given_or("vmlinux", None, &places.data).expect("found"), kernel);
    }

    #[test]
    fn the_installed_layout_is_found() {
        let dir = tempfile::tempdir().expect("directory");
        let vmm = touch(dir.path().join("sbin/husk-vmm"));
        let image = touch(dir.path().join("share/husk/guest.img"));
        let path = [PathBuf::from("relative"), dir.path().join("sbin")];
        let places = Places::of(&dir.path().join("bin"), &path);
        assert_eq!(given_or("husk-vmm", None, &places.programs).expect("found"), vmm);
        assert_eq!(given_or("guest.img", None, &places.data).expect("found"), image);
    }

    #[test]
    fn what_is_missing_is_named_with_a_remedy() {
        let dir = tempfile::tempdir().expect("directory");
        let error = given_or("vmlinux", None, &[dir.path().into()]).expect_err("missing");
        assert!(error.message.contains("vmlinux is not installed"), "{error}");
        assert!(error.message.contains("make install"), "{error}");
    }

    #[test]
    fn a_file_that_is_given_is_taken_and_no_other() {
        let dir = tempfile::tempdir().expect("directory");
        let kernel = touch(dir.path().join("mine"));
        touch(dir.path().join("vmlinux"));
        let places = [dir.path().to_path_buf()];
        assert_eq!(given_or("vmlinux", Some(&kernel), &places).expect("given"), kernel);
        let missing = dir.path().join("gone");
        let error = given_or("vmlinux", Some(&missing), &places).expect_err("gone");
        assert!(error.message.contains("gives for vmlinux, is no file"), "{error}");
    }
}
