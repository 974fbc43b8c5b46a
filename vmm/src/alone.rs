// SPDX-License-Identifier: Apache-2.0

//! husk-vmm by hand: options to descriptors, a guest on the terminal.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use husk_vmm::config::{Console, Disk, NetConfig, Plug, Share, VmConfig};
use husk_vmm::control::ExitReason;
use husk_vmm::virtio::rng;
use husk_vmm::virtio::vsock::HostPaths;
use husk_vmm::vm::{Vm, VsockHost};
use husk_vmm::{kvm, probe};
use lexopt::{Arg, Parser, ValueExt};
use vmm_sys_util::terminal::Terminal;

use crate::refuse;

const HELP: &str = "\
husk-vmm boots a microVM on KVM, with the terminal as its console.

usage: husk-vmm --kernel FILE [options]

  --kernel FILE      uncompressed vmlinux with a PVH entry (CONFIG_PVH=y)
  --initramfs FILE   initial RAM file system
  --cmdline TEXT     kernel command line [console=hvc0 panic=-1]
  --cpus N           virtual CPUs, 1 to 32 [1]
  --memory SIZE      guest memory in MiB, or with K, M or G [256M]
  --disk FILE[,ro]   raw image or block device, in order /dev/vda, vdb ... (repeatable)
  --net tap=NAME[,mac=MAC]
                     network interface on a tap of the host, made if it is not there; a
                     random MAC if none is given (repeatable)
  --share DIR        directory shared by virtio-fs under the tag 'husk'
  --vsock SOCKET     vsock: write 'CONNECT port' to this unix socket to reach the guest;
                     the guest's connections to host port P go to SOCKET_P
  --control FD       be driven by a supervisor over this SOCK_SEQPACKET socket instead
  --help, --version

Exit status: 0 when the guest powered off or reset, 1 when it failed, 2 on bad input.
";

/// virtio-fs tag of `--share`.
const SHARE_TAG: &str = "husk";

pub enum Arguments {
    /// Help or version.
    Print(String),
    Supervised(RawFd),
    Alone(Box<Guest>),
}

pub struct Guest {
    kernel: PathBuf,
    initramfs: Option<PathBuf>,
    cmdline: String,
    cpus: u8,
    memory_mib: u64,
    disks: Vec<(PathBuf, bool)>,
    nets: Vec<(String, [u8; 6])>,
    share: Option<PathBuf>,
    vsock: Option<PathBuf>,
}

pub fn parse(mut parser: Parser) -> Result<Arguments, String> {
    let mut kernel = None;
    let mut guest = Guest {
        kernel: PathBuf::new(),
        initramfs: None,
        cmdline: "console=hvc0 panic=-1".to_owned(),
        cpus: 1,
        memory_mib: 256,
        disks: Vec::new(),
        nets: Vec::new(),
        share: None,
        vsock: None,
    };
    while let Some(argument) = parser.next().map_err(text)? {
        let Arg::Long(name) = argument else {
            return Err(format!("{}; see --help", argument.unexpected()));
        };
        let name = name.to_owned();
        match name.as_str() {
            "help" => return Ok(Arguments::Print(HELP.to_owned())),
            "version" => {
                return Ok(Arguments::Print(format!("husk-vmm {}\n", env!("CARGO_PKG_VERSION"))));
            }
            "kernel" | "initramfs" | "cmdline" | "cpus" | "memory" | "disk" | "net" | "share"
            | "vsock" | "control" => {}
            _ => return Err(format!("there is no option --{name}; see --help")),
        }
        let value = parser.value().map_err(text)?;
        let words = || value.clone().string().map_err(text);
        match name.as_str() {
            "kernel" => kernel = Some(PathBuf::from(&value)),
            "initramfs" => guest.initramfs = Some(PathBuf::from(&value)),
            "cmdline" => guest.cmdline = words()?,
            "cpus" => guest.cpus = cpus(&words()?)?,
            "memory" => guest.memory_mib = memory_mib(&words()?)?,
            "disk" => guest.disks.push(disk(&words()?)),
            "net" => guest.nets.push(net(&words()?)?),
            "share" => guest.share = Some(PathBuf::from(&value)),
            "vsock" => guest.vsock = Some(PathBuf::from(&value)),
            _ => {
                let fd = words()?;
                let fd = fd.parse().map_err(|_| format!("--control {fd} is not a descriptor"))?;
                return Ok(Arguments::Supervised(fd));
            }
        }
    }
    guest.kernel = kernel.ok_or("--kernel is missing; see --help")?;
    Ok(Arguments::Alone(Box::new(guest)))
}

fn text(error: lexopt::Error) -> String {
    format!("{error}; see --help")
}

fn cpus(text: &str) -> Result<u8, String> {
    use husk_vmm::config::MAX_VCPUS;
    match text.parse() {
        Ok(count) if (1..=MAX_VCPUS).contains(&count) => Ok(count),
        _ => Err(format!("--cpus {text} is not possible; give 1 to {MAX_VCPUS}")),
    }
}

fn memory_mib(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 10),
        Some(digits) if text.ends_with('G') => (digits, 30),
        Some(digits) => (digits, 20),
        None => (text, 20),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes % (1 << 20) == 0 => Ok(bytes >> 20),
        _ => Err(format!("--memory {text} is not a whole number of MiB; give for example 256M")),
    }
}

fn disk(text: &str) -> (PathBuf, bool) {
    match text.strip_suffix(",ro") {
        Some(path) => (path.into(), true),
        None => (text.into(), false),
    }
}

/// `tap=NAME` and perhaps `mac=MAC`.
fn net(text: &str) -> Result<(String, [u8; 6]), String> {
    let (tap, mac) = match text.split_once(',') {
        Some((tap, mac)) => (tap, mac.strip_prefix("mac=").and_then(parse_mac)),
        None => (text, random_mac()),
    };
    match (tap.strip_prefix("tap="), mac) {
        (Some(name), Some(mac)) if (1..libc::IFNAMSIZ).contains(&name.len()) => {
            Ok((name.to_owned(), mac))
        }
        _ => Err(format!(
            "--net {text} is not possible; give for example \
                          tap=tap0,mac=02:00:00:00:00:01"
        )),
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let byte = |text| u8::from_str_radix(text, 16).ok();
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes?.try_into().ok()
}

/// Locally administered, of one interface.
fn random_mac() -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    rng::random(&mut mac).ok()?;
    mac[0] = mac[0] & 0xfc | 2;
    Some(mac)
}

/// Boots the guest and stays until it ends.
pub fn run(guest: Guest) -> ExitCode {
    let (config, vsock) = match open(&guest) {
        Ok(opened) => opened,
        Err(message) => return refuse(&message),
    };
    let vm = match Vm::build(config, vsock, Arc::new(|what| eprintln!("husk-vmm: {what}"))) {
        Ok(vm) => vm,
        Err(error) => return refuse(&error.to_string()),
    };
    for (name, mac) in &guest.nets {
        let plugged = open_tap(name)
            .map(|tap| {
                Plug::Net(NetConfig {
                    queues: vec![tap.into()],
                    vhost: Vec::new(),
                    mac: *mac,
                    mtu: None,
                })
            })
            .and_then(|net| vm.devices().plug(net).map_err(io::Error::other));
        if let Err(error) = plugged {
            return refuse(&format!("cannot use the tap {name}: {error}"));
        }
    }
    if let Err(error) = stop_on_signals(vm.stopper()) {
        return refuse(&format!("cannot watch for signals: {error}"));
    }
    let stdin = io::stdin();
    let raw = stdin.is_terminal() && stdin.lock().set_raw_mode().is_ok();
    let result = vm.run();
    if raw {
        let _ = stdin.lock().set_canon_mode();
    }
    if let Some(path) = &guest.vsock {
        // It was made by this process and means nothing without it.
        let _ = std::fs::remove_file(path);
    }
    match result {
        Ok(ExitReason::PowerOff | ExitReason::Reset) => ExitCode::SUCCESS,
        Ok(reason) => {
            eprintln!("husk-vmm: {reason}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("husk-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Opens everything that the guest will ever use.
fn open(guest: &Guest) -> Result<(VmConfig<OwnedFd>, Option<VsockHost>), String> {
    // The files first: they are what a user gets wrong most often.
    let kernel = read(&guest.kernel, "kernel")?;
    let initramfs = guest.initramfs.as_deref().map(|path| read(path, "initramfs")).transpose()?;
    let disks = guest
        .disks
        .iter()
        .map(|(path, read_only)| {
            let file = OpenOptions::new().read(true).write(!read_only).open(path);
            let file = file.map_err(|error| cannot("disk", path, &error))?.into();
            Ok(Disk { file, read_only: *read_only, serial: String::new() })
        })
        .collect::<Result<_, String>>()?;
    let share = guest.share.as_deref().map(open_share).transpose()?;
    let vsock = guest.vsock.as_deref().map(listen).transpose()?;
    let terminal = |fd: &dyn AsFd| {
        fd.as_fd().try_clone_to_owned().map_err(|e| format!("cannot use the terminal: {e}"))
    };
    let console =
        Console::Terminal { input: terminal(&io::stdin())?, output: terminal(&io::stdout())? };
    probe::check().map_err(|error| error.to_string())?;
    let kvm = kvm::open().map_err(|error| error.to_string())?.into();
    let config = VmConfig {
        vcpus: guest.cpus,
        most_vcpus: guest.cpus,
        memory_mib: guest.memory_mib,
        most_memory_mib: guest.memory_mib,
        cmdline: guest.cmdline.clone(),
        kvm,
        kernel: kernel.into(),
        initramfs: initramfs.map(Into::into),
        console,
        vsock: vsock.is_some(),
        share,
        disks,
    };
    Ok((config, vsock))
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot open the {what} {}: {error}", path.display())
}

fn read(path: &Path, what: &str) -> Result<File, String> {
    let file = File::open(path).map_err(|error| cannot(what, path, &error))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(format!("the {what} {} is not a regular file", path.display())),
        Err(error) => Err(cannot(what, path, &error)),
    }
}

fn open_share(path: &Path) -> Result<Share<OwnedFd>, String> {
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
        .map_err(|error| cannot("shared directory", path, &error))?;
    Ok(Share { tag: SHARE_TAG.to_owned(), directory: directory.into() })
}

fn open_tap(name: &str) -> io::Result<File> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an ifreq of zeros is one without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    match unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &mut request) } {
        0 => Ok(tap),
        _ => Err(io::Error::last_os_error()),
    }
}

fn listen(path: &Path) -> Result<VsockHost, String> {
    let listener = UnixListener::bind(path).map_err(|error| {
        format!(
            "cannot make the socket {}: {error}; if a VM that is gone left it, remove it",
            path.display()
        )
    })?;
    Ok(VsockHost { side: Arc::new(HostPaths::new(path.to_owned())), listener: Some(listener) })
}

/// Ends the VM in order, so that the terminal is given back, on the usual signals.
fn stop_on_signals(stopper: Sender<ExitReason>) -> io::Result<()> {
    let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialized by sigemptyset before it is used, and only filled with
    // valid signals. Threads that start later inherit the mask.
    let signals = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(signals.as_mut_ptr(), signal);
        }
        let signals = signals.assume_init();
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
        signals
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live locals.
        unsafe { libc::sigwait(&signals, &mut signal) };
        let _ = stopper.send(ExitReason::Stopped);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Arguments, String> {
        parse(Parser::from_args(arguments))
    }

    #[test]
    fn options_reach_the_guest() {
        let line = ["--kernel", "k", "--cpus", "4", "--memory=1G", "--disk", "a,ro", "--disk", "b"];
        let net = ["--net", "tap=t0,mac=02:00:00:00:00:1f"];
        let line = [&line[..], &net].concat();
        let Ok(Arguments::Alone(guest)) = parsed(&line) else { panic!("not parsed") };
        assert_eq!((guest.cpus, guest.memory_mib), (4, 1024));
        assert_eq!(guest.disks, [("a".into(), true), ("b".into(), false)]);
        assert_eq!(guest.nets, [("t0".to_owned(), [2, 0, 0, 0, 0, 0x1f])]);
    }

    #[test]
    fn bad_options_are_refused_by_name() {
        for (line, expected) in [
            (vec!["--cpus", "1"], "--kernel is missing"),
            (vec!["--cpus", "0"], "--cpus 0"),
            (vec!["--cpus", "33"], "--cpus 33"),
            (vec!["--memory", "many"], "--memory many"),
            (vec!["--memory", "1K"], "--memory 1K"),
            (vec!["--memory", "99999999999999G"], "--memory 99999999999999G"),
            (vec!["--net", "tap0"], "--net tap0"),
            (vec!["--net", "tap="], "--net tap="),
            (vec!["--net", "tap=a,mac=1:2:3"], "mac=1:2:3"),
            (vec!["--mem", "1"], "--mem"),
            (vec!["stray"], "stray"),
            (vec!["--kernel"], "--kernel"),
        ] {
            let Err(message) = parsed(&line) else { panic!("{line:?} was taken") };
            assert!(message.contains(expected), "{line:?}: {message}");
        }
    }
}
