// SPDX-License-Identifier: Apache-2.0

//! Terminals: sent to a console socket, or connected to the caller's streams.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::json;

use crate::bundle::{Bundle, become_reaper, ended};

/// Waits for a terminal at a console socket that a command is given.
fn receive(listener: &UnixListener) -> File {
    let (stream, _) = listener.accept().expect("accept");
    let mut bytes = [0; 64];
    let mut buffer = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut buffer, Some(&mut space), MsgFlags::empty());
    let message = message.expect("receive");
    let mut rights = message.cmsgs().expect("rights");
    let Some(ControlMessageOwned::ScmRights(fds)) = rights.next() else { panic!("no descriptor") };
    assert_eq!(fds.len(), 1);
    // SAFETY: the kernel has just made it for us.
    File::from(unsafe { OwnedFd::from_raw_fd(fds[0]) })
}

/// Reads what a terminal says until it says `end`.
fn read_until(terminal: &mut File, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let mut buffer = [0; 256];
        let length = terminal.read(&mut buffer).unwrap_or_else(|e| panic!("{e} after {text:?}"));
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    text
}

#[test]
fn a_console_socket_gets_the_terminal_of_a_container() {
    let script = "tty; stty size; read line; echo got $line; ls -l /dev/console; ps -o tty,args";
    let Some(mut bundle) = Bundle::script("console", script) else { return };
    bundle.config["process"]["terminal"] = true.into();
    bundle.config["process"]["consoleSize"] = json!({"height": 33, "width": 99});
    become_reaper();
    let listener = UnixListener::bind(bundle.path("console")).expect("bind");
    let options = ["create", "--console-socket", "console", "--pid-file", "pid"];
    bundle.on(&options).ok();
    let mut terminal = receive(&listener);
    bundle.on(&["start"]).ok();
    assert_eq!(read_until(&mut terminal, "99\r\n"), "/dev/pts/0\r\n33 99\r\n");
    terminal.write_all(b"words\n").expect("write");
    let text = read_until(&mut terminal, "ps -o");
    assert!(text.contains("got words\r\n") && text.contains("/dev/console"), "{text}");
    let pid = std::fs::read_to_string(bundle.path("pid")).expect("pid").parse().expect("a pid");
    assert_eq!(ended(pid), 0);
    bundle.on(&["delete"]).ok();
}

#[test]
fn a_console_socket_gets_the_terminal_of_an_exec() {
    let Some(bundle) = Bundle::new("execconsole", &["sleep", "1000"]) else { return };
    let pid = bundle.start();
    let listener = UnixListener::bind(bundle.path("console")).expect("bind");
    let options = ["--tty", "--detach", "--console-socket", "console", "--pid-file", "exec"];
    bundle.exec(&options, &["sh", "-c", "read line; echo got $line; tty; exit 3"]).ok();
    let mut terminal = receive(&listener);
    terminal.write_all(b"words\n").expect("write");
    let text = read_until(&mut terminal, "/dev/pts/0\r\n");
    assert!(text.contains("got words\r\n"), "{text}");
    let exec = std::fs::read_to_string(bundle.path("exec")).expect("pid").parse().expect("a pid");
    assert_eq!(ended(exec), 3);
    bundle.kill_and_delete(pid);
}

#[test]
fn without_a_socket_the_terminal_is_connected_to_the_caller() {
    let script = "test -t 0 && test -t 2 && read line && echo got $line; exit 4";
    let Some(mut bundle) = Bundle::script("connected", script) else { return };
    bundle.config["process"]["terminal"] = true.into();
    let (mut command, out, _) = bundle.command(&["run", &bundle.id]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"words\n").expect("write");
    assert_eq!(child.wait().expect("wait").code(), Some(4));
    assert_eq!(std::fs::read_to_string(out).expect("out"), "words\r\ngot words\r\n");

    bundle.config["process"] = json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sleep", "1000"], "env": ["PATH=/bin"],
    });
    let pid = bundle.start();
    let ran = bundle.exec(&["-t"], &["sh", "-c", "tty; seq 2000; exit 5"]);
    assert_eq!(ran.status, 5, "{ran:?}");
    assert!(ran.out.starts_with("/dev/pts/0\r\n1\r\n") && ran.out.ends_with("\r\n2000\r\n"));
    bundle.kill_and_delete(pid);
}

#[test]
fn terminals_that_nobody_would_hold_and_sockets_without_use_are_refused() {
    let Some(mut bundle) = Bundle::new("noconsole", &["true"]) else { return };
    let error = bundle.on(&["create", "--console-socket", "console"]).fails(1);
    assert!(error.contains("--console-socket is for a terminal"), "{error}");
    bundle.config["process"]["terminal"] = true.into();
    for command in [&["create"][..], &["run", "--detach"]] {
        let error = bundle.on(command).fails(1);
        assert!(error.contains("without --console-socket"), "{error}");
    }
    let error = bundle.on(&["run", "--console-socket", "console"]).fails(1);
    assert!(error.contains("--console-socket is for a terminal"), "{error}");
    let error = bundle.on(&["create", "--console-socket", "console"]).fails(1);
    assert!(error.contains("cannot connect to the console socket"), "{error}");
    assert!(!Path::new(&bundle.root).join(&bundle.id).exists());
}
