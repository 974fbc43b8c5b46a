// SPDX-License-Identifier: Apache-2.0

//! Random operations on one file against a model in memory. The seeds are fixed, so a
//! failure comes again; what it prints are the last operations before it.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::calls::*;
use super::mapping::Memory;
use super::process::{Baton, start};
use super::{Case, Failure, Outcome, setting};
use crate::random::Random;

pub const CASES: &[Case] = &[
    ("operations_on_one_file", operations_on_one_file),
    ("direct_operations_too", direct_operations_too),
    ("two_processes_by_turns", two_processes_by_turns),
    ("names_in_two_directories", names_in_two_directories),
];

/// The largest size of the file.
const MAX: usize = 256 << 10;

impl Random {
    /// An offset and a length, often at the borders of pages.
    fn range(&mut self, end: usize) -> (usize, usize) {
        let at = match self.below(3) {
            0 => self.below(end),
            1 => (self.below(end) & !4095) + self.below(3).saturating_sub(1),
            _ => self.below(end.min(10_000)),
        };
        let most = [10, 5000, 70_000][self.below(3)];
        let at = at.min(end - 1);
        (at, 1 + self.below(most.min(end - at)))
    }
}

struct Model {
    file: File,
    direct: Option<File>,
    content: Vec<u8>,
    random: Random,
    journal: VecDeque<String>,
}

impl Model {
    fn new(seed: u64, with_direct: bool) -> Outcome<Model> {
        let file = create("file")?;
        let direct = match with_direct.then(|| open("file", OFlags::RDWR | OFlags::DIRECT)) {
            Some(Err(Errno::INVAL)) => return skip("this file system has no O_DIRECT"),
            other => other.transpose()?,
        };
        let random = Random(seed);
        Ok(Model { file, direct, content: Vec::new(), random, journal: VecDeque::new() })
    }

    fn run(&mut self, count: usize) -> Outcome {
        for number in 0..count {
            if let Err(Failure::Differs(text)) = self.step(number) {
                let journal = self.journal.make_contiguous().join("; ");
                return differs(format!("{text}; the last operations: {journal}"));
            }
        }
        self.check_all()
    }

    fn note(&mut self, what: &str, at: usize, len: usize) {
        if self.journal.len() == 12 {
            self.journal.pop_front();
        }
        self.journal.push_back(format!("{what} {at}+{len}"));
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        let start = self.random.below(251);
        (0..len).map(|at| ((start + at * 7) % 251) as u8 + 1).collect()
    }

    /// Puts data into the model.
    fn put(&mut self, at: usize, data: &[u8]) {
        if self.content.len() < at + data.len() {
            self.content.resize(at + data.len(), 0);
        }
        self.content[at..at + data.len()].copy_from_slice(data);
    }

    fn check(&mut self, at: usize, found: &[u8]) -> Outcome {
        let wanted = &self.content[at.min(self.content.len())..];
        let wanted = &wanted[..found.len().min(wanted.len())];
        match found.iter().zip(wanted).position(|(a, b)| a != b) {
            Some(first) => {
                let place = at + first;
                differs(format!("at {place}: {} is not {}", found[first], wanted[first]))
            }
            None => same("length", found.len(), wanted.len()),
        }
    }

    fn check_all(&mut self) -> Outcome {
        same("size", stat("file")?.st_size, self.content.len() as i64)?;
        let found = std::fs::read("file")?;
        self.check(0, &found)?;
        same("length", found.len(), self.content.len())
    }

    fn step(&mut self, number: usize) -> Outcome {
        let (at, len) = self.random.range(MAX);
        match self.random.below(12) {
            0 | 1 => {
                self.note("write", at, len);
                let data = self.data(len);
                self.file.write_all_at(&data, at as u64)?;
                self.put(at, &data);
            }
            2 | 3 => {
                self.note("read", at, len);
                let mut found = vec![0; len];
                let read = self.file.read_at(&mut found, at as u64)?;
                let wanted = self.content.len().saturating_sub(at).min(len);
                same("length of a read", read, wanted)?;
                self.check(at, &found[..read])?;
            }
            4 => {
                self.note("truncate", at, 0);
                self.file.set_len(at as u64)?;
                self.content.resize(at, 0);
            }
            5 => {
                self.note("append", self.content.len(), len);
                let len = len.min(MAX - self.content.len());
                let data = self.data(len);
                let file = open("file", OFlags::WRONLY | OFlags::APPEND)?;
                std::io::Write::write_all(&mut &file, &data)?;
                self.content.extend(data);
            }
            6 | 7 if !self.content.is_empty() => self.map()?,
            8 => {
                self.note("punch", at, len);
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match rustix::fs::fallocate(&self.file, flags, at as u64, len as u64) {
                    Err(Errno::OPNOTSUPP) => return Ok(()),
                    result => result?,
                }
                let end = (at + len).min(self.content.len());
                if at < end {
                    self.content[at..end].fill(0);
                }
            }
            9 if !self.content.is_empty() => {
                let from = self.random.below(self.content.len());
                let len = len.min(self.content.len() - from);
                self.note(&format!("copy from {from} to"), at, len);
                if from < at + len && at < from + len {
                    return Ok(());
                }
                let (mut a, mut b) = (from as u64, at as u64);
                let file = &self.file;
                let len = rustix::fs::copy_file_range(file, Some(&mut a), file, Some(&mut b), len)?;
                let data = self.content[from..from + len].to_vec();
                self.put(at, &data);
            }
            10 if self.direct.is_some() => self.direct()?,
            11 => {
                self.note("reopen", 0, 0);
                self.file = open("file", OFlags::RDWR)?;
            }
            _ => {}
        }
        if number % 50 == 49 { self.check_all() } else { Ok(()) }
    }

    /// Reads or writes through a mapping of the whole file.
    fn map(&mut self) -> Outcome {
        let (at, len) = self.random.range(self.content.len());
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let size = self.content.len();
        let mut memory = Memory::of(&self.file, size, protection, MapFlags::SHARED)?;
        if self.random.below(2) == 0 {
            self.note("read by mapping", at, len);
            return self.check(at, &memory.bytes()[at..at + len]);
        }
        self.note("write by mapping", at, len);
        let data = self.data(len);
        memory.bytes()[at..at + len].copy_from_slice(&data);
        self.put(at, &data);
        Ok(())
    }

    fn direct(&mut self) -> Outcome {
        const UNIT: usize = 4096;
        let Some(file) = &self.direct else { return Ok(()) };
        let (at, len) =
            (self.random.below(MAX / UNIT / 2) * UNIT, (1 + self.random.below(16)) * UNIT);
        let mut memory = Memory::new(len)?;
        if self.random.below(2) == 0 {
            let read = file.read_at(memory.bytes(), at as u64)?;
            self.note("direct read", at, len);
            let wanted = self.content.len().saturating_sub(at).min(len);
            same("length of a direct read", read, wanted)?;
            return self.check(at, &memory.bytes()[..read]);
        }
        let file = file.try_clone()?;
        self.note("direct write", at, len);
        let data = self.data(len);
        memory.bytes().copy_from_slice(&data);
        file.write_all_at(memory.bytes(), at as u64)?;
        self.put(at, &data);
        Ok(())
    }
}

fn operations_on_one_file() -> Outcome {
    for seed in [1, 0x1234_5678, u64::MAX / 3] {
        Model::new(seed, false)?.run(setting().operations)?;
        unlink("file")?;
    }
    Ok(())
}

fn direct_operations_too() -> Outcome {
    for seed in [2, 0x8765_4321] {
        Model::new(seed, true)?.run(setting().operations)?;
        unlink("file")?;
    }
    Ok(())
}

/// One process makes ten operations; the other checks them and makes one change by a
/// mapping, which the first one checks in turn.
fn two_processes_by_turns() -> Outcome {
    let mut model = Model::new(3, false)?;
    let (ping, pong) = (Baton::new()?, Baton::new()?);
    let rounds = setting().operations / 10;
    let other = start(|| {
        for round in 0..rounds {
            ping.take()?;
            let (found, wanted) = (std::fs::read("file")?, std::fs::read("model")?);
            holds(&format!("what the other wrote in round {round}"), found == wanted)?;
            if !found.is_empty() {
                let file = open("file", OFlags::RDWR)?;
                let protection = ProtFlags::READ | ProtFlags::WRITE;
                let mut memory = Memory::of(&file, found.len(), protection, MapFlags::SHARED)?;
                memory.bytes()[found.len() / 2] = 255;
            }
            pong.pass()?;
        }
        Ok(())
    })?;
    for _ in 0..rounds {
        for number in 0..10 {
            model.step(number)?;
        }
        std::fs::write("model", &model.content)?;
        ping.pass()?;
        pong.take()?;
        let middle = model.content.len() / 2;
        if let Some(byte) = model.content.get_mut(middle) {
            *byte = 255;
        }
        model.check_all()?;
    }
    other.end()
}

/// Names made, moved, linked and removed at random, against a map of names to contents.
fn names_in_two_directories() -> Outcome {
    use std::collections::BTreeMap;
    let mut random = Random(4);
    let mut model: BTreeMap<String, u32> = BTreeMap::new();
    mkdir("a", 0o755)?;
    mkdir("b", 0o755)?;
    for number in 0..setting().operations as u32 {
        let mut name = || format!("{}/{}", ["a", "b"][random.below(2)], random.below(12));
        let (one, two) = (name(), name());
        match random.below(5) {
            0 | 1 => {
                // A new file each time: names may share one by a link.
                let _ = unlink(&one);
                fill(&one, &number.to_le_bytes())?;
                model.insert(one, number);
            }
            2 => match model.get(&one).copied() {
                Some(content) => {
                    rename(&one, &two)?;
                    if one != two {
                        let linked = model.get(&two) == Some(&content);
                        model.insert(two, content);
                        // Two names of one file stay as they are.
                        if !linked {
                            model.remove(&one);
                        }
                    }
                }
                None => refused(rename(&one, &two), Errno::NOENT)?,
            },
            3 => match (model.get(&one).copied(), model.contains_key(&two)) {
                (Some(content), false) => {
                    link(&one, &two)?;
                    model.insert(two, content);
                }
                (Some(_), true) => refused(link(&one, &two), Errno::EXIST)?,
                (None, _) => refused(link(&one, &two), Errno::NOENT)?,
            },
            _ => match model.remove(&one) {
                Some(_) => unlink(&one)?,
                None => refused(unlink(&one), Errno::NOENT)?,
            },
        }
        if number % 20 == 19 {
            let mut found = BTreeMap::new();
            for dir in ["a", "b"] {
                for name in list(dir)? {
                    let path = format!("{dir}/{name}");
                    let bytes = std::fs::read(&path)?;
                    found.insert(path, u32::from_le_bytes(bytes.try_into().unwrap_or([255; 4])));
                }
            }
            same("names and contents", found, model.clone())?;
        }
    }
    Ok(())
}
