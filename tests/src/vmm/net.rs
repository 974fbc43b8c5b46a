// SPDX-License-Identifier: Apache-2.0

//! Network interfaces: a tap on the host and the guest's own, and what goes between them. No
//! tools are needed on either side.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use super::{Noise, Run, hash};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const PORT: u16 = 4000;
/// Longest silence on a connection.
const DEADLINE: Duration = Duration::from_secs(120);

/// A tap of this machine with an address, gone when its last descriptor is closed.
pub struct Tap {
    pub queues: Vec<File>,
    name: String,
}

impl Tap {
    /// Makes it, with as many queues; `mtu` is this side's.
    pub fn new(name: &str, queues: usize, mtu: u16) -> Tap {
        let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
        if !Path::new("/dev/net/tun").exists() {
            let loaded = std::process::Command::new("modprobe").arg("tun").status();
            assert!(loaded.expect("modprobe").success(), "the module tun is missing");
        }
        let open = |_| {
            let file = File::options().read(true).write(true).open("/dev/net/tun").expect("tun");
            let mut request = request(name);
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            call(file.as_raw_fd(), libc::TUNSETIFF, &mut request).expect("TUNSETIFF");
            file
        };
        let tap = Tap { queues: (0..queues).map(open).collect(), name: name.to_owned() };
        configure(name, HOST, Some(mtu)).expect("configure the tap");
        tap
    }

    /// Takes it away from under its descriptors.
    pub fn delete(self) {
        crate::containerd::network::ip(&format!("link del {}", self.name));
    }

    /// Keeps it beyond its descriptors, or no longer.
    fn persist(&self, on: bool) {
        // SAFETY: TUNSETPERSIST takes a number.
        let result = unsafe {
            libc::ioctl(self.queues[0].as_raw_fd(), libc::TUNSETPERSIST, libc::c_int::from(on))
        };
        assert_eq!(result, 0, "TUNSETPERSIST {}: {}", self.name, io::Error::last_os_error());
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq of zeros is one without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request
}

fn call(fd: RawFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all requests used here read and write one ifreq.
    match unsafe { libc::ioctl(fd, number, request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives an interface its address in a network of 24 bits, and sets it up.
fn configure(name: &str, address: Ipv4Addr, mtu: Option<u16>) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let fd = socket.as_raw_fd();
    let internet = |address: Ipv4Addr| {
        // SAFETY: a sockaddr is plain bytes, all of which may be 0.
        let mut socket_address: libc::sockaddr = unsafe { std::mem::zeroed() };
        socket_address.sa_family = libc::AF_INET as libc::sa_family_t;
        for (to, from) in socket_address.sa_data[2..6].iter_mut().zip(address.octets()) {
            *to = from as libc::c_char;
        }
        socket_address
    };
    let mut request = request(name);
    if let Some(mtu) = mtu {
        request.ifr_ifru.ifru_mtu = mtu.into();
        call(fd, libc::SIOCSIFMTU, &mut request)?;
    }
    request.ifr_ifru.ifru_addr = internet(address);
    call(fd, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_addr = internet(Ipv4Addr::new(255, 255, 255, 0));
    call(fd, libc::SIOCSIFNETMASK, &mut request)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    call(fd, libc::SIOCSIFFLAGS, &mut request)
}

/// The host's half of an exchange: sends `size` bytes on each of `connections` and receives as
/// many. Fails if what came is not what the guest's half sends.
pub struct Exchange(std::thread::JoinHandle<()>);

impl Exchange {
    pub fn start(size: u64, connections: usize) -> Exchange {
        let listener = TcpListener::bind(SocketAddrV4::new(HOST, PORT)).expect("listen");
        Exchange(std::thread::spawn(move || {
            let streams = (0..connections).map(|_| listener.accept().expect("accept").0);
            let threads: Vec<_> = streams
                .map(|stream| std::thread::spawn(move || send_and_receive(stream, size)))
                .collect();
            let sent = hash(Noise::new(2).take(size)).expect("hash");
            for thread in threads {
                let received = thread.join().expect("a connection").expect("exchange");
                assert_eq!(received, sent, "what the guest sent");
            }
        }))
    }

    pub fn finish(self) {
        self.0.join().expect("the host's half of the exchange");
    }
}

/// The guest's half of an exchange: each connection on the next CPU.
pub fn exchange(size: u64, connections: usize) -> io::Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let connect = |index: usize| {
        std::thread::spawn(move || {
            // A CPU sends on a queue of its own, and the tap answers a flow where it came.
            super::machine::pin(index % cpus)?;
            receive_and_send(TcpStream::connect(SocketAddrV4::new(HOST, PORT))?, size)
        })
    };
    let threads: Vec<_> = (0..connections).map(connect).collect();
    let sent = hash(Noise::new(1).take(size))?;
    for thread in threads {
        let received = thread.join().map_err(|_| io::Error::other("a thread panicked"))??;
        if received != sent {
            return Err(io::Error::other(format!("the host sent {sent}, {received} arrived")));
        }
    }
    Ok(())
}

fn send_and_receive(mut stream: TcpStream, size: u64) -> io::Result<String> {
    with_deadline(&stream)?;
    io::copy(&mut Noise::new(1).take(size), &mut stream)?;
    hash(&mut stream)
}

fn receive_and_send(mut stream: TcpStream, size: u64) -> io::Result<String> {
    with_deadline(&stream)?;
    let received = hash((&mut stream).take(size))?;
    io::copy(&mut Noise::new(2).take(size), &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    // A guest that is switched off takes what it has just sent with it: wait until the host,
    // which has everything then, closes.
    io::copy(&mut stream, &mut io::sink())?;
    Ok(received)
}

fn with_deadline(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))
}

/// Sets up the interface of the device in a slot; returns its name, MAC and MTU.
pub fn set_up(slot: &str) -> io::Result<String> {
    let device = format!("/sys/bus/pci/devices/0000:00:{slot}.0");
    let virtio = only(Path::new(&device), |name| name.starts_with("virtio"))?;
    let name = only(&Path::new(&device).join(virtio).join("net"), |_| true)?;
    configure(&name, GUEST, None)?;
    let read = |what: &str| fs::read_to_string(format!("/sys/class/net/{name}/{what}"));
    let queues = fs::read_dir(format!("/sys/class/net/{name}/queues"))?.count();
    Ok(format!("{} {} {queues}", read("address")?.trim(), read("mtu")?.trim()))
}

/// The one entry of a directory that fits.
fn only(directory: &Path, fits: impl Fn(&str) -> bool) -> io::Result<String> {
    let entries = fs::read_dir(directory)
        .map_err(|error| io::Error::other(format!("{}: {error}", directory.display())))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<io::Result<_>>()?;
    match &names.iter().filter(|name| fits(name)).collect::<Vec<_>>()[..] {
        [one] => Ok((*one).clone()),
        other => Err(io::Error::other(format!("{} has {other:?}", directory.display()))),
    }
}

const SIZE: u64 = 5_000_000;

/// husk-vmm alone, on a tap that is there.
pub fn at_boot() {
    let tap = Tap::new("husk-boot", 1, 1500);
    tap.persist(true);
    let Tap { queues, name } = tap;
    drop(queues);
    let exchange = Exchange::start(SIZE, 1);
    let outcome =
        Run::case("net", &["--net", &format!("tap={name},mac=02:00:00:00:00:aa")]).finish();
    let said = outcome.done().to_owned();
    exchange.finish();
    Tap::new(&name, 1, 1500).persist(false);
    assert_eq!(said, "02:00:00:00:00:aa 1500 2", "MAC, MTU and queues\n{outcome}");
    println!("{SIZE} bytes each way over a tap that was there at boot");
}

pub fn guest() -> io::Result<String> {
    let said = set_up("04")?;
    exchange(SIZE, 1)?;
    Ok(said)
}
