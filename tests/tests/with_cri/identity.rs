// SPDX-License-Identifier: Apache-2.0

//! Who a container's processes are and what they may do.

use husk_tests::cri::api::security_profile::ProfileType;
use husk_tests::cri::container::security;
use husk_tests::cri::{api, case};
use protobuf::MessageField;

fn number(value: i64) -> MessageField<api::Int64Value> {
    MessageField::some(api::Int64Value { value, ..Default::default() })
}

#[test]
fn users_and_capabilities() {
    case(
        "user, groups, capabilities, no_new_privs and seccomp are as the pod says, in each container alone",
        |cri| {
            let pod = cri.pod("users", |config| {
                let linux = config.linux.mut_or_insert_default();
                linux.security_context.mut_or_insert_default().privileged = true;
            });
            let plain = pod.idle("plain");
            let user = pod.start("user", &["sleep", "100000"], |config| {
                let security = security(config);
                security.run_as_user = number(1000);
                security.run_as_group = number(2000);
                security.supplemental_groups = vec![3000, 3001];
                security.no_new_privs = true;
                security.seccomp.mut_or_insert_default().profile_type =
                    ProfileType::RuntimeDefault.into();
            });
            let bound = pod.start("bound", &["sleep", "100000"], |config| {
                let capabilities = security(config).capabilities.mut_or_insert_default();
                capabilities.drop_capabilities = vec!["ALL".to_owned()];
                capabilities.add_capabilities = vec!["NET_BIND_SERVICE".to_owned()];
            });
            let privileged = pod.start("privileged", &["sleep", "100000"], |config| {
                security(config).privileged = true
            });
            assert_eq!(user.exec_sh("id -u; id -g; id -G"), "1000\n2000\n2000 3000 3001");
            assert_eq!(plain.exec_sh("id -u; id -g"), "0\n0");
            let field =
                |name: &str| format!("awk '$1 == \"{name}:\" {{ print $2 }}' /proc/self/status");
            assert_eq!(user.exec_sh(&field("NoNewPrivs")), "1");
            assert_eq!(user.exec_sh(&field("Seccomp")), "2");
            assert_eq!(plain.exec_sh(&field("NoNewPrivs")), "0");
            assert_eq!(plain.exec_sh(&field("CapEff")), "00000000a80425fb");
            assert_eq!(bound.exec_sh(&field("CapEff")), "0000000000000400");
            privileged.exec_sh("mkdir /m && mount -t tmpfs none /m");
            assert_ne!(
                plain
                    .exec(&["mount", "-t", "tmpfs", "none", "/tmp"], 0)
                    .expect("ExecSync")
                    .exit_code,
                0
            );
            pod.remove();
        },
    );
}
