// SPDX-License-Identifier: Apache-2.0

//! What the first process of the guest does for itself: a root that containers can pivot
//! away from, the kernel's file systems, limits, the cgroup tree, the loopback device, and at
//! the end the power switch. Each step is small because time to Hello is a promised figure.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::error::{Doing, Error, Result};

/// Open files of a process, as many as the kernel allows unless it is told otherwise.
const OPEN_FILES: libc::rlim_t = 1 << 20;

/// The cgroup that holds those of the containers.
pub const CGROUPS: &str = "/sys/fs/cgroup/husk";

const NONE: Option<&str> = None;

/// Covers the initramfs with a bind mount of itself and makes that the root.
///
/// pivot_root(2) demands that the caller's root has a parent mount, which the initramfs,
/// being the first mount of all, has not. The cover shows the same files, so nothing has
/// to be copied. /run serves as the place to make it, because nothing is mounted yet.
pub fn cover_root() -> Result<()> {
    mount(Some("/"), "/run", NONE, MsFlags::MS_BIND, NONE).doing("bind the root")?;
    nix::unistd::chdir("/run").doing("enter the bound root")?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE).doing("move the root")?;
    nix::unistd::chroot(".").doing("make it the root")?;
    nix::unistd::chdir("/").doing("enter the root")
}

/// Mounts the kernel's file systems, after which the root need not change any more. Those
/// that are there already are left alone.
pub fn mount_all() -> Result<()> {
    let none = MsFlags::empty();
    let guarded = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let table: [(&str, &str, MsFlags, Option<&str>); 9] = [
        ("proc", "/proc", guarded, None),
        ("sysfs", "/sys", guarded, None),
        // nsdelegate: a container that sees its cgroup cannot lift its own limits.
        ("cgroup2", "/sys/fs/cgroup", guarded, Some("nsdelegate,memory_recursiveprot")),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, None),
        ("devpts", "/dev/pts", none, Some("gid=5,mode=620,ptmxmode=666")),
        // The size that pods expect.
        ("tmpfs", "/dev/shm", plain, Some("mode=1777,size=64m")),
        ("mqueue", "/dev/mqueue", guarded, None),
        ("tmpfs", "/run", plain, Some("mode=755")),
        ("tmpfs", "/tmp", plain, Some("mode=1777")),
    ];
    for (kind, path, flags, data) in table {
        make_directory(path)?;
        match mount(Some(kind), path, Some(kind), flags, data) {
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(error) => return Err(error).doing(format!("mount {kind} on {path}")),
        }
    }
    seal_root()
}

/// Makes the root read-only: a container that gets hold of /proc/<pid>/exe of a process on
/// its way in must not be able to change the agent's program.
fn seal_root() -> Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(NONE, "/", NONE, flags, NONE).doing("make the root read-only")
}

/// Makes the cgroup that those of the containers are in, with every controller that the
/// kernel has.
pub fn prepare_for_containers() -> Result<()> {
    make_directory(CGROUPS)?;
    for cgroup in ["/sys/fs/cgroup", CGROUPS] {
        let offered = Path::new(cgroup).join("cgroup.controllers");
        let offered = std::fs::read_to_string(&offered).doing(format!("read {offered:?}"))?;
        let wanted: Vec<String> = offered.split_whitespace().map(|c| format!("+{c}")).collect();
        let control = Path::new(cgroup).join("cgroup.subtree_control");
        std::fs::write(&control, wanted.join(" ")).doing(format!("write {control:?}"))?;
    }
    Ok(())
}

/// Lifts the limits that processes inherit from this one. The kernel's own are for a small
/// machine without an administrator: 1024 files, or 4096 for who asks, and processes by its
/// memory at boot. A container without limits of its own, as Kubernetes makes them, expects
/// those of containerd's service, where files are as many as can be and processes not limited.
pub fn lift_limits() -> Result<()> {
    for (resource, limit) in
        [(libc::RLIMIT_NOFILE, OPEN_FILES), (libc::RLIMIT_NPROC, libc::RLIM_INFINITY)]
    {
        let value = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: setrlimit() reads an rlimit, which is alive during the call.
        if unsafe { libc::setrlimit(resource, &raw const value) } < 0 {
            return Err(io::Error::last_os_error()).doing(format!("lift the limit {resource}"));
        }
    }
    Ok(())
}

/// Brings the loopback device up; the kernel gives it its addresses.
pub fn loopback_up() -> Result<()> {
    // SAFETY: socket() takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).doing("open a socket for the loopback device");
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which is alive during the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } < 0 {
        return Err(io::Error::last_os_error()).doing("bring the loopback device up");
    }
    Ok(())
}

/// Switches the VM off. Does not return: without a host there is nothing left to do.
pub fn power_off() -> ! {
    let _ = reboot(RebootMode::RB_POWER_OFF);
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    std::process::exit(1)
}

fn make_directory(path: &str) -> Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::internal(format!("cannot create {path}: {error}")))
        }
        _ => Ok(()),
    }
}
