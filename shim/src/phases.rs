// SPDX-License-Identifier: Apache-2.0

//! When a container reached what, for `make bench`: host CLOCK_MONOTONIC in ns, one line of
//! the log when it is deleted.

use std::sync::{Mutex, PoisonError};

use husk_sandbox::{Milestones, clock};

use crate::log;

/// The shim's own instants of one container's life.
#[derive(Debug, Default)]
pub struct Phases(Mutex<Vec<(&'static str, u64)>>);

impl Phases {
    /// Notes that it has just got there.
    pub fn reach(&self, phase: &'static str) {
        self.reach_at(phase, clock::monotonic_ns());
    }

    /// Notes when it got there.
    pub fn reach_at(&self, phase: &'static str, ns: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((phase, ns));
    }

    /// Writes the line.
    pub fn log(&self, container: &str, vm: Milestones) {
        log::info_with("phases", &self.line(container, vm));
    }

    fn line(&self, container: &str, vm: Milestones) -> String {
        let mut phases = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of_vm = [
            ("vmm_started", vm.vmm_started_ns),
            ("guest_running", vm.guest_running_ns),
            ("kernel_done", vm.kernel_done_ns),
            ("hello", vm.hello_ns),
            ("setup_done", vm.setup_ns),
        ];
        phases.extend(of_vm.into_iter().filter_map(|(phase, ns)| Some((phase, ns?))));
        phases.sort_by_key(|&(_, ns)| ns);
        let fields: Vec<_> = phases.iter().map(|(phase, ns)| format!("{phase}={ns}")).collect();
        format!("container={container} {}", fields.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_in_the_order_of_time() {
        let phases = Phases::default();
        phases.reach_at("create", 2);
        phases.reach_at("shim_start", 1);
        phases.reach_at("delete", 9);
        let vm = Milestones { vmm_started_ns: Some(3), hello_ns: Some(5), ..Default::default() };
        assert_eq!(
            phases.line("c1", vm),
            "container=c1 shim_start=1 create=2 vmm_started=3 hello=5 delete=9"
        );
    }
}
