// SPDX-License-Identifier: Apache-2.0

//! `make bench`: prints the figures and writes them as JSON.

use std::process::ExitCode;

use husk_tests::bench::container::Containerd;
use husk_tests::bench::report::Report;
use husk_tests::bench::{memory, microvm};
use husk_tests::containerd::leftovers::pids_of;

const USAGE: &str = "usage: husk-bench [--rounds N] [--json FILE]";
const HUSK: &str = "io.containerd.husk.v2";
const RUNC: &str = "io.containerd.runc.v2";

struct Options {
    rounds: u32,
    json: Option<String>,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("husk-bench: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let report = match measure(options.rounds) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("husk-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    print!("{report}");
    if let Some(path) = options.json {
        let json = serde_json::to_string_pretty(&report).expect("a report is JSON");
        if let Err(error) = std::fs::write(&path, json + "\n") {
            eprintln!("husk-bench: {path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    // A figure of husk itself that is missing is a failure; a comparison's is not.
    match report.cold_start.contains_key("husk") {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn measure(rounds: u32) -> Result<Report, String> {
    let containerd = Containerd::of_session()?;
    let mut report = Report { rounds, ..Report::default() };
    let mut missing = Vec::new();
    for (name, runtime) in [("runc", RUNC), ("husk", HUSK)] {
        eprintln!("husk-bench: cold starts with {name}");
        match containerd.cold_starts(runtime, rounds) {
            Ok(runs) => {
                let figures = report.figures_of(&format!("cold starts with {name}"), runs);
                report.cold_start.insert(name.to_owned(), figures);
            }
            Err(error) => missing.push(format!("cold start with {name}: {error}")),
        }
    }
    eprintln!("husk-bench: memory");
    // A second time, for the first VM may have hung.
    let memory = containerd.beside_idle(HUSK, husk_memory);
    match memory.or_else(|_| containerd.beside_idle(HUSK, husk_memory)) {
        Ok(memory) => report.memory.extend(memory),
        Err(error) => missing.push(format!("memory: {error}")),
    }
    let monitors: [(&str, fn() -> _); 2] =
        [("husk-vmm", microvm::husk_vmm), ("QEMU microvm", microvm::qemu)];
    for (name, vm) in monitors {
        eprintln!("husk-bench: the guest alone under {name}");
        match microvm::lives(vm, rounds) {
            Ok(runs) => {
                let figures = report.figures_of(&format!("guests alone under {name}"), runs);
                report.vm_alone.insert(name.to_owned(), figures);
            }
            Err(error) => missing.push(format!("guest alone under {name}: {error}")),
        }
    }
    report.missing = missing;
    report.complete();
    Ok(report)
}

fn husk_memory() -> Result<Vec<(String, memory::Memory)>, String> {
    let mut found = Vec::new();
    for program in ["husk-vmm", "containerd-shim-husk-v2"] {
        match pids_of(program)[..] {
            [pid] => found.push((program.to_owned(), memory::of_process(pid)?)),
            ref pids => return Err(format!("{} processes {program}", pids.len())),
        }
    }
    Ok(found)
}

fn options() -> Result<Options, String> {
    let mut options = Options { rounds: 5, json: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => {
                let rounds = value()?.parse().ok().filter(|rounds| *rounds > 0);
                options.rounds = rounds.ok_or("--rounds takes a number from 1 on")?;
            }
            "--json" => options.json = Some(value()?),
            _ => return Err(format!("unknown option '{word}'")),
        }
    }
    Ok(options)
}
