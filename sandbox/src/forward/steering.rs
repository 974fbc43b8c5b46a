// SPDX-License-Identifier: Apache-2.0

//! One socket for all ports. When a TCP connection to 127.0.0.1 or ::1 begins in a network
//! namespace, an eBPF program of the type SK_LOOKUP (Linux 5.9) gives it to the socket, which
//! it finds in a map of one. The program is asked before the namespace's own listeners; those
//! on other addresses, such as Docker's name server, keep their connections. All of it goes
//! with the last of its descriptors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::network::Namespace;

/// A namespace's localhost is a socket's as long as this lives.
#[derive(Debug)]
pub struct Steering {
    _link: OwnedFd,
}

impl Steering {
    /// `listener` is a TCP socket that listens, of IPv4 or of both families.
    pub fn new(listener: &impl AsFd, namespace: &Namespace) -> Result<Steering, Errno> {
        let map = socket_map(listener.as_fd())?;
        let program = load(&program(&map))?;
        // The link holds the program, and that the map, which holds the socket weakly.
        Ok(Steering { _link: attach(&program, namespace.as_fd())? })
    }
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the lower, source in the upper half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Registers: a call's result and arguments, what calls leave alone, and the stack's end.
const RESULT: u8 = 0;
const FIRST: u8 = 1;
const SECOND: u8 = 2;
const THIRD: u8 = 3;
const CONTEXT: u8 = 6;
const SOCKET: u8 = 7;
const STACK: u8 = 10;

/// Operations with a number, or else with a register.
const LOAD: u8 = 0x61;
const LOAD_64: u8 = 0x18;
const STORE: u8 = 0x62;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const ADD: u8 = 0x07;
const JUMP: u8 = 0x05;
const IF_EQUAL: u8 = 0x15;
const UNLESS_EQUAL: u8 = 0x56;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// The number to load is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;

/// Functions of the kernel, and the answer that it may go on.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
const SK_PASS: i32 = 1;

/// Offsets in `struct bpf_sk_lookup`. The addresses are in network order.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;

/// The offset of a jump to the end, until that is known.
const TO_THE_END: i16 = 0;

fn program(map: &OwnedFd) -> Vec<Instruction> {
    let op = |code, to, immediate| Instruction { code, registers: to, offset: 0, immediate };
    let at = |offset, op| Instruction { offset, ..op };
    let from = |code, to, from: u8, offset| Instruction {
        registers: to | from << 4,
        offset,
        ..op(code, 0, 0)
    };
    let call = |function| op(CALL, 0, function);
    // Jumps unless the context has this number there.
    let unless = |there, number, jump| {
        [from(LOAD, FIRST, CONTEXT, there), at(jump, op(UNLESS_EQUAL, FIRST, number))]
    };
    let ip4 = i32::from_ne_bytes([127, 0, 0, 1]);
    let ip6 = [0, 0, 0, i32::from_ne_bytes([0, 0, 0, 1])];
    let if_ip6: Vec<Instruction> = (0..)
        .zip(ip6)
        .flat_map(|(nth, part)| unless(LOCAL_IP6 + 4 * nth, part, TO_THE_END))
        .collect();
    let mut if_ip4 = unless(LOCAL_IP4, ip4, TO_THE_END).to_vec();
    if_ip4.push(at(if_ip6.len() as i16, op(JUMP, 0, 0)));

    let mut code = vec![from(MOVE_REGISTER, CONTEXT, FIRST, 0)];
    code.extend(unless(PROTOCOL, libc::IPPROTO_TCP, TO_THE_END));
    code.extend(unless(FAMILY, libc::AF_INET, if_ip4.len() as i16));
    code.extend(if_ip4);
    code.extend(if_ip6);
    code.extend([
        // The map's element 0.
        at(-4, op(STORE, STACK, 0)),
        from(MOVE_REGISTER, SECOND, STACK, 0),
        op(ADD, SECOND, -4),
        from(LOAD_64, FIRST, PSEUDO_MAP_FD, 0),
        op(0, 0, 0),
        call(MAP_LOOKUP_ELEM),
        // The listener is closed.
        at(TO_THE_END, op(IF_EQUAL, RESULT, 0)),
        from(MOVE_REGISTER, SOCKET, RESULT, 0),
        from(MOVE_REGISTER, FIRST, CONTEXT, 0),
        from(MOVE_REGISTER, SECOND, SOCKET, 0),
        op(MOVE, THIRD, 0),
        call(SK_ASSIGN),
        from(MOVE_REGISTER, FIRST, SOCKET, 0),
        call(SK_RELEASE),
    ]);
    let end = code.len();
    for (index, instruction) in code.iter_mut().enumerate() {
        match instruction.code {
            LOAD_64 => instruction.immediate = map.as_raw_fd(),
            UNLESS_EQUAL | IF_EQUAL if instruction.offset == TO_THE_END => {
                instruction.offset = (end - index - 1) as i16;
            }
            _ => {}
        }
    }
    code.extend([op(MOVE, RESULT, SK_PASS), op(EXIT, 0, 0)]);
    code
}

/// bpf(2): its commands, and the parts of `union bpf_attr` that they use.
const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const SK_LOOKUP: u32 = 36;

const NAME: [u8; 16] = *b"husk_localhost\0\0";

#[repr(C)]
struct CreateMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Update {
    map: i32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Load {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct Link {
    program: i32,
    target: i32,
    attach_type: u32,
    flags: u32,
}

/// The kernel takes a command's attributes as far as they reach, and zeros for the rest.
///
/// SAFETY: pointers in `attributes` must be good for what the command does with them.
unsafe fn bpf<T>(command: i32, attributes: &mut T) -> Result<i32, Errno> {
    let size = size_of::<T>();
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    Errno::result(result).map(|result| result as i32)
}

/// The same for commands that return a new descriptor.
///
/// SAFETY: as above.
unsafe fn bpf_fd<T>(command: i32, attributes: &mut T) -> Result<OwnedFd, Errno> {
    // SAFETY: the descriptor is new and nobody else's; the rest is the caller's promise.
    unsafe { bpf(command, attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// A map whose only element is the socket.
fn socket_map(socket: BorrowedFd) -> Result<OwnedFd, Errno> {
    let mut create = CreateMap {
        kind: MAP_TYPE_SOCKMAP,
        key_size: 4,
        value_size: 4,
        entries: 1,
        flags: 0,
        inner_map: 0,
        node: 0,
        name: NAME,
    };
    // SAFETY: there are no pointers in the attributes.
    let map = unsafe { bpf_fd(MAP_CREATE, &mut create)? };
    let (key, value) = (0u32, socket.as_raw_fd());
    let mut update = Update {
        map: map.as_raw_fd(),
        _padding: 0,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads key and value, which have the map's sizes and are alive.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut update)? };
    Ok(map)
}

fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let mut load = Load {
        kind: PROG_TYPE_SK_LOOKUP,
        length: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: NAME,
        interface: 0,
        attach_type: SK_LOOKUP,
    };
    // SAFETY: the kernel reads `length` instructions and a C string, alive during the call.
    unsafe { bpf_fd(PROG_LOAD, &mut load) }
}

/// Attaches a program to a network namespace.
fn attach(program: &OwnedFd, namespace: BorrowedFd) -> Result<OwnedFd, Errno> {
    let (program, target) = (program.as_raw_fd(), namespace.as_raw_fd());
    let mut link = Link { program, target, attach_type: SK_LOOKUP, flags: 0 };
    // SAFETY: there are no pointers in the attributes.
    unsafe { bpf_fd(LINK_CREATE, &mut link) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::path::Path;

    use husk_netlink::{Message, Socket};

    use super::*;
    use crate::network::Netns;

    /// Runs on a thread with a network namespace of its own that has a loopback interface.
    fn in_a_namespace(test: impl FnOnce(&Namespace) + Send) {
        let on_thread = || {
            if let Err(error) = Netns::New.enter() {
                return println!("not run, no network namespace can be made: {error}");
            }
            let mut up = [0; 16];
            up[4..8].copy_from_slice(&1u32.to_ne_bytes());
            for flags in [8, 12] {
                up[flags..flags + 4].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
            }
            let socket = Socket::open().expect("netlink");
            socket.request(Message::new(libc::RTM_SETLINK, 0, &up)).expect("loopback");
            let own = Namespace::open(Path::new("/proc/thread-self/ns/net")).expect("its own");
            test(&own);
        };
        std::thread::scope(|scope| scope.spawn(on_thread).join()).expect("the test's thread");
    }

    #[test]
    fn all_ports_of_localhost_are_one_socket_for_a_time() {
        in_a_namespace(|namespace| {
            let listener = crate::forward::listener().expect("listener");
            let steering = match Steering::new(&listener, namespace) {
                Err(error @ (Errno::EPERM | Errno::ENOSYS)) => {
                    return println!("not run, no eBPF here: {error}");
                }
                steering => steering.expect("steering"),
            };
            let listener = TcpListener::from(listener);
            listener.set_nonblocking(false).expect("blocking");
            let others: Vec<TcpListener> = ["127.0.0.1:4711", "127.0.0.11:53"]
                .map(|address| TcpListener::bind(address).expect(address))
                .into();
            for address in ["127.0.0.1:1", "127.0.0.1:65535", "[::1]:80", "127.0.0.1:4711"] {
                let mut client = TcpStream::connect(address).expect(address);
                let (mut server, _) = listener.accept().expect("accept");
                let asked = server.local_addr().expect("address");
                let canonical = SocketAddr::new(asked.ip().to_canonical(), asked.port());
                assert_eq!(canonical.to_string(), address);
                client.write_all(b"to").expect("write");
                server.write_all(b"fro").expect("write");
                drop(client.shutdown(std::net::Shutdown::Write));
                drop(server.shutdown(std::net::Shutdown::Write));
                let mut said = [String::new(), String::new()];
                server.read_to_string(&mut said[0]).expect("read");
                client.read_to_string(&mut said[1]).expect("read");
                assert_eq!(said, ["to", "fro"]);
            }
            // Other addresses are not touched.
            TcpStream::connect("127.0.0.11:53").expect("a listener's own");
            others[1].accept().expect("accept");
            let refused = TcpStream::connect("127.0.0.2:80").expect_err("nobody is there");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            drop(steering);
            let refused = TcpStream::connect("127.0.0.1:80").expect_err("nobody is there now");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            TcpStream::connect("127.0.0.1:4711").expect("a listener's own");
        });
    }

    #[test]
    fn a_closed_listener_is_no_listener() {
        in_a_namespace(|namespace| {
            let listener = crate::forward::listener().expect("listener");
            let Ok(_steering) = Steering::new(&listener, namespace) else {
                return println!("not run, no eBPF here");
            };
            drop(listener);
            for address in ["127.0.0.1:80", "[::1]:80"] {
                let refused = TcpStream::connect(address).expect_err("nobody is there");
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            }
        });
    }
}
