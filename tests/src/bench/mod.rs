// SPDX-License-Identifier: Apache-2.0

//! Figures, for `make bench`: what a cold start takes and where, beside runc and QEMU, and
//! what a running container costs in memory. Nothing here is asserted.
//!
//! Under `tests/lab/run --icount` the clock counts instructions, 1 ns each, on one CPU: the
//! figures repeat from machine to machine. So nothing polls while something is measured:
//! each wait is a blocking read or a wait for a child.

pub mod container;
pub mod memory;
pub mod microvm;
pub mod report;

use std::collections::BTreeMap;

use serde::Serialize;

/// Median of several figures, with the least and the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Figure {
    pub median: u64,
    pub least: u64,
    pub most: u64,
}

impl Figure {
    /// None of no values.
    pub fn of(mut values: Vec<u64>) -> Option<Figure> {
        values.sort_unstable();
        let (&least, &most) = (values.first()?, values.last()?);
        Some(Figure { median: values[values.len() / 2], least, most })
    }
}

/// Instants of one run by name, in ns since it began.
pub type Instants = BTreeMap<String, u64>;

/// The figures of several runs, by the name of the instant.
pub fn figures(runs: &[Instants]) -> BTreeMap<String, Figure> {
    let mut values: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (name, ns) in runs.iter().flatten() {
        values.entry(name.clone()).or_default().push(*ns);
    }
    values.into_iter().filter_map(|(name, all)| Some((name, Figure::of(all)?))).collect()
}

/// CLOCK_MONOTONIC in ns.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` outlives the call, and this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median() {
        assert_eq!(Figure::of(vec![]), None);
        let figure = Figure::of(vec![5, 1, 3]);
        assert_eq!(figure, Some(Figure { median: 3, least: 1, most: 5 }));
    }

    #[test]
    fn instants_that_some_runs_lack_are_figures_of_the_rest() {
        let run = |pairs: &[(&str, u64)]| {
            pairs.iter().map(|&(name, ns)| (name.to_owned(), ns)).collect::<Instants>()
        };
        let all = figures(&[run(&[("a", 1), ("b", 2)]), run(&[("a", 3)])]);
        assert_eq!((all["a"].most, all["b"].median), (3, 2));
    }
}
