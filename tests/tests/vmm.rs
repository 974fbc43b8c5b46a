// SPDX-License-Identifier: Apache-2.0

//! husk-vmm alone, on KVM. The halves of each case are in `husk_tests::vmm`.

use husk_tests::vmm::*;

#[test]
fn one_vcpu_and_least_memory() {
    machine::host(1, husk_vmm::config::MIN_MEMORY_MIB);
}

#[test]
fn several_vcpus() {
    machine::host(2, 256);
    machine::host(7, 512);
}

#[test]
fn most_vcpus() {
    machine::host(u32::from(husk_vmm::config::MAX_VCPUS), 1024);
}

#[test]
fn memory_on_both_sides_of_the_hole() {
    machine::host(1, 3584);
}

#[test]
fn disks() {
    disk::host();
}

#[test]
fn shared_directory() {
    share::host();
}

#[test]
fn unmounted_under_requests() {
    share::unmount_host();
}

#[test]
fn vsock_both_ways() {
    vsock::host();
}

#[test]
fn console_input() {
    console::host();
}

#[test]
fn power_off() {
    ends::power_off();
}

#[test]
fn reset() {
    ends::reset();
}

#[test]
fn panic() {
    ends::panic();
}

#[test]
fn triple_fault() {
    ends::triple_fault();
}

#[test]
fn bad_files() {
    bad_input::files();
}

#[test]
fn bad_sizes() {
    bad_input::sizes();
}

#[test]
fn no_kvm() {
    bad_input::no_kvm();
}

#[test]
fn supervised_connections() {
    supervised::connections();
}

#[test]
fn supervised_ends() {
    supervised::reasons();
}

#[test]
fn supervised_stop() {
    supervised::stop();
}

#[test]
fn supervised_failures() {
    supervised::failures();
}

#[test]
fn supervised_flood() {
    supervised::flood();
}

#[test]
fn tap_at_boot() {
    net::at_boot();
}

#[test]
fn net_plugged() {
    plug::net();
}

#[test]
fn net_with_several_queues() {
    plug::several_queues();
}

#[test]
fn memory_that_vhost_net_gets_to_know() {
    vhost::grown();
}

#[test]
fn vhost_net_that_cannot() {
    vhost::refused();
}

#[test]
fn rings_that_are_none() {
    vhost::broken_rings();
}

#[test]
fn disks_plugged() {
    plug::disks();
}

#[test]
fn plugged_for_a_guest_that_does_not_look() {
    plug::unseen();
}

#[test]
fn unplugged_without_a_word() {
    plug::surprise();
}

#[test]
fn resized() {
    plug::resized();
}

#[test]
fn most_devices() {
    plug::most();
}

#[test]
fn bad_plugs() {
    plug::refused();
}
