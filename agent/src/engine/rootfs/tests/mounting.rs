// SPDX-License-Identifier: Apache-2.0

//! Mounts: their attributes, places and refusals.

use super::*;

#[test]
fn binds_have_the_attributes_asked_for() {
    if !is_root() {
        return;
    }
    let mounts = vec![
        bind("/plain", &["bind"]),
        bind("/tree", &["rbind"]),
        bind("/rw", &["rbind", "rw"]),
        bind("/ro", &["rbind", "ro"]),
        bind("/rro", &["rbind", "rro", "rnoatime"]),
        bind("/rprivate", &["rbind", "rprivate", "noexec", "nosuid", "nodev", "nodiratime"]),
        bind("/rshared", &["rbind", "rshared"]),
        bind("/unbindable", &["bind", "unbindable"]),
        mount("file", "bind", "/tmp/source/file", &[]),
    ];
    let prepare = |_: &Path, _: &Path| {
        let commands = "mount -t tmpfs -o nosuid outer /tmp/source; cd /tmp/source
            mkdir inner; echo hi > file; mount -t tmpfs inner inner; touch inner/x
            mount -o remount,bind,ro,nosuid .; mount --make-rshared .";
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
fn id_mapped_binds() {
    if !is_root() {
        return;
    }
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let bind = |destination, options: &[&str], maps: bool| {
        let mut entry = bind(destination, options);
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
    let mounts = vec![
        bind("/one", &["rbind", "idmap"], true),
        bind("/all", &["rbind", "ridmap"], true),
        bind("/bare", &["bind"], true),
    ];
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
    let text = why(container(vec![bind("/x", &["bind", "idmap"], false)]).run(prepare, || Ok(())));
    assert!(text.ends_with("there are no ID mappings for it"), "{text}");
    let mut proc = mount("/x", "bind", "/proc/sys", &[]);
    proc["uidMappings"] = map.clone();
    proc["gidMappings"] = map.clone();
    let text = why(container(vec![proc]).run(prepare, || Ok(())));
    assert!(text.contains("does not support ID-mapped mounts: invalid argument"), "{text}");
    let tmpfs = mount("/x", "tmpfs", "tmpfs", &["idmap"]);
    let text = why(container(vec![tmpfs]).run(prepare, || Ok(())));
    assert!(text.ends_with("only bind mounts can be ID-mapped"), "{text}");
}

#[test]
fn a_tmpfs_is_filled_then_made_read_only() {
    if !is_root() {
        return;
    }
    let mounts = vec![
        mount("/etc", "tmpfs", "tmpfs", &["ro", "tmpcopyup", "nr_inodes=100"]),
        bind("/etc/below", &["bind"]),
        mount("/private", "tmpfs", "tmpfs", &[]),
        mount("/new", "tmpfs", "tmpfs", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["ro", "mode=755"]),
    ];
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
fn proc_stays_the_kernels() {
    if !is_root() {
        return;
    }
    let bind = |source: &str, destination: &str| vec![mount(destination, "", source, &["bind"])];
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
    let disguised = vec![mount("/proc/sys", "tmpfs", "source", &["bind"])];
    let text = why(container(disguised).run(links, || Ok(())));
    assert!(text.ends_with("because it is inside /proc"), "{text}");
    let tmpfs = vec![mount("/proc/tty", "tmpfs", "tmpfs", &[])];
    let result = container(tmpfs).run(links, || mount_at("/proc/tty").map(|_| ()));
    assert_eq!(result, Ok(()));
    for (source, destination) in [("source/file", "/proc/meminfo"), ("/proc", "/proc")] {
        let result =
            container(bind(source, destination)).run(links, || mount_at(destination).map(|_| ()));
        assert_eq!(result, Ok(()), "{destination}");
    }
    let link = |rootfs: &Path, _: &Path| symlink("/", rootfs.join("proc"));
    let text = why(container(vec![]).run(link, || Ok(())));
    assert!(text.ends_with("filesystem \"proc\" must be mounted on ordinary directory"), "{text}");
}

#[test]
fn control_groups() {
    if !is_root() {
        return;
    }
    let mounts = vec![mount(
        "/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    )];
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
fn other_file_systems() {
    if !is_root() {
        return;
    }
    let data = ["lowerdir=/tmp/source:/tmp/rootfs", "upperdir=/tmp/upper", "workdir=/tmp/work"];
    let prepare = |_: &Path, source: &Path| {
        fs::create_dir("/tmp/upper")?;
        fs::create_dir("/tmp/work")?;
        fs::write(source.join("file"), "below")
    };
    let writable = mount("/rw", "overlay", "overlay", &data);
    let result = container(vec![writable]).run(prepare, || {
        check!(io("file", fs::read_to_string("/rw/file"))? == "below", "the lower layer");
        check!(errno(fs::write("/rw/file", "above")) == 0, "the upper layer");
        Ok(())
    });
    assert_eq!(result, Ok(()));
    let read_only = mount("/ro", "overlay", "overlay", &[data[0], "ro", "nosuid"]);
    let result = container(vec![read_only]).run(prepare, || {
        let line = mount_at("/ro")?;
        check!(options_at("/ro")? == "ro,nosuid,relatime", "{line}");
        check!(line.contains(" - overlay overlay ro,"), "the file system, too: {line}");
        Ok(())
    });
    assert_eq!(result, Ok(()));
    let long = format!("lowerdir=/{}", "x".repeat(255));
    let text = why(container(vec![mount("/x", "overlay", "", &[&long])]).run(prepare, || Ok(())));
    let expected = "option lowerdir is longer than the 255 bytes that the kernel takes";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn what_cannot_be_is_told() {
    if !is_root() {
        return;
    }
    for (mount, expected) in [
        (
            (mount("/x", "nosuchfs", "y", &[])),
            "error mounting \"y\" to rootfs at \"/x\": \
             the kernel has no file system \"nosuchfs\": no such device",
        ),
        (
            (mount("/x", "tmpfs", "tmpfs", &["nosuch=1"])),
            "option nosuch: tmpfs: Unknown parameter 'nosuch': invalid argument",
        ),
        ((mount("/x", "tmpfs", "tmpfs", &["size=lots"])), "option size"),
        (
            (mount("/x", "bind", "/missing", &["bind"])),
            "error mounting \"/missing\" to rootfs at \"/x\": \
             open /missing: no such file or directory",
        ),
        (
            json!({"destination": "/x", "type": "bind", "options": ["bind"]}),
            "a bind mount needs a source",
        ),
        (json!({"destination": "/", "type": "tmpfs"}), "the root itself cannot be covered"),
        ((bind("/file", &["bind"])), "not a directory"),
    ] {
        let prepare = |rootfs: &Path, _: &Path| fs::write(rootfs.join("file"), "");
        let text = why(container(vec![mount]).run(prepare, || Ok(())));
        assert!(text.contains(expected), "{text}");
    }
    let odd = container(vec![]).with(json!({"linux": {"rootfsPropagation": "odd"}}));
    assert_eq!(why(odd.run(nothing, || Ok(()))), "rootfsPropagation=odd is not supported");
}
