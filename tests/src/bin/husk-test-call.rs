// SPDX-License-Identifier: Apache-2.0

//! Makes one system call, given by its number and arguments, and says what came of it: for
//! the suites, inside a container. `husk-test-call 74 1000` prints `-9`, which is EBADF.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words = std::env::args().skip(1).map(|word| number(&word));
    let Some(mut words) = words.collect::<Option<Vec<_>>>().filter(|words| !words.is_empty())
    else {
        eprintln!("usage: husk-test-call NUMBER [ARGUMENT...], decimal or 0x...");
        return ExitCode::FAILURE;
    };
    words.resize(7, 0);
    // SAFETY: the suites give numbers that are no addresses, so the call finds no memory of
    // this process to change.
    let result = unsafe {
        libc::syscall(words[0], words[1], words[2], words[3], words[4], words[5], words[6])
    };
    let errno = || std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    println!("{}", if result < 0 { -i64::from(errno()) } else { result });
    ExitCode::SUCCESS
}

fn number(word: &str) -> Option<i64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(u64::cast_signed),
        None => word.parse().ok(),
    }
}
