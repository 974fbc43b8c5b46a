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

/// Where each GSI that is taken leads, if anywhere yet.
type Table = BTreeMap<u32, Option<Message>>;

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Message {
    address: u64,
    data: u32,
}

impl Routes {
    pub fn new(vm: Arc<VmFd>) -> Routes {
        Routes { vm, table: Mutex::new(Table::new()) }
    }

    /// Takes the lowest GSI that is free.
    fn take(&self) -> u32 {
        let mut table = lock(&self.table);
        let free = (IOAPIC_PINS..).zip(table.keys()).find(|(gsi, taken)| gsi != *taken);
        let gsi = free.map_or(IOAPIC_PINS + table.len() as u32, |(gsi, _)| gsi);
        table.insert(gsi, None);
        gsi
    }

    /// Gives a GSI back. Its route stays in KVM until the next is set, and leads nothing.
    fn free(&self, gsi: u32) {
        lock(&self.table).remove(&gsi);
    }

    /// Leads a GSI to a message. KVM takes all routes of a VM at once.
    fn set(&self, gsi: u32, message: Message) -> io::Result<()> {
        let mut table = lock(&self.table);
        if table.insert(gsi, Some(message)) == Some(Some(message)) {
            return Ok(());
        }
        let mut entries: Vec<kvm_irq_routing_entry> = (0..IOAPIC_PINS).map(ioapic_pin).collect();
        entries.extend(table.iter().filter_map(|(&gsi, message)| Some((*message)?.route(gsi))));
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

/// One vector, of which KVM knows nothing more when it is dropped.
struct Vector {
    routes: Arc<Routes>,
    gsi: u32,
    event: Arc<EventFd>,
    attached: bool,
}

impl Vector {
    fn new(routes: Arc<Routes>) -> io::Result<Vector> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let gsi = routes.take();
        Ok(Vector { routes, gsi, event, attached: false })
    }

    /// Attaches it to KVM with this message, or detaches it.
    fn set(&mut self, message: Option<Message>) -> io::Result<()> {
        if let Some(message) = message {
            self.routes.set(self.gsi, message)?;
        }
        let vm = &self.routes.vm;
        match (self.attached, message.is_some()) {
            (false, true) => vm.register_irqfd(&self.event, self.gsi)?,
            (true, false) => vm.unregister_irqfd(&self.event, self.gsi)?,
            _ => {}
        }
        self.attached = message.is_some();
        Ok(())
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        // It can only fail for a vector that is not attached.
        let _ = self.set(None);
        self.routes.free(self.gsi);
    }
}

/// The MSI-X table of one function.
pub struct Msix {
    table: Vec<u8>,
    vectors: Vec<Vector>,
    control: u16,
}

impl Msix {
    pub fn new(routes: Arc<Routes>, vectors: usize) -> io::Result<Msix> {
        let vectors =
            (0..vectors).map(|_| Vector::new(routes.clone())).collect::<io::Result<Vec<_>>>()?;
        let mut table = vec![0; vectors.len() * ENTRY];
        for entry in table.chunks_mut(ENTRY) {
            entry[12] = MASKED as u8;
        }
        Ok(Msix { table, vectors, control: 0 })
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
        self.vectors[index].set((!masked).then_some(message))
    }
}

fn readable(event: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, and no waiting.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}
