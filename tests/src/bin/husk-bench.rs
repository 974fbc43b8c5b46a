// SPDX-License-Identifier: Apache-2.0

//! `make bench`: prints the figures and writes them as JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use husk_tests::bench::container::Containerd;
use husk_tests::bench::report::Report;
use husk_tests::bench::{Runs, exec, memory, microvm, network, resize};
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::network::{DataPath, bridged};

const USAGE: &str = "usage: husk-bench [--rounds N] [--only PART] [--json FILE]
parts: cold-starts, execs, output, network, resize, memory, alone";

const HUSK: &str = "io.containerd.husk.v2";
const RUNTIMES: [(&str, &str); 2] = [("runc", "io.containerd.runc.v2"), ("husk", HUSK)];

const COLD_STARTS: &str = "cold-starts";
const EXECS: &str = "execs";
const OUTPUT: &str = "output";
const NETWORK: &str = "network";
const RESIZE: &str = "resize";
const MEMORY: &str = "memory";
const ALONE: &str = "alone";
const PARTS: [&str; 7] = [COLD_STARTS, EXECS, OUTPUT, NETWORK, RESIZE, MEMORY, ALONE];

struct Options {
    rounds: u32,
    only: Option<String>,
    json: Option<String>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }

    /// Measures a part, unless only another is wanted.
    fn part(&self, part: &str, of: &str, measure: impl FnOnce()) {
        if self.wants(part) {
            eprintln!("husk-bench: {part}, {of}");
            measure();
        }
    }
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("husk-bench: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let report = match measure(&options) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("husk-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    print!("{report}");
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report).expect("a report is JSON");
        if let Err(error) = std::fs::write(path, json + "\n") {
            eprintln!("husk-bench: {path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    // A figure of husk itself that is missing is a failure; a comparison's is not.
    let of_husk =
        [(COLD_STARTS, &report.cold_start), (EXECS, &report.exec), (OUTPUT, &report.output)];
    let lacks = |(part, figures): (&str, &BTreeMap<String, _>)| {
        options.wants(part) && !figures.contains_key("husk")
    };
    match of_husk.into_iter().any(lacks) {
        false => ExitCode::SUCCESS,
        true => ExitCode::FAILURE,
    }
}

fn measure(options: &Options) -> Result<Report, String> {
    let rounds = options.rounds;
    let containerd = Containerd::of_session()?;
    let mut report = Report { rounds, ..Report::default() };
    for (name, runtime) in RUNTIMES {
        options.part(COLD_STARTS, name, || {
            let runs = containerd.cold_starts(runtime, rounds);
            report.take(format!("cold starts with {name}"), runs, |r| &mut r.cold_start, name);
        });
    }
    for (name, runtime) in RUNTIMES {
        // A second time, for the first VM may have hung.
        let beside = |measure: fn(&Path, &str, u32) -> Result<Runs, String>| {
            let look = || measure(containerd.directory(), Containerd::IDLE, rounds);
            containerd.beside_idle(runtime, look).or_else(|error| {
                eprintln!("husk-bench: once more: {error}");
                containerd.beside_idle(runtime, look)
            })
        };
        options.part(EXECS, name, || {
            report.take(format!("execs with {name}"), beside(exec::latency), |r| &mut r.exec, name);
        });
        options.part(OUTPUT, name, || {
            let runs = beside(exec::throughput);
            report.take(format!("output with {name}"), runs, |r| &mut r.output, name);
        });
    }
    let [own, kernel] = DataPath::of_husk();
    let networks = [
        ("runc", RUNTIMES[0].1, Vec::new()),
        ("husk, its own path", HUSK, own.husk_flags()),
        ("husk, vhost-net", HUSK, kernel.husk_flags()),
    ];
    for (name, runtime, flags) in networks {
        options.part(NETWORK, name, || {
            let look = || network_of(&containerd, runtime, &flags, rounds);
            let runs = look().or_else(|error| {
                eprintln!("husk-bench: once more: {error}");
                look()
            });
            report.take(format!("network with {name}"), runs, |r| &mut r.network, name);
        });
    }
    options.part(RESIZE, "husk", || {
        let grow = || resize::grow(containerd.directory(), Containerd::IDLE, rounds);
        let runs = containerd.beside_idle(HUSK, grow);
        report.take("larger limits with husk".to_owned(), runs, |r| &mut r.resize, "husk");
    });
    options.part(MEMORY, "husk", || {
        let memory = containerd.beside_idle(HUSK, husk_memory);
        match memory.or_else(|_| containerd.beside_idle(HUSK, husk_memory)) {
            Ok(memory) => report.memory.extend(memory),
            Err(error) => report.missing.push(format!("memory: {error}")),
        }
    });
    let monitors: [(&str, fn() -> _); 2] =
        [("husk-vmm", microvm::husk_vmm), ("QEMU microvm", microvm::qemu)];
    for (name, vm) in monitors {
        options.part(ALONE, name, || {
            let runs = microvm::lives(vm, rounds);
            report.take(format!("guests alone under {name}"), runs, |r| &mut r.vm_alone, name);
        });
    }
    report.complete();
    Ok(report)
}

/// The network of a container that has a namespace as CNI's plugins make it.
fn network_of(
    containerd: &Containerd,
    runtime: &str,
    flags: &[String],
    rounds: u32,
) -> Result<Runs, String> {
    let netns = bridged("husk-bench");
    let program = husk_tests::program("husk-test-net").display().to_string();
    let mount = format!("type=bind,src={program},dst=/husk-test-net,options=bind:ro");
    let mut all = vec!["--with-ns".to_owned(), netns.flag(), "--mount".to_owned(), mount];
    all.extend_from_slice(flags);
    let server = SocketAddr::from(([10, 88, 0, 2], 7));
    let command = ["/husk-test-net", "serve", "7"];
    containerd.beside(runtime, &all, &command, || network::traffic(server, rounds))
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
    let mut options = Options { rounds: 5, only: None, json: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => {
                let rounds = value()?.parse().ok().filter(|rounds| *rounds > 0);
                options.rounds = rounds.ok_or("--rounds takes a number from 1 on")?;
            }
            "--only" => {
                let part = Some(value()?).filter(|part| PARTS.contains(&part.as_str()));
                options.only = Some(part.ok_or("--only takes one of the parts")?);
            }
            "--json" => options.json = Some(value()?),
            _ => return Err(format!("unknown option '{word}'")),
        }
    }
    Ok(options)
}
