// SPDX-License-Identifier: Apache-2.0

//! What Kubernetes gives to processes and takes from them: arguments, environment, files that
//! are copied in and out, configuration.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;

use husk_tests::cri::container::mount;
use husk_tests::cri::{api, case};
use husk_tests::temporary;

#[test]
fn environment() {
    case(
        "command, arguments, directory and environment are as the pod says, to the last character, in each exec too",
        |cri| {
            let pod = cri.pod("environed", |_| {});
            let large = "x".repeat(100_000);
            let variables = [
                ("PLAIN", "value"),
                ("EMPTY", ""),
                ("QUOTED", "a 'b' \"c\" $d `e` \\"),
                ("LINES", "one\ntwo"),
                ("UNICODE", "grüß 世界"),
                ("LARGE", &large),
            ];
            let arguments = ["a b", "", "$PLAIN", "c\td", "*"];
            let line = "pwd; for word; do echo \"<$word>\"; done; exec sleep 100000";
            let container = pod.start("main", &["sh", "-c"], |config| {
                let words = [line, "sh"].into_iter().chain(arguments);
                config.args = words.map(str::to_owned).collect();
                config.working_dir = "/made/for/it".to_owned();
                config.envs = variables
                    .map(|(key, value)| api::KeyValue {
                        key: key.to_owned(),
                        value: value.to_owned(),
                        ..Default::default()
                    })
                    .into();
            });
            container.until_logged("<*>");
            let words = arguments.map(|word| format!("<{word}>\n")).concat();
            assert_eq!(container.logged("stdout"), format!("/made/for/it\n{words}"));
            for (name, value) in variables {
                let answer = container.exec(&["sh", "-c", &format!("printf %s \"${name}\"")], 0);
                let said = String::from_utf8(answer.expect("ExecSync").stdout).expect("UTF-8");
                assert_eq!(said, value, "{name}");
            }
            assert_eq!(container.exec_sh("pwd; test -n \"${EMPTY+set}\""), "/made/for/it");
            // The image's own, beside those of the pod.
            assert!(container.exec_sh("echo $PATH").contains("/usr/local/bin"));
            pod.remove();
        },
    );
}

/// The SHA-256 of a file, as `sha256sum` prints it.
fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn copies() {
    case(
        "files are copied in and out by tar over an exec's streams, and eight execs at once keep what is theirs",
        |cri| {
            let pod = cri.pod("copied", |_| {});
            let container = pod.idle("main");
            let source = temporary("husk-copy");
            let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
            fs::create_dir(source.path().join("sub")).expect("mkdir");
            let file = source.path().join("sub/file");
            fs::write(&file, content).expect("write");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o751)).expect("chmod");
            symlink("sub/file", source.path().join("link")).expect("symlink");
            let packed =
                Command::new("tar").args(["-cf", "-", "-C"]).arg(source.path()).arg(".").output();
            let packed = packed.expect("tar").stdout;

            container.exec_sh("mkdir /in");
            let words = ["tar", "-xf", "-", "-C", "/in"];
            let mut unpack = cri.lab.exec_start(&[], &container.id, &words);
            unpack.write(&packed);
            unpack.close_stdin();
            unpack.wait().ended(0);
            let seen = container.exec_sh("sha256sum </in/link; stat -c %a /in/sub/file");
            assert_eq!(seen, format!("{}  -\n751", digest(&file)));

            let answer = container.exec(&["tar", "-cf", "-", "-C", "/in", "."], 0);
            let back = temporary("husk-copy");
            let archive = back.path().join("archive");
            fs::write(&archive, answer.expect("ExecSync").stdout).expect("write");
            let unpacked =
                Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(back.path()).status();
            assert!(unpacked.expect("tar").success());
            let copy = back.path().join("link");
            assert_eq!(digest(&copy), digest(&file));
            assert_eq!(fs::metadata(&copy).expect("stat").permissions().mode() & 0o777, 0o751);

            thread::scope(|scope| {
                for number in 1..=8 {
                    let container = &container;
                    scope.spawn(move || {
                        let line = format!("seq {number}000; echo {number} >&2; exit {number}");
                        let done = container.exec(&["sh", "-c", &line], 0).expect("ExecSync");
                        let lines = done.stdout.iter().filter(|&&byte| byte == b'\n').count();
                        assert_eq!((lines, done.exit_code), (number as usize * 1000, number));
                        assert_eq!(done.stderr, format!("{number}\n").into_bytes());
                    });
                }
            });
            pod.remove();
        },
    );
}

#[test]
fn configuration() {
    case(
        "files of a ConfigMap and of a Secret in it, one of them alone over the image's, an optional one that is empty",
        |cri| {
            let pod = cri.pod("configured", |_| {});
            let [outer, inner, empty] = ["outer", "inner", "empty"].map(|name| pod.volume(name));
            // As the kubelet lays it out: the names lead through a link that it swaps.
            for (volume, name, value) in [(&outer, "key", "of outer"), (&inner, "secret", "s3cret")]
            {
                fs::create_dir(volume.join("..1")).expect("mkdir");
                fs::write(volume.join("..1").join(name), value).expect("write");
                symlink("..1", volume.join("..data")).expect("symlink");
                symlink(format!("..data/{name}"), volume.join(name)).expect("symlink");
            }
            fs::create_dir(outer.join("nested")).expect("mkdir");
            let motd = pod.log_path("passwd");
            fs::write(&motd, "root:x:0:0::/:/bin/sh\nalone:x:77:77::/:/bin/sh\n").expect("write");
            let container = pod.start("main", &["sleep", "100000"], |config| {
                mount(config, &outer, "/config", true);
                mount(config, &inner, "/config/nested", true);
                mount(config, &empty, "/optional", true);
                mount(config, &motd, "/etc/passwd", true);
            });
            assert_eq!(container.exec_sh("cat /config/key"), "of outer");
            assert_eq!(container.exec_sh("cat /config/nested/secret"), "s3cret");
            assert_eq!(container.exec_sh("ls -A /optional"), "");
            assert_eq!(
                container.exec_sh("id -u alone; ls /etc"),
                "77\ngroup\nhostname\nhosts\npasswd\nresolv.conf"
            );
            for path in ["/config/new", "/config/nested/new", "/optional/new", "/etc/passwd"] {
                let line = format!("echo x >>{path}");
                let refused = container.exec(&["sh", "-c", &line], 0).expect("ExecSync");
                let said = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(refused.exit_code != 0 && said.contains("Read-only"), "{path}: {said}");
            }
            pod.remove();
        },
    );
}
