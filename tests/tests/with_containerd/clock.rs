// SPDX-License-Identifier: Apache-2.0

//! Time: a container has the host's, at its start, after a pause, and when the host's clock
//! is set; and what is told of a container is in host time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use husk_tests::containerd::events::Events;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::containerd::{Lab, husk_case};

/// How far a container's clock may be from the host's.
const TOLERANCE: Duration = Duration::from_millis(50);

const DAY: i64 = 86_400;

fn host_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// Sets the machine's clock. Where that is not permitted, nothing here can be tested.
fn move_host_clock(seconds: i64) {
    let now = host_time();
    let time = libc::timespec {
        tv_sec: now.as_secs() as i64 + seconds,
        tv_nsec: now.subsec_nanos().into(),
    };
    // SAFETY: the structure outlives the call, which only reads it.
    let done = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) };
    assert_eq!(done, 0, "clock_settime: {}", std::io::Error::last_os_error());
}

/// Puts the machine's clock back when it is dropped.
struct Moved(i64);

impl Moved {
    fn by(seconds: i64) -> Moved {
        move_host_clock(seconds);
        Moved(seconds)
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        move_host_clock(-self.0);
    }
}

/// What a container takes for the time, and when on the host it did so: not before the first
/// and not after the last.
fn times(lab: &Lab, id: &str) -> [Duration; 3] {
    let before = host_time();
    // date of busybox has no fractions of a second.
    let said = lab.exec_sh(id, "adjtimex");
    let number = |name: &str| -> u64 {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
        line.and_then(|rest| rest.trim().parse().ok()).unwrap_or_else(|| panic!("{said}"))
    };
    let guest = Duration::from_secs(number("time.tv_sec:"))
        + Duration::from_micros(number("time.tv_usec:"));
    [before, guest, host_time()]
}

fn is_right(lab: &Lab, id: &str) -> bool {
    let [before, guest, after] = times(lab, id);
    (before.saturating_sub(TOLERANCE)..=after + TOLERANCE).contains(&guest)
}

#[track_caller]
fn assert_right(lab: &Lab, id: &str) {
    let times = times(lab, id);
    let [before, guest, after] = times;
    assert!(before.saturating_sub(TOLERANCE) <= guest && guest <= after + TOLERANCE, "{times:?}");
}

#[test]
fn follows_the_host() {
    husk_case(
        "a container has the host's time, also after a pause and when the host's clock is set",
        |lab| {
            lab.idle(&[], "timed");
            assert_right(lab, "timed");
            lab.ctr(&["tasks", "pause", "timed"]).ended(0);
            lab.ctr(&["tasks", "resume", "timed"]).ended(0);
            assert_right(lab, "timed");
            {
                let _moved = Moved::by(DAY);
                assert!(eventually(LIMIT, || is_right(lab, "timed")), "{:?}", times(lab, "timed"));
            }
            assert!(eventually(LIMIT, || is_right(lab, "timed")), "{:?}", times(lab, "timed"));
            lab.remove("timed");
        },
    );
}

#[test]
fn times_are_the_hosts() {
    husk_case("the time of an exit is the host's", |lab| {
        let events = Events::listen(lab);
        let before = host_time();
        lab.sh("ended", "exit 3").ended(3);
        let heard = events.until("ended", "/tasks/exit");
        let exit = heard.iter().find(|event| event.topic == "/tasks/exit").expect("an exit");
        let time = exit.text("exited_at").to_owned();
        let said = std::process::Command::new("date")
            .args(["-u", "-D", "%Y-%m-%dT%H:%M:%S", "-d", time.split('.').next().unwrap_or("")])
            .arg("+%s")
            .output()
            .expect("date");
        let seconds: u64 = String::from_utf8_lossy(&said.stdout).trim().parse().unwrap_or_default();
        assert!((before.as_secs()..=host_time().as_secs()).contains(&seconds), "{time}");
    });
}
