// SPDX-License-Identifier: Apache-2.0

//! The life of one process of a container, its first or an exec, as containerd sees it: an
//! enum, and one function that all transitions go through. It decides what is published,
//! so a start always comes before the exit and there is exactly one exit.

use std::time::Duration;

use containerd_shim_protos::types::task::Status;
use husk_sandbox::Error;
use tokio::sync::watch;

use crate::io::{Io, Stdio};

/// How and when a process ended; host clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0..255, or 128 + signal.
    pub status: u32,
    pub at: Duration,
}

/// The status of processes whose VM was lost: as if by SIGKILL.
pub const LOST_STATUS: u32 = 137;

/// Where a process is. The two that wait for the guest's answer hold an exit that the
/// guest reported meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Only an init: the container is being made.
    Creating(Option<Exit>),
    Created,
    Starting(Option<Exit>),
    Running,
    Stopped(Exit),
}

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The guest has made it.
    Made,
    /// The client wants it started.
    Start,
    /// The guest has started it.
    Started,
    /// The guest could not start it.
    NotStarted,
    /// It ended.
    Exited(Exit),
}

/// What a transition makes known, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Published {
    pub created: bool,
    pub started: bool,
    pub exited: Option<Exit>,
}

impl State {
    /// The next state and what it makes known; the text of a refusal otherwise.
    pub fn next(self, input: Input) -> Result<(State, Published), &'static str> {
        use {Input as I, State as S};
        let nothing = Published::default();
        Ok(match (self, input) {
            (S::Creating(None), I::Exited(exit)) => (S::Creating(Some(exit)), nothing),
            (S::Creating(None), I::Made) => (S::Created, Published { created: true, ..nothing }),
            (S::Creating(Some(exit)), I::Made) => {
                (S::Stopped(exit), Published { created: true, exited: Some(exit), ..nothing })
            }
            (S::Created, I::Start) => (S::Starting(None), nothing),
            (S::Created, I::Exited(exit)) => {
                (S::Stopped(exit), Published { exited: Some(exit), ..nothing })
            }
            (S::Starting(None), I::Exited(exit)) => (S::Starting(Some(exit)), nothing),
            (S::Starting(None), I::Started) => (S::Running, Published { started: true, ..nothing }),
            (S::Starting(Some(exit)), I::Started) => {
                (S::Stopped(exit), Published { started: true, exited: Some(exit), ..nothing })
            }
            (S::Starting(None), I::NotStarted) => (S::Created, nothing),
            (S::Starting(Some(exit)), I::NotStarted) => {
                (S::Stopped(exit), Published { exited: Some(exit), ..nothing })
            }
            (S::Running, I::Exited(exit)) => {
                (S::Stopped(exit), Published { exited: Some(exit), ..nothing })
            }
            // The first exit counts: a lost VM does not change how a process had ended.
            (
                state @ (S::Creating(Some(_)) | S::Starting(Some(_)) | S::Stopped(_)),
                I::Exited(_),
            ) => (state, nothing),
            (S::Creating(_), I::Start) => return Err("is still being created"),
            (S::Starting(_), I::Start) => return Err("is already being started"),
            (S::Running, I::Start) => return Err("is already running"),
            (S::Stopped(_), I::Start) => return Err("has already finished"),
            (_, I::Made | I::Started | I::NotStarted) => return Err("was not being started"),
        })
    }

    pub fn exit(self) -> Option<Exit> {
        match self {
            State::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// What containerd calls it.
    pub fn status(self) -> Status {
        match self {
            State::Creating(_) | State::Created => Status::CREATED,
            // Until the guest has answered, nothing of it has run as far as anybody knows.
            State::Starting(_) => Status::CREATED,
            State::Running => Status::RUNNING,
            State::Stopped(_) => Status::STOPPED,
        }
    }
}

/// A process with what belongs to it on the host.
#[derive(Debug)]
pub struct Process {
    state: State,
    pub stdio: Stdio,
    /// Its streams, from when the guest is told of them to the delete.
    pub io: Option<Io>,
    /// CloseIO came before there were streams.
    pub stdin_closed: bool,
    /// The terminal's size, remembered until there is a terminal.
    pub size: Option<(u32, u32)>,
    /// Its number in the guest.
    pub guest_pid: Option<u32>,
    exited: watch::Sender<Option<Exit>>,
}

impl Process {
    pub fn new(state: State, stdio: Stdio) -> Process {
        Process {
            state,
            stdio,
            io: None,
            stdin_closed: false,
            size: None,
            guest_pid: None,
            exited: watch::channel(None).0,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Takes the transition. The exit reaches waiters by [`Process::tell_waiters`], once
    /// it has been published.
    pub fn apply(&mut self, input: Input) -> Result<Published, Error> {
        let (state, published) = self
            .state
            .next(input)
            .map_err(|refusal| Error::precondition(format!("the process {refusal}")))?;
        self.state = state;
        Ok(published)
    }

    pub fn tell_waiters(&self, exit: Exit) {
        self.exited.send_replace(Some(exit));
    }

    /// Resolves when it has ended.
    pub fn watch_exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exited.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEVEN: Exit = Exit { status: 7, at: Duration::from_secs(1) };
    const LOST: Exit = Exit { status: LOST_STATUS, at: Duration::from_secs(2) };

    /// Runs inputs; what was made known, as letters in order.
    fn run(start: State, inputs: &[Input]) -> (State, String) {
        let mut state = start;
        let mut known = String::new();
        for &input in inputs {
            let Ok((next, published)) = state.next(input) else {
                known.push('!');
                continue;
            };
            state = next;
            known.push_str(if published.created { "c" } else { "" });
            known.push_str(if published.started { "s" } else { "" });
            if let Some(exit) = published.exited {
                known.push_str(&exit.status.to_string());
            }
        }
        (state, known)
    }

    #[test]
    fn an_ordinary_life() {
        use Input::*;
        let life = [Made, Start, Started, Exited(SEVEN)];
        assert_eq!(run(State::Creating(None), &life), (State::Stopped(SEVEN), "cs7".into()));
    }

    #[test]
    fn an_exit_never_overtakes_its_start() {
        use Input::*;
        let life = [Start, Exited(SEVEN), Started];
        assert_eq!(run(State::Created, &life), (State::Stopped(SEVEN), "s7".into()));
        let life = [Exited(SEVEN), Made];
        assert_eq!(run(State::Creating(None), &life), (State::Stopped(SEVEN), "c7".into()));
    }

    #[test]
    fn there_is_one_exit_and_the_first_counts() {
        use Input::*;
        for start in [State::Created, State::Running, State::Starting(None)] {
            let (state, known) = run(start, &[Exited(SEVEN), Exited(LOST), Started]);
            assert_eq!(state, State::Stopped(SEVEN), "{start:?}");
            assert_eq!(known.matches("137").count(), 0, "{start:?}: {known}");
            assert_eq!(known.matches('7').count(), 1, "{start:?}: {known}");
        }
    }

    #[test]
    fn a_start_that_fails_can_be_tried_again() {
        use Input::*;
        assert_eq!(run(State::Created, &[Start, NotStarted]), (State::Created, String::new()));
        let (state, known) = run(State::Created, &[Start, Exited(LOST), NotStarted]);
        assert_eq!((state, known.as_str()), (State::Stopped(LOST), "137"));
    }

    #[test]
    fn a_second_start_is_refused_everywhere() {
        for state in
            [State::Creating(None), State::Starting(None), State::Running, State::Stopped(SEVEN)]
        {
            assert!(state.next(Input::Start).is_err(), "{state:?}");
        }
    }
}
