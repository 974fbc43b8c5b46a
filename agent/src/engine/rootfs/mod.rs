// SPDX-License-Identifier: Apache-2.0
//! Stand-in until the real one is merged.
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::Spec;
use std::{
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};
pub struct Sources;
impl Sources {
    pub fn open(_: &Spec, _: &Path) -> Result<Self, String> {
        Ok(Self)
    }
}
pub struct Root(PathBuf);
pub fn build(spec: &Spec, bundle: &Path, _: Sources, _: &Path) -> Result<Root, String> {
    const N: Option<&str> = None;
    let root = bundle.join(spec.root().as_ref().expect("root").path());
    mount(N, "/", N, MsFlags::MS_SLAVE | MsFlags::MS_REC, N).map_err(|e| e.to_string())?;
    for m in spec.mounts().iter().flatten() {
        let kind = m.typ().clone().unwrap_or_default();
        let dest = root.join(m.destination().strip_prefix("/").unwrap());
        let _ = std::fs::create_dir_all(&dest);
        if kind == "proc"
            || kind == "tmpfs"
            || kind == "sysfs"
            || kind == "devpts"
            || kind == "cgroup"
        {
            let kind = if kind == "cgroup" { "cgroup2".into() } else { kind };
            let data = (kind == "devpts").then_some("newinstance,ptmxmode=0666,mode=0620");
            mount(Some(kind.as_str()), &dest, Some(kind.as_str()), MsFlags::empty(), data)
                .map_err(|e| format!("{kind} {dest:?}: {e}"))?;
        }
    }
    Ok(Root(root))
}
impl Root {
    pub fn enter(self, _: &Spec, _: bool) -> Result<(), String> {
        nix::unistd::chroot(&self.0).map_err(|e| e.to_string())?;
        nix::unistd::chdir("/").map_err(|e| e.to_string())
    }
}
pub fn restrict(_: &Spec) -> Result<(), String> {
    Ok(())
}
pub fn bind_console(_: BorrowedFd) -> Result<(), String> {
    Ok(())
}
