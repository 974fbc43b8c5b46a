// SPDX-License-Identifier: Apache-2.0

//! Traffic of a container, for the suites: see `husk_tests::traffic`.

use std::io;
use std::process::ExitCode;

use husk_tests::traffic;

const USAGE: &str = "usage: husk-test-net echo PORT
       husk-test-net serve PORT
       husk-test-net connect ADDRESS:PORT COUNT
       husk-test-net datagrams ADDRESS:PORT
       husk-test-net segments ADDRESS:PORT LENGTH COUNT";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("husk-test-net {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{USAGE}");
            ExitCode::FAILURE
        }
    }
}

/// None if the words are no command.
fn run(words: &[String]) -> Option<io::Result<()>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Some(match words[..] {
        ["serve", port] => traffic::serve(port.parse().ok()?),
        ["echo", port] => traffic::echo(port.parse().ok()?),
        ["connect", to, count] => traffic::connect(to.parse().ok()?, count.parse().ok()?),
        ["datagrams", to] => traffic::datagrams(to.parse().ok()?, &traffic::DATAGRAMS),
        ["segments", to, len, count] => {
            traffic::segments(to.parse().ok()?, len.parse().ok()?, count.parse().ok()?)
        }
        _ => return None,
    })
}
