// SPDX-License-Identifier: Apache-2.0

//! A vCPU: its making, its thread and what happens when KVM returns to us.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::arch::{cpuid, regs};
use crate::control::ExitReason;
use crate::platform::Platform;

/// Makes the vCPUs of a VM, before it runs or while it does.
#[derive(Clone)]
pub struct Maker {
    vm: Arc<VmFd>,
    supported: CpuId,
    /// How many there can be.
    most: u8,
}

impl Maker {
    pub fn new(kvm: &Kvm, vm: Arc<VmFd>, most: u8) -> io::Result<Maker> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        Ok(Maker { vm, supported, most })
    }

    /// Makes one that waits for the guest to start it; the caller gives the first its state.
    pub fn make(&self, id: u8) -> io::Result<VcpuFd> {
        let vcpu = self.vm.create_vcpu(u64::from(id))?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(&self.supported, id, self.most)?)?;
        regs::set_common_state(&vcpu)?;
        Ok(vcpu)
    }
}

/// Runs `vcpu` on a thread of its own until the guest ends, and says why. Such a thread is
/// never joined: a process runs one VM, and ends with it.
pub fn spawn(
    mut vcpu: VcpuFd,
    id: u8,
    platform: Platform,
    exits: Sender<ExitReason>,
) -> io::Result<()> {
    std::thread::Builder::new().name(format!("vcpu{id}")).stack_size(128 << 10).spawn(
        move || {
            let reason = run(&mut vcpu, &platform);
            // Nobody listens any more when another vCPU was first.
            let _ = exits.send(reason);
        },
    )?;
    Ok(())
}

fn run(vcpu: &mut VcpuFd, platform: &Platform) -> ExitReason {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => platform.read_port(port, data),
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(reason) = platform.write_port(port, data) {
                    return reason;
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => platform.read_memory(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => platform.write_memory(address, data),
            Ok(VcpuExit::Shutdown) => return ExitReason::TripleFault,
            Ok(VcpuExit::InternalError) => return internal_error(vcpu),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                let what = format!("the host's CPU {cpu} refused to enter it, reason {reason:#x}");
                return ExitReason::Kvm(describe(vcpu, &what));
            }
            Ok(other) => {
                let what = format!("unexpected exit {other:?}");
                return ExitReason::Kvm(describe(vcpu, &what));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => {
                let what = format!("KVM_RUN failed: {error}");
                return ExitReason::Kvm(describe(vcpu, &what));
            }
        }
    }
}

fn internal_error(vcpu: &mut VcpuFd) -> ExitReason {
    // SAFETY: KVM filled the union's `internal` member: the exit was KVM_EXIT_INTERNAL_ERROR.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let what = match suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => {
            "it had to emulate an instruction that it cannot; if this happens with every \
             guest, the host's KVM does not really virtualize (run 'husk check')"
                .to_owned()
        }
        other => format!("internal error {other}"),
    };
    ExitReason::Kvm(describe(vcpu, &what))
}

/// `what`, with the registers that tell where the guest was.
fn describe(vcpu: &VcpuFd, what: &str) -> String {
    let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) else {
        return format!("{what}; its registers cannot be read");
    };
    format!(
        "{what}; rip {:#x} rsp {:#x} rflags {:#x} rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} \
         cs {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        sregs.cs.base,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer
    )
}
