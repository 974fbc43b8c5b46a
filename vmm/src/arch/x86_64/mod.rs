// SPDX-License-Identifier: Apache-2.0

//! An x86_64 machine: addresses, tables, the state in which the guest starts.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod regs;
