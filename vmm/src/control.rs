// SPDX-License-Identifier: Apache-2.0

//! The control socket: what a supervisor says to `husk-vmm --control FD` and hears from it.
//!
//! The socket is SOCK_SEQPACKET; each packet is one JSON message with its descriptors as
//! SCM_RIGHTS. The supervisor sends [`Command::Boot`] first, once, and everything that the VM
//! needs, then or later, comes opened; of the host husk-vmm opens nothing itself but, before
//! the guest runs, its own /proc/self/fd. Commands are followed one at a time, in their order.
//! The last packet is [`Event::Exited`] or [`Event::Failed`], after which husk-vmm exits. When
//! the supervisor closes its end, or dies, the VM is stopped.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::config::{Plug, VmConfig};

/// Longest packet, in bytes; a command line and thirty disks fit many times.
pub const MAX_PACKET: usize = 32 << 10;

/// Most descriptors in one packet: the kernel's SCM_MAX_FD.
pub const MAX_FDS: usize = 253;

/// Index of a descriptor among those of the packet.
pub type FdIndex = usize;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Build the VM and run it. Files are indices into the packet's descriptors.
    Boot(VmConfig<FdIndex>),
    /// Connect the packet's one descriptor, a stream socket, to a port that the guest
    /// listens on. If nothing listens there the socket is closed.
    Dial { port: u32 },
    /// Put a device on the bus while the guest runs; answered by [`Event::Plugged`] or
    /// [`Event::NotPlugged`] with the same id. The guest finds it by a rescan of its bus.
    /// Files are indices into the packet's descriptors.
    Plug { id: u64, device: Plug<FdIndex> },
    /// Take a device that was plugged away again; answered by [`Event::Unplugged`] or
    /// [`Event::NotUnplugged`] with the same id. The guest has removed it before.
    Unplug { id: u64, slot: u8 },
    /// Have this many vCPUs at least, and this much memory in all; answered by
    /// [`Event::Resized`] or [`Event::NotResized`] with the same id. The guest brings vCPUs up
    /// and down itself; when it has taken or given back the memory [`Event::MemoryReached`]
    /// follows, unless another resize comes before.
    Resize { id: u64, vcpus: u8, memory_mib: u64 },
    /// Say what the devices have done; answered by [`Event::Counters`] with the same id.
    Counters { id: u64 },
    /// Stop the VM at once; [`Event::Exited`] follows with [`ExitReason::Stopped`].
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The vCPUs are about to run. Host CLOCK_MONOTONIC in ns: when the process started,
    /// and now.
    Running { started_ns: u64, running_ns: u64 },
    /// The guest connected to this host port; the packet's descriptor is the stream.
    /// Closing it refuses or ends the connection.
    Connect { port: u32 },
    /// The device is on the bus: its address in the guest is 0000:00:SLOT.0.
    Plugged { id: u64, slot: u8 },
    /// It is not; the text says why.
    NotPlugged { id: u64, error: String },
    /// The device is gone, and its files are closed.
    Unplugged { id: u64 },
    /// Nothing was changed; the text says why.
    NotUnplugged { id: u64, error: String },
    /// The vCPUs are there, and the device for memory, if it needs one, in this slot.
    Resized { id: u64, slot: Option<u8> },
    /// Some of it may have been done; the text says why not all.
    NotResized { id: u64, error: String },
    /// The guest's driver has as much memory as the resize of this id asked for; its kernel puts
    /// the last block on line a moment later.
    MemoryReached { id: u64 },
    /// What the devices on the bus have done so far.
    Counters { id: u64, devices: Vec<DeviceCounters> },
    /// Something that has not gone as whoever looks after the host may expect, though the VM goes
    /// on.
    Note(String),
    /// The guest is gone.
    Exited(ExitReason),
    /// The VM could not be built; the text says what failed, why, and what to do.
    Failed(String),
}

/// What a device's virtqueues have done since the device was made. A device that the host's
/// kernel serves (vhost) is left out, for nobody counts there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounters {
    /// Its address in the guest is 0000:00:SLOT.0.
    pub slot: u8,
    /// Its kind, such as `fs`.
    pub device: String,
    /// Chains of descriptors that were returned to the driver, and the bytes written into them.
    pub requests: u64,
    pub written_bytes: u64,
    /// Notifications that came from the driver; those that came together are one.
    pub kicks: u64,
    /// Interrupts that were raised.
    pub interrupts: u64,
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset (ACPI reset register).
    Reset,
    /// The guest kernel reported a panic (pvpanic).
    Panic,
    /// A vCPU shut down: triple fault.
    TripleFault,
    /// The supervisor, a signal or the terminal asked for it.
    Stopped,
    /// KVM could not go on; the text holds the exit and the vCPU's registers.
    Kvm(String),
    /// A device found that it cannot go on.
    Device(String),
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExitReason::PowerOff => write!(f, "the guest powered off"),
            ExitReason::Reset => write!(f, "the guest asked for a reset"),
            ExitReason::Panic => write!(f, "the guest kernel panicked"),
            ExitReason::TripleFault => write!(f, "the guest hit a triple fault"),
            ExitReason::Stopped => write!(f, "the VM was stopped"),
            ExitReason::Kvm(detail) => write!(f, "KVM could not run the guest: {detail}"),
            ExitReason::Device(detail) => write!(f, "a device failed: {detail}"),
        }
    }
}

/// A socket whose packets are messages. Works blocking, and on a nonblocking descriptor
/// returns [`io::ErrorKind::WouldBlock`].
pub struct Packets<F: AsRawFd>(pub F);

struct Raw(RawFd);
impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}
impl ScmSocket for Raw {
    fn socket_fd(&self) -> RawFd {
        self.0
    }
}

impl<F: AsRawFd> Packets<F> {
    pub fn send<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let json = serde_json::to_vec(message)?;
        if json.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "control message too large"));
        }
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        Raw(self.0.as_raw_fd()).send_with_fds(&[json.as_slice()], &raw).map_err(to_io)?;
        Ok(())
    }

    /// The next message and its descriptors; `None` when the peer has closed.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut buffer = vec![0u8; MAX_PACKET];
        let mut raw = [-1; MAX_FDS];
        let mut iov = [libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }];
        // SAFETY: iov points at buffer, which outlives the call.
        let (len, count) =
            unsafe { Raw(self.0.as_raw_fd()).recv_with_fds(&mut iov, &mut raw).map_err(to_io)? };
        // SAFETY: the kernel has just given us these descriptors; nobody else owns them.
        let fds: Vec<OwnedFd> =
            raw[..count].iter().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
        for fd in &fds {
            // SAFETY: F_SETFD on a descriptor that we own touches no memory.
            unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        if len == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&buffer[..len])?, fds)))
    }
}

fn to_io(error: vmm_sys_util::errno::Error) -> io::Error {
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = UnixDatagram::pair().expect("socketpair");
        let (mut near, far) = UnixStream::pair().expect("socketpair");
        Packets(a).send(&Event::Connect { port: 9 }, &[far.as_fd()]).expect("send");
        drop(far);
        let (event, fds): (Event, _) = Packets(b).receive().expect("receive").expect("message");
        assert_eq!(event, Event::Connect { port: 9 });
        let mut stream = UnixStream::from(fds.into_iter().next().expect("descriptor"));
        stream.write_all(b"x").expect("write");
        let mut byte = [0];
        near.read_exact(&mut byte).expect("read");
        assert_eq!(&byte, b"x");
    }
}
