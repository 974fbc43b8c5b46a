// SPDX-License-Identifier: Apache-2.0

//! Route netlink (rtnetlink(7)), as little of it as setting up a pod's network takes:
//! messages with attributes, and a socket that sends one and waits for the kernel's answer.
//! The host reads a namespace and redirects its traffic with it, the guest's agent sets up
//! its own. The kernel answers while it is asked, so nothing here waits for anybody else.

mod message;
mod socket;

pub use message::{Attributes, Message, Reply};
pub use socket::{Error, Socket};
