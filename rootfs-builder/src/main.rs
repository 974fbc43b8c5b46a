// SPDX-License-Identifier: Apache-2.0
//! Makes the guest image: an uncompressed initramfs with husk-agent as `/init` and the
//! directories it mounts things on. There is no shell in it, unless `--debug` adds busybox
//! for people who need a look inside. The same inputs give the same bytes.

mod cpio;
mod image;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sha2::{Digest, Sha256};

const USAGE: &str = "usage: rootfs-builder --agent PATH --output PATH [--debug BUSYBOX]";

#[derive(Debug, PartialEq)]
struct Options {
    agent: PathBuf,
    output: PathBuf,
    busybox: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = parse(std::env::args_os().skip(1)).and_then(|options| match options {
        Some(options) => build(&options),
        None => {
            println!("{USAGE}");
            Ok(())
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("rootfs-builder: {message}");
            ExitCode::from(2)
        }
    }
}

/// Reads the command line; `None` means that help was asked for.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Options>, String> {
    use lexopt::prelude::*;
    let (mut agent, mut output, mut busybox) = (None, None, None);
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(|e| e.to_string())? {
        let option = match argument {
            Long("agent") => &mut agent,
            Long("output") => &mut output,
            Long("debug") => &mut busybox,
            Short('h') | Long("help") => return Ok(None),
            other => return Err(format!("{}; {USAGE}", other.unexpected())),
        };
        *option = Some(PathBuf::from(parser.value().map_err(|e| e.to_string())?));
    }
    let required = |path: Option<PathBuf>, name| path.ok_or(format!("{name} is missing; {USAGE}"));
    Ok(Some(Options {
        agent: required(agent, "--agent")?,
        output: required(output, "--output")?,
        busybox,
    }))
}

fn build(options: &Options) -> Result<(), String> {
    let agent = read_program(&options.agent)?;
    let busybox = options.busybox.as_deref().map(read_busybox).transpose()?;
    let image = image::build(&agent, busybox.as_ref());
    write(&options.output, &image)?;
    println!(
        "{}: {} bytes, SHA-256 {}",
        options.output.display(),
        image.len(),
        hex(&Sha256::digest(&image))
    );
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// Reads a program that must run where there is no loader and no library.
fn read_program(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = read(path)?;
    match image::check_static(&bytes) {
        Ok(()) => Ok(bytes),
        Err(reason) => Err(format!("{} {reason}", path.display())),
    }
}

/// Reads busybox and asks it for its applets, so that the links match what it has.
fn read_busybox(path: &Path) -> Result<image::Busybox, String> {
    let program = read_program(path)?;
    let listing = std::process::Command::new(path)
        .arg("--list")
        .output()
        .map_err(|e| format!("cannot run {}: {e}", path.display()))?;
    let applets = String::from_utf8_lossy(&listing.stdout).lines().map(str::to_owned).collect();
    Ok(image::Busybox { program, applets })
}

/// Writes beside the target and renames, so that a reader sees the old image or the new one.
fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".part.{}", std::process::id()));
    std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path)).map_err(|e| {
        let _ = std::fs::remove_file(&part);
        format!("cannot write {}: {e}", path.display())
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Option<Options>, String> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn reads_all_options() {
        let options = parse_words(&["--agent", "a", "--output=o", "--debug", "b"]);
        assert_eq!(
            options,
            Ok(Some(Options { agent: "a".into(), output: "o".into(), busybox: Some("b".into()) }))
        );
    }

    #[test]
    fn says_what_is_wrong_with_the_command_line() {
        let message = |words| parse_words(words).unwrap_err();
        assert!(message(&["--output", "o"]).starts_with("--agent is missing"));
        assert!(message(&["--agent", "a"]).starts_with("--output is missing"));
        assert!(message(&["--agent"]).contains("--agent"));
        assert!(message(&["--colour"]).contains("--colour"));
    }

    #[test]
    fn names_the_file_it_cannot_read() {
        let options =
            Options { agent: "/no/agent".into(), output: "/no/output".into(), busybox: None };
        assert!(build(&options).unwrap_err().starts_with("cannot read /no/agent: "));
    }

    #[test]
    fn refuses_an_agent_that_is_not_a_program() {
        let options =
            Options { agent: "Cargo.toml".into(), output: "/dev/null".into(), busybox: None };
        assert_eq!(build(&options).unwrap_err(), "Cargo.toml is not an x86-64 ELF program");
    }
}
