// SPDX-License-Identifier: Apache-2.0

//! The console: input reaches the guest, and a guest that floods it does no harm.

use std::io::{self, BufRead};

use super::{READY, Run};

pub fn host() {
    let outcome = Run::case("console", &[]).input(b"typed on the host\n").finish();
    assert_eq!(outcome.done(), "read 'typed on the host'", "{outcome}");
    println!("a line typed at the console reached the guest");
}

pub fn guest() -> io::Result<String> {
    println!("{READY}");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(format!("read '{}'", line.trim_end()))
}

/// Bytes that the flooding guest writes: more than the log may hold.
pub const FLOOD: usize = 3 << 20;

pub fn flood() -> io::Result<String> {
    let line = [b'x'; 127];
    for _ in 0..FLOOD / 128 {
        println!("{}", String::from_utf8_lossy(&line));
    }
    Ok("flooded".to_owned())
}
