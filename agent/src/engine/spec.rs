// SPDX-License-Identifier: Apache-2.0

//! The one place where a container's configuration is made to fit this guest and this
//! engine. `fit` decides from the configuration alone and runs in the agent; `complete`
//! looks at files, which may be slow, and runs in the helper.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Hooks, LinuxCapabilities, LinuxNamespaceType, LinuxResources, PosixRlimitBuilder,
    PosixRlimitType, Process, Spec,
};
use pathrs::Root;
use pathrs::flags::OpenFlags;

use crate::error::{Doing, Error, Result};

/// No user file is that long; what lies behind is not looked at.
const MAX_PASSWD: u64 = 1 << 20;

/// Makes a configuration fit, or says what cannot be. Returns the resource limits, which
/// the agent applies itself, so that Create and Update do the same; libcontainer keeps the
/// device rules only.
pub fn fit(spec: &mut Spec, id: &str, terminal: bool) -> Result<Option<LinuxResources>> {
    if !spec.version().starts_with("1.") {
        let version = spec.version();
        return Err(Error::invalid(format!("ociVersion {version:?} is not 1.x")));
    }
    match spec.root() {
        Some(root) if root.path().is_absolute() => {}
        _ => return Err(Error::invalid("root.path is missing or not absolute")),
    }
    let mut process =
        spec.process().clone().ok_or_else(|| Error::invalid("the spec has no process"))?;
    fit_process(&mut process, terminal)?;
    keep_memlock(&mut process)?;
    spec.set_process(Some(process));

    // Without a UTS namespace of its own the container has the guest's name, and
    // libcontainer would refuse to be told another.
    if !has(spec, LinuxNamespaceType::Uts) {
        spec.set_hostname(None).set_domainname(None);
    }
    // The others belong on the host, which runs them.
    if let Some(hooks) = spec.hooks() {
        let mut ours = Hooks::default();
        ours.set_create_container(hooks.create_container().clone());
        ours.set_start_container(hooks.start_container().clone());
        let any = ours.create_container().is_some() || ours.start_container().is_some();
        spec.set_hooks(any.then_some(ours));
    }
    let linux = spec.linux_mut().as_mut();
    let linux = linux.ok_or_else(|| Error::invalid("the spec has no linux section"))?;
    // Absolute, or libcontainer wants systemd as soon as there is a user namespace.
    linux.set_cgroups_path(Some(PathBuf::from("/husk").join(id)));
    // The guest kernel has no SELinux.
    linux.set_mount_label(None);
    let limits = linux.resources().clone();
    let mut devices = LinuxResources::default();
    devices.set_devices(limits.as_ref().and_then(|limits| limits.devices().clone()));
    linux.set_resources(Some(devices));
    Ok(limits)
}

/// Makes a process fit; that of a container, or of an exec.
pub fn fit_process(process: &mut Process, terminal: bool) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::invalid("process.args is empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::invalid(format!("process.cwd {:?} is not absolute", process.cwd())));
    }
    process.set_terminal(Some(terminal));
    process.set_console_size(None);
    // A set that is not given is empty. libcontainer would leave the agent's, which is full.
    let mut capabilities = process.capabilities().clone().unwrap_or_default();
    if process.capabilities().is_none() {
        capabilities = none();
    }
    let empty = |set: &Option<_>| Some(set.clone().unwrap_or_else(HashSet::new));
    let effective = empty(capabilities.effective());
    let permitted = empty(capabilities.permitted());
    let inheritable = empty(capabilities.inheritable());
    let bounding = empty(capabilities.bounding());
    let ambient = empty(capabilities.ambient());
    capabilities
        .set_effective(effective)
        .set_permitted(permitted)
        .set_inheritable(inheritable)
        .set_bounding(bounding)
        .set_ambient(ambient);
    process.set_capabilities(Some(capabilities));
    // libcontainer takes "no" for "yes" where it decides when to load the seccomp filter.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    // The guest kernel has neither; the VM is what isolates.
    process.set_apparmor_profile(None).set_selinux_label(None);
    Ok(())
}

/// libcontainer lifts the limit of locked memory to load the device rules, and the process
/// would inherit that. A limit of its own puts it back.
fn keep_memlock(process: &mut Process) -> Result<()> {
    let mut limits = process.rlimits().clone().unwrap_or_default();
    if limits.iter().any(|limit| limit.typ() == PosixRlimitType::RlimitMemlock) {
        return Ok(());
    }
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit() writes an rlimit, which is alive during the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut now) } < 0 {
        return Err(std::io::Error::last_os_error()).doing("ask for the limit of locked memory");
    }
    let limit = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitMemlock)
        .soft(now.rlim_cur)
        .hard(now.rlim_max);
    limits.push(limit.build().doing("limit locked memory")?);
    process.set_rlimits(Some(limits));
    Ok(())
}

fn none() -> LinuxCapabilities {
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_effective(None)
        .set_permitted(None)
        .set_inheritable(None)
        .set_bounding(None)
        .set_ambient(None);
    capabilities
}

/// The CLONE_NEW flags of the namespaces that the container does not share with the agent.
pub fn namespaces(spec: &Spec) -> i32 {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().fold(0, |flags, namespace| {
        flags
            | match namespace.typ() {
                LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
                LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
                LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
                LinuxNamespaceType::Network => libc::CLONE_NEWNET,
                LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
                LinuxNamespaceType::Time => libc::CLONE_NEWTIME,
                LinuxNamespaceType::User => libc::CLONE_NEWUSER,
                LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
            }
    })
}

/// The user of the container's first process, as a user of the guest.
pub fn host_uid(spec: &Spec) -> u32 {
    spec.process().as_ref().map_or(0, |process| mapped_uid(spec, process.user().uid()))
}

/// A user of the container as a user of the guest.
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

/// In the helper: what depends on the guest's files.
pub fn complete(spec: &mut Spec) -> std::result::Result<(), String> {
    let root = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    if let Some(mut process) = spec.process().clone() {
        // Otherwise libcontainer asks the C library for it, which, being static, would load
        // libraries of the container's into this process.
        set_home(&mut process, || {
            let file = Root::open(&root).ok()?.resolve("/etc/passwd").ok()?;
            let file = file.reopen(OpenFlags::O_RDONLY | OpenFlags::O_NONBLOCK).ok()?;
            passwd(file)
        });
        make_cwd(spec, &root, process.cwd());
        spec.set_process(Some(process));
    }
    guest_sysctls(spec)
}

/// Adds HOME to a process's environment if it is missing, from the user file that `passwd`
/// reads.
pub fn set_home(process: &mut Process, passwd: impl FnOnce() -> Option<String>) {
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
pub fn passwd(file: std::fs::File) -> Option<String> {
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

/// Makes the working directory if it is missing, as runc does. What cannot be made is
/// missed, and named, when the process goes there.
fn make_cwd(spec: &Spec, root: &Path, cwd: &Path) {
    let mounts = spec.mounts().iter().flatten();
    let covering = mounts
        .filter(|mount| {
            mount.destination() != Path::new("/") && cwd.starts_with(mount.destination())
        })
        .max_by_key(|mount| mount.destination().components().count());
    let (root, path) = match covering {
        None => (root, cwd),
        Some(mount) if is_bind(mount) => match mount.source() {
            Some(source) => {
                (source.as_path(), cwd.strip_prefix(mount.destination()).unwrap_or(cwd))
            }
            None => return,
        },
        Some(_) => return,
    };
    if path.as_os_str().is_empty() {
        return;
    }
    if let Ok(root) = Root::open(root) {
        let _ = root.mkdir_all(path, &std::fs::Permissions::from_mode(0o755));
    }
}

fn is_bind(mount: &oci_spec::runtime::Mount) -> bool {
    let options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.into_iter().any(|o| o == "bind" || o == "rbind")
}

/// Sets kernel parameters of namespaces that the container shares with the guest: the guest
/// is the pod's, so they are the pod's to set. libcontainer sets those of its own namespaces
/// and refuses the rest.
fn guest_sysctls(spec: &mut Spec) -> std::result::Result<(), String> {
    let shared = |kind| !has(spec, kind);
    let (net, ipc) = (shared(LinuxNamespaceType::Network), shared(LinuxNamespaceType::Ipc));
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let Some(all) = linux.sysctl().clone() else { return Ok(()) };
    let (ours, theirs): (HashMap<_, _>, HashMap<_, _>) =
        all.into_iter().partition(|(key, _)| match family(key) {
            Some(LinuxNamespaceType::Network) => net,
            Some(_) => ipc,
            None => false,
        });
    linux.set_sysctl(Some(theirs));
    for (key, value) in ours {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        std::fs::write(&path, &value).map_err(|e| format!("cannot set {key} to {value:?}: {e}"))?;
    }
    Ok(())
}

/// The namespace that a kernel parameter belongs to, for those that can be shared.
fn family(key: &str) -> Option<LinuxNamespaceType> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    if key.contains('/') || key.split('.').any(str::is_empty) {
        return None;
    }
    if key.starts_with("net.") {
        return Some(LinuxNamespaceType::Network);
    }
    (IPC.contains(&key) || key.starts_with("fs.mqueue.")).then_some(LinuxNamespaceType::Ipc)
}

fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.is_some_and(|all| all.iter().any(|namespace| namespace.typ() == kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(process: &str, linux: &str) -> Spec {
        serde_json::from_str(&format!(
            r#"{{"ociVersion":"1.1.0","root":{{"path":"/r"}},"hostname":"h",
                "process":{{"user":{{"uid":0,"gid":0}},"cwd":"/","args":["sh"]{process}}},
                "linux":{{{linux}}}}}"#
        ))
        .expect("json")
    }

    #[test]
    fn missing_capabilities_are_none_and_not_all() {
        let mut spec = spec("", "");
        fit(&mut spec, "c", false).expect("fit");
        let process = spec.process().as_ref().expect("process");
        let capabilities = process.capabilities().as_ref().expect("capabilities");
        for set in [
            capabilities.bounding(),
            capabilities.effective(),
            capabilities.permitted(),
            capabilities.inheritable(),
            capabilities.ambient(),
        ] {
            assert_eq!(set.as_ref().map(HashSet::len), Some(0));
        }
    }

    #[test]
    fn given_capabilities_stay() {
        let mut spec = spec(r#","capabilities":{"bounding":["CAP_KILL"]}"#, "");
        fit(&mut spec, "c", false).expect("fit");
        let process = spec.process().as_ref().expect("process");
        let capabilities = process.capabilities().as_ref().expect("capabilities");
        assert_eq!(capabilities.bounding().as_ref().map(HashSet::len), Some(1));
        assert_eq!(capabilities.effective().as_ref().map(HashSet::len), Some(0));
    }

    #[test]
    fn limits_come_back_and_device_rules_stay() {
        let mut spec = spec(
            r#","noNewPrivileges":false,"apparmorProfile":"docker-default""#,
            r#""cgroupsPath":"system.slice:x:y","resources":{"pids":{"limit":3},
               "devices":[{"allow":false,"access":"rwm"}]}"#,
        );
        let limits = fit(&mut spec, "c", true).expect("fit").expect("limits");
        assert_eq!(limits.pids().map(|pids| pids.limit()), Some(3));
        let linux = spec.linux().as_ref().expect("linux");
        assert_eq!(linux.cgroups_path(), &Some(PathBuf::from("/husk/c")));
        let kept = linux.resources().as_ref().expect("resources");
        assert!(kept.pids().is_none());
        assert_eq!(kept.devices().as_ref().map(Vec::len), Some(1));
        let process = spec.process().as_ref().expect("process");
        assert_eq!(process.no_new_privileges(), None);
        assert_eq!(process.apparmor_profile(), &None);
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(spec.hostname(), &None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            r#"{"ociVersion":"2.0.0"}"#,
            r#"{"ociVersion":"1.0.2"}"#,
            r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#,
        ] {
            let mut spec: Spec = serde_json::from_str(text).expect("json");
            assert!(fit(&mut spec, "c", false).is_err(), "{text}");
        }
        let mut idle = spec("", "");
        idle.set_process(idle.process().clone().map(|mut process| {
            process.set_args(None);
            process
        }));
        assert!(fit(&mut idle, "c", false).is_err());
    }

    #[test]
    fn home_comes_from_the_user_file() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbad\nu:x:7:7::/home/u:/bin/sh\n";
        assert_eq!(home(users, 7).as_deref(), Some("/home/u"));
        assert_eq!(home(users, 8), None);
        let mut process = spec("", "").process().clone().expect("process");
        set_home(&mut process, || Some(users.to_owned()));
        assert!(process.env().iter().flatten().any(|entry| entry == "HOME=/root"));
        set_home(&mut process, || panic!("HOME is there"));
    }

    #[test]
    fn users_are_mapped() {
        let linux = r#""uidMappings":[{"containerID":0,"hostID":1000,"size":10}]"#;
        let spec = spec("", linux);
        assert_eq!(host_uid(&spec), 1000);
        assert_eq!(mapped_uid(&spec, 9), 1009);
        assert_eq!(mapped_uid(&spec, 10), 10);
    }

    #[test]
    fn parameters_belong_to_namespaces() {
        assert_eq!(family("net.ipv4.ip_forward"), Some(LinuxNamespaceType::Network));
        assert_eq!(family("kernel.shmmax"), Some(LinuxNamespaceType::Ipc));
        assert_eq!(family("kernel.panic"), None);
        assert_eq!(family("net.../../kernel.panic"), None);
    }

    #[test]
    fn namespaces_become_flags() {
        let spec = spec("", r#""namespaces":[{"type":"pid"},{"type":"mount"}]"#);
        assert_eq!(namespaces(&spec), libc::CLONE_NEWPID | libc::CLONE_NEWNS);
    }
}
