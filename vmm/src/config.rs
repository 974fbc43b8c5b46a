// SPDX-License-Identifier: Apache-2.0

//! What a VM is made of. The same structure travels over the control socket, where files
//! are indices of descriptors, and is given to the VM, where they are open files.

use serde::{Deserialize, Serialize};

/// Most vCPUs of one VM; the guest kernel is built for as many.
pub const MAX_VCPUS: u8 = 32;

/// Least guest memory, in MiB: below it the kernel with its initramfs does not boot.
pub const MIN_MEMORY_MIB: u64 = 64;

/// Longest kernel command line in bytes, its terminating zero included (x86 COMMAND_LINE_SIZE).
pub const MAX_CMDLINE: usize = 2048;

/// Longest virtio-fs tag, in bytes (virtio 1.3, 5.11.4).
pub const MAX_TAG: usize = 36;

/// Longest serial of a disk, in bytes (virtio 1.3, 5.2.6.1).
pub const MAX_SERIAL: usize = 20;

/// Most queue pairs of a network interface.
pub const MAX_QUEUE_PAIRS: usize = 16;

/// A VM; `F` is how its files are named.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig<F> {
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Most that it can be resized to; at least `vcpus`. The guest knows of them all: its
    /// kernel brings up as many as its command line says (maxcpus).
    pub most_vcpus: u8,
    pub memory_mib: u64,
    /// Most that it can be resized to; at least `memory_mib`.
    pub most_memory_mib: u64,
    pub cmdline: String,
    /// /dev/kvm.
    pub kvm: F,
    /// Uncompressed ELF with a PVH entry note.
    pub kernel: F,
    pub initramfs: Option<F>,
    pub console: Console<F>,
    /// Streams of the guest's vsock arrive at and come from the supervisor.
    pub vsock: bool,
    pub share: Option<Share<F>>,
    pub disks: Vec<Disk<F>>,
}

/// Where the guest's console (hvc0) goes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Console<F> {
    /// A regular file, opened for reading and writing: capped in size and rate, the newest
    /// output is kept.
    Log(F),
    /// A terminal or pipes: no cap, and input reaches the guest.
    Terminal { input: F, output: F },
}

/// A directory shared by virtio-fs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share<F> {
    pub tag: String,
    /// The directory, opened O_PATH or O_RDONLY. Mounts made below it later are visible.
    pub directory: F,
}

/// A raw image or a block device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk<F> {
    pub file: F,
    pub read_only: bool,
    /// Shown to the guest as the disk's serial number.
    pub serial: String,
}

/// A network interface on a tap of the host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig<F> {
    /// A descriptor of the tap for each queue pair, 1 to [`MAX_QUEUE_PAIRS`]. Opened with
    /// IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, and IFF_MULTI_QUEUE if they are several.
    pub queues: Vec<F>,
    /// /dev/vhost-net, opened once for each queue pair, which then does the work; or nothing.
    pub vhost: Vec<F>,
    pub mac: [u8; 6],
    /// At least 68; the guest's interface gets it. The tap's own is the supervisor's.
    pub mtu: Option<u16>,
}

/// A device that a VM can get while it runs, and lose again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plug<F> {
    Net(NetConfig<F>),
    Disk(Disk<F>),
}

impl<F> Plug<F> {
    /// The same device with its files named otherwise.
    pub fn try_map<G, E>(self, mut file: impl FnMut(F) -> Result<G, E>) -> Result<Plug<G>, E> {
        Ok(match self {
            Plug::Net(net) => Plug::Net(NetConfig {
                queues: net.queues.into_iter().map(&mut file).collect::<Result<_, E>>()?,
                vhost: net.vhost.into_iter().map(file).collect::<Result<_, E>>()?,
                mac: net.mac,
                mtu: net.mtu,
            }),
            Plug::Disk(disk) => Plug::Disk(disk.try_map(&mut file)?),
        })
    }
}

impl<F> Disk<F> {
    fn try_map<G, E>(self, file: impl FnOnce(F) -> Result<G, E>) -> Result<Disk<G>, E> {
        Ok(Disk { file: file(self.file)?, read_only: self.read_only, serial: self.serial })
    }
}

impl<F> VmConfig<F> {
    /// The same VM with its files named otherwise.
    pub fn try_map<G, E>(self, mut file: impl FnMut(F) -> Result<G, E>) -> Result<VmConfig<G>, E> {
        Ok(VmConfig {
            vcpus: self.vcpus,
            most_vcpus: self.most_vcpus,
            memory_mib: self.memory_mib,
            most_memory_mib: self.most_memory_mib,
            cmdline: self.cmdline,
            kvm: file(self.kvm)?,
            kernel: file(self.kernel)?,
            initramfs: self.initramfs.map(&mut file).transpose()?,
            console: match self.console {
                Console::Log(log) => Console::Log(file(log)?),
                Console::Terminal { input, output } => {
                    Console::Terminal { input: file(input)?, output: file(output)? }
                }
            },
            vsock: self.vsock,
            share: match self.share {
                Some(share) => Some(Share { tag: share.tag, directory: file(share.directory)? }),
                None => None,
            },
            disks: self
                .disks
                .into_iter()
                .map(|disk| disk.try_map(&mut file))
                .collect::<Result<_, E>>()?,
        })
    }
}
