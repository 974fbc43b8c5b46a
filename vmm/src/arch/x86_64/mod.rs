// SPDX-License-Identifier: Apache-2.0

//! An x86_64 machine: addresses, boot state, tables.

pub mod layout;
