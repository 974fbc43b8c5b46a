// SPDX-License-Identifier: Apache-2.0

//! Static ACPI tables (ACPI 6.5): hardware-reduced, no firmware behind them. They name the
//! processors, the PCI host bridge, the generation ID, the panic device, and how to power
//! off and reset.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Method, Name, Package,
    Path, ResourceTemplate, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::{Aml, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};

use super::layout;
use crate::memory::{Bytes, GuestAddress, GuestRam};

const OEM: [u8; 6] = *b"HUSK  ";
const TABLE: [u8; 8] = *b"HUSKVM  ";

/// Sleep type of S5 in the sleep control register; what the guest writes to power off.
pub const S5_TYPE: u8 = 5;
/// SLP_EN of the sleep control register.
pub const SLEEP_ENABLE: u8 = 1 << 5;
/// What the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;

/// Writes the tables at [`layout::ACPI`] and the generation ID at [`layout::VMGENID`].
/// Returns the address of the RSDP.
pub fn write(ram: &GuestRam, vcpus: u8, generation: [u8; 16]) -> Result<u64, AcpiError> {
    ram.write_slice(&generation, GuestAddress(layout::VMGENID))?;

    let rsdp = layout::ACPI;
    let mut next = rsdp + Rsdp::len() as u64;
    let mut put = |table: &dyn Aml| -> Result<u64, AcpiError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = next.next_multiple_of(16);
        ram.write_slice(&bytes, GuestAddress(address))?;
        next = address + bytes.len() as u64;
        Ok(address)
    };
    let dsdt = put(&dsdt())?;
    let fadt = put(&fadt(dsdt))?;
    let madt = put(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt)?;

    let mut bytes = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut bytes);
    ram.write_slice(&bytes, GuestAddress(rsdp))?;
    Ok(rsdp)
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write the ACPI tables: {0}")]
pub struct AcpiError(#[from] vm_memory::GuestMemoryError);

fn fadt(dsdt: u64) -> impl Aml {
    let port =
        |port: u16| GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        // Neither a power nor a sleep button as fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    // IA-PC boot architecture: no VGA, no CMOS clock (table 5.11); that no 8042 is there
    // follows from its bit being clear.
    fadt.iapc_boot_arch = (1u16 << 2 | 1 << 5).into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(layout::LAPIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn dsdt() -> Sdt {
    let mut aml = Vec::new();
    for object in [power_off(), pci_host_bridge(), panic_device(), generation_id(), events()] {
        aml.extend(object);
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, 1);
    dsdt.append_slice(&aml);
    dsdt
}

fn bytes(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn power_off() -> Vec<u8> {
    bytes(&Name::new(Path::new("_S5_"), &Package::new(vec![&S5_TYPE])))
}

fn pci_host_bridge() -> Vec<u8> {
    let devices_end = layout::DEVICES + 32 * layout::DEVICE_SIZE - 1;
    bytes(&Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &IO::new(layout::PCI_CONFIG_ADDRESS, layout::PCI_CONFIG_ADDRESS, 1, 8),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        layout::DEVICES as u32,
                        devices_end as u32,
                        None,
                    ),
                ]),
            ),
        ],
    ))
}

fn panic_device() -> Vec<u8> {
    bytes(&Device::new(
        Path::new("_SB_.PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_STA"), &0x0fu8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(
                    layout::PVPANIC_PORT,
                    layout::PVPANIC_PORT,
                    1,
                    1,
                )]),
            ),
        ],
    ))
}

fn generation_id() -> Vec<u8> {
    bytes(&Device::new(
        Path::new("_SB_.VGEN"),
        vec![
            // Linux binds by the CID; the HID must not be in its list of PNP devices.
            &Name::new(Path::new("_HID"), &"VMGENCTR"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(
                Path::new("ADDR"),
                &Package::new(vec![&(layout::VMGENID as u32), &((layout::VMGENID >> 32) as u32)]),
            ),
        ],
    ))
}

/// The generic event device, whose interrupt announces a new generation ID.
fn events() -> Vec<u8> {
    bytes(&Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    layout::GED_GSI,
                )]),
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&acpi_tables::aml::Notify::new(&Path::new("\\_SB_.VGEN"), &0x80u8)],
            ),
        ],
    ))
}
