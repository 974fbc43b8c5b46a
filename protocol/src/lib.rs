// SPDX-License-Identifier: Apache-2.0

//! What the host and the guest agree on: the messages of `proto/agent.proto`, how they are
//! framed on a stream, the vsock ports, and what of OCI the two can do together. The sandbox
//! library is one end, husk-agent the other; neither knows more of the other than this crate.

pub mod features;
mod frame;

include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));

pub use frame::{FrameError, MAX_FRAME, read_frame, write_frame};

/// Version of the messages. Host and guest image are installed together, so there is no
/// negotiation: another version is refused.
pub const PROTOCOL_VERSION: u32 = 1;

/// Host port of the control connection.
pub const CONTROL_PORT: u32 = 1;

/// First host port that the host gives out for stdio streams.
pub const FIRST_STREAM_PORT: u32 = 0x1_0000;

/// Tag of the virtio-fs device that holds the pod's root file systems and bind sources.
pub const SHARE_TAG: &str = "husk";

/// Where the agent mounts it.
pub const SHARE_PATH: &str = "/run/husk/share";

/// Below it are the pod's volumes of huge pages, named by numbers.
pub const HUGE_PAGES_PATH: &str = "/run/husk/huge-pages";

/// What the guest does in the share to wake those who watch a file there, and the server of
/// the share takes for no change: renaming this name, which leads to an empty file in every
/// directory, to that of a file; and setting a time of change in this second.
pub const WAKE_NAME: &str = ".husk-wake";
pub const WAKE_SECOND: i64 = -0x6875_736b_6875_736b;
