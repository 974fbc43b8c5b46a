// SPDX-License-Identifier: Apache-2.0

//! SetClock: the guest's clock follows the host's. By a step if it is far off; by running a
//! little faster or slower if not, so that time does not jump in the containers.

use husk_protocol::agent::SetClock;
use husk_protocol::agent::response::Result as Outcome;
use nix::time::{ClockId, clock_gettime};

use crate::error::{Doing, Error, Result};
use crate::setup;
use crate::verbs::done;

/// From here on the clock is stepped, in ns. The kernel gains or loses 500 us a second
/// otherwise, so this is made up for in 20 s. It is more than a request is under way for.
const STEP_NS: i64 = 10_000_000;

pub fn set_clock(request: &SetClock) -> Result<Outcome> {
    if request.realtime_ns <= 0 {
        return Err(Error::invalid(format!("{} ns is before 1970", request.realtime_ns)));
    }
    let now = clock_gettime(ClockId::CLOCK_REALTIME).doing("read the clock")?;
    let behind_ns = request.realtime_ns - (now.tv_sec() * 1_000_000_000 + now.tv_nsec());
    match behind_ns.abs() < STEP_NS {
        true => slew(behind_ns)?,
        false => setup::set_clock(request.realtime_ns)?,
    }
    Ok(done())
}

/// Has the kernel make up for a difference, in place of what it was to make up for before.
fn slew(behind_ns: i64) -> Result<()> {
    // SAFETY: all of a timex is numbers, which may be 0.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = behind_ns / 1000;
    // SAFETY: adjtimex() reads and writes a timex, which is alive during the call.
    match unsafe { libc::adjtimex(&mut change) } {
        -1 => Err(std::io::Error::last_os_error()).doing("adjust the clock"),
        _ => Ok(()),
    }
}
