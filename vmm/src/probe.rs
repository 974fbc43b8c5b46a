// SPDX-License-Identifier: Apache-2.0

//! Finds out whether KVM really virtualizes. /dev/kvm may open and even run code on a host
//! without hardware virtualization, by emulating one instruction after the other; a Linux
//! guest then dies after a minute. So a small guest in long mode runs a counted loop, and
//! the time for it decides.

use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::kvm::{self, KvmError};
use crate::memory::{Bytes, GuestAddress, GuestMemory, GuestRam};

/// Rounds of the loop, of two instructions each.
const ROUNDS: u64 = 50_000;
/// On a busy host the loop may lose the processor; it rarely does so several times over.
const TRIES: u32 = 4;
/// A processor takes 1 ns for an instruction or two; KVM inside an emulated processor takes
/// ten; KVM's instruction emulator takes 500 and more.
const MAX_PER_INSTRUCTION: Duration = Duration::from_nanos(200);

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x4000;
const SIZE: usize = 0x5000;

/// loop: dec rcx; jnz loop; hlt
const PROGRAM: [u8; 6] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4];

/// Time that the guest took for each instruction.
pub fn check() -> Result<Duration, KvmError> {
    let kvm = kvm::check(kvm::open()?.into())?;
    let failed = |error: kvm_ioctls::Error| KvmError::NotVirtualizing(error.to_string());
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), SIZE)])
        .map_err(|error| KvmError::Unusable(std::io::Error::other(error)))?;
    let write = |value: u64, address| ram.write_obj(value, GuestAddress(address));
    // One page of 2 MiB, present and writable, maps everything.
    write(PDPT | 3, PML4)
        .and_then(|()| write(PD | 3, PDPT))
        .and_then(|()| write(1 << 7 | 3, PD))
        .and_then(|()| ram.write_slice(&PROGRAM, GuestAddress(CODE)))
        .map_err(|error| KvmError::Unusable(std::io::Error::other(error)))?;
    let host = ram
        .get_host_address(GuestAddress(0))
        .map_err(|error| KvmError::Unusable(std::io::Error::other(error)))?;
    let vm = kvm.create_vm().map_err(failed)?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: SIZE as u64,
        userspace_addr: host as u64,
    };
    // SAFETY: the mapping outlives the VM, which was made later and so is dropped earlier.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed)?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed)?;
    // Without it the vCPU has no long mode.
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed)?;
    vcpu.set_cpuid2(&cpuid).map_err(failed)?;
    enter_long_mode(&vcpu).map_err(failed)?;

    // The first run pays for faulting the pages in.
    run_loop(&mut vcpu, 1)?;
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let start = Instant::now();
        run_loop(&mut vcpu, ROUNDS)?;
        best = best.min(start.elapsed() / (2 * ROUNDS) as u32);
        if best <= MAX_PER_INSTRUCTION {
            return Ok(best);
        }
    }
    Err(KvmError::NotVirtualizing(format!(
        "a test guest took {} ns for each instruction, so they are being emulated",
        best.as_nanos()
    )))
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const CR0_PE_PG: u64 = 1 << 31 | 1;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 10 | 1 << 8;
    let mut sregs = vcpu.get_sregs()?;
    let segment = kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = segment;
    sregs.ss = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..segment };
    (sregs.ds, sregs.es) = (sregs.ss, sregs.ss);
    sregs.cr0 = CR0_PE_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs)
}

fn run_loop(vcpu: &mut VcpuFd, rounds: u64) -> Result<(), KvmError> {
    let failed = |error: kvm_ioctls::Error| KvmError::NotVirtualizing(error.to_string());
    let regs = kvm_regs { rip: CODE, rcx: rounds, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(failed)?;
    match vcpu.run().map_err(failed)? {
        VcpuExit::Hlt => Ok(()),
        other => Err(KvmError::NotVirtualizing(format!("a test guest ended with {other:?}"))),
    }
}
