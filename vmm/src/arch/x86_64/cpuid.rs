// SPDX-License-Identifier: Apache-2.0

//! CPUID of a vCPU: what KVM supports, with the topology of this VM: one socket, one
//! thread per core.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const EXTENDED_TOPOLOGY: u32 = 0xb;
const EXTENDED_TOPOLOGY_V2: u32 = 0x1f;
/// Leaf 1, ECX.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: hyper-threading, which here says that EBX counts logical processors.
const HTT: u32 = 1 << 28;

/// Adapts `supported`, from KVM_GET_SUPPORTED_CPUID, to vCPU `id` of `vcpus`.
pub fn for_vcpu(supported: &CpuId, id: u8, vcpus: u8) -> Result<CpuId, kvm_ioctls::Error> {
    let (id, vcpus) = (u32::from(id), u32::from(vcpus));
    let mut entries = Vec::with_capacity(supported.as_slice().len() + 3);
    for entry in supported.as_slice() {
        match entry.function {
            // KVM gives a first, empty subleaf of these and leaves the rest to us.
            EXTENDED_TOPOLOGY if entry.index == 0 => entries.extend(topology(id, vcpus)),
            EXTENDED_TOPOLOGY | EXTENDED_TOPOLOGY_V2 => {}
            _ => {
                let mut entry = *entry;
                adapt(&mut entry, id, vcpus);
                entries.push(entry);
            }
        }
    }
    CpuId::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

/// The subleaves of extended topology: threads of a core, cores of the package, the end.
fn topology(id: u32, vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: EXTENDED_TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: id,
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, core_bits(vcpus), vcpus, 2), level(2, 0, 0, 0)]
}

/// Bits of an APIC ID that number cores.
fn core_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    let core_bits = core_bits(vcpus);
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

    fn adapted(function: u32, id: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        let entry = kvm_cpuid_entry2 { function, ..Default::default() };
        let supported = CpuId::from_entries(&[entry]).expect("one entry");
        for_vcpu(&supported, id, vcpus).expect("few entries").as_slice().to_vec()
    }

    #[test]
    fn each_vcpu_knows_its_apic_id_and_its_siblings() {
        assert_eq!(adapted(1, 3, 8)[0].ebx >> 24, 3);
        assert_eq!(adapted(1, 3, 8)[0].ebx >> 16 & 0xff, 8);
        assert_eq!(adapted(0x8000_0008, 0, 1)[0].ecx, 0);
    }

    #[test]
    fn the_topology_is_one_package_of_single_threaded_cores() {
        let levels = adapted(EXTENDED_TOPOLOGY, 5, 6);
        let level = |i: usize| (levels[i].eax, levels[i].ebx, levels[i].ecx, levels[i].edx);
        assert_eq!(level(0), (0, 1, 1 << 8, 5), "threads");
        assert_eq!(level(1), (3, 6, 2 << 8 | 1, 5), "six cores need three bits");
        assert_eq!(level(2), (0, 0, 2, 5), "the end");
    }
}
