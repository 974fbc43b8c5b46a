// SPDX-License-Identifier: Apache-2.0

//! The only place that waits for processes. The agent is PID 1, so besides its own
//! children it inherits every orphan of the guest; one loop on SIGCHLD reaps them all and
//! tells whoever watches a process, in the order in which the kernel gave them up.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use nix::errno::Errno;
use tokio::signal::unix::{SignalKind, signal};

/// Exits of processes that nobody watched yet. A process can end before its creator knows
/// its pid; more than a few of those at a time do not exist.
const UNCLAIMED: usize = 256;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExitStatus {
    /// 0..255, or 128 + signal.
    pub code: u32,
    /// It died of SIGKILL.
    pub killed: bool,
}

type OnExit = Box<dyn FnOnce(ExitStatus)>;

/// A moment in the life of the reaper, taken before a process is made.
#[derive(Clone, Copy)]
pub struct Moment(u64);

#[derive(Default)]
pub struct Reaper {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    watched: HashMap<i32, OnExit>,
    unclaimed: VecDeque<(u64, i32, ExitStatus)>,
    reaped: u64,
}

impl Reaper {
    pub fn now(&self) -> Moment {
        Moment(self.inner.borrow().reaped)
    }

    /// Calls `on_exit` once, when the process that was made after `since` ends; at once if
    /// it has ended. The moment keeps an older process of the same pid out of it.
    pub fn watch(&self, pid: i32, since: Moment, on_exit: impl FnOnce(ExitStatus) + 'static) {
        let mut inner = self.inner.borrow_mut();
        let found = inner.unclaimed.iter().position(|(at, p, _)| *p == pid && *at >= since.0);
        match found.and_then(|index| inner.unclaimed.remove(index)) {
            Some((_, _, status)) => {
                drop(inner);
                on_exit(status);
            }
            None => {
                inner.watched.insert(pid, Box::new(on_exit));
            }
        }
    }

    /// Reaps for ever. Fails only if SIGCHLD cannot be listened to.
    pub async fn run(&self) -> std::io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap(&self) {
        loop {
            let mut status = 0;
            // SAFETY: the kernel writes one int to `status`.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            match pid {
                0 => return,
                -1 if Errno::last() == Errno::EINTR => {}
                -1 => return,
                pid => self.exited(pid, ended(status)),
            }
        }
    }

    fn exited(&self, pid: i32, status: ExitStatus) {
        let mut inner = self.inner.borrow_mut();
        let at = inner.reaped;
        inner.reaped += 1;
        match inner.watched.remove(&pid) {
            Some(on_exit) => {
                drop(inner);
                on_exit(status);
            }
            None => {
                if inner.unclaimed.len() == UNCLAIMED {
                    inner.unclaimed.pop_front();
                }
                inner.unclaimed.push_back((at, pid, status));
            }
        }
    }
}

/// Reads what waitpid(2) says of a process that ended. Not by way of an enum of signals:
/// it would have to know the real-time ones too.
fn ended(status: i32) -> ExitStatus {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        ExitStatus { code: 128 + signal as u32, killed: signal == libc::SIGKILL }
    } else {
        ExitStatus { code: libc::WEXITSTATUS(status) as u32, killed: false }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    fn status(code: u32) -> ExitStatus {
        ExitStatus { code, killed: false }
    }

    fn watch(reaper: &Reaper, pid: i32, since: Moment) -> Rc<Cell<Option<u32>>> {
        let seen = Rc::new(Cell::new(None));
        let set = seen.clone();
        reaper.watch(pid, since, move |status| set.set(Some(status.code)));
        seen
    }

    #[test]
    fn a_watched_exit_is_told() {
        let reaper = Reaper::default();
        let seen = watch(&reaper, 7, reaper.now());
        reaper.exited(8, status(1));
        assert_eq!(seen.get(), None);
        reaper.exited(7, status(3));
        assert_eq!(seen.get(), Some(3));
    }

    #[test]
    fn an_exit_before_the_watch_is_told_at_once() {
        let reaper = Reaper::default();
        let since = reaper.now();
        reaper.exited(7, status(3));
        assert_eq!(watch(&reaper, 7, since).get(), Some(3));
    }

    #[test]
    fn an_older_process_of_the_same_pid_is_not_taken_for_it() {
        let reaper = Reaper::default();
        reaper.exited(7, status(3));
        let seen = watch(&reaper, 7, reaper.now());
        assert_eq!(seen.get(), None);
        reaper.exited(7, status(4));
        assert_eq!(seen.get(), Some(4));
    }

    #[test]
    fn unclaimed_exits_are_bounded() {
        let reaper = Reaper::default();
        for pid in 0..10 * UNCLAIMED as i32 {
            reaper.exited(pid, status(0));
        }
        assert_eq!(reaper.inner.borrow().unclaimed.len(), UNCLAIMED);
    }

    #[test]
    fn statuses_map_as_a_shell_maps_them() {
        assert_eq!(ended(255 << 8), status(255));
        assert_eq!(ended(libc::SIGKILL), ExitStatus { code: 137, killed: true });
        // With the bit that tells of a core dump.
        assert_eq!(ended(libc::SIGSEGV | 0x80), status(139));
        assert_eq!(ended(libc::SIGRTMIN()), status(128 + libc::SIGRTMIN() as u32));
    }
}
