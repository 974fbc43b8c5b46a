// SPDX-License-Identifier: Apache-2.0

//! The header before each frame (virtio 1.3, 5.1.6), which driver, device and tap share. What
//! the guest writes in it steers code of the host's kernel, so a frame goes out only with a
//! header of ours that holds what was checked.

use super::features::*;

pub const LEN: usize = 12;
/// Where the number of buffers of a received frame is.
pub const NUM_BUFFERS: usize = 10;

/// Least and most bytes of a frame: an Ethernet header, and one with a VLAN tag before the
/// most that segmentation offload takes.
pub const MIN_FRAME: usize = 14;
pub const MAX_FRAME: usize = 18 + 65536;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The header that a frame of `len` bytes is sent with, if the one that came with it makes
/// sense and asks for nothing but what the driver accepted (5.1.6.2.1).
pub fn checked(header: &[u8; LEN], len: usize, features: u64) -> Option<[u8; LEN]> {
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (header_len, segment, start, offset) = (word(2), word(4), word(6), word(8));
    if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
        return None;
    }
    let mut sent = [0; LEN];
    let checksum = header[0] & NEEDS_CSUM != 0;
    if checksum {
        if features & CSUM == 0 || start + offset + 2 > len {
            return None;
        }
        sent[0] = NEEDS_CSUM;
        sent[6..10].copy_from_slice(&header[6..10]);
    }
    let kind = header[1];
    if kind != GSO_NONE {
        let (feature, ecn) = match kind & !GSO_ECN {
            GSO_TCPV4 => (HOST_TSO4, true),
            GSO_TCPV6 => (HOST_TSO6, true),
            GSO_UDP_L4 => (HOST_USO, false),
            _ => return None,
        };
        let marked = kind & GSO_ECN != 0;
        let accepted = features & feature != 0 && (!marked || ecn && features & HOST_ECN != 0);
        if !accepted || !checksum || segment == 0 || header_len > len {
            return None;
        }
        sent[1] = kind;
        sent[2..6].copy_from_slice(&header[2..6]);
    }
    Some(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;

    /// Flags, GSO type, header length, segment size, start and offset of the checksum.
    fn header(flags: u8, kind: u8, words: [u16; 4]) -> [u8; LEN] {
        let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0xee, 0xee];
        for (i, word) in words.iter().enumerate() {
            header[2 + 2 * i..4 + 2 * i].copy_from_slice(&word.to_le_bytes());
        }
        header
    }

    #[test]
    fn what_drivers_send_passes() {
        let plain = checked(&header(0, 0, [0; 4]), 60, 0);
        assert_eq!(plain, Some([0; LEN]), "nothing asked for");
        let sums = checked(&header(1, 0, [0, 0, 34, 16]), 60, CSUM).expect("a checksum");
        assert_eq!(sums, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
        for kind in [1, 0x81, 4, 0x84, 5] {
            let sent = checked(&header(1, kind, [54, 1448, 34, 16]), 65_000, ALL);
            let sent = sent.unwrap_or_else(|| panic!("segmentation {kind:#x} was refused"));
            assert_eq!(sent, [1, kind, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
        }
    }

    #[test]
    fn what_is_not_understood_is_not_passed_on() {
        // Flags that only a device sets, and words that mean nothing without theirs.
        let sent = checked(&header(0xfe, 0, [9, 9, 9, 9]), 60, ALL);
        assert_eq!(sent, Some([0; LEN]));
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let fits = [54, 1448, 34, 16];
        for (what, header, len, features) in [
            ("no frame", header(0, 0, [0; 4]), 0, ALL),
            ("short frame", header(0, 0, [0; 4]), MIN_FRAME - 1, ALL),
            ("long frame", header(0, 0, [0; 4]), MAX_FRAME + 1, ALL),
            ("checksum not accepted", header(1, 0, [0, 0, 34, 16]), 60, 0),
            ("checksum at the end", header(1, 0, [0, 0, 43, 16]), 60, ALL),
            ("checksum far out", header(1, 0, [0, 0, 0xffff, 0xffff]), 60, ALL),
            ("no checksum", header(0, 1, fits), 3000, ALL),
            ("no segment size", header(1, 1, [54, 0, 34, 16]), 3000, ALL),
            ("header beyond the frame", header(1, 1, [3001, 1448, 34, 16]), 3000, ALL),
            ("TCP not accepted", header(1, 1, fits), 3000, ALL & !HOST_TSO4),
            ("TCP over IPv6 not accepted", header(1, 4, fits), 3000, ALL & !HOST_TSO6),
            ("UDP not accepted", header(1, 5, fits), 3000, ALL & !HOST_USO),
            ("ECN not accepted", header(1, 0x81, fits), 3000, ALL & !HOST_ECN),
            ("ECN of UDP", header(1, 0x85, fits), 3000, ALL),
            ("ECN of nothing", header(1, 0x80, fits), 3000, ALL),
            ("old UDP", header(1, 3, fits), 3000, ALL),
            ("unknown", header(1, 0x42, fits), 3000, ALL),
        ] {
            assert_eq!(checked(&header, len, features), None, "{what}");
        }
    }
}
