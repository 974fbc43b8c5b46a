// SPDX-License-Identifier: Apache-2.0

//! What programs expect of a file system, checked on a directory. Static, so that it runs in
//! any container: see `husk_tests::fs`.

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use husk_tests::fs::{Setting, directories, run, tree};

const USAGE: &str = "\
usage: husk-test-fs run [--husk] [--entries N] [--operations N] DIRECTORY [WORD...]
       husk-test-fs make DIRECTORY | check DIRECTORY | count DIRECTORY
run: the cases whose name starts with a word, or all; --husk: by husk's rules
make, check: a tree of files that the other side of a share checks, or has made
count: how many names a directory lists";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // What the program does as a program on the file system under test.
        ["echo", ref words @ ..] => {
            println!("{}", words.join(" "));
            Ok(true)
        }
        ["echo-after-stdin"] => {
            let done = std::io::stdin().read_to_end(&mut Vec::new());
            done.and_then(|_| writeln!(std::io::stdout(), "done")).map(|()| true)
        }
        ["make", directory] => tree::make(Path::new(directory)).map(|()| true),
        ["check", directory] => tree::check(Path::new(directory)).map(|(wrong, digest)| {
            wrong.iter().for_each(|line| println!("{line}"));
            println!("{digest}");
            wrong.is_empty()
        }),
        ["count", directory] => directories::count(directory).map(|count| {
            println!("{count} names");
            true
        }),
        ["run", ref words @ ..] => match parse(words) {
            Some((setting, directory, words)) => run(Path::new(&directory), &words, setting),
            None => return usage(),
        },
        _ => return usage(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("husk-test-fs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(words: &[&str]) -> Option<(Setting, String, Vec<String>)> {
    let mut setting = Setting { husk: false, entries: 2000, operations: 1000 };
    let mut words = words.iter();
    loop {
        match *words.next()? {
            "--husk" => setting.husk = true,
            "--entries" => setting.entries = words.next()?.parse().ok()?,
            "--operations" => setting.operations = words.next()?.parse().ok()?,
            option if option.starts_with('-') => return None,
            directory => {
                let words = words.map(|word| (*word).to_owned()).collect();
                return Some((setting, directory.to_owned(), words));
            }
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
