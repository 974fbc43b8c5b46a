// SPDX-License-Identifier: Apache-2.0

//! MSI-X (PCI 3.0, 6.8.2): a vector is an eventfd that KVM turns into a message to a LAPIC
//! (irqfd). While a vector is masked its eventfd is not attached to KVM, and so holds the
//! pending interrupt by itself until it is attached again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::lock;
use crate::arch::layout::IOAPIC_PINS;

/// Bytes of a table entry: address, upper address, data, vector control.
const ENTRY: usize = 16;
/// Vector control: masked.
const MASKED: u32 = 1;
/// Message control: enable, and mask all.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// The GSIs of all MSI-X vectors of a VM and where they lead.
pub struct Routes {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

struct Table {
    next_gsi: u32,
    messages: BTreeMap<u32, Message>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Message {
    address: u64,
    data: u32,
}

impl Routes {
    pub fn new(vm: Arc<VmFd>) -> Routes {
        let table = Table { next_gsi: IOAPIC_PINS, messages: BTreeMap::new() };
        Routes { vm, table: Mutex::new(table) }
    }

    fn new_gsi(&self) -> u32 {
        let mut table = lock(&self.table);
        table.next_gsi += 1;
        table.next_gsi - 1
    }

    /// Leads a GSI to a message. KVM takes all routes of a VM at once.
    fn set(&self, gsi: u32, message: Message) -> io::Result<()> {
        let mut table = lock(&self.table);
        if table.messages.insert(gsi, message) == Some(message) {
            return Ok(());
        }
        let mut entries: Vec<kvm_irq_routing_entry> = (0..IOAPIC_PINS).map(ioapic_pin).collect();
        entries.extend(table.messages.iter().map(|(&gsi, &message)| message.route(gsi)));
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::other("too many interrupt routes"))?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }
}

fn ioapic_pin(pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = pin;
    entry
}

impl Message {
    fn route(&self, gsi: u32) -> kvm_irq_routing_entry {
        let mut entry =
            kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
        entry.u.msi.address_lo = self.address as u32;
        entry.u.msi.address_hi = (self.address >> 32) as u32;
        entry.u.msi.data = self.data;
        entry
    }
}

struct Vector {
    gsi: u32,
    event: Arc<EventFd>,
    attached: bool,
}

/// The MSI-X table of one function.
pub struct Msix {
    routes: Arc<Routes>,
    table: Vec<u8>,
    vectors: Vec<Vector>,
    control: u16,
}

impl Msix {
    pub fn new(routes: Arc<Routes>, vectors: usize) -> io::Result<Msix> {
        let vectors = (0..vectors)
            .map(|_| {
                let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
                Ok(Vector { gsi: routes.new_gsi(), event, attached: false })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let mut table = vec![0; vectors.len() * ENTRY];
        for entry in table.chunks_mut(ENTRY) {
            entry[12] = MASKED as u8;
        }
        Ok(Msix { routes, table, vectors, control: 0 })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Signal it to raise the vector.
    pub fn event(&self, vector: usize) -> Option<Arc<EventFd>> {
        self.vectors.get(vector).map(|v| v.event.clone())
    }

    /// The guest wrote message control.
    pub fn set_control(&mut self, control: u16) -> io::Result<()> {
        if control != self.control {
            self.control = control;
            for vector in 0..self.vectors.len() {
                self.update(vector)?;
            }
        }
        Ok(())
    }

    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.table.get(offset + i).copied().unwrap_or(0);
        }
    }

    pub fn write_table(&mut self, offset: usize, data: &[u8]) -> io::Result<()> {
        let Some(bytes) = self.table.get_mut(offset..offset + data.len()) else { return Ok(()) };
        bytes.copy_from_slice(data);
        self.update(offset / ENTRY)
    }

    /// The pending bits: vectors whose eventfd was signalled while it was detached.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let mut bits = [0u8; 8];
        for (i, vector) in self.vectors.iter().enumerate().filter(|(_, v)| !v.attached) {
            if readable(&vector.event) {
                bits[i / 8] |= 1 << (i % 8);
            }
        }
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bits.get(offset + i).copied().unwrap_or(0);
        }
    }

    /// Attaches the vector to KVM, or detaches it, as table and control now say.
    fn update(&mut self, index: usize) -> io::Result<()> {
        let word = |i: usize| {
            let at = index * ENTRY + 4 * i;
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&self.table[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let message =
            Message { address: u64::from(word(1)) << 32 | u64::from(word(0)), data: word(2) };
        let masked = word(3) & MASKED != 0 || self.control & (ENABLE | FUNCTION_MASK) != ENABLE;
        let vector = &mut self.vectors[index];
        if !masked {
            self.routes.set(vector.gsi, message)?;
        }
        if masked == vector.attached {
            if masked {
                self.routes.vm.unregister_irqfd(&vector.event, vector.gsi)?;
            } else {
                self.routes.vm.register_irqfd(&vector.event, vector.gsi)?;
            }
            vector.attached = !masked;
        }
        Ok(())
    }
}

fn readable(event: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, and no waiting.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}
