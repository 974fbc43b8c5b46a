// SPDX-License-Identifier: Apache-2.0

//! husk: looks after husk on a machine. `husk check` says whether it can run microVMs.

mod check;

use std::process::ExitCode;

use lexopt::prelude::*;

const HELP: &str = "\
husk runs each container in a microVM of its own.

usage: husk check [--json]

  check      is this machine able to run microVMs? One line for each thing that is needed,
             with what to do where it is missing. Exit status 0 if all is there, else 1.
    --json   the same as a JSON array of objects with name, ok, text and remedy

  --help, --version
";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(message) => {
            eprintln!("husk: {message}; see husk --help");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let mut parser = lexopt::Parser::from_env();
    let mut command = None;
    let mut json = false;
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(ExitCode::SUCCESS);
            }
            Long("version") | Short('V') => {
                println!("husk {}", env!("CARGO_PKG_VERSION"));
                return Ok(ExitCode::SUCCESS);
            }
            Long("json") if command.is_some() => json = true,
            Value(word) if command.is_none() && word == "check" => command = Some(word),
            other => return Err(other.unexpected().to_string()),
        }
    }
    match command {
        Some(_) => Ok(check::run(json)),
        None => Err("no command given".to_owned()),
    }
}
