// SPDX-License-Identifier: Apache-2.0

//! All connections of a device: by slot, which is their epoll token, and by ports.

use std::collections::HashMap;

use super::connection::Connection;

/// Most connections at a time, those included that only drain or wait for the guest's last
/// word; each costs at most its buffer and one descriptor.
pub const MAX_CONNECTIONS: usize = 1024;

/// Ports of the host for connections that it opens, out of the way of those that it serves.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

#[derive(Default)]
pub struct Table {
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// (host port, guest port) of connections that the guest has not closed.
    by_ports: HashMap<(u32, u32), usize>,
    /// Added to FIRST_PORT for the next connection that the host opens.
    next_port: u32,
}

impl Table {
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == MAX_CONNECTIONS
    }

    pub fn find(&self, host_port: u32, guest_port: u32) -> Option<usize> {
        self.by_ports.get(&(host_port, guest_port)).copied()
    }

    pub fn get(&mut self, slot: usize) -> Option<&mut Connection> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// The caller has looked that the table is not full and the ports are free.
    pub fn insert(&mut self, connection: Connection) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.by_ports.insert((connection.host_port, connection.guest_port), slot);
        self.slots[slot] = Some(connection);
        slot
    }

    pub fn remove(&mut self, slot: usize) -> Option<Connection> {
        self.release_ports(slot);
        let connection = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(connection)
    }

    /// The guest may use the ports of this connection again.
    pub fn release_ports(&mut self, slot: usize) {
        if let Some(connection) = self.slots.get(slot).and_then(Option::as_ref) {
            let ports = (connection.host_port, connection.guest_port);
            if self.by_ports.get(&ports) == Some(&slot) {
                self.by_ports.remove(&ports);
            }
        }
    }

    /// A port of the host that has no connection to `guest_port`.
    pub fn fresh_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = FIRST_PORT + self.next_port;
            self.next_port = (self.next_port + 1) % (LAST_PORT - FIRST_PORT + 1);
            if self.find(port, guest_port).is_none() {
                return port;
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, &Connection)> {
        self.slots.iter().enumerate().filter_map(|(slot, c)| Some((slot, c.as_ref()?)))
    }
}
