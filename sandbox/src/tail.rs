// SPDX-License-Identifier: Apache-2.0

//! What a child process says about itself: the last bytes that it writes to a pipe. It can
//! write any amount and never waits for long.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// How much is kept, in bytes.
const MAX_KEPT: usize = 4096;

/// How often the pipe is read for what is there now: it holds no more, though somebody may
/// fill it all the time.
const MAX_READS: usize = (64 << 10) / 512;

/// The reading end of the pipe, with what has been read.
#[derive(Debug)]
pub struct Tail {
    pipe: Option<pipe::Receiver>,
    bytes: Vec<u8>,
}

impl Tail {
    /// A pipe, and the end to write to. Needs a tokio runtime.
    pub fn new() -> io::Result<(Tail, OwnedFd)> {
        let (sender, receiver) = pipe::pipe()?;
        Ok((Tail { pipe: Some(receiver), bytes: Vec::new() }, sender.into_blocking_fd()?))
    }

    /// Reads more when there is some. Never resolves once there is no more to come.
    pub async fn read(&mut self) {
        let mut buffer = [0; 512];
        let Some(pipe) = &mut self.pipe else { return std::future::pending().await };
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => self.pipe = None,
            Ok(len) => self.keep(&buffer[..len]),
        }
    }

    /// Reads what is there now; the text, without the white space around it.
    pub fn text(&mut self) -> String {
        let mut buffer = [0; 512];
        for _ in 0..MAX_READS {
            match self.pipe.as_ref().map(|pipe| pipe.try_read(&mut buffer)) {
                Some(Ok(len @ 1..)) => self.keep(&buffer[..len]),
                _ => break,
            }
        }
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }

    fn keep(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        let excess = self.bytes.len().saturating_sub(MAX_KEPT);
        self.bytes.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    #[tokio::test]
    async fn the_end_of_what_was_written_is_kept() {
        let (mut tail, writer) = Tail::new().expect("pipe");
        let mut writer = File::from(writer);
        for _ in 0..20 {
            writer.write_all(&[b'x'; 1000]).expect("write");
            // Otherwise the pipe could be full some day.
            tail.read().await;
        }
        writer.write_all(b" the end\n").expect("write");
        let text = tail.text();
        assert!(text.len() < MAX_KEPT && text.ends_with("x the end"), "{text}");
    }
}
