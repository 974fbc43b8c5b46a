// SPDX-License-Identifier: Apache-2.0

//! Frames on a byte stream: a little-endian u32 length, then the protobuf message.

use protobuf::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::agent::Frame;

/// Longest frame that either side accepts, in bytes. The largest thing that travels is an
/// OCI spec; containerd itself caps messages at 4 MiB.
pub const MAX_FRAME: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the peer sent a frame of {0} bytes; the limit is {MAX_FRAME}")]
    TooLong(usize),
    #[error("the peer sent a frame that is not a valid message")]
    Malformed(#[from] protobuf::Error),
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
}

/// Reads one frame; `None` when the peer closed between two frames.
///
/// Not cancel-safe: a caller that drops the future must drop the stream too.
pub async fn read_frame<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<Frame>, FrameError> {
    let mut prefix = [0u8; 4];
    if stream.read(&mut prefix[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[1..]).await?;
    let len = u32::from_le_bytes(prefix) as usize;
    if len > MAX_FRAME {
        return Err(FrameError::TooLong(len));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(Frame::parse_from_bytes(&bytes)?))
}

/// Writes one frame in one piece.
pub async fn write_frame<W: AsyncWrite + Unpin>(
    stream: &mut W,
    frame: &Frame,
) -> Result<(), FrameError> {
    let len = frame.compute_size() as usize;
    if len > MAX_FRAME {
        return Err(FrameError::TooLong(len));
    }
    let mut bytes = Vec::with_capacity(4 + len);
    bytes.extend_from_slice(&(len as u32).to_le_bytes());
    frame.write_to_vec(&mut bytes)?;
    stream.write_all(&bytes).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{Hello, frame::Body};

    fn hello() -> Frame {
        let mut frame = Frame::new();
        frame.body = Some(Body::Hello(Hello { version: 7, ..Default::default() }));
        frame
    }

    #[tokio::test]
    async fn frames_come_back_as_they_were_written() {
        let (mut a, mut b) = tokio::io::duplex(1024);
        write_frame(&mut a, &hello()).await.expect("write");
        write_frame(&mut a, &hello()).await.expect("write");
        drop(a);
        assert_eq!(read_frame(&mut b).await.expect("first"), Some(hello()));
        assert_eq!(read_frame(&mut b).await.expect("second"), Some(hello()));
        assert_eq!(read_frame(&mut b).await.expect("end"), None);
    }

    #[tokio::test]
    async fn an_oversize_length_is_refused_before_it_is_allocated() {
        let bytes = u32::MAX.to_le_bytes();
        let error = read_frame(&mut bytes.as_slice()).await.expect_err("too long");
        assert!(matches!(error, FrameError::TooLong(n) if n == u32::MAX as usize));
    }

    #[tokio::test]
    async fn a_connection_lost_inside_a_frame_is_an_error() {
        for cut in [1, 4, 5] {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, &hello()).await.expect("write");
            bytes.truncate(cut);
            let error = read_frame(&mut bytes.as_slice()).await.expect_err("cut");
            assert!(matches!(error, FrameError::Io(_)), "cut at {cut}: {error}");
        }
    }
}
