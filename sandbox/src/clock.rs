// SPDX-License-Identifier: Apache-2.0

//! The host's clocks, and how a guest's follows them.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::agent::Agent;
use crate::reactor;

/// How often a guest is told the time without a reason. Two clocks that drift apart by 100
/// millionths, which is much, differ by 6 ms then.
const INTERVAL: Duration = Duration::from_secs(60);

/// CLOCK_MONOTONIC in ns; the clock of all phase figures.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: now outlives the call, and this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// CLOCK_REALTIME since 1970.
pub fn realtime() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Keeps a guest's clock with the host's until the guest is lost: tells it the time when
/// somebody sets the host's clock, when the host wakes up, and every [`INTERVAL`].
pub async fn keep(agent: Agent) {
    // Without them the interval has to do.
    let changes = Changes::watch().ok();
    let changed = async || match &changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    };
    loop {
        tokio::select! {
            () = agent.lost() => return,
            () = changed() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
        // A guest that does not take it is lost, or will be told again.
        let _ = agent.set_clock().await;
    }
}

/// Tells when CLOCK_REALTIME is set.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    fn watch() -> io::Result<Changes> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        // It never goes off, but it is cancelled whenever the clock is set.
        let never = Expiration::OneShot(TimeSpec::new(i64::MAX, 0));
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        timer.set(never, flags)?;
        Ok(Changes(reactor::watch(timer.into(), Interest::READABLE)?))
    }

    /// Waits until the clock has been set since the last time.
    async fn next(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                return std::future::pending().await;
            };
            match nix::unistd::read(ready.get_inner(), &mut [0; 8]) {
                Err(Errno::ECANCELED) => return,
                _ => ready.clear_ready(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_nobody_sets_does_not_change() {
        let changes = Changes::watch().expect("a timer");
        let waited = tokio::time::timeout(Duration::ZERO, changes.next()).await;
        waited.expect_err("no change");
    }
}
