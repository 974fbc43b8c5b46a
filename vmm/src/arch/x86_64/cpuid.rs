// SPDX-License-Identifier: Apache-2.0

//! CPUID of a vCPU: what KVM supports, with the topology of this VM: one socket, one
//! thread per core.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: hyper-threading, which here says that EBX counts logical processors.
const HTT: u32 = 1 << 28;

/// Adapts `supported`, from KVM_GET_SUPPORTED_CPUID, to vCPU `id` of `vcpus`.
pub fn for_vcpu(supported: &CpuId, id: u8, vcpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adapt(entry, u32::from(id), u32::from(vcpus));
    }
    cpuid
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    // Bits of an APIC ID that number cores.
    let core_bits = vcpus.next_power_of_two().trailing_zeros();
    match (entry.function, entry.index) {
        (1, _) => {
            // KVM emulates the deadline timer in its LAPIC but leaves it to us to say so.
            // Without it the guest would have to calibrate against a PIT that is not there.
            entry.ecx |= TSC_DEADLINE | HYPERVISOR;
            entry.ebx = (entry.ebx & 0xffff) | (vcpus << 16) | (id << 24);
            entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Deterministic caches (Intel): private up to level 2, level 3 shared by all.
        (4, _) if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { (1 << core_bits) - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | ((1 << core_bits) - 1) << 26;
        }
        // Extended topology: thread, then core.
        (0xb | 0x1f, 0) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 1, 1 << 8, id),
        (0xb | 0x1f, 1) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (core_bits, vcpus, 2 << 8 | 1, id)
        }
        (0xb | 0x1f, index) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, index, id),
        // AMD: cores in the package and bits of the APIC ID that number them.
        (0x8000_0008, _) => {
            entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | (vcpus - 1);
        }
        (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        }
        // AMD: extended APIC ID, core ID with one thread each, one node.
        (0x8000_001e, _) => {
            (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(function: u32, index: u32, id: u8, vcpus: u8) -> kvm_cpuid_entry2 {
        let entry = kvm_cpuid_entry2 { function, index, ..Default::default() };
        let supported = CpuId::from_entries(&[entry]).expect("one entry");
        for_vcpu(&supported, id, vcpus).as_slice()[0]
    }

    #[test]
    fn each_vcpu_knows_its_apic_id_and_its_siblings() {
        assert_eq!(adapted(1, 0, 3, 8).ebx >> 24, 3);
        assert_eq!(adapted(1, 0, 3, 8).ebx >> 16 & 0xff, 8);
        assert_eq!(adapted(0xb, 1, 5, 6).eax, 3, "six cores need three bits");
        assert_eq!(adapted(0xb, 1, 5, 6).edx, 5);
        assert_eq!(adapted(0x8000_0008, 0, 0, 1).ecx, 0);
    }
}
