// SPDX-License-Identifier: Apache-2.0

//! All that an interface receives leaves by the tap, and all that the tap receives leaves by
//! the interface: an ingress qdisc on each, with one filter that takes every packet and the
//! action mirred. The host's own stack, which has the same addresses, sees nothing of it.

use std::path::PathBuf;

use husk_netlink::{Message, Socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::bandwidth::{self, Bandwidth};
use super::namespace::Namespace;
use crate::error::{Error, IoContext};
use crate::run_dir::StateFile;

/// The ingress qdisc's handle, and where it is (linux/pkt_sched.h).
const HANDLE: u32 = 0xffff_0000;
const TC_H_INGRESS: u32 = 0xffff_fff1;

/// linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: i32 = 1;
const TC_ACT_STOLEN: i32 = 4;

/// Flags of what must not be there yet.
pub const NEW: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// The filter's place among others, of which there are none.
const PRIORITY: u32 = 1;

/// An interface whose traffic a tap has. What was done to the interface is undone when this
/// is dropped; the tap goes with its last descriptor.
#[derive(Debug)]
pub struct Redirect {
    namespace: Namespace,
    index: u32,
    tap: u32,
}

/// The same in a pod's state file, for namespaces that outlive the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirected {
    namespace: PathBuf,
    /// Of the namespace's file, which may be another one's by now.
    inode: u64,
    interface: u32,
}

impl Redirect {
    /// Joins an interface that is free to a tap. `socket` is in the namespace.
    pub fn new(
        socket: &Socket,
        namespace: &Namespace,
        index: u32,
        tap: u32,
        notes: &StateFile,
    ) -> Result<Redirect, Error> {
        if let Some(path) = &namespace.path {
            notes.record_redirect(Redirected {
                namespace: path.clone(),
                inode: namespace.inode,
                interface: index,
            })?;
        }
        let failed = || "cannot redirect its traffic".to_owned();
        socket.request(ingress(index)).context(failed)?;
        let redirect = Redirect { namespace: namespace.clone(), index, tap };
        socket.request(filter(index, tap)).context(failed)?;
        socket.request(ingress(tap)).context(failed)?;
        socket.request(filter(tap, index)).context(failed)?;
        Ok(redirect)
    }

    /// Limits how fast both ways are.
    pub fn limit(&self, socket: &Socket, bandwidth: Bandwidth) -> Result<(), Error> {
        for (index, rate) in [(self.tap, bandwidth.ingress), (self.index, bandwidth.egress)] {
            if let Some(rate) = rate {
                bandwidth::limit(socket, index, rate)?;
            }
        }
        Ok(())
    }
}

/// Refuses an interface that somebody else redirects. To be asked before anything is made or
/// noted, for what is there is not ours to undo.
pub fn check_free(socket: &Socket, index: u32) -> Result<(), Error> {
    match has_ingress(socket, index).context(|| "cannot read its qdiscs".to_owned())? {
        false => Ok(()),
        true => Err(Error::precondition(
            "it has an ingress qdisc already. If another pod is in the namespace, give this one \
             its own; if not, `tc qdisc del dev NAME ingress` removes the qdisc",
        )),
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        // `delete` repeats this and reports.
        let _ = self.namespace.within(|| remove(self.index));
    }
}

/// Undoes what a crashed pod left. A namespace that is gone has nothing left.
pub fn undo(redirected: &Redirected) -> Result<(), Error> {
    match Namespace::open(&redirected.namespace) {
        Ok(namespace) if namespace.inode == redirected.inode => {
            namespace.within(|| remove(redirected.interface))
        }
        _ => Ok(()),
    }
}

/// Removes the qdiscs of an interface in the thread's namespace that are ours, and with them
/// the filter. None need be there.
fn remove(index: u32) -> Result<(), Error> {
    let failed = || format!("cannot remove the qdiscs of interface {index}");
    let socket = Socket::open().context(failed)?;
    for request in [qdisc(libc::RTM_DELQDISC, 0, index), bandwidth::unlimit(index)] {
        match socket.request(request) {
            Err(error) if ![Errno::ENODEV, Errno::ENOENT, Errno::EINVAL].contains(&error.errno) => {
                return Err(error).context(failed);
            }
            _ => {}
        }
    }
    Ok(())
}

fn has_ingress(socket: &Socket, index: u32) -> Result<bool, husk_netlink::Error> {
    let qdiscs = socket.dump(message(libc::RTM_GETQDISC, 0, index, [0; 3]))?;
    Ok(qdiscs.iter().filter_map(|qdisc| qdisc.split::<20>()).any(|(body, _)| {
        // The kernel lists those of all interfaces.
        body[4..8] == index.to_ne_bytes() && body[12..16] == TC_H_INGRESS.to_ne_bytes()
    }))
}

fn ingress(index: u32) -> Message {
    qdisc(libc::RTM_NEWQDISC, NEW, index)
}

fn qdisc(kind: u16, flags: u16, index: u32) -> Message {
    message(kind, flags, index, [HANDLE, TC_H_INGRESS, 0]).attribute(libc::TCA_KIND, "ingress\0")
}

/// Redirects all that `from` receives to `to`.
fn filter(from: u32, to: u32) -> Message {
    let all = u32::from((libc::ETH_P_ALL as u16).to_be());
    message(libc::RTM_NEWTFILTER, NEW, from, [0, HANDLE, PRIORITY << 16 | all])
        .attribute(libc::TCA_KIND, "u32\0")
        .nest(libc::TCA_OPTIONS, |options| {
            options.attribute(TCA_U32_SEL, every_packet()).nest(TCA_U32_ACT, |actions| {
                actions.nest(1, |action| {
                    action.attribute(TCA_ACT_KIND, "mirred\0").nest(TCA_ACT_OPTIONS, |options| {
                        options.attribute(TCA_MIRRED_PARMS, redirect_to(to))
                    })
                })
            })
        })
}

/// struct tc_u32_sel with one struct tc_u32_key that compares no bit.
fn every_packet() -> [u8; 32] {
    let mut selector = [0; 32];
    selector[0] = TC_U32_TERMINAL;
    selector[2] = 1;
    selector
}

/// struct tc_mirred.
fn redirect_to(index: u32) -> [u8; 28] {
    let mut action = [0; 28];
    action[8..12].copy_from_slice(&TC_ACT_STOLEN.to_ne_bytes());
    action[20..24].copy_from_slice(&TCA_EGRESS_REDIR.to_ne_bytes());
    action[24..28].copy_from_slice(&index.to_ne_bytes());
    action
}

/// A message that begins with struct tcmsg; handle, parent and info.
pub fn message(kind: u16, flags: u16, index: u32, [handle, parent, info]: [u32; 3]) -> Message {
    let mut body = [0; 20];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&handle.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body[16..20].copy_from_slice(&info.to_ne_bytes());
    Message::new(kind, flags, &body)
}
