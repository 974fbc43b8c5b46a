// SPDX-License-Identifier: Apache-2.0

//! Devices that come and go while the guest runs. The guest's half does what the host's half
//! orders, line by line over a vsock connection: it rescans its bus, uses a device, removes it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use husk_vmm::config::{Disk, NetConfig, Plug};
use husk_vmm::control::{Command as Order, Event, ExitReason};

use super::net::{Exchange, Tap, exchange, set_up};
use super::supervised::Supervisor;
use super::{Noise, hash};
use crate::containerd::process::{LIMIT, eventually};

const ORDERS: u32 = 70_001;
const DEADLINE: Duration = Duration::from_secs(180);
/// Bytes each way.
const EXCHANGED: u64 = 50_000_000;
const DISK: u64 = 1 << 20;
/// Devices that are there from the start: console, rng, balloon, vsock.
const FIXED: u8 = 4;

/// A guest that takes orders.
pub(super) struct Guest {
    pub(super) supervisor: Supervisor,
    orders: BufReader<UnixStream>,
    next_id: u64,
    /// What husk-vmm has noted so far.
    pub(super) notes: Vec<String>,
}

impl Guest {
    pub(super) fn boot(vcpus: u8) -> Guest {
        let mut supervisor = Supervisor::boot_with("plug", vcpus);
        let Some((Event::Connect { port: ORDERS }, fds)) = supervisor.event() else {
            panic!("expected the guest's connection; {}", supervisor.tail())
        };
        let stream = UnixStream::from(fds.into_iter().next().expect("descriptor"));
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        let mut guest =
            Guest { supervisor, orders: BufReader::new(stream), next_id: 7, notes: vec![] };
        // When it answers, husk-vmm has let go of our end of the connection.
        assert_eq!(guest.does("disks"), "0");
        guest
    }

    /// Has the guest do something, whatever becomes of it.
    pub(super) fn order(&mut self, order: &str) {
        writeln!(self.orders.get_mut(), "{order}").expect("order");
    }

    /// Has the guest do something; returns what it says.
    pub(super) fn does(&mut self, order: &str) -> String {
        self.order(order);
        let mut answer = String::new();
        let result = self.orders.read_line(&mut answer);
        match answer.trim_end().strip_prefix("ok ") {
            Some(said) => said.to_owned(),
            None => panic!("{order}: {answer:?} {result:?}; {}", self.supervisor.tail()),
        }
    }

    fn command(&mut self, order: &Order, fds: &[BorrowedFd<'_>]) -> Event {
        self.supervisor.packets.send(order, fds).expect("send");
        self.event()
    }

    /// What husk-vmm says next, but notes.
    fn event(&mut self) -> Event {
        loop {
            match self.supervisor.event() {
                Some((Event::Note(what), _)) => self.notes.push(what),
                Some((event, _)) => return event,
                None => panic!("husk-vmm is gone; {}", self.supervisor.tail()),
            }
        }
    }

    fn try_plug(&mut self, device: Plug<usize>, files: &[&File]) -> Result<u8, String> {
        self.next_id += 1;
        let id = self.next_id;
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        match self.command(&Order::Plug { id, device }, &fds) {
            Event::Plugged { id: same, slot } if same == id => Ok(slot),
            Event::NotPlugged { id: same, error } if same == id => Err(error),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn try_unplug(&mut self, slot: u8) -> Result<(), String> {
        self.next_id += 1;
        let id = self.next_id;
        match self.command(&Order::Unplug { id, slot }, &[]) {
            Event::Unplugged { id: same } if same == id => Ok(()),
            Event::NotUnplugged { id: same, error } if same == id => Err(error),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn plug_disk(&mut self, file: &File) -> u8 {
        let device = Plug::Disk(Disk { file: 0, read_only: true, serial: "plugged".into() });
        self.try_plug(device, &[file]).expect("plug a disk")
    }

    /// `vhost` is vhost-net for each queue of the tap, or nothing.
    pub(super) fn plug_net(&mut self, tap: &Tap, vhost: &[File], mtu: u16) -> u8 {
        let files: Vec<&File> = tap.queues.iter().chain(vhost).collect();
        let device = Plug::Net(NetConfig {
            queues: (0..tap.queues.len()).collect(),
            vhost: (tap.queues.len()..files.len()).collect(),
            mac: [2, 0, 0, 0, 0, 0xbb],
            mtu: Some(mtu),
        });
        self.try_plug(device, &files).expect("plug a tap")
    }

    pub(super) fn unplug(&mut self, slot: u8) {
        self.try_unplug(slot).expect("unplug");
    }

    /// Resizes the VM, has the guest look for the device, and waits until it has the memory,
    /// most of it for programs.
    fn try_resize(&mut self, vcpus: u8, memory_mib: u64) -> Result<(), String> {
        self.try_resize_by(vcpus, memory_mib, &["movable", "rescan"])
    }

    pub(super) fn try_resize_by(
        &mut self,
        vcpus: u8,
        memory_mib: u64,
        orders: &[&str],
    ) -> Result<(), String> {
        self.next_id += 1;
        let id = self.next_id;
        let order = Order::Resize { id, vcpus, memory_mib };
        self.supervisor.packets.send(&order, &[]).expect("send");
        let (mut answered, mut reached) = (false, false);
        while !(answered && reached) {
            match self.event() {
                Event::Resized { id: same, slot } if same == id => {
                    assert!(slot > Some(FIXED), "a free slot");
                    for order in orders {
                        self.does(order);
                    }
                    answered = true;
                }
                Event::MemoryReached { id: same } if same == id => reached = true,
                Event::NotResized { id: same, error } if same == id => return Err(error),
                other => panic!("unexpected {other:?}; {}", self.supervisor.tail()),
            }
        }
        Ok(())
    }

    pub(super) fn number(&mut self, order: &str) -> u64 {
        self.does(order).parse().expect("a number")
    }

    /// MiB that husk-vmm has in memory.
    fn resident_mib(&self) -> u64 {
        let statm = format!("/proc/{}/statm", self.supervisor.child.id());
        let statm = fs::read_to_string(statm).expect("statm");
        statm.split(' ').nth(1).expect("resident").parse::<u64>().expect("pages") >> 8
    }

    /// Descriptors and threads of husk-vmm.
    fn resources(&self) -> (usize, usize) {
        let pid = self.supervisor.child.id();
        let count =
            |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("/proc").count();
        (count("fd"), count("task"))
    }

    pub(super) fn end(mut self) {
        assert_eq!(self.does("end"), "ending");
        assert_eq!(self.supervisor.exited(), ExitReason::PowerOff);
    }
}

/// The guest's name of a slot.
pub(super) fn place(slot: u8) -> String {
    format!("{slot:02x}")
}

fn disk(folder: &std::path::Path, seed: u64) -> (File, String) {
    let path = folder.join(seed.to_string());
    let mut file = File::create(&path).expect("create");
    io::copy(&mut Noise::new(seed).take(DISK), &mut file).expect("fill");
    (File::open(&path).expect("open"), hash(Noise::new(seed).take(DISK)).expect("hash"))
}

pub fn net() {
    let mut guest = Guest::boot(1);
    let before = guest.resources();
    for mtu in [1500, 9000] {
        let tap = Tap::new("husk-plug", 1, mtu);
        let slot = guest.plug_net(&tap, &[], mtu);
        assert_eq!(slot, FIXED + 1, "the first free slot");
        guest.does("rescan");
        let said = guest.does(&format!("net {}", place(slot)));
        assert_eq!(said, format!("02:00:00:00:00:bb {mtu} 2"), "MAC, MTU, queues");
        let host = Exchange::start(EXCHANGED, 1);
        guest.does(&format!("exchange {EXCHANGED} 1"));
        host.finish();
        guest.does(&format!("remove {}", place(slot)));
        guest.unplug(slot);
        println!("{EXCHANGED} bytes each way by hash with an MTU of {mtu}; unplugged");
    }
    assert_eq!(guest.resources(), before, "descriptors and threads of husk-vmm");
    guest.end();
}

pub fn several_queues() {
    let mut guest = Guest::boot(2);
    let tap = Tap::new("husk-queues", 2, 1500);
    let slot = guest.plug_net(&tap, &[], 1500);
    guest.does("rescan");
    let said = guest.does(&format!("net {}", place(slot)));
    assert_eq!(said, "02:00:00:00:00:bb 1500 4", "MAC, MTU, queues");
    let size = EXCHANGED / 10;
    let host = Exchange::start(size, 6);
    guest.does(&format!("exchange {size} 6"));
    host.finish();
    let used = guest.does(&format!("interrupts {}", place(slot)));
    println!("six connections of {size} bytes each way over two queue pairs; interrupts: {used}");
    let counts: Vec<u64> = used.split(' ').filter_map(|count| count.parse().ok()).collect();
    assert!(counts.len() == 2 && counts.iter().all(|&count| count > 0), "receive queues: {used}");
    guest.end();
}

pub fn disks() {
    const ROUNDS: u64 = 30;
    let folder = crate::temporary("plug");
    let mut guest = Guest::boot(1);
    let mut before = None;
    for round in 1..=ROUNDS {
        let (file, contents) = disk(folder.path(), round);
        let slot = guest.plug_disk(&file);
        assert_eq!(slot, FIXED + 1, "the slot is used again");
        guest.does("rescan");
        assert_eq!(guest.does(&format!("disk {}", place(slot))), contents, "round {round}");
        guest.does(&format!("remove {}", place(slot)));
        guest.unplug(slot);
        assert_eq!(guest.resources(), *before.get_or_insert(guest.resources()), "round {round}");
    }
    guest.end();
    println!("{ROUNDS} disks, one after the other, were read by hash; nothing of them is left");
}

pub fn unseen() {
    let folder = crate::temporary("plug");
    let (file, contents) = disk(folder.path(), 1);
    let mut guest = Guest::boot(1);
    let before = guest.resources();
    let slot = guest.plug_disk(&file);
    assert_ne!(guest.resources(), before, "a device takes descriptors");
    guest.unplug(slot);
    assert_eq!(guest.resources(), before, "descriptors and threads of husk-vmm");
    guest.does("rescan");
    assert_eq!(guest.does("disks"), "0", "the guest never saw it");
    let slot = guest.plug_disk(&file);
    guest.does("rescan");
    assert_eq!(guest.does(&format!("disk {}", place(slot))), contents);
    guest.end();
    println!("a device that came and went unseen left nothing");
}

pub fn surprise() {
    let folder = crate::temporary("plug");
    let (file, contents) = disk(folder.path(), 1);
    let mut guest = Guest::boot(1);
    let before = guest.resources();
    let slot = guest.plug_disk(&file);
    guest.does("rescan");
    assert_eq!(guest.does(&format!("disk {}", place(slot))), contents);
    guest.unplug(slot);
    assert_eq!(guest.resources(), before, "descriptors and threads of husk-vmm");
    // The guest still has its driver bound to what is not there.
    guest.does(&format!("remove {}", place(slot)));
    let (file, contents) = disk(folder.path(), 2);
    assert_eq!(guest.plug_disk(&file), slot);
    guest.does("rescan");
    assert_eq!(guest.does(&format!("disk {}", place(slot))), contents, "the next in the slot");
    guest.end();
    println!("a device that was taken from under its driver harmed nobody");
}

pub fn resized() {
    const ROUNDS: u32 = 5;
    let mut guest = Guest::boot(1);
    let at_boot = guest.number("memory");
    assert_eq!(guest.number("cpus 1"), 1);
    for round in 1..=ROUNDS {
        guest.try_resize(2, 256 + 512).expect("grow");
        // The driver has all of it, and is about to hand the last piece to its kernel.
        let mut large = 0;
        let grown = eventually(LIMIT, || {
            large = guest.number("memory");
            large >= at_boot + 500
        });
        assert!(grown, "{at_boot} MiB at boot, {large} MiB in round {round}");
        assert_eq!(guest.number("cpus 2"), 2);
        guest.does("fill 500");
        assert_eq!(guest.number("cpus 1"), 1);
        guest.try_resize(1, 256).expect("shrink");
        let small = guest.number("memory");
        assert!(small < at_boot + 10, "{at_boot} MiB at boot, {small} MiB in round {round}");
        let after = guest.resident_mib();
        assert!(after < 280, "{after} MiB of husk-vmm after it shrank to 256 MiB");
        println!("{at_boot} MiB and a CPU, {large} MiB and two, {small} MiB; resident {after}");
    }
    for (vcpus, memory_mib, text) in [(3, 256, "3 vCPUs"), (1, 1025, "1025 MiB")] {
        let error = guest.try_resize(vcpus, memory_mib).expect_err("should be refused");
        assert!(error.contains(text), "{error}");
        println!("resize: {error}");
    }
    guest.end();
}

pub fn most() {
    let folder = crate::temporary("plug");
    let (file, contents) = disk(folder.path(), 1);
    let mut guest = Guest::boot(1);
    let slots: Vec<u8> = (FIXED + 1..32).map(|_| guest.plug_disk(&file)).collect();
    assert_eq!(slots, (FIXED + 1..32).collect::<Vec<_>>());
    let again = Plug::Disk(Disk { file: 0, read_only: true, serial: String::new() });
    let error = guest.try_plug(again, &[&file]).expect_err("the 32nd device");
    assert!(error.contains("all 31 slots") && error.contains("unplug"), "{error}");
    guest.does("rescan");
    assert_eq!(guest.does("disks"), slots.len().to_string());
    assert_eq!(guest.does("disk 1f"), contents, "the last slot's");
    guest.does("remove 0a");
    guest.unplug(10);
    assert_eq!(guest.plug_disk(&file), 10, "the slot that is free");
    guest.end();
    println!("{} disks at once; one more: {error}", slots.len());
}

pub fn refused() {
    let mut guest = Guest::boot(1);
    let before = guest.resources();
    let net = |queues: Vec<usize>, mac| {
        Plug::Net(NetConfig { queues, vhost: Vec::new(), mac, mtu: None })
    };
    let mac = [2, 0, 0, 0, 0, 1];
    let null = File::open("/dev/null").expect("/dev/null");
    // Only one queue where two need a tap that is made for it.
    let tap = Tap::new("husk-bad", 1, 1500);
    let taps: Vec<&File> = vec![&tap.queues[0], &tap.queues[0]];
    for (device, files, text) in [
        (net(vec![0], mac), vec![&null], "not a tap"),
        (net(vec![1], mac), vec![&null], "descriptor 1"),
        (net(vec![0, 0], mac), vec![&null], "descriptor 0"),
        (net(vec![], mac), vec![], "0 queue pairs"),
        (net(vec![0, 1], mac), taps, "IFF_MULTI_QUEUE"),
        (net(vec![0], [0xff; 6]), vec![&tap.queues[0]], "MAC"),
    ] {
        let error = guest.try_plug(device, &files).expect_err("should be refused");
        assert!(error.contains(text), "{error}");
        println!("plug: {error}");
    }
    for slot in [0, 1, FIXED, FIXED + 1, 31, 32, 255] {
        let error = guest.try_unplug(slot).expect_err("should be refused");
        assert!(error.contains(&format!("slot {slot}")), "{error}");
    }
    assert_eq!(guest.resources(), before, "descriptors and threads of husk-vmm");
    guest.end();
    println!("what cannot be plugged or unplugged is refused, and the guest goes on");
}

pub fn guest() -> io::Result<String> {
    let stream = File::from(super::vsock::dial(ORDERS)?);
    let mut answers = stream.try_clone()?;
    for order in BufReader::new(stream).lines() {
        let order = order?;
        let words: Vec<&str> = order.split(' ').collect();
        match obey(&words) {
            Ok(said) => writeln!(answers, "ok {said}")?,
            Err(error) => writeln!(answers, "error {error}")?,
        }
        if words == ["end"] {
            break;
        }
    }
    Ok("no more orders".to_owned())
}

fn obey(words: &[&str]) -> io::Result<String> {
    let number = |word: &str| word.parse::<u64>().map_err(io::Error::other);
    let device = |slot: &str| format!("/sys/bus/pci/devices/0000:00:{slot}.0");
    match words {
        ["rescan"] => fs::write("/sys/bus/pci/rescan", "1").map(|()| "rescanned".to_owned()),
        ["remove", slot] => {
            fs::write(format!("{}/remove", device(slot)), "1").map(|()| "removed".to_owned())
        }
        ["net", slot] => set_up(slot),
        ["break", slot] => super::vhost::break_rings(&device(slot)),
        ["exchange", size, connections] => {
            exchange(number(size)?, number(connections)? as usize)?;
            Ok("by hash".to_owned())
        }
        ["interrupts", slot] => interrupts(&device(slot)),
        ["movable"] => {
            let policy = "/sys/module/memory_hotplug/parameters/online_policy";
            fs::write(policy, "auto-movable").map(|()| "so be it".to_owned())
        }
        ["memory"] => {
            let text = fs::read_to_string("/proc/meminfo")?;
            let kib = text.split_whitespace().nth(1).unwrap_or_default();
            Ok((number(kib)? >> 10).to_string())
        }
        ["used", zone] => used_pages(zone),
        ["fill", mib] => {
            let len = number(mib)? as usize;
            let filled: Vec<Vec<u8>> = (0..len).map(|i| vec![i as u8 | 1; 1 << 20]).collect();
            Ok(filled.iter().map(Vec::len).sum::<usize>().to_string())
        }
        ["cpus", count] => {
            for cpu in 1.. {
                let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
                let wanted = if cpu < number(count)? { "1" } else { "0" };
                match fs::read_to_string(&path) {
                    Err(_) => break,
                    Ok(is) if is.trim() != wanted => fs::write(&path, wanted)?,
                    Ok(_) => {}
                }
            }
            let stat = fs::read_to_string("/proc/stat")?;
            let up =
                stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
            Ok(up.count().to_string())
        }
        ["disks"] => Ok(fs::read_dir("/sys/block")?
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().starts_with("vd")))
            .filter(|&is_disk| is_disk)
            .count()
            .to_string()),
        ["disk", slot] => {
            let slot = format!("0000:00:{slot}.0");
            for entry in fs::read_dir("/sys/block")? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                let path = fs::canonicalize(format!("/sys/block/{name}"))?;
                if path.components().any(|part| part.as_os_str() == slot.as_str()) {
                    return hash(File::open(format!("/dev/{name}"))?);
                }
            }
            Err(io::Error::other(format!("no disk in slot {slot}")))
        }
        ["end"] => Ok("ending".to_owned()),
        _ => Err(io::Error::other("no such order")),
    }
}

/// Pages of the kernel's zone of that name that are not free.
fn used_pages(zone: &str) -> io::Result<String> {
    let text = fs::read_to_string("/proc/zoneinfo")?;
    let lines = text.lines().skip_while(|line| !line.ends_with(&format!(" {zone}")));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    let number = |name: &str| {
        let at = words.iter().position(|word| *word == name);
        at.and_then(|at| words.get(at + 1)?.parse::<u64>().ok())
    };
    match (number("managed"), number("free")) {
        (Some(managed), Some(free)) => Ok(managed.saturating_sub(free).to_string()),
        _ => Err(io::Error::other(format!("no zone {zone}"))),
    }
}

/// How often each queue for received frames has interrupted.
fn interrupts(device: &str) -> io::Result<String> {
    let lines: Vec<String> = fs::read_dir(format!("{device}/msi_irqs"))?
        .map(|entry| Ok(format!("{}:", entry?.file_name().to_string_lossy())))
        .collect::<io::Result<_>>()?;
    let counts = fs::read_to_string("/proc/interrupts")?
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.first().is_some_and(|word| lines.iter().any(|l| l == word)))
        .filter(|words| words.last().is_some_and(|word| word.contains("input")))
        .map(|words| {
            words[1..].iter().map_while(|word| word.parse::<u64>().ok()).sum::<u64>().to_string()
        })
        .collect::<Vec<_>>();
    Ok(counts.join(" "))
}
