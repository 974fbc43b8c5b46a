// SPDX-License-Identifier: Apache-2.0

//! How fast a pod's interfaces may be. A token bucket (tc-tbf(8)) is the queueing discipline
//! of the tap for what goes to the pod, and of the interface for what comes from it: what is
//! too fast waits, and is dropped when too much does.

use husk_netlink::{Message, Socket};
use nix::errno::Errno;

use super::redirect::{NEW, message};
use crate::error::{Error, IoContext};

/// By which ours is told from one of somebody else.
const HANDLE: u32 = 0x6875 << 16;
const TC_H_ROOT: u32 = 0xffff_ffff;

/// linux/pkt_sched.h.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// Least and most of a rate in bits/s, as Kubernetes has them: below, no pod is of use.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// What passes at once, in bytes: at least the largest packet, and what comes at the rate in
/// the time that a busy host may take to look again.
const MIN_BURST: u64 = 65 << 10;
const BURSTS_PER_SECOND: u64 = 100;

/// What waits at most, beside the burst: a tenth of a second's.
const QUEUES_PER_SECOND: u64 = 10;

/// Limits of each interface of a pod, in bytes/s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// Reads a rate: bits/s, as a whole number that may have one of Kubernetes' suffixes.
    pub fn rate(text: &str) -> Result<u64, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let factor: Option<u64> = match &text[digits..] {
            "" => Some(1),
            "k" => Some(1_000),
            "M" => Some(1_000_000),
            "G" => Some(1_000_000_000),
            "T" => Some(1_000_000_000_000),
            "Ki" => Some(1 << 10),
            "Mi" => Some(1 << 20),
            "Gi" => Some(1 << 30),
            "Ti" => Some(1 << 40),
            _ => None,
        };
        let bits = text[..digits].parse().ok().zip(factor);
        let bits = bits.and_then(|(number, factor): (u64, u64)| number.checked_mul(factor));
        match bits.filter(|bits| RATES.contains(bits)) {
            Some(bits) => Ok(bits / 8),
            None => Err("is no number of bits/s from 1k to 1000T, such as 500k or 10M".to_owned()),
        }
    }
}

/// Holds what leaves by an interface to a rate. It must have no discipline of its own.
pub fn limit(socket: &Socket, index: u32, rate: u64) -> Result<(), Error> {
    let bucket = message(libc::RTM_NEWQDISC, NEW, index, [HANDLE, TC_H_ROOT, 0])
        .attribute(libc::TCA_KIND, "tbf\0")
        .nest(libc::TCA_OPTIONS, |options| {
            options
                .attribute(TCA_TBF_PARMS, parameters(rate))
                .attribute(TCA_TBF_RATE64, rate.to_ne_bytes())
                .attribute(TCA_TBF_BURST, to_u32(burst(rate)).to_ne_bytes())
        });
    match socket.request(bucket) {
        Err(error) if error.errno == Errno::EEXIST => Err(Error::precondition(
            "it has a queueing discipline already, so husk cannot limit its bandwidth; remove \
             that, or the pod's annotations",
        )),
        done => done.context(|| {
            "cannot limit its bandwidth (does the host's kernel have sch_tbf?)".to_owned()
        }),
    }
}

/// What takes the limit of an interface away. It fails if there is none.
pub fn unlimit(index: u32) -> Message {
    message(libc::RTM_DELQDISC, 0, index, [HANDLE, TC_H_ROOT, 0])
}

fn burst(rate: u64) -> u64 {
    (rate / BURSTS_PER_SECOND).max(MIN_BURST)
}

/// struct tc_tbf_qopt: two of struct tc_ratespec, limit, and the burst in other words. With a
/// link layer, the kernel wants no table of times.
fn parameters(rate: u64) -> [u8; 36] {
    let mut parameters = [0; 36];
    parameters[1] = TC_LINKLAYER_ETHERNET;
    parameters[8..12].copy_from_slice(&to_u32(rate).to_ne_bytes());
    let limit = burst(rate).saturating_add(rate / QUEUES_PER_SECOND);
    parameters[24..28].copy_from_slice(&to_u32(limit).to_ne_bytes());
    parameters
}

fn to_u32(number: u64) -> u32 {
    number.min(u32::MAX.into()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_kubernetes_writes_them() {
        for (text, bits) in [("1000", 1_000), ("8k", 8_000), ("10M", 10_000_000), ("1Gi", 1 << 30)]
        {
            assert_eq!(Bandwidth::rate(text), Ok(bits / 8), "{text}");
        }
        for text in ["", "M", "999", "1m", "1.5M", "-1k", "+1k", "1001T", "99999999999T", "1MB"] {
            assert!(Bandwidth::rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_largest_packet_always_passes() {
        for rate in [125, 1 << 20, 125_000_000_000_000] {
            // What an IP packet has at most, and its Ethernet header.
            assert!(burst(rate) >= 65_535 + 14, "{rate}");
            let parameters = parameters(rate);
            let limit = u32::from_ne_bytes(*parameters[24..28].first_chunk().expect("four"));
            assert!(u64::from(limit) >= burst(rate).min(u32::MAX.into()));
        }
    }
}
