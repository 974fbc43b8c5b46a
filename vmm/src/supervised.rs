// SPDX-License-Identifier: Apache-2.0

//! husk-vmm under a supervisor: everything comes as descriptors over the control socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use husk_vmm::control::{Command, Event, ExitReason, Packets};
use husk_vmm::devices::Devices;
use husk_vmm::resize::Resizer;
use husk_vmm::virtio::vsock::{Dialer, HostSide};
use husk_vmm::vm::{Vm, VsockHost};

use crate::{monotonic_ns, refuse};

/// Serves the VM that the supervisor at `control` asks for.
pub fn run(control: RawFd, started_ns: u64) -> ExitCode {
    // SAFETY: fcntl only looks at the descriptor.
    if control < 3 || unsafe { libc::fcntl(control, libc::F_GETFD) } < 0 {
        return refuse(&format!("--control {control} is not an open descriptor above 2"));
    }
    // SAFETY: the caller gave us this descriptor for this purpose; nobody else uses it.
    let packets = Arc::new(Packets(unsafe { OwnedFd::from_raw_fd(control) }));
    match serve(&packets, started_ns) {
        Ok(reason) => {
            // The supervisor may be gone, which is one of the reasons to be here.
            let _ = packets.send(&Event::Exited(reason), &[]);
            ExitCode::SUCCESS
        }
        Err(message) => {
            let _ = packets.send(&Event::Failed(message.clone()), &[]);
            refuse(&message)
        }
    }
}

fn serve(packets: &Arc<Packets<OwnedFd>>, started_ns: u64) -> Result<ExitReason, String> {
    let lost = |error: io::Error| format!("the control socket failed: {error}");
    let (config, fds) = match packets.receive().map_err(lost)? {
        Some((Command::Boot(config), fds)) => (config, fds),
        Some((other, _)) => return Err(format!("expected the command boot, not {other:?}")),
        None => return Ok(ExitReason::Stopped),
    };
    let config = name(fds, |file| config.try_map(file))?;
    let side: Arc<dyn HostSide> = Arc::new(Supervisor(packets.clone()));
    let vsock = config.vsock.then_some(VsockHost { side, listener: None });
    let told = packets.clone();
    let note = Arc::new(move |what| drop(told.send(&Event::Note(what), &[])));
    let vm = Vm::build(config, vsock, note).map_err(|error| error.to_string())?;

    let running = Event::Running { started_ns, running_ns: monotonic_ns() };
    packets.send(&running, &[]).map_err(lost)?;
    let (dialer, devices, resizer, stopper) =
        (vm.dialer(), vm.devices(), vm.resizer(), vm.stopper());
    let commands = packets.clone();
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || obey(&commands, dialer, &devices, resizer, &stopper))
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    vm.run().map_err(|error| error.to_string())
}

/// Gives each index that `map` asks for its descriptor; each may be used once.
fn name<T>(
    fds: Vec<OwnedFd>,
    map: impl FnOnce(&mut dyn FnMut(usize) -> Result<OwnedFd, String>) -> Result<T, String>,
) -> Result<T, String> {
    let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    map(&mut |index| {
        fds.get_mut(index)
            .and_then(Option::take)
            .ok_or_else(|| format!("the command names descriptor {index}, which it lacks"))
    })
}

/// Follows commands until the supervisor closes its end.
fn obey(
    packets: &Arc<Packets<OwnedFd>>,
    dialer: Option<Dialer>,
    devices: &Devices,
    mut resizer: Resizer,
    stopper: &Sender<ExitReason>,
) {
    let answer = |event: Event| {
        // A supervisor that is gone is found at the next receive.
        let _ = packets.send(&event, &[]);
    };
    loop {
        match packets.receive() {
            Ok(Some((Command::Dial { port }, fds))) => {
                if let (Some(dialer), Some(fd)) = (&dialer, fds.into_iter().next()) {
                    // When too many dials are waiting the stream is closed, as for any
                    // other reason why the guest cannot be reached.
                    let _ = dialer.dial(port, UnixStream::from(fd));
                }
            }
            Ok(Some((Command::Boot(_), _))) => {}
            Ok(Some((Command::Plug { id, device }, fds))) => {
                let device = name(fds, |file| device.try_map(file));
                let plugged = device
                    .and_then(|device| devices.plug(device).map_err(|error| error.to_string()));
                answer(match plugged {
                    Ok(slot) => Event::Plugged { id, slot },
                    Err(error) => Event::NotPlugged { id, error },
                });
            }
            Ok(Some((Command::Unplug { id, slot }, _))) => answer(match devices.unplug(slot) {
                Ok(()) => Event::Unplugged { id },
                Err(error) => Event::NotUnplugged { id, error: error.to_string() },
            }),
            Ok(Some((Command::Counters { id }, _))) => {
                answer(Event::Counters { id, devices: devices.counters() });
            }
            Ok(Some((Command::Resize { id, vcpus, memory_mib }, _))) => {
                let packets = packets.clone();
                let reached = move || drop(packets.send(&Event::MemoryReached { id }, &[]));
                answer(match resizer.resize(vcpus, memory_mib, reached) {
                    Ok(slot) => Event::Resized { id, slot },
                    Err(error) => Event::NotResized { id, error: error.to_string() },
                });
            }
            Ok(Some((Command::Stop, _)) | None) | Err(_) => {
                let _ = stopper.send(ExitReason::Stopped);
                return;
            }
        }
    }
}

/// Hands the far ends of the guest's connections to the supervisor.
struct Supervisor(Arc<Packets<OwnedFd>>);

impl HostSide for Supervisor {
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        // A supervisor that does not read must not stall the guest's other connections.
        let mut socket =
            libc::pollfd { fd: self.0.0.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid pollfd, and no waiting.
        if unsafe { libc::poll(&mut socket, 1, 0) } != 1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (near, far) = UnixStream::pair()?;
        self.0.send(&Event::Connect { port }, &[far.as_fd()])?;
        Ok(near)
    }
}
