// SPDX-License-Identifier: Apache-2.0

//! husk-vmm under a supervisor: descriptors in, events out, and no life without it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use husk_vmm::config::{Console, VmConfig};
use husk_vmm::control::{Command as Order, Event, ExitReason, Packets};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::{kernel, test_guest};

const DEADLINE: Duration = Duration::from_secs(120);
const PORT: u32 = 70_000;

pub(super) struct Supervisor {
    pub child: Child,
    pub packets: Packets<OwnedFd>,
    log: File,
}

impl Supervisor {
    /// Starts husk-vmm and has it boot the test guest with this half.
    pub fn boot(case: &str) -> Supervisor {
        Supervisor::boot_with(case, 1)
    }

    pub fn boot_with(case: &str, vcpus: u8) -> Supervisor {
        let mut supervisor = Supervisor::start();
        let files: Vec<File> = vec![
            File::options().read(true).write(true).open("/dev/kvm").expect("/dev/kvm"),
            File::open(kernel()).expect("kernel"),
            File::open(test_guest()).expect("image"),
            supervisor.log.try_clone().expect("clone"),
        ];
        let config = VmConfig {
            vcpus,
            most_vcpus: vcpus + 1,
            memory_mib: 256,
            most_memory_mib: 1024,
            cmdline: format!("console=hvc0 quiet panic=-1 maxcpus={vcpus} case={case}"),
            kvm: 0,
            kernel: 1,
            initramfs: Some(2),
            console: Console::Log(3),
            vsock: true,
            share: None,
            disks: vec![],
        };
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(File::as_fd).collect();
        supervisor.packets.send(&Order::Boot(config), &fds).expect("boot");
        match supervisor.event() {
            Some((Event::Running { started_ns, running_ns }, _)) => {
                assert!(started_ns > 0 && started_ns < running_ns);
            }
            other => panic!("expected running, got {other:?}"),
        }
        supervisor
    }

    fn start() -> Supervisor {
        let (near, far) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .expect("socketpair");
        let mut command = Command::new("husk-vmm");
        command.args(["--control", "3"]);
        let fd = far.as_raw_fd();
        // SAFETY: dup2 is async-signal-safe, and the copy is not close-on-exec. Where the
        // socket is descriptor 3 already, dup2 would keep that flag.
        unsafe {
            command.pre_exec(move || {
                let result =
                    if fd == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(fd, 3) };
                if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = command.spawn().expect("husk-vmm on PATH");
        let folder = crate::temporary("supervised");
        let log = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(folder.path().join("console.log"))
            .expect("log");
        Supervisor { child, packets: Packets(near), log }
    }

    pub fn event(&mut self) -> Option<(Event, Vec<OwnedFd>)> {
        let mut fds = [PollFd::new(self.packets.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(DEADLINE).expect("timeout");
        assert_eq!(poll(&mut fds, timeout).expect("poll"), 1, "no event in time; {}", self.tail());
        self.packets.receive().expect("receive")
    }

    pub fn exited(&mut self) -> ExitReason {
        match self.event() {
            Some((Event::Exited(reason), _)) => {
                assert!(self.child.wait().expect("wait").success());
                reason
            }
            other => panic!("expected the end, got {other:?}; {}", self.tail()),
        }
    }

    pub fn tail(&self) -> String {
        let mut log = &self.log;
        let mut text = Vec::new();
        let _ = log.seek(SeekFrom::Start(0)).and_then(|_| log.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text).into_owned();
        text[text.len().saturating_sub(4096)..].to_owned()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection of the guest arrives as a descriptor; a refused one is refused.
pub fn connections() {
    let mut supervisor = Supervisor::boot("dial");
    let Some((Event::Connect { port: PORT }, fds)) = supervisor.event() else {
        panic!("expected the guest's connection; {}", supervisor.tail())
    };
    let mut stream = UnixStream::from(fds.into_iter().next().expect("descriptor"));
    stream.write_all(b"to the guest").expect("write");
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    assert_eq!(answer, "the guest read 'to the guest'");
    assert_eq!(supervisor.exited(), ExitReason::PowerOff);
    println!("the guest's connection came as a descriptor, half-closed both ways");
}

pub fn guest() -> io::Result<String> {
    let mut stream = File::from(super::vsock::dial(PORT)?);
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    write!(stream, "the guest read '{text}'")?;
    Ok("dialled".to_owned())
}

pub fn reasons() {
    assert_eq!(Supervisor::boot("machine").exited(), ExitReason::PowerOff);
    assert_eq!(Supervisor::boot("reset").exited(), ExitReason::Reset);
    let mut panicked = Supervisor::boot("panic");
    assert_eq!(panicked.exited(), ExitReason::Panic);
    assert!(panicked.tail().contains("Attempted to kill init"), "{}", panicked.tail());
    println!("power-off, reset and panic are told apart, and the panic's text is in the log");
}

pub fn stop() {
    let mut supervisor = Supervisor::boot("console");
    supervisor.packets.send(&Order::Stop, &[]).expect("stop");
    assert_eq!(supervisor.exited(), ExitReason::Stopped);

    let supervisor = &mut Supervisor::boot("console");
    nix::sys::socket::shutdown(supervisor.packets.0.as_raw_fd(), nix::sys::socket::Shutdown::Both)
        .expect("shutdown");
    assert!(supervisor.child.wait().expect("wait").success());
    println!("husk-vmm ends when it is told to, and when its supervisor is gone");
}

pub fn failures() {
    let mut supervisor = Supervisor::start();
    let order = r#"{"boot":{"vcpus":1,"most_vcpus":1,"memory_mib":256,"most_memory_mib":256,
        "cmdline":"","kvm":0,"kernel":1,
        "initramfs":null,"console":{"log":9},"vsock":false,"share":null,"disks":[]}}"#;
    let order: Order = serde_json::from_str(order).expect("order");
    let file = File::open("/dev/null").expect("/dev/null");
    supervisor.packets.send(&order, &[file.as_fd(), file.as_fd()]).expect("send");
    let Some((Event::Failed(text), _)) = supervisor.event() else { panic!("not refused") };
    assert!(text.contains("descriptor 9"), "{text}");
    assert_eq!(supervisor.child.wait().expect("wait").code(), Some(2));
    println!("a boot command that lacks a descriptor is refused by name");
}

/// A guest that floods its console fills neither the disk nor the log's tail with the past.
pub fn flood() {
    let mut supervisor = Supervisor::boot("flood");
    assert_eq!(supervisor.exited(), ExitReason::PowerOff);
    let size = supervisor.log.metadata().expect("metadata").len();
    assert!(size <= husk_vmm::log::MAX_SIZE, "the log has {size} bytes");
    assert!(size < super::console::FLOOD as u64 / 2);
    println!("3 MiB on the console left a log of {size} bytes");
}
