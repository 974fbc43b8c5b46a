// SPDX-License-Identifier: Apache-2.0

//! A pod, from RunPodSandbox to RemovePodSandbox, configured as the kubelet does.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use protobuf::MessageField;
use tempfile::TempDir;

use super::api::{self, NamespaceMode};
use super::container::Container;
use super::grpc::Refusal;
use super::{Cri, handler};
use crate::temporary;

/// A running pod.
pub struct Pod<'a> {
    pub cri: &'a Cri<'a>,
    pub id: String,
    pub config: api::PodSandboxConfig,
    /// Logs and volumes of its containers.
    directory: TempDir,
}

impl<'a> Pod<'a> {
    pub fn run(
        cri: &'a Cri<'a>,
        name: &str,
        change: impl FnOnce(&mut api::PodSandboxConfig),
    ) -> Result<Pod<'a>, Refusal> {
        static UIDS: AtomicU32 = AtomicU32::new(1);
        let directory = temporary("husk-pod");
        let mut config = api::PodSandboxConfig::new();
        let metadata = config.metadata.mut_or_insert_default();
        metadata.name = name.to_owned();
        metadata.namespace = "tests".to_owned();
        metadata.uid = format!("uid-{}", UIDS.fetch_add(1, Ordering::Relaxed));
        config.log_directory = directory.path().display().to_string();
        let security =
            config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        let namespaces = security.namespace_options.mut_or_insert_default();
        namespaces.network = NamespaceMode::NODE.into();
        namespaces.pid = NamespaceMode::CONTAINER.into();
        change(&mut config);
        let request = api::RunPodSandboxRequest {
            config: MessageField::some(config.clone()),
            runtime_handler: handler(),
            ..Default::default()
        };
        let answer: api::RunPodSandboxResponse = cri.ask("RunPodSandbox", &request)?;
        Ok(Pod { cri, id: answer.pod_sandbox_id, config, directory })
    }

    /// A container of the sample image as `change` leaves its configuration, created.
    #[track_caller]
    pub fn create(
        &self,
        name: &str,
        command: &[&str],
        change: impl FnOnce(&mut api::ContainerConfig),
    ) -> Container<'_> {
        Container::create(self, name, command, change).expect("CreateContainer")
    }

    /// The same, and started.
    #[track_caller]
    pub fn start(
        &self,
        name: &str,
        command: &[&str],
        change: impl FnOnce(&mut api::ContainerConfig),
    ) -> Container<'_> {
        let container = self.create(name, command, change);
        container.start();
        container
    }

    /// A container that runs a line of shell, started.
    #[track_caller]
    pub fn sh(&self, name: &str, line: &str) -> Container<'_> {
        self.start(name, &["sh", "-c", line], |_| {})
    }

    /// A container that does nothing: a place for execs.
    #[track_caller]
    pub fn idle(&self, name: &str) -> Container<'_> {
        self.start(name, &["sleep", "100000"], |_| {})
    }

    #[track_caller]
    pub fn status(&self) -> api::PodSandboxStatus {
        let request =
            api::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), ..Default::default() };
        let answer: api::PodSandboxStatusResponse =
            self.cri.ask("PodSandboxStatus", &request).expect("PodSandboxStatus");
        answer.status.unwrap_or_default()
    }

    /// The process that containerd is told of, which is in its namespaces.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let list = self.cri.lab.ctr(&["tasks", "ls"]).ended(0).text();
        let line = list.lines().find(|line| line.starts_with(&self.id)).expect("its task");
        line.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).expect("a pid")
    }

    #[track_caller]
    pub fn is_ready(&self) -> bool {
        self.status().state == api::PodSandboxState::SANDBOX_READY.into()
    }

    /// Stops it; this may be asked for again.
    #[track_caller]
    pub fn stop(&self) {
        let request =
            api::StopPodSandboxRequest { pod_sandbox_id: self.id.clone(), ..Default::default() };
        self.cri
            .ask::<api::StopPodSandboxResponse>("StopPodSandbox", &request)
            .expect("StopPodSandbox");
    }

    /// Stops and removes it with its containers.
    #[track_caller]
    pub fn remove(&self) {
        self.stop();
        self.remove_only();
    }

    /// Removes what is left of it; this may be asked for again.
    #[track_caller]
    pub fn remove_only(&self) {
        let request =
            api::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone(), ..Default::default() };
        self.cri
            .ask::<api::RemovePodSandboxResponse>("RemovePodSandbox", &request)
            .expect("RemovePodSandbox");
    }

    /// A new directory of the host, as the kubelet makes an emptyDir.
    pub fn volume(&self, name: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.directory.path().join("volumes/kubernetes.io~empty-dir").join(name);
        fs::create_dir_all(&path).expect("make a volume");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("chmod");
        path
    }

    /// Where a container's log is.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The namespaces of a pod, to be changed.
pub fn namespaces(config: &mut api::PodSandboxConfig) -> &mut api::NamespaceOption {
    let linux = config.linux.mut_or_insert_default();
    linux.security_context.mut_or_insert_default().namespace_options.mut_or_insert_default()
}
