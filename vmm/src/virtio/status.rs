// SPDX-License-Identifier: Apache-2.0

//! The device status field (virtio 1.3, 2.1): the one place that decides what a driver may
//! do when.

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// What a driver goes through (3.1.1), from and to.
const STEPS: [(u8, u8); 4] = [
    (0, ACKNOWLEDGE),
    (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER),
    (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK),
    (ACKNOWLEDGE | DRIVER | FEATURES_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
];

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u8);

/// What the transport has to do after the driver wrote the status.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    None,
    Reset,
    Activate,
}

impl Status {
    /// The driver writes the status. "The driver MUST NOT clear a device status bit"
    /// (2.1.1) but by writing 0; whatever is not a step forward is ignored.
    pub fn write(&mut self, value: u8, features_acceptable: bool) -> Change {
        if value == 0 {
            self.0 = 0;
            return Change::Reset;
        }
        if value & FAILED != 0 {
            self.0 |= FAILED;
            return Change::None;
        }
        if !STEPS.contains(&(self.0, value)) {
            return Change::None;
        }
        // The driver reads FEATURES_OK back and gives up when it is clear (3.1.1, 6).
        if value == ACKNOWLEDGE | DRIVER | FEATURES_OK && !features_acceptable {
            return Change::None;
        }
        self.0 = value;
        if value & DRIVER_OK != 0 { Change::Activate } else { Change::None }
    }

    /// The device cannot go on (2.1.2).
    pub fn needs_reset(&mut self) {
        self.0 |= NEEDS_RESET;
    }

    /// Features may be written: after DRIVER, before FEATURES_OK.
    pub fn features_open(self) -> bool {
        self.0 == ACKNOWLEDGE | DRIVER
    }

    /// Queues may be configured: after FEATURES_OK, before DRIVER_OK.
    pub fn queues_open(self) -> bool {
        self.0 == ACKNOWLEDGE | DRIVER | FEATURES_OK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_goes_step_by_step_and_activates_once() {
        let mut status = Status::default();
        assert_eq!(status.write(15, true), Change::None, "not all at once");
        assert_eq!(status, Status(0));
        for value in [1, 3, 11] {
            assert_eq!(status.write(value, true), Change::None);
            assert_eq!(status, Status(value));
        }
        assert!(status.queues_open());
        assert_eq!(status.write(15, true), Change::Activate);
        assert_eq!(status.write(15, true), Change::None, "a second DRIVER_OK does nothing");
        assert!(!status.queues_open(), "queues are frozen");
        assert_eq!(status.write(11, true), Change::None);
        assert_eq!(status, Status(15), "bits are not cleared one by one");
        assert_eq!(status.write(0, true), Change::Reset);
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        let mut status = Status(3);
        assert_eq!(status.write(11, false), Change::None);
        assert_eq!(status, Status(3));
    }
}
