// SPDX-License-Identifier: Apache-2.0

//! The root file system: an overlay whose upper directory is containerd's snapshot.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use husk_tests::containerd::{Lab, case};

/// The snapshot's upper directory on the host.
fn upper(lab: &Lab, id: &str) -> PathBuf {
    let said = lab.ctr(&["snapshots", "mounts", "/anywhere", id]).ended(0).text();
    let path = said.split("upperdir=").nth(1).and_then(|tail| tail.split([',', ' ']).next());
    PathBuf::from(path.unwrap_or_else(|| panic!("no upperdir in: {said}")))
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
    let name = CString::new(name).expect("a name");
    let mut value = vec![0; 256];
    // SAFETY: all three pointers are valid for the call, and the length is the buffer's.
    let len = unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    value.truncate(usize::try_from(len).ok()?);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|file| file.file_type().is_char_device() && file.rdev() == 0)
}

#[test]
fn writes_are_the_snapshots() {
    case(
        "what a container changes is in the snapshot's upper directory, as overlayfs has it",
        |lab| {
            lab.idle(&[], "writer");
            lab.exec_sh(
                "writer",
                "set -e
            mkdir -p /data/deep; printf 'written' >/data/deep/file
            chmod 4750 /data/deep/file; chown 12:34 /data/deep/file; chmod 4750 /data/deep/file
            touch -d '2001-02-03 04:05:06' /data/deep/file
            ln /data/deep/file /data/link; ln -s ../anywhere /data/symbolic; mkfifo /data/fifo
            rm /etc/passwd                         # of the image: a whiteout
            mv /etc/group /etc/renamed             # of the image: a copy and a whiteout
            rm -r /usr/sbin; mkdir /usr/sbin; touch /usr/sbin/new     # opaque
            echo more >>/bin/busybox.txt; mv /bin/busybox.txt /home/
            mkdir /big; head -c 3000000 /dev/zero >/big/file; truncate -s 1000 /big/file
            test ! -e /etc/passwd; test -e /etc/renamed; ls /usr/sbin | grep -qx new
            test \"$(ls /usr/sbin)\" = new; test \"$(stat -c %h /data/link)\" = 2",
            );
            let upper = upper(lab, "writer");
            let file = fs::metadata(upper.join("data/deep/file"))
                .expect("the file in the upper directory");
            assert_eq!(fs::read(upper.join("data/link")).expect("the link"), b"written");
            assert_eq!(file.ino(), fs::metadata(upper.join("data/link")).expect("the link").ino());
            assert_eq!((file.uid(), file.gid(), file.nlink()), (12, 34, 2));
            assert_eq!(file.permissions().mode() & 0o7777, 0o4750);
            assert_eq!(file.mtime(), 981_173_106);
            let target = fs::read_link(upper.join("data/symbolic")).expect("the symbolic link");
            assert_eq!(target, Path::new("../anywhere"));
            let fifo = fs::symlink_metadata(upper.join("data/fifo")).expect("the FIFO");
            assert!(fifo.file_type().is_fifo());
            assert!(is_whiteout(&upper.join("etc/passwd")), "no whiteout of a removed file");
            assert!(is_whiteout(&upper.join("etc/group")), "no whiteout of a renamed file");
            assert!(
                fs::read_to_string(upper.join("etc/renamed")).expect("renamed").contains("wheel")
            );
            let opaque = xattr(&upper.join("usr/sbin"), "trusted.overlay.opaque");
            assert_eq!(opaque.as_deref(), Some(b"y".as_slice()), "a directory made anew is opaque");
            assert_eq!(
                fs::read_to_string(upper.join("home/busybox.txt")).expect("moved"),
                "more\n"
            );
            assert_eq!(fs::metadata(upper.join("big/file")).expect("big").len(), 1000);

            // A new task of the same container, in another VM, sees it all again.
            lab.remove_task("writer");
            lab.ctr(&["tasks", "start", "-d", "writer"]).ended(0);
            let said = lab.exec_sh(
                "writer",
                "cat /data/link; echo; ls /usr/sbin; stat -c '%u %g %h %a' /data/deep/file; \
             test -e /etc/passwd || echo gone; readlink /data/symbolic",
            );
            assert_eq!(said, "written\nnew\n12 34 2 4750\ngone\n../anywhere");
            lab.remove("writer");
        },
    );
}

#[test]
fn extended_attributes() {
    case("extended attributes are set, read, listed and kept in the upper directory", |lab| {
        let probe = husk_tests::program("husk-test-xattr");
        let mount = format!("type=bind,src={},dst=/probe,options=bind:ro", probe.display());
        lab.idle(&["--mount", &mount], "marked");
        let said = lab.exec_sh(
            "marked",
            "set -e; touch /file
            /probe set /file user.colour green; /probe get /file user.colour; /probe list /file
            /probe get /file user.other || true",
        );
        assert_eq!(said, "green\nuser.colour\nno attribute user.other");
        let value = xattr(&upper(lab, "marked").join("file"), "user.colour");
        assert_eq!(value.as_deref(), Some(b"green".as_slice()));
        lab.remove("marked");
    });
}

#[test]
fn read_only() {
    case("a read-only root file system refuses writes, and /dev/shm takes them", |lab| {
        let script =
            "touch /file; echo $?; rm /etc/passwd; echo $?; echo x >/dev/shm/file; echo $?";
        let output = lab.run(&["--read-only"], "fixed", &["sh", "-c", script]).ended(0);
        assert_eq!(output.text(), "1\n1\n0");
        assert_eq!(
            output.error().matches("Read-only file system").count(),
            2,
            "{}",
            output.error()
        );
    });
}
