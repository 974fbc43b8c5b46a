// SPDX-License-Identifier: Apache-2.0

//! What config.json's `linux` says of a container: namespaces, kernel parameters, devices,
//! users.

use husk_tests::containerd::case;
use husk_tests::containerd::config::{Check, Config};
use serde_json::json;

#[test]
fn own_namespaces() {
    case("namespaces of the container's own, what is set in them, and its devices", |lab| {
        let directory = husk_tests::temporary("husk-linux");
        let mut config = Config::new(lab)
            .own_root(lab, directory.path())
            .add("/linux/namespaces", json!([{"type": "cgroup"}]))
            .set("/hostname", json!("named"))
            .set("/linux/rootfsPropagation", json!("shared"))
            .set(
                "/linux/sysctl",
                json!({
                    "kernel.shmmax": "1234567", "kernel.sem": "32001 1024000001 501 32002",
                    "kernel.msgmax": "8193", "kernel.shm_rmid_forced": "1",
                    "fs.mqueue.queues_max": "77",
                    "net.ipv4.ip_forward": "1", "net.ipv4.ip_unprivileged_port_start": "81",
                    "net/core/somaxconn": "4321",
                }),
            )
            .set(
                "/linux/devices",
                json!([
                    {"type": "c", "path": "/dev/made/null", "major": 1, "minor": 3,
                     "fileMode": 0o640, "uid": 7, "gid": 8},
                    {"type": "p", "path": "/dev/fifo", "fileMode": 0o600},
                    {"type": "u", "path": "/dev/unbuffered", "major": 1, "minor": 5},
                ]),
            )
            .set(
                "/linux/resources/devices",
                json!([
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"},
                    {"allow": true, "type": "c", "major": 10, "minor": 235, "access": "rw"},
                    {"allow": false, "type": "c", "major": 10, "minor": 235, "access": "w"},
                ]),
            );
        for set in ["bounding", "permitted", "effective"] {
            config = config.add(&format!("/process/capabilities/{set}"), json!(["CAP_SYSLOG"]));
        }
        let mut checks: Vec<Check> = vec![
            (
                "PID namespace: the first process is 1",
                "echo $$; ls -d /proc/[0-9] | head -1",
                "1 /proc/1",
            ),
            ("UTS namespace: hostname", "hostname", "named"),
            (
                "network namespace: nothing but loopback, which is up",
                "ls /sys/class/net; ip -o link show up | cut -d: -f2",
                "lo lo",
            ),
            (
                "cgroup namespace: the container's is the root",
                "cat /proc/self/cgroup | tail -1 | cut -d: -f3",
                "/",
            ),
            (
                "sysctl: kernel.shmmax, sem, msgmax, shm_rmid_forced",
                "cd /proc/sys/kernel; cat shmmax sem msgmax shm_rmid_forced",
                "1234567 32001 1024000001 501 32002 8193 1",
            ),
            ("sysctl: fs.mqueue.queues_max", "cat /proc/sys/fs/mqueue/queues_max", "77"),
            (
                "sysctl: net, with dots and with slashes",
                "cd /proc/sys/net; cat ipv4/ip_forward ipv4/ip_unprivileged_port_start \
                 core/somaxconn",
                "1 81 4321",
            ),
            (
                "sysctl: the container itself cannot change them",
                "echo 5 >/proc/sys/kernel/shmmax",
                "sh: can't create /proc/sys/kernel/shmmax: Read-only file system",
            ),
            (
                "devices that all have",
                "cd /dev; stat -c '%n %t:%T %a' null zero full random urandom tty",
                "null 1:3 666 zero 1:5 666 full 1:7 666 random 1:8 666 urandom 1:9 \
                 666 tty 5:0 666",
            ),
            (
                "links that all have",
                "cd /dev; for link in fd stdin stdout stderr ptmx; do readlink $link; done",
                "/proc/self/fd /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 pts/ptmx",
            ),
            (
                "linux.devices: numbers, mode, owner; a directory for it is made",
                "stat -c '%t:%T %a %u %g' /dev/made/null; stat -c '%F %a' /dev/fifo; stat \
                 -c '%t:%T' /dev/unbuffered",
                "1:3 640 7 8 fifo 600 1:5",
            ),
            (
                "device rules: a device that is not listed is refused, whoever \
                 makes the node",
                "mknod /dev/port c 1 4; : </dev/port",
                "sh: can't open /dev/port: Operation not permitted",
            ),
            (
                "device rules: reading without writing",
                "mknod /dev/log c 1 11; : </dev/log; echo $?; : >/dev/log",
                "0 sh: can't create /dev/log: Operation not permitted",
            ),
            (
                "device rules: a later rule takes from an earlier one",
                "mknod /dev/autofs c 10 235; : <>/dev/autofs",
                "sh: can't create /dev/autofs: Operation not permitted",
            ),
            (
                "device rules: the always allowed work",
                "echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 3 \
                 /dev/urandom | wc -c",
                "3 3",
            ),
        ];
        // runc 1.1 does not know most of these, and leaves them out.
        if lab.is_husk() {
            config = config
                .set("/domainname", json!("realm"))
                .set("/linux/personality", json!({"domain": "LINUX32"}));
            checks.extend([
                // runc 1.1 leaves the root private, whatever is asked.
                (
                    "rootfsPropagation: shared",
                    "awk '$5 == \"/\" { print $7 }' /proc/self/mountinfo | sed 's/:.*//'",
                    "shared",
                ),
                ("domainname", "cat /proc/sys/kernel/domainname", "realm"),
                ("personality", "uname -m", "i686"),
            ]);
        }
        let checked = config.check(lab, "own", &checks);
        let inherited = [
            "UTS",
            "network namespace",
            "cgroup namespace",
            "sysctl: kernel",
            "sysctl: net",
            "domainname",
        ];
        let mut execs: Vec<Check> = checks
            .into_iter()
            .filter(|(what, ..)| inherited.iter().any(|name| what.starts_with(name)))
            .collect();
        execs.push((
            "an exec is in all namespaces of the first process",
            "cd /proc; for kind in cgroup ipc mnt net pid time user uts; do
                 test $(readlink self/ns/$kind) = $(readlink 1/ns/$kind) || echo $kind; done",
            "",
        ));
        checked.exec(&execs);
        checked.finish();
    });
}

#[test]
fn shared_namespaces() {
    case("namespaces that are not listed are the runtime's: with husk, the guest's", |lab| {
        let config = Config::new(lab)
            .set("/linux/namespaces", json!([{"type": "mount"}]))
            .set("/linux/maskedPaths", json!([]))
            // Another network's /sys cannot be mounted, and this is not another network.
            .set("/process/noNewPrivileges", json!(true));
        let mut checks: Vec<Check> = vec![
            (
                "the PID namespace is shared",
                "test $$ -gt 1 && test -d /proc/1 && echo shared",
                "shared",
            ),
            (
                "orphans are reaped by whoever is PID 1, and by nobody else",
                "(sh -c 'echo $$ >/run/orphan' &)
                 for try in $(seq 2000); do
                     test -s /run/orphan && ! test -d /proc/$(cat /run/orphan) && break
                     usleep 5000
                 done; test -d /proc/$(cat /run/orphan) && cat /proc/$(cat /run/orphan)/stat",
                "",
            ),
        ];
        let config =
            match lab.is_husk() {
                false => config,
                true => {
                    checks.extend([
                    ("PID 1 is the guest's", "cat /proc/1/comm; uname -r | grep -c husk", "init 1"),
                    ("a parameter of the guest's network, which the pod's containers may set",
                        "cat /proc/sys/net/core/somaxconn", "999"),
                ]);
                    // runc refuses to set what is the host's.
                    config.set("/linux/sysctl", json!({"net.core.somaxconn": "999"}))
                }
            };
        config.check(lab, "shared", &checks).finish();
    });
}

#[test]
fn user_namespace() {
    case("a user namespace: mappings, files of others, devices, exec", |lab| {
        let map = json!([
            {"containerID": 0, "hostID": 200_000, "size": 1000},
            {"containerID": 5000, "hostID": 300_000, "size": 10},
        ]);
        let config = Config::new(lab)
            .add("/linux/namespaces", json!([{"type": "user"}, {"type": "cgroup"}]))
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map)
            .set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "82"}))
            .set("/process/user", json!({"uid": 0, "gid": 0, "additionalGids": [5001]}));
        let ids: Check = (
            "mappings, and a user and groups of the namespace",
            "cat /proc/self/uid_map /proc/self/gid_map; id -u; grep ^Groups \
                 /proc/self/status",
            "0 200000 1000 5000 300000 10 0 200000 1000 5000 300000 10 0 Groups: 5001",
        );
        let checked = config.check(
            lab,
            "mapped",
            &[
                ids,
                (
                    "files of the host's root are nobody's",
                    "stat -c '%u %g' /bin/busybox",
                    "65534 65534",
                ),
                (
                    "mounts belong to the container's root",
                    "touch /run/file; stat -c '%u %g' /run/file /dev/shm",
                    "0 0 0 0",
                ),
                (
                    "a file can be given to a mapped user, and to no other",
                    "touch /run/own; chown 5003 /run/own && stat -c %u /run/own; chown \
                 1000 /run/own",
                    "5003 chown: /run/own: Invalid argument",
                ),
                (
                    "devices work",
                    "echo x >/dev/null; head -c 2 /dev/zero | wc -c; stat -c %t:%T /dev/tty",
                    "2 5:0",
                ),
                (
                    "sysctl of its network",
                    "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
                    "82",
                ),
                (
                    "the guest's own users are out of reach",
                    "mknod /run/node c 1 3",
                    "mknod: /run/node: Operation not permitted",
                ),
            ],
        );
        checked.exec(&[ids]);
        checked.finish();
    });
}
