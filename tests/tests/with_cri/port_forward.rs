// SPDX-License-Identifier: Apache-2.0

//! PortForward: containerd connects to a port of localhost in the pod's network namespace on
//! the host, and the server is in the guest.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use husk_tests::containerd::HUSK_SHIM;
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::api::NamespaceMode;
use husk_tests::cri::container::Container;
use husk_tests::cri::pod::{Pod, namespaces};
use husk_tests::cri::streaming::{DATA, ERROR};
use husk_tests::cri::{Cri, case, husk_case};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

const LEN: usize = 1 << 20;

/// Sends back what it gets on port 7000, and the sum of it on 7001 when it has all.
const ECHO: &str = "nc -ll -p 7001 -e sha256sum & exec nc -ll -p 7000 -e cat";

fn pod<'a>(cri: &'a Cri<'a>, name: &str) -> Pod<'a> {
    cri.pod(name, |config| namespaces(config).network = NamespaceMode::POD.into())
}

/// Bytes that are all different for the eye of a hash.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let blocks = (0..len as u64 / 32)
        .flat_map(|n| Sha256::new_with_prefix([seed]).chain_update(n.to_le_bytes()).finalize());
    blocks.collect()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Connects to an address in the network namespace of a process.
fn connect(pid: i32, address: &'static str) -> io::Result<TcpStream> {
    let connecting = thread::spawn(move || {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        TcpStream::connect(address)
    });
    connecting.join().expect("the thread")
}

/// Waits until a server has these ports.
fn until_listening(container: &Container, ports: &[u16]) {
    for port in ports {
        container
            .until_sh(&format!("cat /proc/net/tcp /proc/net/tcp6 | grep -q ':{port:04X} .* 0A '"));
    }
}

#[test]
fn servers() {
    case(
        "PortForward reaches servers on all addresses, on 127.0.0.1 and on ::1 alone, and that of a new container; without a server the client is told, and the pod goes on",
        |cri| {
            let pod = pod(cri, "serving");
            let line = "mkdir /www; echo served >/www/index.html; httpd -p 80 -h /www; \
                        httpd -p 127.0.0.1:81 -h /www; exec httpd -f -p '[::1]:82' -h /www";
            let serve = |attempt| {
                let server = pod.start("server", &["sh", "-c", line], |config| {
                    config.metadata.mut_or_insert_default().attempt = attempt;
                });
                until_listening(&server, &[80, 81, 82]);
                server
            };
            let fetch = |port| {
                let forwarded = pod.forward(port);
                forwarded.send(DATA, b"GET / HTTP/1.0\r\n\r\n");
                let answer = forwarded.to_its_end(DATA);
                assert!(answer.ends_with("\r\n\r\nserved\n"), "port {port}: {answer}");
                assert_eq!(forwarded.said(ERROR), "", "port {port}");
            };
            let server = serve(0);
            for port in [80, 81, 82] {
                fetch(port);
            }
            let nobody = |port| {
                let said = pod.forward(port).to_its_end(ERROR);
                assert!(said.contains(&format!("port {port}")), "{said:?}");
            };
            nobody(83);
            server.remove_running();
            nobody(80);
            let server = serve(1);
            fetch(81);
            assert!(server.is_running() && pod.is_ready());
            pod.remove();
        },
    );
}

#[test]
fn streams() {
    case(
        "PortForward: 1 MiB each way, six connections at once, and the end of one direction",
        |cri| {
            let pod = pod(cri, "echoing");
            let server = pod.sh("server", ECHO);
            until_listening(&server, &[7000, 7001]);
            let sent = pattern(0, LEN);
            let forwarded = pod.forward(7000);
            forwarded.send(DATA, &sent);
            assert_eq!(hash(&forwarded.until_bytes(DATA, LEN)), hash(&sent));
            let several: Vec<_> =
                (1..7u8).map(|seed| (pod.forward(7000), pattern(seed, LEN / 8))).collect();
            for half in [0, LEN / 16] {
                for (forwarded, bytes) in &several {
                    forwarded.send(DATA, &bytes[half..half + LEN / 16]);
                }
            }
            for (forwarded, bytes) in &several {
                assert_eq!(hash(&forwarded.until_bytes(DATA, LEN / 8)), hash(bytes));
            }
            // The first is still there.
            forwarded.send(DATA, b"more");
            assert_eq!(&forwarded.until_bytes(DATA, LEN + 4)[LEN..], b"more");

            // What a WebSocket cannot say: that there is no more to send.
            for address in ["127.0.0.1:7001", "[::1]:7001"] {
                let mut client = connect(pod.pid(), address).expect(address);
                client.set_read_timeout(Some(LIMIT)).expect("a limit");
                client.write_all(&sent).expect("write");
                client.shutdown(Shutdown::Write).expect("shutdown");
                let mut said = String::new();
                client.read_to_string(&mut said).expect("read");
                assert_eq!(said.split(' ').next(), Some(hash(&sent).as_str()), "{address}");
            }
            drop(forwarded);
            pod.remove();
        },
    );
}

#[test]
fn without_the_shim() {
    husk_case(
        "the shim killed under a forwarded connection: it ends, and the namespace's localhost is its own again",
        |cri| {
            let before = pids_of(HUSK_SHIM);
            let pod = pod(cri, "struck");
            let server = pod.sh("server", ECHO);
            until_listening(&server, &[7000]);
            let forwarded = pod.forward(7000);
            forwarded.send(DATA, b"here");
            forwarded.until_said(DATA, "here");
            // The pause container's network is CNI's, which outlives the pod's processes.
            let keeper = connect(pod.pid(), "127.0.0.1:7000").expect("a connection");
            let namespace = File::open(format!("/proc/{}/ns/net", pod.pid())).expect("its network");
            let shim = pids_of(HUSK_SHIM).into_iter().find(|pid| !before.contains(pid));
            kill(Pid::from_raw(shim.expect("its shim")), Signal::SIGKILL).expect("kill");
            forwarded.to_its_end(DATA);
            let refused = eventually(LIMIT, || {
                let namespace = namespace.try_clone().expect("a duplicate");
                let connecting = thread::spawn(move || {
                    setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter");
                    TcpStream::connect("127.0.0.1:7000")
                });
                let connected = connecting.join().expect("the thread");
                connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
            });
            assert!(refused, "somebody still listens on the namespace's localhost");
            drop(keeper);
            drop(namespace);
            assert!(eventually(LIMIT, || !pod.is_ready()), "the pod stays ready");
            pod.remove();
        },
    );
}

#[test]
fn hosts_network() {
    husk_case("a pod on the host's network leaves the host's localhost alone", |cri| {
        let address = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            free.local_addr().expect("its address")
        };
        let pod = cri.pod("hosted", |_| {});
        let error = TcpStream::connect(address).expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        pod.remove();
    });
}
