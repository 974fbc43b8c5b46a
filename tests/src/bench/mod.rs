// SPDX-License-Identifier: Apache-2.0

//! Figures, for `make bench`: what a cold start, an exec and a byte of output take and
//! where, beside runc and QEMU, what a container's network costs, and what a running container
//! costs in memory and to be given more. Nothing here is asserted.
//!
//! Under `tests/lab/run --icount` the clock counts instructions, 1 ns each, on one CPU: the
//! figures repeat from machine to machine. So nothing polls while something is measured:
//! each wait is a blocking read or a wait for a child.

pub mod container;
pub mod exec;
pub mod memory;
pub mod microvm;
pub mod network;
pub mod report;
pub mod resize;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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

/// How long a run may go on without a sign, of the lab's time: ten times what the slowest
/// takes there. Now and then a VM under -icount spins for ever on a spinlock that nobody
/// holds, QEMU's own microvm too. Such a run is ended, counted and made again.
const LIMIT_MS: u16 = 4_000;

/// Most runs of a kind that may hang before the measurement is given up.
const MOST_HUNG: u32 = 3;

/// Runs that were measured, and how many hung.
#[derive(Debug, Default)]
pub struct Runs {
    pub instants: Vec<Instants>,
    pub hung: u32,
}

/// Measures `rounds` runs after one that warms the machine up. `run` gives none when it
/// hung.
fn repeat(
    rounds: u32,
    mut run: impl FnMut(u32) -> Result<Option<Instants>, String>,
) -> Result<Runs, String> {
    let mut runs = Runs::default();
    for round in 0.. {
        match run(round)? {
            Some(instants) => runs.instants.push(instants),
            None if runs.hung < MOST_HUNG => runs.hung += 1,
            None => return Err(format!("{} runs hung", runs.hung + 1)),
        }
        if runs.instants.len() as u32 > rounds {
            break;
        }
    }
    runs.instants.remove(0);
    Ok(runs)
}

/// Waits until there is something to read, or the end; false when time is up.
fn readable(stream: BorrowedFd) -> bool {
    let mut waited = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut waited, PollTimeout::from(LIMIT_MS)), Ok(1..))
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
    fn a_run_that_hung_is_made_again() {
        let run =
            |round: u32| Ok((round != 1).then(|| [("round".to_owned(), round.into())].into()));
        let runs = repeat(2, run).expect("runs");
        let rounds: Vec<_> = runs.instants.iter().map(|run| run["round"]).collect();
        assert_eq!((rounds, runs.hung), (vec![2, 3], 1));
        assert!(repeat(2, |_| Ok(None)).is_err());
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
