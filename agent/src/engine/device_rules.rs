// SPDX-License-Identifier: Apache-2.0
//! Stand-in until the real one is merged.
pub fn apply(
    _: std::os::fd::BorrowedFd,
    _: &[oci_spec::runtime::LinuxDeviceCgroup],
) -> Result<(), String> {
    Ok(())
}
