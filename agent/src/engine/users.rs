// SPDX-License-Identifier: Apache-2.0

//! What the container's user file and user mappings say about a process's user.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use oci_spec::runtime::{Process, Spec};

/// No user file is that long; what lies behind is not looked at.
const MAX_PASSWD: u64 = 1 << 20;

/// In the container: adds HOME to a process's environment if it is missing, from the user
/// file. A loop over lines and not getpwuid(3), which would load libraries of the
/// container's into this process.
pub fn set_home(process: &mut Process) {
    set_home_from(process, || {
        let mut options = OpenOptions::new();
        passwd(options.read(true).custom_flags(libc::O_NONBLOCK).open("/etc/passwd").ok()?)
    });
}

fn set_home_from(process: &mut Process, passwd: impl FnOnce() -> Option<String>) {
    let mut env = process.env().clone().unwrap_or_default();
    if env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        return;
    }
    env.retain(|entry| entry != "HOME=");
    let home = passwd().and_then(|text| home(&text, process.user().uid()));
    env.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
    process.set_env(Some(env));
}

/// Reads a user file, whatever it is that stands in its place.
fn passwd(file: File) -> Option<String> {
    let mut text = Vec::new();
    file.metadata().ok().filter(|metadata| metadata.is_file())?;
    file.take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn home(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse::<u32>().ok()? == uid;
        fields.nth(2).filter(|home| found && !home.is_empty()).map(str::to_owned)
    })
}

/// The user of the container's first process, as a user of the runtime's namespace.
pub fn host_uid(spec: &Spec) -> u32 {
    spec.process().as_ref().map_or(0, |process| mapped_uid(spec, process.user().uid()))
}

/// A user of the container as a user of the runtime's namespace.
pub fn mapped_uid(spec: &Spec, uid: u32) -> u32 {
    let mappings = spec.linux().as_ref().and_then(|linux| linux.uid_mappings().as_ref());
    mappings
        .into_iter()
        .flatten()
        .find_map(|map| {
            let offset = uid.checked_sub(map.container_id())?;
            (offset < map.size()).then(|| map.host_id().checked_add(offset))?
        })
        .unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_the_users_or_the_root() {
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:7:7::/var/empty:/bin/false\n";
        for (uid, env, want) in [
            (7, "[]", "HOME=/var/empty"),
            (0, r#"["HOME="]"#, "HOME=/root"),
            (8, "[]", "HOME=/"),
            (7, r#"["HOME=/here"]"#, "HOME=/here"),
        ] {
            let json = format!(r#"{{"user":{{"uid":{uid},"gid":0}},"cwd":"/","env":{env}}}"#);
            let mut process: Process = serde_json::from_str(&json).expect("json");
            set_home_from(&mut process, || Some(users.to_owned()));
            assert_eq!(process.env().as_deref(), Some(&[want.to_owned()][..]), "{uid} {env}");
        }
    }

    #[test]
    fn users_are_mapped() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.1.0","linux":{
                "uidMappings":[{"containerID":0,"hostID":1000,"size":10}]}}"#,
        )
        .expect("json");
        assert_eq!(host_uid(&Spec::default()), 0);
        assert_eq!(mapped_uid(&spec, 9), 1009);
        assert_eq!(mapped_uid(&spec, 10), 10);
    }
}
