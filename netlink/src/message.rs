// SPDX-License-Identifier: Apache-2.0

//! Messages: a header, a structure of fixed length that depends on the kind, and attributes,
//! each padded to four bytes and some with attributes inside (netlink(7), rtnetlink(7)).

/// Length of a message's header: length, kind, flags, sequence number, port.
pub const HEADER: usize = 16;

const ATTRIBUTE_HEADER: usize = 4;

/// Flag bits in an attribute's kind (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const KIND_FLAGS: u16 = 0xc000;

/// A request to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// `body` is the kind's structure. NLM_F_REQUEST is added to the flags.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(body);
        pad(&mut bytes);
        Message(bytes)
    }

    /// Adds an attribute. Values longer than 64 KiB do not exist.
    pub fn attribute(self, kind: u16, value: impl AsRef<[u8]>) -> Message {
        self.nest(kind, |mut message| {
            message.0.extend_from_slice(value.as_ref());
            message
        })
    }

    /// Adds an attribute with the attributes that `fill` adds inside of it.
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; ATTRIBUTE_HEADER]);
        let Message(mut bytes) = fill(self);
        let len = (bytes.len() - start) as u16;
        bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        pad(&mut bytes);
        Message(bytes)
    }

    /// The bytes to send, with more flags and this sequence number.
    pub(crate) fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let flags = flags | u16::from_ne_bytes([self.0[6], self.0[7]]);
        let len = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&len.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Reply {
    /// The kind's structure, of `N` bytes, and the attributes behind it. Nothing if the
    /// message is shorter.
    pub fn split<const N: usize>(&self) -> Option<(&[u8; N], Attributes<'_>)> {
        let body = self.payload.first_chunk()?;
        Some((body, Attributes(self.payload.get(N.next_multiple_of(4)..).unwrap_or_default())))
    }
}

/// The messages in a packet; a broken one ends them.
pub fn replies(mut packet: &[u8]) -> impl Iterator<Item = Reply> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = packet.first_chunk()?;
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let long = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let len = long(0) as usize;
        let payload = packet.get(HEADER..len)?.to_vec();
        let reply = Reply { kind: word(4), flags: word(6), sequence: long(8), payload };
        packet = packet.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(reply)
    })
}

/// Attributes, by kind and value; a broken one ends them.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this kind.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// A number of the machine's byte order.
    pub fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.get(kind)?.first_chunk()?))
    }

    /// A text, which ends with a zero byte.
    pub fn text(&self, kind: u16) -> Option<String> {
        let value = self.get(kind)?;
        let text = value.strip_suffix(&[0]).unwrap_or(value);
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// The attributes inside one; none if it is not there.
    pub fn inside(&self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header: &[u8; ATTRIBUTE_HEADER] = self.0.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !KIND_FLAGS;
        let value = self.0.get(ATTRIBUTE_HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let message = Message::new(20, 0, &[1, 2, 3, 4, 5])
            .attribute(1, 77u32.to_ne_bytes())
            .attribute(2, b"eth0\0")
            .nest(0x8003, |inner| inner.attribute(1, [9]).attribute(2, []));
        let packet = [message.clone().finish(4, 6), message.finish(0, 7)].concat();
        let read: Vec<Reply> = replies(&packet).collect();
        assert_eq!(read.iter().map(|reply| reply.sequence).collect::<Vec<_>>(), [6, 7]);
        assert_eq!((read[0].kind, read[0].flags), (20, 5));
        let (body, attributes) = read[1].split::<5>().expect("a body");
        assert_eq!(body, &[1, 2, 3, 4, 5]);
        assert_eq!(attributes.number(1), Some(77));
        assert_eq!(attributes.text(2).as_deref(), Some("eth0"));
        let inner: Vec<_> = attributes.inside(3).collect();
        assert_eq!(inner, [(1, &[9][..]), (2, &[][..])]);
        assert_eq!(attributes.get(4), None);
    }

    #[test]
    fn broken_messages_end_the_reading() {
        let packet = Message::new(20, 0, &[0; 4]).attribute(1, [1; 4]).finish(0, 1);
        for cut in 0..packet.len() {
            assert_eq!(replies(&packet[..cut]).count(), 0, "cut at {cut}");
        }
        for len in [0u16, 3, 9, u16::MAX] {
            let bytes = [len.to_ne_bytes(), [1, 0], [0, 0], [0, 0]].concat();
            assert_eq!(Attributes(&bytes).count(), 0, "an attribute of {len} bytes");
        }
        let short = Reply { kind: 0, flags: 0, sequence: 0, payload: vec![0; 3] };
        assert!(short.split::<4>().is_none());
    }
}
