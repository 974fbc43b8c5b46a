// SPDX-License-Identifier: Apache-2.0
//! Stand-in until the real one is merged.
pub struct Filter;
impl Filter {
    pub fn compile(_: &oci_spec::runtime::LinuxSeccomp) -> Result<Self, String> {
        Ok(Self)
    }
    pub fn load(&self) -> Result<(), String> {
        Ok(())
    }
}
