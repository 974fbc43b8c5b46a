// SPDX-License-Identifier: Apache-2.0

//! The VM's process: starts husk-vmm, gives it all it needs by descriptor, hears its events
//! and learns of its end.
//!
//! husk-vmm ends when its control socket closes, so it cannot outlive us; the kernel's
//! parent-death signal is the second net, for a monitor that has stopped reading. That
//! signal follows the thread that started the process, so [`Vm::start`] has to be called on
//! a thread that lives as long as the VM: the main thread.

mod ended;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use husk_vmm::config::{Plug, VmConfig};
use husk_vmm::control::{self, DeviceCounters, Event, FdIndex, Packets};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch::{self, Receiver, Sender};
use tokio::sync::{mpsc, oneshot};

use crate::cgroup::OomKills;
use crate::error::{Error, IoContext};
use crate::network::Netns;
use crate::process::{Pidfd, ProcessId};
use crate::reactor;
use crate::run_dir::console_tail;
use crate::size::Size;
use crate::streams::Streams;
use crate::tail::Tail;
use ended::End;
pub use ended::Ended;

/// The descriptor that husk-vmm finds its control socket on.
const CONTROL_FD: RawFd = 3;

/// How much of the console is kept with the reason of the VM's end, in bytes.
const CONSOLE_TAIL: u64 = 4096;

/// Commands that wait for the supervisor to send them.
const MAX_QUEUED: usize = 16;

/// What is known about a VM so far.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Host CLOCK_MONOTONIC in ns: husk-vmm started, and the guest's first instruction.
    pub running: Option<(u64, u64)>,
    pub ended: Option<Arc<Ended>>,
}

/// A running husk-vmm. Clones are handles to the same VM; it is killed when
/// [`Vm::kill`] is called or the supervising task is gone with its runtime.
#[derive(Debug, Clone)]
pub struct Vm {
    process: ProcessId,
    pidfd: Arc<Pidfd>,
    state: Receiver<State>,
    /// Why we killed it, where we did.
    cause: Sender<Option<String>>,
    oom_score_adj: Arc<Mutex<OomScoreAdj>>,
    orders: mpsc::Sender<Order>,
}

/// What husk-vmm is asked to do with the running VM.
#[derive(Debug)]
enum Change {
    /// The device's files, by their index.
    Plug(Plug<FdIndex>, Vec<OwnedFd>),
    Unplug(u8),
    Counters,
    /// Told when the guest has as much memory.
    Resize(Size, oneshot::Sender<()>),
}

/// What husk-vmm says to an order.
#[derive(Debug)]
enum Answer {
    Done,
    Slot(u8),
    Counters(Vec<DeviceCounters>),
}

/// A change on its way, and where its answer goes.
#[derive(Debug)]
struct Order {
    change: Change,
    answer: oneshot::Sender<Result<Answer, Error>>,
}

/// What a VM meets on the host.
pub struct HostSide {
    /// The guest's console log.
    pub console: File,
    /// Where connections of the guest go.
    pub streams: Streams,
    /// Those of the cgroup that we are in.
    pub oom_kills: OomKills,
    /// Takes sentences for the node's log.
    pub note: fn(&str),
}

/// The file of that name of husk-vmm, and what was last written to it.
#[derive(Debug)]
struct OomScoreAdj(File, Option<i64>);

impl Vm {
    /// Starts `program` in `netns` and has it boot the VM of `config`, whose files are
    /// `files`.
    ///
    /// Has to be called within a tokio runtime, on a thread that outlives the VM.
    pub fn start(
        program: &Path,
        netns: Netns,
        config: VmConfig<control::FdIndex>,
        files: &[BorrowedFd<'_>],
        host: HostSide,
    ) -> Result<Vm, Error> {
        let (ours, theirs) = socket_pair().context(|| "cannot make a socket pair".to_owned())?;
        let (stderr, writer) = Tail::new().context(|| "cannot make a pipe".to_owned())?;
        let child = spawn(program, netns, theirs, writer)
            .context(|| format!("cannot start {}", program.display()))?;
        // From here on the child is killed if anything fails: the socket closes.
        let process = ProcessId::of(child.id()).context(|| "cannot watch husk-vmm".to_owned())?;
        let open = || Pidfd::open(child.id()).context(|| "cannot watch husk-vmm".to_owned());
        let (pidfd, watched) = (Arc::new(open()?), open()?);
        let oom_score_adj = OpenOptions::new()
            .write(true)
            .open(format!("/proc/{}/oom_score_adj", child.id()))
            .context(|| "cannot watch husk-vmm".to_owned())?;
        // A monitor that is gone already has said why on stderr, and the supervisor hears it.
        let sent = Packets(ours.as_fd()).send(&control::Command::Boot(config), files);
        let (state_sender, state) = watch::channel(State::default());
        let (cause, cause_receiver) = watch::channel(None);
        let (orders, order_receiver) = mpsc::channel(MAX_QUEUED);
        let supervisor = Supervisor {
            control: reactor::watch(ours, Interest::READABLE)
                .context(|| "cannot watch the control socket".to_owned())?,
            exited: reactor::watch(watched.into(), Interest::READABLE)
                .context(|| "cannot watch husk-vmm".to_owned())?,
            pidfd: pidfd.clone(),
            stderr,
            child,
            host,
            state: state_sender,
            cause: cause_receiver,
            orders: order_receiver,
            ordered: Ordered::default(),
        };
        tokio::spawn(supervisor.run());
        let oom_score_adj = Arc::new(Mutex::new(OomScoreAdj(oom_score_adj, None)));
        let vm = Vm { process, pidfd, state, cause, oom_score_adj, orders };
        match sent {
            Err(error)
                if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
            {
                let why = format!("cannot send the VM's configuration to husk-vmm: {error}");
                vm.kill(&why);
                Err(Error::internal(why))
            }
            _ => Ok(vm),
        }
    }

    /// The monitor's process: a live process of the host while the VM is.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Sets husk-vmm's oom_score_adj; once it has been set, only to something higher. Ours is
    /// never above it: of the two, the kernel shall take the one that has the memory, and
    /// leave the one that can tell.
    pub fn raise_oom_score_adj(&self, wanted: i64) -> io::Result<()> {
        // Nothing panics while it holds this lock.
        let mut adj = self.oom_score_adj.lock().unwrap_or_else(PoisonError::into_inner);
        if adj.1.is_none_or(|set| set < wanted) {
            adj.0.write_all(wanted.to_string().as_bytes())?;
            adj.1 = Some(wanted);
            // Without CAP_SYS_RESOURCE it stays. A rank is worth having, not worth failing for.
            let _ = lower_own_oom_score_adj(wanted);
        }
        Ok(())
    }

    /// Kills the VM at once. `cause` becomes the reason of its end, if it has not ended.
    pub fn kill(&self, cause: &str) {
        self.cause.send_if_modified(|current| {
            let first = current.is_none();
            current.get_or_insert_with(|| cause.to_owned());
            first
        });
        // It can only fail for a process that is not ours.
        let _ = self.pidfd.signal(libc::SIGKILL);
    }

    /// Puts a device on the bus of the running VM; its slot. The guest finds it when it looks.
    pub async fn plug(&self, device: Plug<FdIndex>, files: Vec<OwnedFd>) -> Result<u8, Error> {
        match self.order(Change::Plug(device, files)).await? {
            Answer::Slot(slot) => Ok(slot),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes a device away that the guest has let go of.
    pub async fn unplug(&self, slot: u8) -> Result<(), Error> {
        self.order(Change::Unplug(slot)).await.map(drop)
    }

    /// Has the VM be of this size as far as the host goes: the slot of the device for memory,
    /// or 0, and what resolves when the guest has as much of it. That fails when another resize
    /// comes before.
    pub async fn resize(&self, size: Size) -> Result<(u8, oneshot::Receiver<()>), Error> {
        let (reached, reaching) = oneshot::channel();
        match self.order(Change::Resize(size, reached)).await? {
            Answer::Slot(slot) => Ok((slot, reaching)),
            other => Err(unexpected(&other)),
        }
    }

    /// What the devices have done so far.
    pub async fn counters(&self) -> Result<Vec<DeviceCounters>, Error> {
        match self.order(Change::Counters).await? {
            Answer::Counters(devices) => Ok(devices),
            other => Err(unexpected(&other)),
        }
    }

    async fn order(&self, change: Change) -> Result<Answer, Error> {
        let (answer, answered) = oneshot::channel();
        if self.orders.send(Order { change, answer }).await.is_ok()
            && let Ok(answer) = answered.await
        {
            return answer;
        }
        Err(Error::unavailable(self.ended().await.reason.clone()))
    }

    /// Waits until the VM's process is gone and reaped.
    pub async fn ended(&self) -> Arc<Ended> {
        let mut state = self.state.clone();
        match state.wait_for(|state| state.ended.is_some()).await.map(|state| state.ended.clone()) {
            Ok(Some(ended)) => ended,
            // The supervisor went with its runtime, and the VM with it.
            _ => Arc::new(Ended {
                reason: "the VM was given up".into(),
                console: String::new(),
                oom: false,
            }),
        }
    }
}

/// Owns the child from start to end.
struct Supervisor {
    control: AsyncFd<OwnedFd>,
    /// Readable when the process has ended.
    exited: AsyncFd<OwnedFd>,
    pidfd: Arc<Pidfd>,
    stderr: Tail,
    child: Child,
    host: HostSide,
    state: Sender<State>,
    cause: Receiver<Option<String>>,
    orders: mpsc::Receiver<Order>,
    ordered: Ordered,
}

/// Orders that husk-vmm has been sent, by id, and the next one's id.
#[derive(Debug, Default)]
struct Ordered {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Result<Answer, Error>>>,
    /// The last resize, while the guest has not as much memory.
    reaching: Option<(u64, oneshot::Sender<()>)>,
}

impl Ordered {
    /// Sends an order. An error is the answer.
    fn send(&mut self, socket: &OwnedFd, order: Order) {
        let id = self.next;
        self.next += 1;
        let (command, files) = match order.change {
            Change::Plug(device, files) => (control::Command::Plug { id, device }, files),
            Change::Unplug(slot) => (control::Command::Unplug { id, slot }, Vec::new()),
            Change::Counters => (control::Command::Counters { id }, Vec::new()),
            Change::Resize(Size { vcpus, memory_mib }, reached) => {
                self.reaching = Some((id, reached));
                (control::Command::Resize { id, vcpus, memory_mib }, Vec::new())
            }
        };
        let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        match Packets(socket.as_fd()).send(&command, &files) {
            Ok(()) => drop(self.waiting.insert(id, order.answer)),
            Err(error) => {
                let why = format!("husk-vmm does not take a command: {error}");
                let _ = order.answer.send(Err(Error::unavailable(why)));
            }
        }
    }

    /// Hands an answer to whoever waits for it.
    fn answer(&mut self, id: u64, answer: Result<Answer, Error>) {
        if let Some(waiting) = self.waiting.remove(&id) {
            let _ = waiting.send(answer);
        }
    }

    /// The guest has as much memory as this order wanted.
    fn memory_reached(&mut self, id: u64) {
        if let Some((_, reached)) = self.reaching.take_if(|(of, _)| *of == id) {
            let _ = reached.send(());
        }
    }
}

impl Supervisor {
    async fn run(mut self) {
        let mut last_words = None;
        let status = loop {
            tokio::select! {
                biased;
                ready = self.control.readable() => {
                    let received = match ready {
                        Ok(mut ready) => match receive(ready.get_inner()) {
                            Received::Nothing => { ready.clear_ready(); continue }
                            received => received,
                        },
                        Err(_) => Received::Closed,
                    };
                    if let Received::Event(event, fds) = received {
                        self.take(event, fds, &mut last_words);
                    } else {
                        // It says nothing more; whatever it does, it is of no use now.
                        let _ = self.pidfd.signal(libc::SIGKILL);
                        let _ = self.exited.readable().await;
                        break self.child.wait();
                    }
                }
                Some(order) = self.orders.recv() => {
                    self.ordered.send(self.control.get_ref(), order);
                }
                () = self.stderr.read() => {}
                _ = self.exited.readable() => {
                    // All that it said before it went is still in the socket.
                    while let Received::Event(event, fds) = receive(self.control.get_ref()) {
                        self.take(event, fds, &mut last_words);
                    }
                    break self.child.wait();
                }
            }
        };
        let end = End {
            cause: self.cause.borrow().clone(),
            last_words,
            status,
            stderr: self.stderr.text(),
            console: console_tail(&mut self.host.console, CONSOLE_TAIL),
            oom_killed: self.host.oom_kills.happened(),
        };
        let ended = end.judge();
        self.host.streams.close(&ended.reason);
        self.state.send_modify(|state| state.ended = Some(Arc::new(ended)));
    }

    fn take(&mut self, event: Event, fds: Vec<OwnedFd>, last_words: &mut Option<Event>) {
        match event {
            Event::Running { started_ns, running_ns } => {
                self.state.send_modify(|state| state.running = Some((started_ns, running_ns)));
            }
            Event::Connect { port } => {
                if let Some(stream) = fds.into_iter().next() {
                    self.host.streams.deliver(port, stream);
                }
            }
            Event::Plugged { id, slot } => self.ordered.answer(id, Ok(Answer::Slot(slot))),
            Event::Unplugged { id } => self.ordered.answer(id, Ok(Answer::Done)),
            Event::Counters { id, devices } => {
                self.ordered.answer(id, Ok(Answer::Counters(devices)));
            }
            Event::Resized { id, slot } => {
                self.ordered.answer(id, Ok(Answer::Slot(slot.unwrap_or(0))));
            }
            Event::MemoryReached { id } => self.ordered.memory_reached(id),
            Event::NotPlugged { id, error }
            | Event::NotUnplugged { id, error }
            | Event::NotResized { id, error } => {
                self.ordered.answer(id, Err(Error::internal(error)));
            }
            Event::Note(text) => (self.host.note)(&text),
            Event::Exited(_) | Event::Failed(_) => *last_words = Some(event),
        }
    }
}

/// Sets our oom_score_adj to this, if it is higher.
fn lower_own_oom_score_adj(to: i64) -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    match fs::read_to_string(FILE)?.trim().parse::<i64>() {
        Ok(own) if own > to => fs::write(FILE, to.to_string()),
        _ => Ok(()),
    }
}

fn unexpected(answer: &Answer) -> Error {
    Error::internal(format!("husk-vmm answered something else than it was asked: {answer:?}"))
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Without effect unless the runtime goes before the VM.
        let _ = self.pidfd.signal(libc::SIGKILL);
    }
}

enum Received {
    Event(Event, Vec<OwnedFd>),
    Nothing,
    Closed,
}

fn receive(socket: &OwnedFd) -> Received {
    match Packets(socket.as_fd()).receive() {
        Ok(Some((event, fds))) => Received::Event(event, fds),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Received::Nothing,
        Ok(None) | Err(_) => Received::Closed,
    }
}

/// Starts the monitor with nothing but its control socket and stderr.
fn spawn(program: &Path, netns: Netns, control: OwnedFd, stderr: OwnedFd) -> io::Result<Child> {
    // At CONTROL_FD or above: if that number is taken in this process, then by a descriptor
    // that the child may lose, and not by the one that Command reports a failed start on.
    // SAFETY: fcntl on a descriptor that we own touches no memory.
    let fd = unsafe { libc::fcntl(control.as_raw_fd(), libc::F_DUPFD_CLOEXEC, CONTROL_FD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let control = unsafe { OwnedFd::from_raw_fd(fd) };
    let parent = std::process::id();
    let mut command = Command::new(program);
    command
        .args(["--control", &CONTROL_FD.to_string()])
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            netns.enter()?;
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // If the parent died before the call above, no signal will come.
            if libc::getppid() as u32 != parent {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let kept = if fd == CONTROL_FD {
                libc::fcntl(fd, libc::F_SETFD, 0)
            } else {
                libc::dup2(fd, CONTROL_FD)
            };
            if kept < 0 {
                return Err(io::Error::last_os_error());
            }
            let rest = CONTROL_FD as libc::c_uint + 1;
            if libc::close_range(rest, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn();
    drop(control);
    child
}

/// A pair of connected packet sockets: ours does not block, theirs does.
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(ours.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}
