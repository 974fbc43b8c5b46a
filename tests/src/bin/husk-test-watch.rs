// SPDX-License-Identifier: Apache-2.0

//! Watches a directory or a file as programs do that read their configuration anew, in a
//! container: says each event of inotify with its name, and what FILE then has in it.

use std::process::ExitCode;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [path, file] = &words[..] else {
        eprintln!("usage: husk-test-watch PATH FILE");
        return ExitCode::FAILURE;
    };
    match watch(path, file) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn watch(path: &str, file: &str) -> nix::Result<std::convert::Infallible> {
    let known = [
        (AddWatchFlags::IN_MODIFY, "modify"),
        (AddWatchFlags::IN_ATTRIB, "attrib"),
        (AddWatchFlags::IN_CREATE, "create"),
        (AddWatchFlags::IN_DELETE, "delete"),
        (AddWatchFlags::IN_MOVED_TO, "moved-to"),
        (AddWatchFlags::IN_DELETE_SELF, "delete-self"),
    ];
    let wanted = known.iter().fold(AddWatchFlags::empty(), |all, k| all | k.0);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(path, wanted)?;
    println!("watching");
    loop {
        for event in inotify.read_events()? {
            if event.mask.contains(AddWatchFlags::IN_DELETE_SELF) {
                // Another file has its name.
                inotify.add_watch(path, wanted)?;
            }
            let name = event.name.unwrap_or_default();
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let kinds = known.iter().filter(|(flag, _)| event.mask.contains(*flag));
            for (_, kind) in kinds {
                println!("{kind} {}: {text}", name.display());
            }
        }
    }
}
