// SPDX-License-Identifier: Apache-2.0

//! A network device that the host's kernel serves: while the guest's memory grows, where the
//! kernel cannot, and where the guest's driver is a bad one.

use std::fs::{self, File};
use std::io;
use std::ptr::NonNull;

use husk_vmm::control::{Event, ExitReason};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::net::{Exchange, Tap};
use super::plug::{Guest, place};
use crate::containerd::process::{LIMIT, eventually};

/// Bytes each way.
const EXCHANGED: u64 = 10_000_000;

fn vhost() -> File {
    File::options().read(true).write(true).open("/dev/vhost-net").expect("vhost-net")
}

/// Whether the host's kernel has threads for the guest's devices, and husk-vmm for the first
/// queue pair.
fn served_by(guest: &Guest) -> (bool, bool) {
    let pid = guest.supervisor.child.id();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let names: Vec<String> = threads
        .map(|task| fs::read_to_string(task.expect("a thread").path().join("comm")))
        .map(|name| name.expect("its name"))
        .collect();
    (names.iter().any(|name| name.starts_with("vhost-")), names.iter().any(|n| n == "net0\n"))
}

fn exchange(guest: &mut Guest) {
    let host = Exchange::start(EXCHANGED, 1);
    guest.does(&format!("exchange {EXCHANGED} 1"));
    host.finish();
}

pub fn grown() {
    let mut guest = Guest::boot(1);
    let tap = Tap::new("husk-vhost", 1, 1500);
    let slot = guest.plug_net(&tap, &[vhost()], 1500);
    guest.does("rescan");
    guest.does(&format!("net {}", place(slot)));
    assert_eq!(served_by(&guest), (true, false), "the kernel serves, husk-vmm does not");
    exchange(&mut guest);
    println!("{EXCHANGED} bytes each way by hash, in the memory that was there at boot");

    // All of it for the guest's kernel, which takes buffers from the highest zone, and that
    // is the new memory.
    let at_boot = guest.number("memory");
    guest.try_resize_by(1, 256 + 512, &["rescan"]).expect("grow");
    let grown = eventually(LIMIT, || guest.number("memory") >= at_boot + 500);
    assert!(grown, "{} MiB, and {at_boot} at boot", guest.number("memory"));
    exchange(&mut guest);
    guest.does(&format!("remove {}", place(slot)));
    guest.unplug(slot);
    let before_it = guest.number("used Normal");
    println!("{EXCHANGED} bytes each way after it grew by 512 MiB");

    // The next one's rings are there, too.
    assert_eq!(guest.plug_net(&tap, &[vhost()], 1500), slot);
    guest.does("rescan");
    guest.does(&format!("net {}", place(slot)));
    exchange(&mut guest);
    let with_it = guest.number("used Normal");
    // Of the 256 buffers two or three fit into a page.
    assert!(with_it > before_it + 64, "of the new memory {before_it} pages, then {with_it}");
    guest.does(&format!("remove {}", place(slot)));
    guest.unplug(slot);
    // A thread of the kernel is seen a moment longer.
    let left = eventually(LIMIT, || served_by(&guest) == (false, false));
    assert!(left, "threads of a device that is gone: {:?}", served_by(&guest));
    println!("and by buffers in the new memory: {before_it} of its pages are used, then {with_it}");
    guest.end();
}

/// What is no vhost-net, and a tap that is gone when the driver comes: husk-vmm does the work.
pub fn refused() {
    let mut guest = Guest::boot(1);
    let tap = Tap::new("husk-vhost", 1, 1500);
    let slot = guest.plug_net(&tap, &[File::open("/dev/null").expect("/dev/null")], 1500);
    let [note] = &guest.notes[..] else { panic!("one note, not {:?}", guest.notes) };
    assert!(note.contains("husk-vmm does") && note.contains("ioctl"), "{note}");
    println!("{note}");
    guest.does("rescan");
    guest.does(&format!("net {}", place(slot)));
    assert_eq!(served_by(&guest), (false, true), "husk-vmm serves");
    exchange(&mut guest);
    guest.does(&format!("remove {}", place(slot)));
    guest.unplug(slot);

    let slot = guest.plug_net(&tap, &[vhost()], 1500);
    tap.delete();
    guest.does("rescan");
    match guest.supervisor.event() {
        Some((Event::Note(note), _)) => {
            assert!(note.contains("husk-vmm does"), "{note}");
            println!("{note}");
        }
        other => panic!("expected a note, not {other:?}"),
    }
    assert!(served_by(&guest).1, "husk-vmm serves");
    guest.does(&format!("remove {}", place(slot)));
    guest.unplug(slot);
    guest.end();
    println!("what the kernel cannot serve husk-vmm does, and says so once");
}

pub fn broken_rings() {
    for vhost in [vec![], vec![vhost()]] {
        let mut guest = Guest::boot(1);
        let tap = Tap::new("husk-vhost", 1, 1500);
        let slot = guest.plug_net(&tap, &vhost, 1500);
        guest.does("rescan");
        guest.order(&format!("break {}", place(slot)));
        let ExitReason::Device(why) = guest.supervisor.exited() else { panic!("not a device") };
        assert!(why.contains("driver broke"), "{why}");
        println!("rings that are none, vhost-net {}: {why}", !vhost.is_empty());
    }
}

/// Where the structures of the device's memory are, as its driver is told: the common
/// configuration, and the notification address of the queue for sent frames.
const COMMON: usize = 0;
const NOTIFY_SEND: usize = 0x3004;
const MEMORY: usize = 0x4000;

/// Memory below 1 MiB that is nobody's, and the start info, which the machine put there: as an
/// available ring it has more chains than any queue.
const DESCRIPTORS: u64 = 0x1_0000;
const USED: u64 = 0x1_2000;
const START_INFO: u64 = 0x6000;

/// Takes the device from its driver, and is a bad one.
pub fn break_rings(device: &str) -> io::Result<String> {
    let name = device.rsplit('/').next().unwrap_or_default();
    fs::write(format!("{device}/driver/unbind"), name)?;
    fs::write(format!("{device}/enable"), "1")?;
    let file = File::options().read(true).write(true).open(format!("{device}/resource0"))?;
    let len = std::num::NonZero::new(MEMORY).ok_or(io::ErrorKind::InvalidInput)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping of the device's memory, which nothing else here has.
    let memory = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &file, 0) }?;
    let registers = Registers(memory.cast());
    let status = |value: u8| registers.write(COMMON + 0x14, value);
    for value in [0, 1, 3] {
        status(value);
    }
    // VERSION_1 and nothing else.
    registers.write(COMMON + 0x08, 1u32);
    registers.write(COMMON + 0x0c, 1u32);
    status(11);
    for queue in 0..2u16 {
        registers.write(COMMON + 0x16, queue);
        for (at, address) in [(0x20, DESCRIPTORS), (0x28, START_INFO), (0x30, USED)] {
            registers.write(COMMON + at, address as u32);
            registers.write(COMMON + at + 4, 0u32);
        }
        registers.write(COMMON + 0x1c, 1u16);
    }
    status(15);
    registers.write(NOTIFY_SEND, 1u16);
    Ok("broken".to_owned())
}

struct Registers(NonNull<u8>);

impl Registers {
    fn write<T>(&self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= MEMORY && offset.is_multiple_of(size_of::<T>()));
        // SAFETY: within the mapping, which is never removed, and aligned.
        unsafe { self.0.as_ptr().add(offset).cast::<T>().write_volatile(value) }
    }
}
