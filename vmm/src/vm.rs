// SPDX-License-Identifier: Apache-2.0

//! A VM from its configuration to its end: memory, interrupts, devices, boot, vCPUs.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::arch::{acpi, boot, layout, regs};
use crate::config::{Console as ConsoleConfig, MAX_TAG, MAX_VCPUS, MIN_MEMORY_MIB, Plug, VmConfig};
use crate::control::ExitReason;
use crate::devices::{Devices, PlugError};
use crate::kvm::{self, KvmError};
use crate::log::Log;
use crate::memory::{self, GuestRam, MemoryError};
use crate::pci::SLOTS;
use crate::platform::Platform;
use crate::resize::Resizer;
use crate::vcpu::{self, Maker};
use crate::virtio::balloon::Balloon;
use crate::virtio::console::{Console, Output};
use crate::virtio::fs::Fs;
use crate::virtio::rng::{self, Rng};
use crate::virtio::vsock::{Dialer, HostSide, Vsock};
use crate::virtio::{Fault, Note};

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("{0} vCPUs are not possible; ask for 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    #[error("{0} vCPUs and {1} MiB are no larger size than {2} vCPUs and {3} MiB")]
    Most(u8, u64, u8, u64),
    #[error("{0} MiB of memory are too little; the least is {MIN_MEMORY_MIB} MiB")]
    TooLittleMemory(u64),
    #[error("the tag of a share has 1 to {MAX_TAG} bytes; {0:?} does not fit")]
    Tag(String),
    #[error("{0} devices are more than the bus has slots for ({max})", max = SLOTS - 1)]
    TooManyDevices(usize),
    #[error(transparent)]
    Device(#[from] PlugError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    #[error("cannot {0}: {1}")]
    Setup(&'static str, io::Error),
}

/// Adds what was being done to an error of the system.
trait During<T> {
    fn during(self, what: &'static str) -> Result<T, VmError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, what: &'static str) -> Result<T, VmError> {
        self.map_err(|error| VmError::Setup(what, error.into()))
    }
}

/// The host's side of the guest's sockets.
pub struct VsockHost {
    pub side: Arc<dyn HostSide>,
    /// Where clients ask for ports of the guest, when there is no supervisor.
    pub listener: Option<UnixListener>,
}

/// A VM that is ready to run. A process runs one and ends with it: threads of vCPUs and
/// devices are never joined.
pub struct Vm {
    vm: Arc<VmFd>,
    ram: GuestRam,
    memory_mib: u64,
    most_vcpus: u8,
    maker: Maker,
    vcpus: Vec<VcpuFd>,
    platform: Platform,
    devices: Arc<Devices>,
    dialer: Option<Dialer>,
    exits: (Sender<ExitReason>, Receiver<ExitReason>),
}

impl Vm {
    /// Builds the VM. Bad configuration is refused before anything is made.
    pub fn build(
        config: VmConfig<OwnedFd>,
        vsock: Option<VsockHost>,
        note: Note,
    ) -> Result<Vm, VmError> {
        check(&config)?;
        let exits = channel();

        let ram = memory::map(config.memory_mib << 20, config.most_memory_mib << 20)?;
        let kvm = kvm::check(config.kvm)?;
        let vm = Arc::new(create_vm(&kvm)?);
        attach_memory(&vm, &ram)?;
        // The interrupt controllers come before the vCPUs: each vCPU gets its LAPIC then.
        vm.create_irq_chip().during("create the interrupt controllers")?;

        let fault = {
            let exits = Mutex::new(exits.0.clone());
            Fault::new(move |what| {
                let _ = crate::pci::lock(&exits).send(ExitReason::Device(what));
            })
        };
        let (output, input) = open_console(config.console).during("open the console")?;
        let devices = Arc::new(Devices::new(vm.clone(), ram.clone(), fault, note));
        devices.add(Box::new(Console::new(output.clone(), input)))?;
        devices.add(Box::new(Rng::default()))?;
        devices.add(Box::new(Balloon::default()))?;
        let dialer = match vsock {
            Some(host) => {
                let device = Vsock::new(host.side, host.listener).during("make the vsock")?;
                let dialer = device.dialer();
                devices.add(Box::new(device))?;
                Some(dialer)
            }
            None => None,
        };
        if let Some(share) = config.share {
            devices.add(Box::new(Fs::new(&share.tag, share.directory).during("share files")?))?;
        }
        for disk in config.disks {
            devices.add(devices.open(Plug::Disk(disk))?)?;
        }

        let (entry, kernel_end) = boot::load_kernel(&ram, &File::from(config.kernel))?;
        let initramfs = match config.initramfs {
            Some(file) => Some(boot::load_initramfs(&ram, &File::from(file), kernel_end)?),
            None => None,
        };
        let mut generation = [0; 16];
        rng::random(&mut generation).during("draw a generation ID")?;
        let rsdp = acpi::write(&ram, config.most_vcpus, generation)?;
        boot::write_start_info(&ram, &config.cmdline, initramfs, rsdp)?;
        regs::write_gdt(&ram).map_err(io::Error::other).during("write the GDT")?;

        let maker = Maker::new(&kvm, vm.clone(), config.most_vcpus)
            .during("ask what vCPUs this host can have")?;
        let vcpus: Vec<VcpuFd> = (0..config.vcpus)
            .map(|id| maker.make(id))
            .collect::<io::Result<_>>()
            .during("create the vCPUs")?;
        regs::set_boot_state(&vcpus[0], entry).during("create the vCPUs")?;
        let platform = Platform { pci: devices.bus(), console: output };
        let VmConfig { memory_mib, most_vcpus, .. } = config;
        Ok(Vm { vm, ram, memory_mib, most_vcpus, maker, vcpus, platform, devices, dialer, exits })
    }

    /// Opens connections to the guest; `None` without a vsock.
    pub fn dialer(&self) -> Option<Dialer> {
        self.dialer.clone()
    }

    /// Gives the guest devices and takes them away, now or while it runs.
    pub fn devices(&self) -> Arc<Devices> {
        self.devices.clone()
    }

    /// Makes the VM larger and smaller while it runs. There has to be one at most.
    pub fn resizer(&self) -> Resizer {
        Resizer {
            vm: self.vm.clone(),
            ram: self.ram.clone(),
            devices: self.devices.clone(),
            maker: self.maker.clone(),
            platform: self.platform.clone(),
            exits: self.exits.0.clone(),
            vcpus: self.vcpus.len() as u8,
            most_vcpus: self.most_vcpus,
            memory_mib: self.memory_mib,
            memory: None,
        }
    }

    /// Ends the VM from outside: send the reason.
    pub fn stopper(&self) -> Sender<ExitReason> {
        self.exits.0.clone()
    }

    /// Starts the vCPUs and waits until the guest ends. The first reason counts.
    pub fn run(self) -> Result<ExitReason, VmError> {
        for (id, vcpu) in self.vcpus.into_iter().enumerate() {
            vcpu::spawn(vcpu, id as u8, self.platform.clone(), self.exits.0.clone())
                .during("start a vCPU's thread")?;
        }
        drop(self.exits.0);
        Ok(self.exits.1.recv().unwrap_or(ExitReason::Stopped))
    }
}

fn check(config: &VmConfig<OwnedFd>) -> Result<(), VmError> {
    if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
        return Err(VmError::Vcpus(config.vcpus));
    }
    let VmConfig { vcpus, most_vcpus, memory_mib, most_memory_mib, .. } = *config;
    if most_vcpus < vcpus || most_vcpus > MAX_VCPUS || most_memory_mib < memory_mib {
        return Err(VmError::Most(most_vcpus, most_memory_mib, vcpus, memory_mib));
    }
    if config.memory_mib < MIN_MEMORY_MIB {
        return Err(VmError::TooLittleMemory(config.memory_mib));
    }
    if let Some(share) = &config.share
        && (share.tag.is_empty() || share.tag.len() > MAX_TAG)
    {
        return Err(VmError::Tag(share.tag.clone()));
    }
    let devices = 3 + usize::from(config.vsock) + config.share.iter().len() + config.disks.len();
    if devices >= SLOTS {
        return Err(VmError::TooManyDevices(devices));
    }
    Ok(())
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, VmError> {
    // A pending signal makes KVM give up here; it wants to be asked again.
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(KvmError::NotVirtualizing(error.to_string()).into()),
            Ok(vm) => break vm,
        }
    };
    vm.set_tss_address(layout::KVM_TSS).during("reserve KVM's pages")?;
    Ok(vm)
}

fn attach_memory(vm: &VmFd, ram: &GuestRam) -> Result<(), VmError> {
    for (slot, region) in memory::regions(ram).enumerate() {
        memory::attach(vm, slot as u32, region).during("give the guest its memory")?;
    }
    Ok(())
}

fn open_console(config: ConsoleConfig<OwnedFd>) -> io::Result<(Output, Option<File>)> {
    Ok(match config {
        ConsoleConfig::Log(file) => (Arc::new(Mutex::new(Log::new(File::from(file))?)), None),
        ConsoleConfig::Terminal { input, output } => {
            (Arc::new(Mutex::new(File::from(output))), Some(File::from(input)))
        }
    })
}
