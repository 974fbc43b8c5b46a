// SPDX-License-Identifier: Apache-2.0

//! Whose files are created. The guest's kernel has checked permissions already, with groups
//! and capabilities that the host knows nothing of; so the thread takes the caller's user
//! and group for the owner of the new file, and keeps its own capabilities meanwhile. It
//! takes the caller's umask too, for where it gives way to a default access control list
//! only the file system knows.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{fchdir, geteuid, getgroups, umask};
use rustix::thread::{
    CapabilitiesSecureBits, UnshareFlags, set_capabilities_secure_bits, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};

/// To be called once on the thread that serves. Its working directory becomes
/// `descriptors`, /proc/self/fd. Supplementary groups go, or a file in a set-group-ID
/// directory could get a group that its owner is not in (CVE-2022-0358).
pub fn prepare_thread(descriptors: impl AsFd) -> io::Result<()> {
    // SAFETY: only an unshared table of descriptors could do harm.
    unsafe { unshare_unsafe(UnshareFlags::FS) }
        .map_err(|error| explain("have a umask of its own", error))?;
    umask(Mode::empty());
    fchdir(descriptors).map_err(|error| explain("enter /proc/self/fd", error))?;
    if !geteuid().is_root() {
        return Ok(());
    }
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .map_err(|error| explain("keep capabilities across users (CAP_SETPCAP)", error))?;
    if let Err(error) = set_thread_groups(&[])
        && !getgroups()?.is_empty()
    {
        return Err(explain("leave its supplementary groups (CAP_SETGID)", error));
    }
    Ok(())
}

fn explain(what: &str, error: rustix::io::Errno) -> io::Error {
    io::Error::new(error.kind(), format!("the file server cannot {what}: {error}"))
}

/// While this lives, new files belong to the caller.
pub struct Caller {
    changed: bool,
    masked: bool,
}

impl Caller {
    pub fn become_owner(uid: u32, gid: u32, mask: u32) -> io::Result<Caller> {
        let changed = (uid, gid) != (0, 0) && geteuid().is_root();
        let caller = Caller { changed, masked: mask & 0o777 != 0 };
        if changed {
            if uid == u32::MAX || gid == u32::MAX {
                // Would leave the ID as it is.
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            set_thread_res_gid(None, Gid::from_raw(gid), None)?;
            set_thread_res_uid(None, Uid::from_raw(uid), None)?;
        }
        if caller.masked {
            umask(Mode::from_raw_mode(mask & 0o777));
        }
        Ok(caller)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if self.changed {
            // The real and saved IDs are root's all the while: always allowed.
            let _ = set_thread_res_uid(None, Uid::ROOT, None);
            let _ = set_thread_res_gid(None, Gid::ROOT, None);
        }
        if self.masked {
            umask(Mode::empty());
        }
    }
}
