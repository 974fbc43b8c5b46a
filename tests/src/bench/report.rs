// SPDX-License-Identifier: Apache-2.0

//! The figures as a table for people and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::container::END;
use super::exec::{BYTE, EXIT, OUTPUT};
use super::memory::Memory;
use super::network;
use super::resize::STEP;
use super::{Figure, Runs, figures};

/// Figures by what was measured, such as a runtime, and by the name of the instant.
pub type Table = BTreeMap<String, BTreeMap<String, Figure>>;

/// All that was measured. What could not be is in `missing`, with the reason.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub rounds: u32,
    /// ns from the start of `ctr run` on, by runtime.
    pub cold_start: Table,
    /// Whole run of husk by whole run of runc, of their medians.
    pub husk_to_runc: Option<f64>,
    /// ns from the request for an exec of `true` on, by runtime.
    pub exec: Table,
    /// Until its exit: husk by runc, of the medians.
    pub exec_husk_to_runc: Option<f64>,
    /// ns for [`OUTPUT`] bytes from a process to its client, by runtime.
    pub output: Table,
    pub output_bytes: usize,
    /// husk by runc, of the medians.
    pub output_husk_to_runc: Option<f64>,
    /// ns for [`network::BYTES`] bytes each way and [`network::REQUESTS`] requests, by runtime and
    /// data path.
    pub network: Table,
    /// ns from exec to exit of a VM by itself, by monitor.
    pub vm_alone: Table,
    /// ns from the request for a larger memory limit to its answer, by runtime.
    pub resize: Table,
    /// Bytes, by program, beside a running container.
    pub memory: BTreeMap<String, Memory>,
    pub missing: Vec<String>,
    /// Runs that hung and were made again, by what was measured.
    pub hung: BTreeMap<String, u32>,
}

impl Report {
    /// Takes the runs of `name` into a table, or notes why there are none.
    pub fn take(
        &mut self,
        what: String,
        runs: Result<Runs, String>,
        table: fn(&mut Report) -> &mut Table,
        name: &str,
    ) {
        match runs {
            Ok(runs) => {
                table(self).insert(name.to_owned(), figures(&runs.instants));
                if runs.hung > 0 {
                    self.hung.insert(what, runs.hung);
                }
            }
            Err(error) => self.missing.push(format!("{what}: {error}")),
        }
    }

    /// Works out what follows from the rest.
    pub fn complete(&mut self) {
        self.husk_to_runc = husk_to_runc(&self.cold_start, END);
        self.exec_husk_to_runc = husk_to_runc(&self.exec, EXIT);
        self.output_husk_to_runc = husk_to_runc(&self.output, BYTE);
        self.output_bytes = OUTPUT;
    }

    /// The span between two instants of husk's cold start, by their medians.
    fn span(&self, from: &str, to: &str) -> Option<u64> {
        let husk = self.cold_start.get("husk")?;
        husk.get(to)?.median.checked_sub(husk.get(from)?.median)
    }
}

fn husk_to_runc(table: &Table, instant: &str) -> Option<f64> {
    let median = |runtime| Some(table.get(runtime)?.get(instant)?.median as f64);
    Some(median("husk")? / median("runc")?)
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (runtime, figures) in &self.cold_start {
            writeln!(
                f,
                "`ctr run --rm` with {runtime}, ms since its start, of {} runs:",
                self.rounds
            )?;
            write_figures(f, figures, true)?;
        }
        if let Some(span) = self.span("vmm_started", "hello") {
            writeln!(f, "husk-vmm started to the agent's Hello: {} ms", Ms(span))?;
        }
        let in_guest =
            [("create", "setup_done", "container_created"), ("start", "start_received", "started")];
        for (what, from, to) in in_guest {
            if let Some(span) = self.span(from, to) {
                writeln!(f, "{what} in the guest, request to answer: {} ms", Ms(span))?;
            }
        }
        if let Some(ratio) = self.husk_to_runc {
            writeln!(f, "whole run, husk : runc = {ratio:.2}")?;
        }
        for (runtime, figures) in &self.exec {
            let rounds = self.rounds;
            writeln!(f, "exec of `true` with {runtime}, ms since its request, of {rounds} runs:")?;
            write_figures(f, figures, true)?;
        }
        if let Some(ratio) = self.exec_husk_to_runc {
            writeln!(f, "exec until its exit, husk : runc = {ratio:.2}")?;
        }
        for (runtime, figures) in &self.output {
            let mib = self.output_bytes >> 20;
            writeln!(f, "{mib} MiB of output with {runtime}, ns a byte, of {} runs:", self.rounds)?;
            for (name, figure) in figures {
                let [median, least, most] = [figure.median, figure.least, figure.most]
                    .map(|ns| ns as f64 / self.output_bytes as f64);
                writeln!(f, "  {name:<20}{median:>9.2}             ({least:.2} to {most:.2})")?;
            }
        }
        if let Some(ratio) = self.output_husk_to_runc {
            writeln!(f, "a byte of output, husk : runc = {ratio:.2}")?;
        }
        for (runtime, figures) in &self.network {
            writeln!(f, "network with {runtime}, ns, of {} runs:", self.rounds)?;
            for (name, figure) in figures {
                let of = if name == network::REQUEST { network::REQUESTS } else { network::BYTES };
                let [median, least, most] =
                    [figure.median, figure.least, figure.most].map(|ns| ns as f64 / of as f64);
                writeln!(f, "  {name:<20}{median:>12.2}          ({least:.2} to {most:.2})")?;
            }
        }
        for (monitor, figures) in &self.vm_alone {
            writeln!(f, "guest alone under {monitor}, ms from exec to exit:")?;
            write_figures(f, figures, false)?;
        }
        for (runtime, figures) in &self.resize {
            writeln!(f, "{STEP} MiB more for a running container with {runtime}, ms:")?;
            write_figures(f, figures, false)?;
        }
        if !self.memory.is_empty() {
            writeln!(f, "memory beside a running container, KiB:")?;
            writeln!(f, "  {:<26}{:>9}{:>11}{:>16}", "", "Pss", "anonymous", "guest RAM used")?;
        }
        for (program, memory) in &self.memory {
            let (pss, anonymous) = (memory.pss >> 10, memory.anonymous >> 10);
            let guest = memory.guest_resident >> 10;
            writeln!(f, "  {program:<26}{pss:>9}{anonymous:>11}{guest:>16}")?;
        }
        let pss: u64 = self.memory.values().map(|memory| memory.pss >> 10).sum();
        if pss > 0 {
            writeln!(f, "  {:<26}{pss:>9}", "together")?;
        }
        for (what, hung) in &self.hung {
            writeln!(f, "left out and made again, as the VM hung: {hung} of {what}")?;
        }
        for missing in &self.missing {
            writeln!(f, "not measured: {missing}")?;
        }
        Ok(())
    }
}

/// The figures in the order of time, with the steps between them.
fn write_figures(
    f: &mut std::fmt::Formatter<'_>,
    figures: &BTreeMap<String, Figure>,
    steps: bool,
) -> std::fmt::Result {
    let mut rows: Vec<_> = figures.iter().collect();
    rows.sort_by_key(|(_, figure)| figure.median);
    let mut last = 0;
    for (name, figure) in rows {
        let step = if steps { format!("+{}", Ms(figure.median - last)) } else { String::new() };
        writeln!(
            f,
            "  {name:<20}{:>9}{step:>10}   ({} to {})",
            Ms(figure.median),
            Ms(figure.least),
            Ms(figure.most)
        )?;
        last = figure.median;
    }
    Ok(())
}

/// ns as ms with a tenth.
struct Ms(u64);

impl std::fmt::Display for Ms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{:.1}", self.0 as f64 / 1e6))
    }
}
