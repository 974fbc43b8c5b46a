// SPDX-License-Identifier: Apache-2.0

//! A pod's life: launch, containers, verbs for the agent, stop.

mod verbs;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use husk_protocol::agent::{self as guest, Event, Setup};
use husk_protocol::{CONTROL_PORT, SHARE_PATH, SHARE_TAG};
use husk_vmm::config::{self, Console, VmConfig};
use husk_vmm::control::DeviceCounters;
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::cgroup::{Cgroup, Places};
use crate::clock;
use crate::disks::{Disk, Disks};
use crate::error::{Code, Error, IoContext};
use crate::forward::PortForwarding;
use crate::hooks::Poststop;
use crate::mount::{self, Mount, Mounted};
use crate::network::{Namespace, Netns, Network, PodNetwork};
use crate::resize::Machine;
use crate::run_dir::{METRICS_SOCKET, RunDir};
use crate::share::{Share, SharedContainer};
use crate::spec::{BindSource, BlockDevice};
use crate::streams::{Expected, Streams};
use crate::vm::{Ended, HostSide, Vm};
use crate::{Assets, Growth, Limits, PodSettings};

pub use verbs::{Exec, Signal, Terminal};

/// The guest kernel's command line. Nothing of a pod is in it, so that one booted VM can
/// become any pod.
const CMDLINE: &str = "console=hvc0 quiet panic=-1 tsc=reliable no_timer_check swiotlb=noforce \
                       dummy.numdummies=0";

/// The device that VMs are made with.
pub const KVM: &str = "/dev/kvm";

/// How long a VM may go on without a connection to its agent: until it has powered off, or
/// husk-vmm has said what became of it.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// Random bytes given to a new guest.
const ENTROPY_LEN: usize = 64;

/// What a sandbox is made from.
#[derive(Debug, Clone)]
pub struct Launch {
    /// [`crate::run_dir::RUN_ROOT`], except in tests.
    pub run_root: PathBuf,
    /// containerd's namespace.
    pub namespace: String,
    /// The pod.
    pub id: String,
    /// Empty for the guest's default.
    pub hostname: String,
    /// Where husk-vmm runs.
    pub network: Network,
    /// The cgroup for husk-vmm and for this process, as an OCI `cgroupsPath`; empty for none.
    pub cgroups_path: String,
    pub settings: PodSettings,
    /// [`KVM`], except in tests.
    pub kvm: PathBuf,
    /// Takes sentences for the node's log about what has not gone as expected though the pod
    /// goes on.
    pub note: fn(&str),
}

/// Host CLOCK_MONOTONIC, in ns, of what has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Milestones {
    pub vmm_started_ns: Option<u64>,
    pub guest_running_ns: Option<u64>,
    pub kernel_done_ns: Option<u64>,
    pub hello_ns: Option<u64>,
    pub setup_ns: Option<u64>,
}

/// A pod's VM. Dropping it kills the VM and undoes all that was made for it.
#[derive(Debug)]
pub struct Sandbox {
    vm: Vm,
    metrics_socket: PathBuf,
    agent: Agent,
    streams: Streams,
    disks: Arc<Disks>,
    machine: Machine,
    growth: Growth,
    /// None if it has only what the guest makes itself.
    network: Option<Arc<PodNetwork>>,
    /// Fields of it are dropped in order: mounts before the directory below which they are.
    files: Mutex<Option<Files>>,
}

#[derive(Debug)]
struct Files {
    share: Arc<Share>,
    cgroup: Cgroup,
    run: RunDir,
}

impl Sandbox {
    /// Starts the pod's VM and returns while it boots, with the guest's events. The events
    /// end when the guest is gone; [`Sandbox::ended`] then says why.
    ///
    /// Has to be called within a tokio runtime, on a thread that outlives the sandbox.
    pub fn launch(launch: Launch) -> Result<(Sandbox, mpsc::Receiver<Event>), Error> {
        let PodSettings { size, growth, kernel_args, network: settings, assets } = launch.settings;
        let inputs = Inputs::open(&launch.kvm, &assets)?;
        let netns = launch.network.open()?;
        let places = Places::of(&launch.cgroups_path)?;
        places.refuse_others()?;
        let run = RunDir::create(&launch.run_root, &launch.namespace, &launch.id)?;
        run.record_cgroup(&places)?;
        // husk-vmm is born where we are.
        let cgroup = Cgroup::enter(places)?;
        let metrics_socket = run.path().join(METRICS_SOCKET);
        let share = Arc::new(Share::create(run.share())?);
        let console = run.create_console_log()?;
        let directory = share.open()?;
        let files = [
            inputs.kvm.as_fd(),
            inputs.kernel.as_fd(),
            inputs.image.as_fd(),
            console.as_fd(),
            directory.as_fd(),
        ];
        let config = VmConfig {
            vcpus: size.vcpus,
            most_vcpus: growth.most.vcpus,
            memory_mib: size.memory_mib,
            most_memory_mib: growth.most.memory_mib,
            cmdline: format!("{CMDLINE} maxcpus={} {kernel_args}", size.vcpus)
                .trim_end()
                .to_owned(),
            kvm: 0,
            kernel: 1,
            initramfs: Some(2),
            console: Console::Log(3),
            vsock: true,
            share: Some(config::Share { tag: SHARE_TAG.into(), directory: 4 }),
            disks: Vec::new(),
        };
        let streams = Streams::default();
        let control = streams.expect_on(CONTROL_PORT);
        let host = HostSide {
            console: console.try_clone().context(|| "cannot keep the console log".to_owned())?,
            streams: streams.clone(),
            oom_kills: cgroup.oom_kills(),
            note: launch.note,
        };
        let vm = Vm::start(&assets.vmm, netns.clone(), config, &files, host)?;
        if let Err(error) = run.record_vmm(vm.process()) {
            vm.kill("its state could not be written");
            return Err(error);
        }
        let lost_vm = vm.clone();
        let hostname = launch.hostname;
        let (agent, events) = Agent::connect(
            control.connected(),
            move || setup(hostname),
            async move |why: String| {
                // Most often the VM is gone or just going, and tells more than the connection
                // did. A guest without its agent is of no use.
                if tokio::time::timeout(LAST_WORDS_LIMIT, lost_vm.ended()).await.is_err() {
                    lost_vm.kill(&why);
                }
                lost_vm.ended().await.reason.clone()
            },
        );
        tokio::spawn(clock::keep(agent.clone()));
        let (volumes, told) = (share.volumes(), agent.clone());
        tokio::spawn(async move { volumes.follow(&told).await });
        let namespace = match netns {
            Netns::Host => None,
            Netns::Open(namespace) => Some(namespace),
            // One that has ended already has none, and its end is told to whoever asks more.
            Netns::New => Namespace::of(vm.process().pid).ok(),
        };
        let network = namespace.map(|namespace| {
            let (vm, agent, vcpus) = (vm.clone(), agent.clone(), size.vcpus);
            let notes = run.state_file();
            PodNetwork::new(namespace, vcpus, settings, vm, agent, notes, launch.note).map(Arc::new)
        });
        let network = network.transpose().inspect_err(|error| vm.kill(&error.message))?;
        let disks = Arc::new(Disks::new(vm.clone(), agent.clone()));
        let files = Mutex::new(Some(Files { share, cgroup, run }));
        let machine = Machine::new(vm.clone(), agent.clone(), size);
        let sandbox =
            Sandbox { vm, metrics_socket, agent, streams, machine, growth, disks, network, files };
        Ok((sandbox, events))
    }

    /// The VM's process on the host: alive while the pod is, and in its network namespace.
    pub fn pid(&self) -> u32 {
        self.vm.process().pid
    }

    /// Has the host's OOM killer take the VM as readily as one of its containers asks for; of
    /// several the most ready counts, for they share its fate.
    pub fn raise_oom_score_adj(&self, wanted: i64) -> Result<(), Error> {
        self.vm
            .raise_oom_score_adj(wanted)
            .context(|| format!("cannot set process.oomScoreAdj {wanted} for the VM on the host"))
    }

    /// Where the pod's figures can be asked for; it is removed with the pod.
    pub fn metrics_socket(&self) -> PathBuf {
        self.metrics_socket.clone()
    }

    /// Waits for the VM's end.
    pub async fn ended(&self) -> Arc<Ended> {
        self.vm.ended().await
    }

    /// Whether the VM has ended.
    pub fn has_ended(&self) -> bool {
        self.vm.state().ended.is_some()
    }

    pub fn milestones(&self) -> Milestones {
        let running = self.vm.state().running;
        let agent = self.agent.milestones();
        Milestones {
            vmm_started_ns: running.map(|(started, _)| started),
            guest_running_ns: running.map(|(_, running)| running),
            kernel_done_ns: agent.agent_started_ns,
            hello_ns: agent.hello_ns,
            setup_ns: agent.setup_ns,
        }
    }

    /// Kills the VM at once; what waits for it fails with `cause`.
    pub fn kill(&self, cause: &str) {
        self.vm.kill(cause);
    }

    /// Kills the VM, waits for its end and undoes all that was made for it. Goes on past
    /// errors and reports the first. Mounts and shared containers that were given out have
    /// to be dropped before. Safe to repeat.
    pub async fn stop(&self, cause: &str) -> Result<(), Error> {
        self.vm.kill(cause);
        self.vm.ended().await;
        if let Some(network) = &self.network {
            network.leave().await;
        }
        let Some(Files { share, cgroup, run }) = self.files().take() else { return Ok(()) };
        drop(share);
        let left = cgroup.remove().await;
        run.remove().and(left)
    }

    /// What the VM's devices have done so far.
    pub async fn device_counters(&self) -> Result<Vec<DeviceCounters>, Error> {
        self.vm.counters().await
    }

    /// The pod's network; none if the pod is to use the host's, which a guest cannot.
    pub fn network(&self) -> Option<&Arc<PodNetwork>> {
        self.network.as_ref()
    }

    /// Makes the ports of the guest's localhost those of the pod's network namespace, too.
    pub fn port_forwarding(&self, network: &PodNetwork) -> Result<PortForwarding, Error> {
        PortForwarding::open(network.namespace(), self.agent.clone(), self.streams.clone())
    }

    /// Mounts a root file system on the directory `target`, one mount over the other.
    /// Blocks.
    pub fn mount_rootfs(&self, mounts: &[Mount], target: &Path) -> Result<Mounted, Error> {
        {
            let files = self.files();
            let files = files.as_ref().ok_or_else(stopped)?;
            files.run.record_mount(target)?;
        }
        let mounted = Mounted::at(target.to_owned());
        for mount in mounts {
            mount::mount(mount, target)?;
        }
        Ok(mounted)
    }

    /// Notes hooks that have to run when their container is gone, so that they do even if
    /// this process is gone too. Call before any other hook of the container runs.
    pub fn record_poststop(&self, poststop: &Poststop) -> Result<(), Error> {
        self.files().as_ref().ok_or_else(stopped)?.run.record_poststop(poststop)
    }

    /// Notes that they need not run any more. A pod that has been stopped has no notes.
    pub fn record_poststop_ran(&self, container: &str) -> Result<(), Error> {
        let files = self.files();
        files.as_ref().map_or(Ok(()), |files| files.run.record_poststop_ran(container))
    }

    /// Shares a container's root file system and bind sources with the guest, which finds
    /// them below [`guest_share`]. Blocks.
    pub fn share_container(
        &self,
        container: &str,
        rootfs: &Path,
        binds: &[BindSource],
    ) -> Result<SharedContainer, Error> {
        let share = self.files().as_ref().map(|files| files.share.clone()).ok_or_else(stopped)?;
        share.add(container, rootfs, binds)
    }

    /// Why the host's changes of a shared source are not told to the guest: the first of the
    /// pod, once.
    pub fn unwatched(&self) -> Option<Error> {
        self.files().as_ref().and_then(|files| files.share.volumes().failure())
    }

    /// A port for one stream of a process, from the guest to the host.
    pub fn expect_stream(&self) -> Expected {
        self.streams.expect()
    }

    /// Plugs block devices of the host into the VM, for a container.
    pub async fn add_disks(&self, devices: Vec<BlockDevice>) -> Result<Vec<Disk>, Error> {
        self.disks.add(devices).await
    }

    /// Has the VM be large enough for containers with these limits, and the guest keep their
    /// huge pages for them.
    pub async fn grow_for(&self, containers: &[Limits]) -> Result<(), Error> {
        self.growth.check_huge_pages(containers)?;
        self.machine.grow(self.growth.size_for(containers)).await?;
        self.machine.reserve_huge_pages(self.growth.huge_pages(containers)).await
    }

    /// Has the guest keep no more huge pages than containers with these limits may use.
    pub async fn release_huge_pages_for(&self, containers: &[Limits]) -> Result<(), Error> {
        self.machine.release_huge_pages(self.growth.huge_pages(containers)).await
    }

    /// Has the VM be no larger than containers with these limits need, their huge pages
    /// included. What is returned
    /// resolves when the guest has given back the memory that it had too much.
    pub async fn shrink_for(
        &self,
        containers: &[Limits],
    ) -> Result<impl Future<Output = Result<(), Error>> + use<>, Error> {
        self.release_huge_pages_for(containers).await?;
        self.machine.shrink(self.growth.size_for(containers)).await
    }

    fn files(&self) -> MutexGuard<'_, Option<Files>> {
        // Nothing panics while it holds this lock.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.vm.kill("the sandbox was given up");
    }
}

/// Where the guest finds a container's part of the share.
pub fn guest_share(container: &str) -> String {
    format!("{SHARE_PATH}/{container}")
}

/// The files that have to be there before anything is made.
struct Inputs {
    kvm: File,
    kernel: File,
    image: File,
}

impl Inputs {
    fn open(kvm: &Path, assets: &Assets) -> Result<Inputs, Error> {
        let device = kvm.display();
        let kvm = OpenOptions::new().read(true).write(true).open(kvm).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => {
                    "load kvm_intel or kvm_amd, or turn virtualization on in the firmware"
                }
                io::ErrorKind::PermissionDenied => "run as root or as a member of its group",
                _ => "`husk check` tells more",
            };
            Error::new(Code::FailedPrecondition, format!("cannot open {device}: {error}; {remedy}"))
        })?;
        let open = |path: &Path| {
            File::open(path).map_err(|error| {
                Error::precondition(format!("cannot open {}: {error}", path.display()))
            })
        };
        Ok(Inputs { kvm, kernel: open(&assets.kernel)?, image: open(&assets.image)? })
    }
}

/// What makes a booted VM this pod's.
fn setup(hostname: String) -> Setup {
    let mut entropy = vec![0; ENTROPY_LEN];
    if File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut entropy)).is_err() {
        // The guest still has its virtio-rng; zeroes must not be credited.
        entropy.clear();
    }
    Setup {
        version: husk_protocol::PROTOCOL_VERSION,
        realtime_ns: clock::realtime().as_nanos() as i64,
        entropy,
        hostname,
        shares: vec![guest::Share {
            tag: SHARE_TAG.into(),
            path: SHARE_PATH.into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn stopped() -> Error {
    Error::unavailable("the pod's VM has been stopped")
}
