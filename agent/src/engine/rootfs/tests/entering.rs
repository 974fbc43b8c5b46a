// SPDX-License-Identifier: Apache-2.0

//! Whole roots: devices, terminal, propagation, what is hidden, and the ways in.

use std::os::unix::fs::FileTypeExt;

use super::*;

#[test]
fn a_usual_container() {
    if !is_root() {
        return;
    }
    let mounts = vec![
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=64k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/etc/resolv.conf", "bind", "source/resolv.conf", &["rbind", "rprivate", "ro"]),
    ];
    let namespaces = ["mount", "pid", "network", "ipc"].map(|kind| json!({"type": kind}));
    let changes = json!({
        "root": {"path": "rootfs", "readonly": true},
        "process": {
            "cwd": "/work/here", "terminal": true, "args": ["sh"], "user": {"uid": 0, "gid": 0}
        },
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/version", "/proc/cpuinfo", "/proc/missing", "/proc/tty", "/proc/fs"
            ],
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
        check!(io("version", fs::metadata("/proc/version"))?.rdev() == 0x103, "masked");
        check!(io("cpuinfo", fs::metadata("/proc/cpuinfo"))?.rdev() == 0x103, "masked");
        for masked in ["/proc/tty", "/proc/fs"] {
            check!(io(masked, fs::read_dir(masked))?.count() == 0, "{masked} is empty");
            check!(options_at(masked)?.starts_with("ro"), "{masked} is read-only");
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
    let bind = |destination| bind(destination, &["bind"]);
    let mounts = vec![bind("/mnt/x"), bind("/up"), bind("/dangling/y"), bind("/a/../../b")];
    let result = container(mounts).run(prepare, || {
        for place in ["/etc/x", "/source", "/made/up/y", "/b"] {
            check!(Path::new(place).join("mark").exists(), "{}", mount_at(place)?);
        }
        Ok(())
    });
    assert_eq!(result, Ok(()));
    let text = why(container(vec![bind("/loop/x")]).run(prepare, || Ok(())));
    assert!(text.contains("too many"), "{text}");
}

#[test]
fn devices_are_the_specs() {
    if !is_root() {
        return;
    }
    let devices = json!([
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3,
            "fileMode": 0o600, "uid": 7, "gid": 8},
        {"path": "/dev/sub/loop", "type": "b", "major": 7, "minor": 300},
        {"path": "/pipe", "type": "p", "fileMode": 0o622},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    ]);
    let result =
        container(vec![]).with(json!({"linux": {"devices": devices}})).run(nothing, || {
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
    let text = why(container(vec![]).with(bad).run(nothing, || Ok(())));
    assert_eq!(text, "a is not a valid device type for device /dev/x");
    // A /dev from outside is left alone.
    let mounts = vec![bind("/dev/", &["bind"])];
    let result = container(mounts).run(nothing, || {
        check!(io("dev", fs::read_dir("/dev"))?.count() == 0, "/dev is left alone");
        Ok(())
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn a_null_stream_is_the_containers() {
    if !is_root() {
        return;
    }
    let dev = mount("/dev", "tmpfs", "tmpfs", &[]);
    let result = container(vec![dev]).run(
        |_, _| Ok(nix::unistd::dup2_stdin(fs::File::open("/dev/null")?)?),
        || {
            let info = io("fdinfo", fs::read_to_string("/proc/self/fdinfo/0"))?;
            let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
            let line = mount_at("/dev")?;
            check!(id.map(str::trim) == line.split(' ').next(), "{line}:\n{info}");
            Ok(())
        },
    );
    assert_eq!(result, Ok(()));
}

#[test]
fn a_user_namespace() {
    if !is_root() {
        return;
    }
    let namespaces = ["mount", "pid", "user", "network", "ipc"].map(|kind| json!({"type": kind}));
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    let mounts = vec![
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "mode=755"]),
        mount("/dev/pts", "devpts", "devpts", &["newinstance", "gid=5"]),
        mount("/sys", "sysfs", "sysfs", &["ro"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &[]),
        bind("/plain", &["rbind"]),
        bind("/ro", &["rbind", "ro"]),
        bind("/mapped", &["rbind", "idmap"]),
    ];
    let changes = json!({
        "root": {"path": "rootfs", "readonly": true},
        "linux": {"namespaces": namespaces, "uidMappings": map, "gidMappings": map,
            "maskedPaths": ["/proc/version", "/proc/tty"], "readonlyPaths": ["/proc/sys"],
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
        check!(io("version", fs::metadata("/proc/version"))?.rdev() == 0x103, "masked");
        check!(mount_at("/proc/tty")?.contains(" - tmpfs "), "masked");
        check!(options_at("/proc/sys")?.starts_with("ro"), "read-only");
        check!(options_at("/")?.starts_with("ro"), "read-only root");
        Ok(())
    });
    assert_eq!(result, Ok(()));
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
        let result = container(vec![]).with(json!({"linux": {"rootfsPropagation": name}})).run(
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
fn a_shared_root_keeps_its_binds_in_touch_with_their_sources() {
    if !is_root() {
        return;
    }
    for (root, option, expected) in [
        ("rshared", "rshared", "shared:"),
        ("rslave", "rslave", "master:"),
        ("rslave", "rprivate", "-"),
        ("rprivate", "bind", "-"),
    ] {
        let mounts = vec![bind("/x", &["rbind", option])];
        let changes = json!({"linux": {"rootfsPropagation": root}});
        let result = container(mounts).with(changes).run(
            |_, _| shell("mount -t tmpfs source /tmp/source; mount --make-rshared /"),
            || {
                let line = mount_at("/x")?;
                let fields: Vec<_> = line.split(' ').skip(6).collect();
                check!(fields[0].starts_with(expected), "{root}, {option}: {line}");
                check!(fields[0] == "-" || fields[1] == "-", "{root}, {option}: {line}");
                Ok(())
            },
        );
        assert_eq!(result, Ok(()), "{root}, {option}");
    }
}

#[test]
fn without_pivot_root() {
    if !is_root() {
        return;
    }
    let mut moved = container(vec![]).with(json!({"root": {"path": "rootfs", "readonly": true}}));
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
    let result = container(vec![]).with(namespaces).run(
        |rootfs, _| fs::write(rootfs.join("mark"), ""),
        || {
            check!(Path::new("/mark").exists() && Path::new("/proc/self").exists(), "the root");
            Ok(())
        },
    );
    assert_eq!(result, Ok(()));
    let masked =
        json!({"linux": {"namespaces": [{"type": "pid"}], "maskedPaths": ["/proc/kcore"]}});
    let text = why(container(vec![]).with(masked).run(nothing, || Ok(())));
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
    let text = why(container(vec![]).with(masked).run(prepare, || Ok(())));
    assert!(text.contains("/dev/null is not the null device"), "{text}");
}
