// SPDX-License-Identifier: Apache-2.0

//! Roots built for real: a child, in a mount namespace that goes with it, prepares a bundle
//! on a tmpfs, and a grandchild in the container's namespaces builds the root, enters it and
//! looks around.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType::{self, Cgroup, Ipc, Network, User};
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags, open};
use serde_json::{Value, json};

use super::{Sources, bind_console, build, has_namespace, restrict, sources};
use crate::engine::forked::{Ended, forked, is_root};

/// Where the bundle is, with `rootfs` in it; `source` beside it is for bind mounts.
const BUNDLE: &str = "/tmp";
const MAP: &str = "0 100000 65536\n";

type Told = Result<(), String>;

macro_rules! check {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(format!("{}: {}", stringify!($condition), format!($($text)*)));
        }
    };
}

/// Builds a container from `mounts` and the rest of a spec, and calls `inside` in it.
struct Container {
    mounts: Value,
    changes: Value,
    pivot: bool,
}

fn container(mounts: Value) -> Container {
    Container { mounts, changes: json!({}), pivot: true }
}

impl Container {
    /// Replaces top-level sections of the spec; within `linux` its entries.
    fn with(mut self, changes: Value) -> Self {
        self.changes = changes;
        self
    }

    fn spec(&self) -> Result<Spec, String> {
        let mut mounts = vec![json!({
            "destination": "/proc", "type": "proc", "source": "proc",
            "options": ["nosuid", "noexec", "nodev"]
        })];
        mounts.extend(self.mounts.as_array().cloned().unwrap_or_default());
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        });
        for (section, value) in self.changes.as_object().into_iter().flatten() {
            match (section.as_str(), value) {
                ("linux", Value::Object(entries)) => {
                    for (name, value) in entries {
                        spec["linux"][name] = value.clone();
                    }
                }
                _ => spec[section] = value.clone(),
            }
        }
        serde_json::from_value(spec).map_err(|e| e.to_string())
    }

    fn run(
        self,
        prepare: impl FnOnce(&Path, &Path) -> std::io::Result<()>,
        inside: impl FnOnce() -> Told,
    ) -> Result<(), Ended> {
        forked(|| {
            unshare(libc::CLONE_NEWNS)?;
            let shelled = shell(
                "mount --make-rslave /; mount -t tmpfs -o mode=755 bundle /tmp
                mkdir /tmp/rootfs /tmp/source",
            );
            io("prepare", shelled)?;
            let bundle = Path::new(BUNDLE);
            prepare(&bundle.join("rootfs"), &bundle.join("source")).map_err(|e| e.to_string())?;
            let spec = self.spec()?;
            let cgroup = bundle.join("cgroup");
            if self.mounts.to_string().contains("cgroup") {
                let made = shell(
                    "cd /tmp; mkdir groups; mount -t cgroup2 none groups
                    mkdir -p groups/husk-test/child; ln -s groups/husk-test cgroup",
                );
                io("make a cgroup", made)?;
                io("join it", fs::write(cgroup.join("cgroup.procs"), "0"))?;
            }
            let sources = Sources::open(&spec, bundle)?;
            let user = match has_namespace(&spec, User) {
                true => Some(
                    sources::user_namespace(&(MAP.into(), MAP.into()))
                        .map_err(|e| e.to_string())?,
                ),
                false => None,
            };
            let result = forked(|| {
                if let Some(user) = user {
                    // SAFETY: takes a descriptor; the process has one thread.
                    check!(
                        unsafe { libc::setns(user.as_raw_fd(), libc::CLONE_NEWUSER) } == 0,
                        "setns"
                    );
                    // SAFETY: take numbers.
                    check!(unsafe { libc::setgid(0) | libc::setuid(0) } == 0, "setuid");
                }
                let mut flags = libc::CLONE_NEWPID;
                for (kind, flag) in [
                    (LinuxNamespaceType::Mount, libc::CLONE_NEWNS),
                    (Cgroup, libc::CLONE_NEWCGROUP),
                    (Network, libc::CLONE_NEWNET),
                    (Ipc, libc::CLONE_NEWIPC),
                ] {
                    flags |= if has_namespace(&spec, kind) { flag } else { 0 };
                }
                unshare(flags)?;
                told(forked(|| {
                    build(&spec, bundle, sources, &cgroup)?.enter(&spec, self.pivot)?;
                    restrict(&spec)?;
                    inside()
                }))
            });
            if cgroup.exists() {
                io("leave the cgroup", fs::write("/tmp/groups/cgroup.procs", "0"))?;
                io("remove it", shell("cd /tmp/groups; rmdir husk-test/child husk-test"))?;
            }
            told(result)
        })
    }
}

/// Runs commands that the test needs and does not look at.
fn shell(commands: &str) -> std::io::Result<()> {
    let done = std::process::Command::new("sh").args(["-ec", commands]).status()?;
    if done.success() { Ok(()) } else { Err(std::io::Error::other(format!("failed: {commands}"))) }
}

fn told(result: Result<(), Ended>) -> Told {
    result.map_err(|ended| match ended {
        Ended::Failed(why) => why,
        killed => format!("{killed:?}"),
    })
}

fn unshare(flags: i32) -> Told {
    // SAFETY: takes flags; the process has one thread.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(format!("unshare: {}", std::io::Error::last_os_error())),
    }
}

fn nothing(_: &Path, _: &Path) -> std::io::Result<()> {
    Ok(())
}

fn why(result: Result<(), Ended>) -> String {
    let why = told(result).expect_err("it should have been refused");
    println!("refused: {why}");
    why
}

/// The line of the topmost mount at a place.
fn mount_at(place: &str) -> Result<String, String> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    let found = table.lines().rfind(|line| line.split(' ').nth(4) == Some(place));
    found.map(str::to_owned).ok_or_else(|| format!("nothing is mounted at {place}:\n{table}"))
}

/// The mount's options at a place, in order.
fn options_at(place: &str) -> Result<String, String> {
    Ok(mount_at(place)?.split(' ').nth(5).unwrap_or_default().to_owned())
}

fn io<T>(what: &str, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e}"))
}

fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

fn mode_of(path: &str) -> Result<u32, String> {
    Ok(io(path, fs::symlink_metadata(path))?.permissions().mode() & 0o7777)
}

#[test]
fn a_usual_container() {
    if !is_root() {
        return;
    }
    let mounts = json!([
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=64k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/etc/resolv.conf", "type": "bind", "source": "source/resolv.conf", "options": ["rbind", "rprivate", "ro"]},
    ]);
    let changes = json!({
        "root": {"path": "rootfs", "readonly": true},
        "process": {"cwd": "/work/here", "terminal": true, "args": ["sh"], "user": {"uid": 0, "gid": 0}},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/missing", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/sys", "/proc/irq", "/proc/missing"],
        },
    });
    let prepare = |rootfs: &Path, source: &Path| {
        fs::create_dir(rootfs.join("etc"))?;
        symlink("../run/resolve/stub.conf", rootfs.join("etc/resolv.conf"))?;
        fs::write(source.join("resolv.conf"), "nameserver 1.1.1.1\n")
    };
    let result = container(mounts).with(changes).run(prepare, || {
        check!(io("cwd", std::env::current_dir())? == Path::new("/"), "after enter");
        for (place, options) in [
            ("/proc", "rw,nosuid,nodev,noexec,relatime"),
            ("/dev", "rw,nosuid"),
            ("/dev/pts", "rw,nosuid,noexec,relatime"),
            ("/dev/shm", "rw,nosuid,nodev,noexec,relatime"),
            ("/dev/mqueue", "rw,nosuid,nodev,noexec,relatime"),
            ("/sys", "ro,nosuid,nodev,noexec,relatime"),
            ("/run/resolve/stub.conf", "ro,relatime"),
            ("/proc/sys", "ro,nosuid,nodev,noexec,relatime"),
            ("/proc/irq", "ro,nosuid,nodev,noexec,relatime"),
            ("/", "ro,relatime"),
        ] {
            check!(options_at(place)? == options, "{place}: {}", mount_at(place)?);
        }
        check!(
            mount_at("/dev/shm")?.ends_with("size=64k,inode64")
                || mount_at("/dev/shm")?.contains("size=64k"),
            "{}",
            mount_at("/dev/shm")?
        );
        check!(
            io("size", rustix::fs::statfs("/dev/shm").map_err(Into::into))?.f_blocks * 4096
                == 65536,
            "64k"
        );
        check!(mode_of("/dev/shm")? == 0o1777 && mode_of("/dev")? == 0o755, "modes");
        check!(
            io("read", fs::read_to_string("/etc/resolv.conf"))?.starts_with("nameserver"),
            "the bind"
        );
        check!(errno(fs::write("/etc/resolv.conf", "x")) == libc::EROFS, "a read-only bind");
        check!(errno(fs::write("/x", "x")) == libc::EROFS, "a read-only root");
        check!(
            errno(fs::write("/proc/sys/kernel/hostname", "x")) == libc::EROFS,
            "a read-only path"
        );
        check!(Path::new("/work/here").is_dir(), "the working directory is made");
        for (name, number) in [
            ("null", 0x103),
            ("zero", 0x105),
            ("full", 0x107),
            ("random", 0x108),
            ("urandom", 0x109),
            ("tty", 0x500),
        ] {
            let data = io(name, fs::metadata(Path::new("/dev").join(name)))?;
            check!(data.file_type().is_char_device() && data.rdev() == number, "{name}");
            check!(data.permissions().mode() & 0o7777 == 0o666, "{name}");
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            check!(
                io(name, fs::read_link(Path::new("/dev").join(name)))? == Path::new(target),
                "{name}"
            );
        }
        for masked in ["/proc/kcore", "/proc/keys"] {
            if Path::new(masked).exists() {
                check!(io(masked, fs::metadata(masked))?.rdev() == 0x103, "{masked} is masked");
            }
        }
        for masked in ["/proc/acpi", "/sys/firmware", "/proc/scsi"] {
            if Path::new(masked).exists() {
                check!(io(masked, fs::read_dir(masked))?.count() == 0, "{masked} is empty");
                check!(options_at(masked)?.starts_with("ro"), "{masked} is read-only");
            }
        }
        // The terminal of the container's own devpts.
        let master = io("ptmx", fs::File::options().read(true).write(true).open("/dev/ptmx"))?;
        let mut number = 0u32;
        // SAFETY: each request takes or fills an integer, which is alive during the call.
        unsafe {
            let lock = 0;
            libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &lock);
            libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &mut number);
        }
        let slave = format!("/dev/pts/{number}");
        let slave = open(slave.as_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
        let slave = slave.map_err(|e| format!("the terminal: {e}"))?;
        use std::os::fd::AsFd;
        bind_console(slave.as_fd())?;
        check!(io("console", fs::metadata("/dev/console"))?.rdev() >> 8 == 136, "the console");
        // Nothing of the old root is left.
        let table = io("mountinfo", fs::read_to_string("/proc/self/mountinfo"))?;
        println!("{table}");
        check!(table.lines().all(|line| line.split(' ').nth(4) != Some("/tmp")), "{table}");
        check!(!table.contains(" shared:"), "{table}");
        Ok(())
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn binds_have_the_attributes_asked_for() {
    if !is_root() {
        return;
    }
    let bind = |destination: &str, options: &[&str]| json!({"destination": destination, "source": "source", "options": options});
    let mounts = json!([
        bind("/plain", &["bind"]),
        bind("/tree", &["rbind"]),
        bind("/rw", &["rbind", "rw"]),
        bind("/ro", &["rbind", "ro"]),
        bind("/rro", &["rbind", "rro", "rnoatime"]),
        bind("/rprivate", &["rbind", "rprivate", "noexec", "nosuid", "nodev", "nodiratime"]),
        bind("/rshared", &["rbind", "rshared"]),
        bind("/unbindable", &["bind", "unbindable"]),
        {"destination": "file", "type": "bind", "source": "/tmp/source/file", "options": []},
    ]);
    let prepare = |_: &Path, _: &Path| {
        let commands = "cd /tmp/source; mount -t tmpfs -o nosuid outer .; cd /tmp/source; mkdir inner; echo hi > file; mount -t tmpfs inner inner; touch inner/x; mount -o remount,bind,ro,nosuid .; mount --make-rshared .";
        shell(commands)
    };
    let result = container(mounts).run(prepare, || {
        for (place, options) in [
            ("/plain", "ro,nosuid,relatime"),
            ("/tree", "ro,nosuid,relatime"),
            ("/tree/inner", "rw,relatime"),
            ("/rw", "rw,relatime"),
            ("/ro", "ro,relatime"),
            ("/ro/inner", "rw,relatime"),
            ("/rro", "ro,nosuid,noatime"),
            ("/rro/inner", "ro,noatime"),
            ("/rprivate", "rw,nosuid,nodev,noexec,nodiratime,relatime"),
            ("/file", "ro,nosuid,relatime"),
        ] {
            check!(options_at(place)? == options, "{place}: {}", mount_at(place)?);
        }
        check!(mount_at("/plain/inner").is_err(), "only the tree has what is below");
        let field =
            |place| Ok::<_, String>(mount_at(place)?.split(' ').nth(6).unwrap_or("").to_owned());
        check!(field("/plain")?.starts_with("master:"), "{}", mount_at("/plain")?);
        check!(field("/tree/inner")?.starts_with("master:"), "{}", mount_at("/tree/inner")?);
        check!(field("/rprivate")? == "-" && field("/rprivate/inner")? == "-", "private");
        check!(field("/rshared")?.starts_with("shared:"), "{}", mount_at("/rshared")?);
        check!(field("/rshared/inner")?.starts_with("shared:"), "shared below");
        check!(field("/unbindable")? == "unbindable", "{}", mount_at("/unbindable")?);
        check!(io("file", fs::read_to_string("/file"))? == "hi\n", "a relative destination");
        check!(errno(fs::write("/rro/inner/x", "")) == libc::EROFS, "read-only below");
        Ok(())
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn links_of_an_image_lead_nowhere_else() {
    if !is_root() {
        return;
    }
    let prepare = |rootfs: &Path, source: &Path| {
        fs::write(source.join("mark"), "")?;
        symlink("/../../../../source", rootfs.join("up"))?;
        symlink("/made/up", rootfs.join("dangling"))?;
        symlink("loop", rootfs.join("loop"))?;
        symlink("/etc", rootfs.join("mnt"))
    };
    let bind = |destination: &str| json!({"destination": destination, "source": "source", "options": ["bind"]});
    let mounts = json!([bind("/mnt/x"), bind("/up"), bind("/dangling/y"), bind("/a/../../b")]);
    let result = container(mounts).run(prepare, || {
        for place in ["/etc/x", "/source", "/made/up/y", "/b"] {
            check!(Path::new(place).join("mark").exists(), "{}", mount_at(place)?);
        }
        Ok(())
    });
    assert_eq!(result, Ok(()));
    let text = why(container(json!([bind("/loop/x")])).run(prepare, || Ok(())));
    assert!(text.contains("too many"), "{text}");
}

#[test]
fn proc_stays_the_kernels() {
    if !is_root() {
        return;
    }
    let bind = |source: &str, destination: &str| json!([{"destination": destination, "source": source, "options": ["bind"]}]);
    let links = |rootfs: &Path, source: &Path| {
        fs::write(source.join("file"), "")?;
        symlink("/proc", rootfs.join("link"))
    };
    for (source, destination, expected) in [
        ("source", "/proc", "\"/proc\" cannot be mounted because it is not of type proc"),
        ("source", "/proc/sys", "\"/proc/sys\" cannot be mounted because it is inside /proc"),
        ("source", "/link/tty", "\"/proc/tty\" cannot be mounted because it is inside /proc"),
        ("source", "/link", "\"/proc\" cannot be mounted because it is not of type proc"),
    ] {
        let text = why(container(bind(source, destination)).run(links, || Ok(())));
        assert!(text.ends_with(expected), "{text}");
    }
    for (source, destination) in [("source/file", "/proc/meminfo"), ("/proc", "/proc")] {
        let result =
            container(bind(source, destination)).run(links, || mount_at(destination).map(|_| ()));
        assert_eq!(result, Ok(()), "{destination}");
    }
    let link = |rootfs: &Path, _: &Path| symlink("/", rootfs.join("proc"));
    let text = why(container(json!([])).run(link, || Ok(())));
    assert!(text.ends_with("filesystem \"proc\" must be mounted on ordinary directory"), "{text}");
}

#[test]
fn a_tmpfs_is_filled_then_made_read_only() {
    if !is_root() {
        return;
    }
    let mounts = json!([
        {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "tmpcopyup", "nr_inodes=100"]},
        {"destination": "/etc/below", "source": "source", "options": ["bind"]},
        {"destination": "/private", "type": "tmpfs", "source": "tmpfs", "options": []},
        {"destination": "/new", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "mode=755"]},
    ]);
    let prepare = |rootfs: &Path, _: &Path| {
        fs::create_dir_all(rootfs.join("etc/dir"))?;
        fs::write(rootfs.join("etc/dir/file"), "text")?;
        fs::set_permissions(rootfs.join("etc/dir/file"), fs::Permissions::from_mode(0o4751))?;
        std::os::unix::fs::chown(rootfs.join("etc/dir"), Some(5), Some(6))?;
        symlink("dir/file", rootfs.join("etc/link"))?;
        fs::create_dir(rootfs.join("private"))?;
        fs::set_permissions(rootfs.join("private"), fs::Permissions::from_mode(0o700))
    };
    let result = container(mounts).run(prepare, || {
        check!(io("link", fs::read_to_string("/etc/link"))? == "text", "the copy");
        check!(mode_of("/etc/dir/file")? == 0o4751, "its mode");
        let owner = io("dir", fs::metadata("/etc/dir"))?;
        check!((owner.uid(), owner.gid()) == (5, 6), "its owner");
        check!(errno(fs::write("/etc/x", "")) == libc::EROFS, "read-only");
        check!(mount_at("/etc")?.contains("nr_inodes=100"), "{}", mount_at("/etc")?);
        check!(mount_at("/etc/below").is_ok(), "a mount in it");
        check!(mode_of("/private")? == 0o700, "the mode of what is covered");
        check!(mode_of("/new")? == 0o1777, "the file system's own mode");
        check!(errno(fs::write("/dev/x", "")) == libc::EROFS, "read-only /dev");
        check!(Path::new("/dev/null").exists(), "filled before");
        Ok(())
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn devices_are_the_specs() {
    if !is_root() {
        return;
    }
    let devices = json!([
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7, "gid": 8},
        {"path": "/dev/sub/loop", "type": "b", "major": 7, "minor": 300},
        {"path": "/pipe", "type": "p", "fileMode": 0o622},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    ]);
    let result =
        container(json!([])).with(json!({"linux": {"devices": devices}})).run(nothing, || {
            let null = io("null", fs::metadata("/dev/null"))?;
            check!(
                (null.uid(), null.gid()) == (7, 8) && mode_of("/dev/null")? == 0o600,
                "{null:?}"
            );
            let block = io("loop", fs::metadata("/dev/sub/loop"))?;
            check!(block.file_type().is_block_device(), "{block:?}");
            check!(
                block.rdev() == libc::makedev(7, 300) && mode_of("/dev/sub/loop")? == 0o666,
                "{block:?}"
            );
            check!(
                io("pipe", fs::metadata("/pipe"))?.file_type().is_fifo()
                    && mode_of("/pipe")? == 0o622,
                "pipe"
            );
            check!(io("ptmx", fs::read_link("/dev/ptmx"))? == Path::new("pts/ptmx"), "ptmx");
            Ok(())
        });
    assert_eq!(result, Ok(()));
    let bad =
        json!({"linux": {"devices": [{"path": "/dev/x", "type": "a", "major": 1, "minor": 1}]}});
    let text = why(container(json!([])).with(bad).run(nothing, || Ok(())));
    assert_eq!(text, "a is not a valid device type for device /dev/x");
    // A /dev from outside is left alone.
    let mounts = json!([{"destination": "/dev/", "source": "source", "options": ["bind"]}]);
    let result = container(mounts).run(nothing, || {
        check!(io("dev", fs::read_dir("/dev"))?.count() == 0, "/dev is left alone");
        Ok(())
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn a_user_namespace() {
    if !is_root() {
        return;
    }
    let namespaces = json!([{"type": "mount"}, {"type": "pid"}, {"type": "user"}, {"type": "network"}, {"type": "ipc"}]);
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    let mounts = json!([
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "gid=5"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
        {"destination": "/plain", "source": "source", "options": ["rbind"]},
        {"destination": "/ro", "source": "source", "options": ["rbind", "ro"]},
        {"destination": "/mapped", "source": "source", "options": ["rbind", "idmap"]},
    ]);
    let changes = json!({
        "root": {"path": "rootfs", "readonly": true},
        "linux": {"namespaces": namespaces, "uidMappings": map, "gidMappings": map,
            "maskedPaths": ["/proc/kcore", "/proc/acpi", "/sys/firmware"], "readonlyPaths": ["/proc/sys"],
            "devices": [{"path": "/dev/fifo", "type": "p"}]},
    });
    let prepare = |rootfs: &Path, source: &Path| {
        fs::write(source.join("file"), "")?;
        std::os::unix::fs::chown(rootfs, Some(100000), Some(100000))
    };
    let result = container(mounts).with(changes).run(prepare, || {
        let owner = |path: &str| Ok::<_, String>(io(path, fs::metadata(path))?.uid());
        check!(owner("/plain/file")? == 65534, "the host's root is nobody");
        check!(owner("/mapped/file")? == 0, "but not where its ID is mapped");
        check!(options_at("/ro")? == "ro,relatime", "{}", mount_at("/ro")?);
        check!(io("null", fs::metadata("/dev/null"))?.rdev() == 0x103, "/dev/null");
        check!(io("write", fs::write("/dev/null", "x")).is_ok(), "/dev/null works");
        check!(mount_at("/dev/null").is_ok(), "as a bind");
        check!(io("fifo", fs::metadata("/dev/fifo"))?.file_type().is_fifo(), "fifo");
        check!(options_at("/proc/sys")?.starts_with("ro"), "read-only");
        check!(options_at("/")?.starts_with("ro"), "read-only root");
        Ok(())
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn id_mapped_binds() {
    if !is_root() {
        return;
    }
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let bind = |destination: &str, options: &[&str], maps: bool| {
        let mut entry = json!({"destination": destination, "source": "source", "options": options});
        if maps {
            entry["uidMappings"] = map.clone();
            entry["gidMappings"] = map.clone();
        }
        entry
    };
    let prepare = |_: &Path, source: &Path| {
        fs::create_dir(source.join("inner"))?;
        shell("mount -t tmpfs inner /tmp/source/inner")?;
        fs::write(source.join("inner/file"), "")?;
        fs::write(source.join("file"), "")
    };
    let mounts = json!([
        bind("/one", &["rbind", "idmap"], true),
        bind("/all", &["rbind", "ridmap"], true),
        bind("/bare", &["bind"], true)
    ]);
    let result = container(mounts).run(prepare, || {
        for (file, uid) in [
            ("/one/file", 5000),
            ("/one/inner/file", 0),
            ("/all/inner/file", 5000),
            ("/bare/file", 5000),
        ] {
            let data = io(file, fs::metadata(file))?;
            check!((data.uid(), data.gid()) == (uid, uid), "{file}: {}", data.uid());
        }
        Ok(())
    });
    assert_eq!(result, Ok(()));
    let text =
        why(container(json!([bind("/x", &["bind", "idmap"], false)])).run(prepare, || Ok(())));
    assert!(text.ends_with("there are no ID mappings for it"), "{text}");
    let proc = json!([{"destination": "/x", "source": "/proc/sys", "options": ["bind"], "uidMappings": map, "gidMappings": map}]);
    let text = why(container(proc).run(prepare, || Ok(())));
    assert!(text.contains("does not support ID-mapped mounts: invalid argument"), "{text}");
    let tmpfs = json!([{"destination": "/x", "type": "tmpfs", "options": ["idmap"]}]);
    let text = why(container(tmpfs).run(prepare, || Ok(())));
    assert!(text.ends_with("only bind mounts can be ID-mapped"), "{text}");
}

#[test]
fn control_groups() {
    if !is_root() {
        return;
    }
    let mounts = json!([{"destination": "/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}]);
    let with = |kinds: &[&str]| {
        let namespaces: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
        container(mounts.clone()).with(json!({"linux": {"namespaces": namespaces}}))
    };
    for kinds in [&["mount", "pid"][..], &["mount", "pid", "cgroup"]] {
        let result = with(kinds).run(nothing, || {
            check!(Path::new("/cgroup/child").is_dir(), "its own group: {}", mount_at("/cgroup")?);
            check!(
                options_at("/cgroup")? == "ro,nosuid,nodev,noexec,relatime",
                "{}",
                mount_at("/cgroup")?
            );
            check!(mount_at("/cgroup")?.contains(" - cgroup2 "), "{}", mount_at("/cgroup")?);
            Ok(())
        });
        assert_eq!(result, Ok(()), "{kinds:?}");
    }
}

#[test]
fn what_cannot_be_is_told() {
    if !is_root() {
        return;
    }
    for (mount, expected) in [
        (
            json!({"destination": "/x", "type": "nosuchfs", "source": "y"}),
            "error mounting \"y\" to rootfs at \"/x\": the kernel has no file system \"nosuchfs\": no such device",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["nosuch=1"]}),
            "option nosuch: tmpfs: Unknown parameter 'nosuch': invalid argument",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=lots"]}),
            "option size",
        ),
        (
            json!({"destination": "/x", "type": "bind", "source": "/missing", "options": ["bind"]}),
            "error mounting \"/missing\" to rootfs at \"/x\": open /missing: no such file or directory",
        ),
        (
            json!({"destination": "/x", "type": "bind", "options": ["bind"]}),
            "a bind mount needs a source",
        ),
        (json!({"destination": "/", "type": "tmpfs"}), "the root itself cannot be covered"),
        (
            json!({"destination": "/file", "source": "source", "options": ["bind"]}),
            "not a directory",
        ),
    ] {
        let prepare = |rootfs: &Path, _: &Path| fs::write(rootfs.join("file"), "");
        let text = why(container(json!([mount])).run(prepare, || Ok(())));
        assert!(text.contains(expected), "{text}");
    }
    let odd = container(json!([])).with(json!({"linux": {"rootfsPropagation": "odd"}}));
    assert_eq!(why(odd.run(nothing, || Ok(()))), "rootfsPropagation=odd is not supported");
}

#[test]
fn the_roots_propagation() {
    if !is_root() {
        return;
    }
    for (name, field) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("rslave", "-"),
        ("private", "-"),
        ("unbindable", "unbindable"),
    ] {
        let result = container(json!([])).with(json!({"linux": {"rootfsPropagation": name}})).run(
            |_, _| shell("mount --make-rshared /"),
            || {
                let line = mount_at("/")?;
                check!(line.split(' ').nth(6).unwrap_or("").starts_with(field), "{name}: {line}");
                Ok(())
            },
        );
        assert_eq!(result, Ok(()), "{name}");
    }
}

#[test]
fn without_pivot_root() {
    if !is_root() {
        return;
    }
    let mut moved =
        container(json!([])).with(json!({"root": {"path": "rootfs", "readonly": true}}));
    moved.pivot = false;
    let result = moved.run(nothing, || {
        check!(errno(fs::write("/x", "")) == libc::EROFS, "a read-only root");
        let table = io("mountinfo", fs::read_to_string("/proc/self/mountinfo"))?;
        let views =
            table.lines().filter(|line| line.contains(" - proc ") || line.contains(" - sysfs "));
        check!(views.count() == 1, "only the container's own proc: {table}");
        Ok(())
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn without_a_mount_namespace() {
    if !is_root() {
        return;
    }
    let namespaces = json!({"linux": {"namespaces": [{"type": "pid"}]}});
    let result = container(json!([])).with(namespaces).run(
        |rootfs, _| fs::write(rootfs.join("mark"), ""),
        || {
            check!(Path::new("/mark").exists() && Path::new("/proc/self").exists(), "the root");
            Ok(())
        },
    );
    assert_eq!(result, Ok(()));
    let masked =
        json!({"linux": {"namespaces": [{"type": "pid"}], "maskedPaths": ["/proc/kcore"]}});
    let text = why(container(json!([])).with(masked).run(nothing, || Ok(())));
    assert_eq!(text, "maskedPaths and readonlyPaths need a mount namespace");
}

#[test]
fn a_false_null_masks_nothing() {
    if !is_root() {
        return;
    }
    let masked = json!({"linux": {"maskedPaths": ["/proc/version"]}});
    let prepare = |rootfs: &Path, _: &Path| {
        fs::create_dir(rootfs.join("dev"))?;
        symlink("/proc/meminfo", rootfs.join("dev/null"))
    };
    let text = why(container(json!([])).with(masked).run(prepare, || Ok(())));
    assert!(text.contains("/dev/null is not the null device"), "{text}");
}
