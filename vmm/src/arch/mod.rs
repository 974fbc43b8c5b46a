// SPDX-License-Identifier: Apache-2.0

//! What depends on the processor's architecture.

mod x86_64;
pub use x86_64::*;
