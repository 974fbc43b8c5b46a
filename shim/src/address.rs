// SPDX-License-Identifier: Apache-2.0

//! Which pod a container belongs to, and where that pod's daemon listens.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use husk_sandbox::Spec;
use sha2::{Digest, Sha256};

/// Where `ctr shim` and containerd's own tools look for sockets.
pub const SOCKET_DIR: &str = "/run/containerd/s";

/// Largest config.json that is read, in bytes; containerd's messages hold no larger one.
pub const MAX_CONFIG: u64 = 16 << 20;

/// The socket of a group: `<dir>/` and the SHA-256 of `<containerd>/<namespace>/<group>`.
pub fn socket_path(directory: &Path, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    let digest = Sha256::digest(format!("{containerd}/{namespace}/{group}"));
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(name)
}

/// The pod of container `id`: the sandbox that its annotations name, else itself. A
/// bundle without config.json is a pod of its own.
pub fn group(id: &str, bundle: &Path) -> Result<String, String> {
    let json = match read_config(bundle) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(id.to_owned()),
        Err(error) => {
            return Err(format!("cannot read {}: {error}", bundle.join("config.json").display()));
        }
    };
    let spec = Spec::parse(&json).map_err(|error| error.message)?;
    Ok(group_of(id, &spec).to_owned())
}

/// The same for a spec that has been read.
pub fn group_of<'a>(id: &'a str, spec: &'a Spec) -> &'a str {
    spec.pod().filter(|pod| !pod.begins).map_or(id, |pod| pod.id)
}

/// config.json of a bundle.
pub fn read_config(bundle: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut json = Vec::new();
    fs::File::open(bundle.join("config.json"))?.take(MAX_CONFIG).read_to_end(&mut json)?;
    Ok(json)
}

/// Replaces a small file of the bundle in one step, so that no reader sees half of it.
pub fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_where_ctr_looks_and_never_too_long() {
        let path = socket_path(
            Path::new(SOCKET_DIR),
            "/run/containerd/containerd.sock",
            &"n".repeat(76),
            &"i".repeat(76),
        );
        assert!(path.as_os_str().len() <= 106);
        let known = socket_path(Path::new("/s"), "a", "b", "c");
        // printf a/b/c | sha256sum
        assert_eq!(
            known,
            Path::new("/s/d76a7b72669c9cec266b566bdec68efbc8d4f22d1f2689bbf0146bf0b88fdbe9")
        );
    }

    #[test]
    fn pod_containers_belong_to_their_sandbox() {
        let dir = tempfile::tempdir().expect("directory");
        let group_for = |annotations: &str| {
            fs::write(dir.path().join("config.json"), format!("{{\"annotations\":{annotations}}}"))
                .expect("config");
            group("own", dir.path()).expect("group")
        };
        assert_eq!(group_for("{}"), "own");
        let sandbox = r#"{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"own"}"#;
        assert_eq!(group_for(sandbox), "own");
        let member = r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s1"}"#;
        assert_eq!(group_for(member), "s1");
        let crio = r#"{"io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.cri-o.SandboxID":"s2"}"#;
        assert_eq!(group_for(crio), "s2");
    }

    #[test]
    fn a_missing_config_is_a_pod_of_its_own_and_a_broken_one_an_error() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(group("own", dir.path()).expect("missing"), "own");
        fs::write(dir.path().join("config.json"), "{").expect("config");
        assert!(group("own", dir.path()).expect_err("broken").contains("config.json"));
    }

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("address");
        write_atomically(&path, "one").expect("first");
        write_atomically(&path, "two").expect("second");
        assert_eq!(fs::read_to_string(&path).expect("read"), "two");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }
}
