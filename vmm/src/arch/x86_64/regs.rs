// SPDX-License-Identifier: Apache-2.0

//! State of a vCPU when it starts: 32-bit protected mode without paging, as the PVH boot
//! ABI demands of the boot processor. The others wait for INIT and SIPI inside KVM.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::layout;
use crate::memory::{Bytes, GuestAddress, GuestRam};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, default type write-back: otherwise mappings outside RAM's ranges are uncached.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// LVT registers of the LAPIC and their delivery modes.
const LAPIC_LVT0: usize = 0x350;
const LAPIC_LVT1: usize = 0x360;
const DELIVER_EXTINT: u32 = 0x700;
const DELIVER_NMI: u32 = 0x400;

/// Writes the GDT that [`set_boot_state`] refers to.
pub fn write_gdt(ram: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    // Null, flat 32-bit code, flat 32-bit data, task state.
    let gdt: [u64; 4] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
    for (slot, descriptor) in gdt.iter().enumerate() {
        ram.write_obj(*descriptor, GuestAddress(layout::GDT + 8 * slot as u64))?;
    }
    Ok(())
}

/// Puts the boot processor at the PVH entry point.
pub fn set_boot_state(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(8, 11);
    let data = flat(16, 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: 24,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs)?;

    vcpu.set_regs(&kvm_regs {
        rflags: 2,
        rip: entry,
        rbx: layout::START_INFO,
        ..Default::default()
    })
}

/// Sets what every vCPU needs, the boot processor or not.
pub fn set_common_state(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })?;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ])
    .map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))?;
    vcpu.set_msrs(&msrs)?;

    let mut lapic = vcpu.get_lapic()?;
    for (register, mode) in [(LAPIC_LVT0, DELIVER_EXTINT), (LAPIC_LVT1, DELIVER_NMI)] {
        let bytes = mode.to_le_bytes().map(|b| b as libc::c_char);
        lapic.regs[register..register + 4].copy_from_slice(&bytes);
    }
    vcpu.set_lapic(&lapic)
}
