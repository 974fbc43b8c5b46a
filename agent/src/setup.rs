// SPDX-License-Identifier: Apache-2.0

//! Makes the VM this pod's: clock, randomness, name, shared directories. What Setup says
//! is done in this order, and the first failure is the answer.

use std::os::fd::AsRawFd;
use std::path::Path;

use husk_protocol::PROTOCOL_VERSION;
use husk_protocol::agent::{Setup, Share};
use nix::mount::{MsFlags, mount};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::error::{Doing, Error, Result};

nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 0x03, 8), RandPoolInfo);
nix::ioctl_none!(reseed, b'R', 0x07);

/// More than the kernel's pool holds.
const MAX_ENTROPY: usize = 512;

/// linux/random.h: struct rand_pool_info, with room for the bytes.
#[repr(C)]
pub struct RandPoolInfo {
    entropy_count: i32,
    buf_size: i32,
    buf: [u8; MAX_ENTROPY],
}

pub fn apply(setup: &Setup) -> Result<()> {
    if setup.version != PROTOCOL_VERSION {
        return Err(Error::precondition(format!(
            "the host speaks version {} of the protocol and the guest image version \
             {PROTOCOL_VERSION}; install both from one release",
            setup.version
        )));
    }
    set_clock(setup.realtime_ns)?;
    seed(&setup.entropy)?;
    if !setup.hostname.is_empty() {
        nix::unistd::sethostname(&setup.hostname)
            .doing(format!("set the hostname {:?}", setup.hostname))?;
    }
    setup.shares.iter().try_for_each(mount_share)
}

/// Sets CLOCK_REALTIME, in ns; 0 leaves it.
pub fn set_clock(realtime_ns: i64) -> Result<()> {
    if realtime_ns <= 0 {
        return Ok(());
    }
    let time = TimeSpec::new(realtime_ns / 1_000_000_000, realtime_ns % 1_000_000_000);
    clock_settime(ClockId::CLOCK_REALTIME, time).doing("set the clock")
}

/// Credits the host's random bytes and makes the kernel use them now and not in a minute.
fn seed(entropy: &[u8]) -> Result<()> {
    if entropy.is_empty() {
        return Ok(());
    }
    let entropy = &entropy[..entropy.len().min(MAX_ENTROPY)];
    let mut info = RandPoolInfo {
        entropy_count: entropy.len() as i32 * 8,
        buf_size: entropy.len() as i32,
        buf: [0; MAX_ENTROPY],
    };
    info.buf[..entropy.len()].copy_from_slice(entropy);
    let random = std::fs::OpenOptions::new().write(true).open("/dev/random");
    let random = random.doing("open /dev/random")?;
    // SAFETY: RNDADDENTROPY reads a rand_pool_info of buf_size bytes, which are there;
    // RNDRESEEDCRNG takes no argument.
    unsafe {
        add_entropy(random.as_raw_fd(), &info).doing("add the host's entropy")?;
        reseed(random.as_raw_fd()).doing("reseed the random number generator")?;
    }
    Ok(())
}

fn mount_share(share: &Share) -> Result<()> {
    let Share { tag, path, .. } = share;
    if !Path::new(path).is_absolute() || tag.is_empty() {
        return Err(Error::invalid(format!("cannot mount share {tag:?} on {path:?}")));
    }
    std::fs::create_dir_all(path).doing(format!("create {path}"))?;
    let (flags, none) = (MsFlags::empty(), None::<&str>);
    mount(Some(tag.as_str()), path.as_str(), Some("virtiofs"), flags, none)
        .doing(format!("mount the share {tag:?} on {path}"))?;
    // And so are the volumes in it, which are mounts of their own: what one container mounts
    // in one reaches others, if both ask for that (mount propagation).
    mount(none, path.as_str(), none, MsFlags::MS_SHARED, none)
        .doing(format!("share what is mounted in {path}"))
}
