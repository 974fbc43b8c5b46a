// SPDX-License-Identifier: Apache-2.0

//! What a guest may write to a function's registers, in any order, width and place. The
//! function is a real one: its kicks and vectors are KVM's, so these need /dev/kvm, of which
//! nothing has to run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_ioctls::Kvm;

use super::common::*;
use super::*;
use crate::virtio::driver;

const SLOT: usize = 3;
const RAM: u64 = 1 << 20;
const SIZES: [u16; 2] = [8, 16];
const FEATURE: u64 = 1 << 5;
const CONFIG: [u8; 6] = [1, 2, 3, 4, 5, 6];

const READY: u8 = 1 | 2 | 8;
const RUNNING: u8 = READY | 4;
const NEEDS_RESET: u8 = 64;
const NONE: u64 = NO_VECTOR as u64;

/// What the device and the VM were told.
#[derive(Default)]
struct Told {
    /// For each activation: the features, and each queue's size.
    activations: Vec<(u64, Vec<u16>)>,
    resets: usize,
    faults: Vec<String>,
}

struct Device(Arc<Mutex<Told>>);

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioDevice for Device {
    fn name(&self) -> &'static str {
        "test"
    }

    fn device_type(&self) -> u16 {
        super::super::TYPE_RNG
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn config(&self) -> &[u8] {
        &CONFIG
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let sizes = activation.queues.iter().map(VirtQueue::size).collect();
        lock(&self.0).activations.push((activation.features, sizes));
        Ok(())
    }

    fn reset(&mut self) {
        lock(&self.0).resets += 1;
    }
}

/// A function and who drives it.
struct Guest {
    function: VirtioPci,
    told: Arc<Mutex<Told>>,
}

/// Runs a test, where there is KVM to make a function with.
fn with_guest(test: impl FnOnce(Guest)) {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: it needs /dev/kvm");
        return;
    };
    let vm = Arc::new(kvm.create_vm().expect("a VM"));
    vm.create_irq_chip().expect("its interrupt controllers");
    let told = Arc::new(Mutex::new(Told::default()));
    let faults = told.clone();
    let fault = Fault::new(move |what| lock(&faults).faults.push(what));
    let (device, routes) = (Box::new(Device(told.clone())), Arc::new(Routes::new(vm.clone())));
    let ram = driver::ram(RAM as usize);
    let function = VirtioPci::new(device, SLOT, vm, routes, ram, fault).expect("a function");
    test(Guest { function, told });
}

impl Guest {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.function.write_memory(offset, bytes);
    }

    fn read(&mut self, offset: u64, width: usize) -> u64 {
        let mut bytes = [0xee; 8];
        self.function.read_memory(offset, &mut bytes[..width]);
        bytes[width..].fill(0);
        u64::from_le_bytes(bytes)
    }

    fn status(&mut self) -> u8 {
        self.read(DEVICE_STATUS, 1) as u8
    }

    fn write_status(&mut self, status: u8) {
        self.write(DEVICE_STATUS, &[status]);
    }

    /// Goes through a driver's steps until queues can be configured.
    fn negotiate(&mut self, features: u64) {
        for status in [0, 1, 3] {
            self.write_status(status);
        }
        for half in 0..2_u32 {
            self.write(DRIVER_FEATURE_SELECT, &half.to_le_bytes());
            self.write(DRIVER_FEATURE, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.write_status(READY);
    }

    /// Writes the addresses of a queue's rings, and enables it.
    fn enable(&mut self, queue: u16, rings: [u64; 3]) {
        self.write(QUEUE_SELECT, &queue.to_le_bytes());
        let registers = [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE];
        for (register, address) in registers.into_iter().zip(rings) {
            self.write(register, &(address as u32).to_le_bytes());
            self.write(register + 4, &((address >> 32) as u32).to_le_bytes());
        }
        self.write(QUEUE_ENABLE, &1_u16.to_le_bytes());
    }

    /// The registers of the selected queue.
    fn queue(&mut self) -> [u64; 6] {
        [
            self.read(QUEUE_SIZE, 2),
            self.read(QUEUE_VECTOR, 2),
            self.read(QUEUE_ENABLE, 2),
            self.read(QUEUE_DESC, 8),
            self.read(QUEUE_DRIVER, 8),
            self.read(QUEUE_DEVICE, 8),
        ]
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }
}

const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];

#[test]
fn rings_outside_of_ram_end_the_vm_and_never_reach_the_device() {
    with_guest(|mut guest| {
        // Across the end, behind it, far beyond, and around the end of all addresses.
        let outside = [RAM - 32, RAM, 1 << 40, u64::MAX - 4095, !15];
        let mut reported = 0;
        for ring in 0..3 {
            for address in outside {
                let mut rings = RINGS;
                rings[ring] = address;
                guest.negotiate(VERSION_1);
                guest.enable(0, RINGS);
                guest.enable(1, rings);
                guest.write_status(RUNNING);
                reported += 1;
                assert_eq!(guest.told().faults.len(), reported, "ring {ring} at {address:#x}");
                assert_eq!(guest.status(), RUNNING | NEEDS_RESET);
                guest.write_status(RUNNING);
                assert_eq!(guest.told().faults.len(), reported, "told once");
            }
        }
        let words = "virtio-test: queue 1 is outside guest memory";
        assert!(guest.told().faults.iter().all(|fault| fault == words));
        assert!(guest.told().activations.is_empty());

        guest.negotiate(VERSION_1);
        guest.enable(1, RINGS);
        guest.write_status(RUNNING);
        assert_eq!(guest.status(), RUNNING);
        assert_eq!(guest.told().activations, [(VERSION_1, SIZES.to_vec())]);
    });
}

#[test]
fn sizes_are_powers_of_two_up_to_the_largest() {
    with_guest(|mut guest| {
        guest.negotiate(VERSION_1);
        for (queue, most) in (0..).zip(SIZES) {
            guest.write(QUEUE_SELECT, &u16::to_le_bytes(queue));
            for size in [0, 3, 7, most - 1, most + 1, 2 * most, 0x8000, 0xffff] {
                guest.write(QUEUE_SIZE, &size.to_le_bytes());
                assert_eq!(guest.read(QUEUE_SIZE, 2), u64::from(most), "after {size}");
            }
        }
        guest.write(QUEUE_SIZE, &4_u16.to_le_bytes());
        guest.enable(1, RINGS);
        guest.write_status(RUNNING);
        assert_eq!(guest.told().activations, [(VERSION_1, vec![SIZES[0], 4])]);
    });
}

#[test]
fn an_enabled_queue_is_as_it_was_until_reset() {
    with_guest(|mut guest| {
        guest.negotiate(VERSION_1);
        guest.enable(0, RINGS);
        let enabled = guest.queue();
        assert_eq!(enabled, [8, NONE, 1, RINGS[0], RINGS[1], RINGS[2]]);
        let rewrite = |guest: &mut Guest| {
            guest.enable(0, [0x5000, 0x6000, 0x7000]);
            for register in [QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE] {
                for value in [0_u16, 1, 2, 4] {
                    guest.write(register, &value.to_le_bytes());
                }
            }
            assert_eq!(guest.queue(), enabled);
        };
        rewrite(&mut guest);
        guest.write_status(RUNNING);
        rewrite(&mut guest);
        // Neither is the other, which never was enabled.
        guest.write(QUEUE_SELECT, &[1, 0]);
        let other = guest.queue();
        guest.enable(1, RINGS);
        assert_eq!(guest.queue(), other);
        for status in [RUNNING, READY, 3, 1, RUNNING] {
            guest.write_status(status);
            assert_eq!(guest.status(), RUNNING);
        }
        assert_eq!(guest.told().activations.len(), 1, "once");

        guest.write_status(0);
        assert_eq!(guest.told().resets, 2, "before the first step, and now");
        assert_eq!(guest.queue()[2..], [0; 4]);
    });
}

#[test]
fn a_reset_in_the_middle_forgets_everything() {
    with_guest(|mut guest| {
        let fresh = |guest: &mut Guest| {
            guest.write(QUEUE_SELECT, &[0, 0]);
            let status = guest.status();
            let queue = guest.queue();
            guest.write(DRIVER_FEATURE_SELECT, &1_u32.to_le_bytes());
            (status, queue, guest.read(DRIVER_FEATURE, 4), guest.read(CONFIG_VECTOR, 2))
        };
        let first = fresh(&mut guest);
        for last in [1, 3, READY, RUNNING] {
            guest.write(CONFIG_VECTOR, &[1, 0]);
            guest.negotiate(VERSION_1 | FEATURE);
            guest.write(QUEUE_VECTOR, &[2, 0]);
            guest.enable(0, RINGS);
            match last {
                READY => {}
                RUNNING => guest.write_status(RUNNING),
                earlier => {
                    guest.write_status(0);
                    (1..=earlier).filter(|step| [1, 3].contains(step)).for_each(|step| {
                        guest.write_status(step);
                    });
                }
            }
            assert_eq!(guest.status(), last);
            // A kick that the next driver's device must not see.
            guest.write(NOTIFY, &[0, 0]);
            guest.write_status(0);
            assert_eq!(fresh(&mut guest), first, "after a reset at {last}");
            let kick = guest.function.queues[0].kick.event.read();
            assert!(kick.is_err(), "a kick is left after a reset at {last}");
        }
        assert_eq!(guest.told().activations.len(), 1);
    });
}

#[test]
fn features_that_are_not_offered_never_reach_the_device() {
    with_guest(|mut guest| {
        for features in [0, FEATURE, VERSION_1 | 1 << 6, VERSION_1 | 1 << 63, u64::MAX] {
            guest.negotiate(features);
            assert_eq!(guest.status(), 3, "FEATURES_OK for {features:#x}");
            guest.write_status(RUNNING);
            assert_eq!(guest.status(), 3);
        }
        // What is written once they are accepted changes nothing.
        guest.negotiate(VERSION_1 | FEATURE);
        guest.write(DRIVER_FEATURE, &[0xff; 4]);
        guest.write_status(RUNNING);
        let both = VERSION_1 | FEATURE;
        assert_eq!(guest.told().activations, [(both, SIZES.to_vec())]);
    });
}

#[test]
fn what_does_not_exist_reads_as_nothing_and_takes_nothing() {
    with_guest(|mut guest| {
        guest.negotiate(VERSION_1);
        // Queues.
        for queue in [2_u16, 3, 0x8000, 0xffff] {
            guest.enable(queue, RINGS);
            assert_eq!(guest.queue(), [0; 6], "queue {queue}");
            guest.write(NOTIFY + NOTIFY_STEP * u64::from(queue).min(0x3ff), &[0, 0]);
        }
        // Vectors: there is one for each queue, and one for the configuration.
        guest.write(QUEUE_SELECT, &[0, 0]);
        for vector in [3_u16, 0x7fff, 0xfffe] {
            guest.write(QUEUE_VECTOR, &vector.to_le_bytes());
            guest.write(CONFIG_VECTOR, &vector.to_le_bytes());
            assert_eq!(guest.read(QUEUE_VECTOR, 2), NONE);
            assert_eq!(guest.read(CONFIG_VECTOR, 2), NONE);
        }
        for at in [48, 60, 0xff0, 0xffc] {
            guest.write(MSIX_TABLE + at, &[0xff; 8]);
            assert_eq!(guest.read(MSIX_TABLE + at, 8), 0);
            assert_eq!(guest.read(MSIX_PENDING + at, 8), 0);
        }
        // The device's configuration: read to its end, never written.
        guest.write(DEVICE, &[0xff; 8]);
        assert_eq!(guest.read(DEVICE, 8), 0x0605_0403_0201);
        assert_eq!(guest.read(DEVICE + 4, 8), 0x0605);
        for at in [6, 7, 0x100, STRUCTURE - 1] {
            guest.write(DEVICE + at, &[0xff; 8]);
            assert_eq!(guest.read(DEVICE + at, 8), 0, "at {at:#x}");
        }
        // Other structures, and behind the last.
        for at in [ISR, 0x6000, 0x7000, DEVICE_SIZE - 8] {
            guest.write(at, &[0xff; 8]);
            assert_eq!(guest.read(at, 8), 0, "at {at:#x}");
        }
        assert!(guest.told().faults.is_empty());
    });
}

#[test]
fn configuration_space_keeps_what_is_not_the_guests() {
    with_guest(|mut guest| {
        let all = |guest: &Guest| -> Vec<u32> {
            (0..256).step_by(4).map(|at| guest.function.config().read(at)).collect()
        };
        let before = all(&guest);
        for value in [0xff, 0] {
            for at in 0..256 {
                guest.function.write_config(at, &[value]);
            }
        }
        let mut expected = before.clone();
        // The command register, where memory can be switched off.
        expected[1] &= !2;
        assert_eq!(all(&guest), expected);
        assert!(guest.told().faults.is_empty());
    });
}

/// Splitmix64: the same sequence in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[test]
fn whatever_is_written_a_device_gets_what_it_offered() {
    with_guest(|mut guest| {
        let mut random = Random(1);
        for round in 0..100_000_u32 {
            let offset = match random.below(4) {
                // Mostly registers that do something, at their places or beside them.
                0..=2 => random.below(QUEUE_DEVICE_HIGH + 8),
                _ => random.below(DEVICE_SIZE),
            };
            let bytes = match random.below(3) {
                0 => random.next(),
                1 => random.below(32),
                _ => RAM - random.below(RAM / 16) * 16,
            };
            let width = 1 + random.below(8) as usize;
            match random.below(64) {
                0 => guest.negotiate(VERSION_1 | FEATURE),
                1 => guest.write_status(READY | 4),
                2 => guest.function.write_config(offset as usize % 252, &bytes.to_le_bytes()[..4]),
                3 => guest.write(offset, &[0xa5; 16]),
                4 | 5 => guest.enable(random.below(3) as u16, [bytes & !15; 3]),
                _ => guest.write(offset, &bytes.to_le_bytes()[..width]),
            }
            guest.read(random.below(DEVICE_SIZE), width);

            let status = guest.status();
            let known = [0, 1, 3, READY, RUNNING, RUNNING | NEEDS_RESET];
            assert!(known.contains(&(status & !128)), "status {status:#x} in round {round}");
            let vectors = guest.function.msix.len() as u64;
            let vector = guest.read(CONFIG_VECTOR, 2);
            assert!(vector < vectors || vector == NONE, "{vector} in round {round}");
        }
        let told = guest.told();
        assert!(told.activations.len() > 100, "{} activations", told.activations.len());
        assert!(told.faults.len() > 10, "{} faults", told.faults.len());
        for (features, sizes) in &told.activations {
            assert_eq!(features & !(FEATURE | TRANSPORT_FEATURES), 0);
            for (size, most) in sizes.iter().zip(SIZES) {
                assert!(size.is_power_of_two() && *size <= most, "{size} of {most}");
            }
        }
    });
}
