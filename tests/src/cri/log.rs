// SPDX-License-Identifier: Apache-2.0

//! A container's log as CRI has it written: `TIME STREAM TAG TEXT`, where the tag says whether
//! the text goes on in the stream's next line.

use std::fs;
use std::path::Path;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Its text goes on: it was longer than a line may be.
    pub partial: bool,
    pub line: String,
}

impl Entry {
    /// The whole lines of a log; none if it is not there.
    #[track_caller]
    pub fn read(path: &Path) -> Vec<Entry> {
        let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(Entry::parse).collect()
    }

    #[track_caller]
    fn parse(line: &str) -> Entry {
        let mut words = line.splitn(4, ' ');
        let mut next = || words.next().unwrap_or_else(|| panic!("no line of a log: {line:?}"));
        let (time, stream, tag, text) = (next(), next(), next(), next());
        assert!(time.starts_with("20") && time.contains('T'), "no time: {line:?}");
        assert!(["F", "P"].contains(&tag), "no tag: {line:?}");
        Entry { stream: stream.to_owned(), partial: tag == "P", line: text.to_owned() }
    }

    /// What the container has written.
    pub fn text(&self) -> String {
        if self.partial { self.line.clone() } else { format!("{}\n", self.line) }
    }
}
