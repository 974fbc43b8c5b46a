// SPDX-License-Identifier: Apache-2.0

//! A container of a pod, from CreateContainer to RemoveContainer.

use std::path::Path;

use protobuf::MessageField;

use super::api::{self, ContainerState};
use super::grpc::Refusal;
use super::log::Entry;
use super::pod::{Pod, namespaces};
use crate::containerd::IMAGE;
use crate::containerd::process::{LIMIT, eventually};

/// A container that was created.
pub struct Container<'a> {
    pub pod: &'a Pod<'a>,
    pub id: String,
    pub config: api::ContainerConfig,
}

impl<'a> Container<'a> {
    pub fn create(
        pod: &'a Pod<'a>,
        name: &str,
        command: &[&str],
        change: impl FnOnce(&mut api::ContainerConfig),
    ) -> Result<Container<'a>, Refusal> {
        let mut config = api::ContainerConfig::new();
        config.metadata.mut_or_insert_default().name = name.to_owned();
        config.image.mut_or_insert_default().image = IMAGE.to_owned();
        config.command = command.iter().map(|&word| word.to_owned()).collect();
        config.log_path = format!("{name}.log");
        // The kubelet repeats the pod's own.
        let mut of_pod = pod.config.clone();
        security(&mut config).namespace_options =
            MessageField::some(namespaces(&mut of_pod).clone());
        change(&mut config);
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: MessageField::some(config.clone()),
            sandbox_config: MessageField::some(pod.config.clone()),
            ..Default::default()
        };
        let answer: api::CreateContainerResponse = pod.cri.ask("CreateContainer", &request)?;
        Ok(Container { pod, id: answer.container_id, config })
    }

    #[track_caller]
    pub fn start(&self) {
        self.try_start().expect("StartContainer");
    }

    pub fn try_start(&self) -> Result<(), Refusal> {
        let request =
            api::StartContainerRequest { container_id: self.id.clone(), ..Default::default() };
        self.pod.cri.ask::<api::StartContainerResponse>("StartContainer", &request).map(drop)
    }

    /// Stops it: the image's signal, and SIGKILL after so many seconds.
    #[track_caller]
    pub fn stop(&self, timeout: i64) {
        let request = api::StopContainerRequest {
            container_id: self.id.clone(),
            timeout,
            ..Default::default()
        };
        self.pod
            .cri
            .ask::<api::StopContainerResponse>("StopContainer", &request)
            .expect("StopContainer");
    }

    #[track_caller]
    pub fn remove(&self) {
        let request =
            api::RemoveContainerRequest { container_id: self.id.clone(), ..Default::default() };
        self.pod
            .cri
            .ask::<api::RemoveContainerResponse>("RemoveContainer", &request)
            .expect("RemoveContainer");
    }

    /// Removes it while it runs.
    #[track_caller]
    pub fn remove_running(&self) {
        self.stop(0);
        self.remove();
    }

    #[track_caller]
    pub fn status(&self) -> api::ContainerStatus {
        let request =
            api::ContainerStatusRequest { container_id: self.id.clone(), ..Default::default() };
        let answer: api::ContainerStatusResponse =
            self.pod.cri.ask("ContainerStatus", &request).expect("ContainerStatus");
        answer.status.unwrap_or_default()
    }

    #[track_caller]
    pub fn is_running(&self) -> bool {
        self.status().state == ContainerState::CONTAINER_RUNNING.into()
    }

    /// Waits for its end; its exit code.
    #[track_caller]
    pub fn exit_code(&self) -> i32 {
        let ended =
            eventually(LIMIT, || self.status().state == ContainerState::CONTAINER_EXITED.into());
        assert!(ended, "the container does not end: {:?}", self.status());
        self.status().exit_code
    }

    /// Runs a command in it to its end, for so many seconds at most if not 0.
    pub fn exec(&self, command: &[&str], timeout: i64) -> Result<api::ExecSyncResponse, Refusal> {
        let request = api::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout,
            ..Default::default()
        };
        self.pod.cri.ask("ExecSync", &request)
    }

    /// The output of a line for its shell, which has to succeed.
    #[track_caller]
    pub fn exec_sh(&self, line: &str) -> String {
        let done = self.exec(&["sh", "-c", line], 0).expect("ExecSync");
        let error = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.exit_code, 0, "exit code of {line:?}; stderr: {error}");
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// The command lines of all processes that it sees.
    #[track_caller]
    pub fn command_lines(&self) -> String {
        self.exec_sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
    }

    /// Waits until a line for its shell succeeds.
    #[track_caller]
    pub fn until_sh(&self, line: &str) {
        let done = eventually(LIMIT, || {
            self.exec(&["sh", "-c", line], 0).is_ok_and(|done| done.exit_code == 0)
        });
        assert!(done, "this does not come true in the container: {line}");
    }

    /// Its log so far.
    #[track_caller]
    pub fn log(&self) -> Vec<Entry> {
        Entry::read(&self.pod.log_path(&self.config.log_path))
    }

    /// What its log has of a stream so far.
    #[track_caller]
    pub fn logged(&self, stream: &str) -> String {
        let of_stream = self.log().into_iter().filter(|entry| entry.stream == stream);
        of_stream.map(|entry| entry.text()).collect()
    }

    /// Waits until these words are in its log.
    #[track_caller]
    pub fn until_logged(&self, words: &str) {
        let said = || self.logged("stdout") + &self.logged("stderr");
        let found = eventually(LIMIT, || said().contains(words));
        assert!(found, "the container does not say {words:?}; it said {:?}", said());
    }

    pub fn stats(&self) -> Result<api::ContainerStats, Refusal> {
        let request =
            api::ContainerStatsRequest { container_id: self.id.clone(), ..Default::default() };
        let answer: api::ContainerStatsResponse = self.pod.cri.ask("ContainerStats", &request)?;
        Ok(answer.stats.unwrap_or_default())
    }
}

/// The security context of a container, to be changed.
pub fn security(config: &mut api::ContainerConfig) -> &mut api::LinuxContainerSecurityContext {
    config.linux.mut_or_insert_default().security_context.mut_or_insert_default()
}

/// The limits of a container, to be changed.
pub fn resources(config: &mut api::ContainerConfig) -> &mut api::LinuxContainerResources {
    config.linux.mut_or_insert_default().resources.mut_or_insert_default()
}

/// Binds a path of the host into a container.
pub fn mount(config: &mut api::ContainerConfig, host: &Path, container: &str, readonly: bool) {
    config.mounts.push(api::Mount {
        container_path: container.to_owned(),
        host_path: host.display().to_string(),
        readonly,
        ..Default::default()
    });
}
