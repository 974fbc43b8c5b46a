// SPDX-License-Identifier: Apache-2.0

//! What the vCPUs reach by ports and by addresses outside RAM: the PCI bus, the ACPI
//! registers, the panic device, the early UART.

use std::sync::Arc;

use crate::arch::acpi::{RESET_VALUE, S5_TYPE, SLEEP_ENABLE};
use crate::arch::layout::*;
use crate::control::ExitReason;
use crate::pci::{PciBus, lock};
use crate::virtio::console::Output;

/// pvpanic: the guest has panicked.
const PANICKED: u8 = 1;
/// Line status register of a 16550: the transmitter is empty.
const UART_LINE_STATUS: u16 = EARLY_UART_PORT + 5;
const UART_EMPTY: u8 = 0x60;

#[derive(Clone)]
pub struct Platform {
    pub pci: Arc<PciBus>,
    pub console: Output,
}

impl Platform {
    /// Reads a port; what nobody answers reads as ones.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match port {
            PCI_CONFIG_ADDRESS..0xd00 => self.pci.read_port(port, data),
            PVPANIC_PORT => data.fill(PANICKED),
            SLEEP_CONTROL_PORT | SLEEP_STATUS_PORT => data.fill(0),
            UART_LINE_STATUS => data.fill(UART_EMPTY),
            _ => {}
        }
    }

    /// Writes a port; says so when that ends the VM.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<ExitReason> {
        let first = *data.first()?;
        match port {
            PCI_CONFIG_ADDRESS..0xd00 => self.pci.write_port(port, data),
            PVPANIC_PORT if first & PANICKED != 0 => return Some(ExitReason::Panic),
            SLEEP_CONTROL_PORT if first == S5_TYPE << 2 | SLEEP_ENABLE => {
                return Some(ExitReason::PowerOff);
            }
            RESET_PORT if first == RESET_VALUE => return Some(ExitReason::Reset),
            EARLY_UART_PORT => {
                // A console that cannot be written to must not stop the guest.
                let _ = lock(&self.console).write_all(data);
            }
            _ => {}
        }
        None
    }

    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        self.pci.read_memory(address, data)
    }

    pub fn write_memory(&self, address: u64, data: &[u8]) {
        self.pci.write_memory(address, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn the_guest_ends_its_vm_by_the_documented_values_only() {
        let platform =
            Platform { pci: Arc::new(PciBus::new()), console: Arc::new(Mutex::new(Vec::new())) };
        assert_eq!(platform.write_port(SLEEP_CONTROL_PORT, &[0x34]), Some(ExitReason::PowerOff));
        assert_eq!(platform.write_port(SLEEP_CONTROL_PORT, &[0x14]), None, "no SLP_EN");
        assert_eq!(platform.write_port(RESET_PORT, &[1]), Some(ExitReason::Reset));
        assert_eq!(platform.write_port(RESET_PORT, &[0]), None);
        assert_eq!(platform.write_port(PVPANIC_PORT, &[1]), Some(ExitReason::Panic));
        assert_eq!(platform.write_port(PVPANIC_PORT, &[]), None);
    }
}
