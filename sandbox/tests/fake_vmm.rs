// SPDX-License-Identifier: Apache-2.0

//! A sandbox whose husk-vmm is this test program: started again with `--control`, it speaks
//! the control socket and plays the guest's agent, so the host's whole side runs without
//! KVM. Needs root, for mounts; does nothing without.

#[path = "fake_vmm/network.rs"]
mod network;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use husk_protocol::agent::{self as guest, Frame, frame::Body, request::Verb, response};
use husk_protocol::{CONTROL_PORT, MAX_FRAME, PROTOCOL_VERSION};
use husk_sandbox::{
    Assets, BindSource, Code, Growth, Launch, Limits, Network, NetworkSettings, PodSettings,
    Sandbox, Signal, Size, Terminal, run_dir,
};
use husk_vmm::control::{Command, Event, ExitReason, Packets};
use protobuf::Message;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--control") {
        return monitor();
    }
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: mounting needs root");
        return ExitCode::SUCCESS;
    }
    // The parent-death signal follows the thread that starts the monitor: this one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        a_pod_lives_and_leaves_nothing().await;
        a_vm_is_resized_for_its_containers().await;
        a_killed_vm_fails_everything_with_a_reason().await;
        a_vm_that_cannot_be_built_says_why().await;
        a_panic_for_want_of_memory_is_told_as_one().await;
        a_monitor_that_cannot_run_is_reported().await;
        a_missing_kvm_leaves_nothing().await;
        a_crash_is_cleaned_up().await;
        network::a_network_is_joined_followed_and_left().await;
        network::a_crash_leaves_no_redirection().await;
        network::a_host_network_is_none().await;
    });
    println!("all passed");
    ExitCode::SUCCESS
}

/// At boot, and at most.
const SIZE: Size = Size { vcpus: 2, memory_mib: 300 };
const MOST: Size = Size { vcpus: 4, memory_mib: 1000 };

/// A directory with the assets: a link to this program, and files to open.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("directory");
        std::os::unix::fs::symlink(std::env::current_exe().expect("exe"), dir.path().join("vmm"))
            .expect("link");
        for name in ["vmlinux", "guest.img"] {
            fs::write(dir.path().join(name), name).expect("file");
        }
        fs::create_dir(dir.path().join("rootfs")).expect("rootfs");
        fs::write(dir.path().join("rootfs/hello"), "from the host").expect("file");
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn launch(&self, hostname: &str) -> Launch {
        Launch {
            run_root: self.path("run"),
            namespace: "ns".into(),
            id: "pod".into(),
            hostname: hostname.into(),
            network: Network::New,
            cgroups_path: String::new(),
            settings: PodSettings {
                size: SIZE,
                growth: Growth { base: SIZE, least: SIZE, most: MOST, huge_pages: 0 },
                kernel_args: "loglevel=3".into(),
                network: NetworkSettings::default(),
                assets: Assets {
                    vmm: self.path("vmm"),
                    kernel: self.path("vmlinux"),
                    image: self.path("guest.img"),
                },
            },
            kvm: "/dev/null".into(),
            note: |what| println!("noted: {what}"),
        }
    }

    /// Nothing is mounted, and no file of a pod is there.
    fn assert_clean(&self) {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let here = self.dir.path().display().to_string();
        let left: Vec<_> = table.lines().filter(|line| line.contains(&here)).collect();
        assert!(left.is_empty(), "{left:?}");
        let run: Vec<_> = fs::read_dir(self.path("run")).into_iter().flatten().collect();
        assert!(run.is_empty(), "{run:?}");
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

async fn a_pod_lives_and_leaves_nothing() {
    let place = Place::new();
    let (sandbox, mut events) = Sandbox::launch(place.launch("web-1")).expect("launch");
    let pid = sandbox.pid();
    assert!(is_alive(pid));
    let netns = |pid| fs::read_link(format!("/proc/{pid}/ns/net")).expect("namespace");
    assert_ne!(netns(pid), netns(std::process::id()), "its network is not the host's");
    let file = place.path("vmlinux");
    let binds = [BindSource { source: file, recursive: true, read_only: true, follows: true }];
    let shared = sandbox.share_container("c1", &place.path("rootfs"), &binds).expect("share");
    let stdout = sandbox.expect_stream();
    let stdio = Terminal { stdout_port: stdout.port(), ..Terminal::default() };
    let (created, stream) = tokio::join!(
        sandbox.create("c1", b"{}".to_vec(), stdio, vec![], vec![]),
        stdout.connected()
    );
    assert_eq!(created.expect("created"), 7);
    // The fake guest says on stdout what it found: its set-up and the file in the share.
    let mut stream = stream.expect("stream");
    stream.set_nonblocking(false).expect("blocking");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("output");
    assert_eq!(said, "web-1 2 300 loglevel=3 vmlinux guest.img from the host vmlinux");
    assert_eq!(sandbox.start("c1").await.expect("started"), 7);
    let event = events.recv().await.expect("event");
    assert!(matches!(event.kind, Some(guest::event::Kind::Exit(exit)) if exit.status == 3));
    let error = sandbox.pause("c1").await.expect_err("refused by the guest");
    assert_eq!((error.code, error.message.as_str()), (Code::Unimplemented, "not in a fake"));
    let milestones = sandbox.milestones();
    assert_eq!((milestones.vmm_started_ns, milestones.guest_running_ns), (Some(11), Some(12)));
    assert!(milestones.setup_ns.is_some());
    drop(shared);
    sandbox.stop("enough").await.expect("stop");
    sandbox.stop("again").await.expect("stop is repeatable");
    assert!(!is_alive(pid));
    assert!(events.recv().await.is_none());
    assert_eq!(sandbox.ended().await.reason, "enough");
    place.assert_clean();
}

async fn a_vm_is_resized_for_its_containers() {
    let place = Place::new();
    let (sandbox, mut events) = Sandbox::launch(place.launch("web-1")).expect("launch");
    let limits = |cpus: i64, mib: i64| Limits {
        cpu_quota: Some(cpus * 100_000),
        cpu_period: Some(100_000),
        memory: Some(mib << 20),
        huge_pages: None,
    };
    let mut told = async || match events.recv().await.expect("event").kind {
        Some(guest::event::Kind::Log(line)) => line.message,
        other => panic!("not a log: {other:?}"),
    };
    sandbox.grow_for(&[limits(1, 100), limits(2, 100)]).await.expect("grow");
    assert_eq!(told().await, "3 CPUs, memory in slot 5");
    // Nothing is asked for that is there.
    sandbox.grow_for(&[limits(2, 100)]).await.expect("grow");
    sandbox.grow_for(&[limits(9, 100)]).await.expect("grow");
    assert_eq!(told().await, "4 CPUs, memory in slot 5");
    let reached = sandbox.shrink_for(&[limits(3, 100)]).await.expect("shrink");
    assert_eq!(told().await, "3 CPUs, memory in slot 4");
    reached.await.expect("given back");
    sandbox.shrink_for(&[]).await.expect("shrink").await.expect("given back");
    assert_eq!(told().await, "2 CPUs, memory in slot 3");
    let huge = |pages: u64| Limits { huge_pages: Some(pages << 21), ..Limits::default() };
    sandbox.grow_for(&[huge(4), huge(1)]).await.expect("grow");
    assert_eq!(told().await, "2 CPUs, memory in slot 3");
    assert_eq!(told().await, "5 huge pages");
    sandbox.grow_for(&[huge(4)]).await.expect("they are there");
    let error = sandbox.grow_for(&[huge(700)]).await.expect_err("no room");
    assert!(error.message.contains("1400 MiB in huge pages"), "{error}");
    sandbox.release_huge_pages_for(&[huge(1)]).await.expect("release");
    assert_eq!(told().await, "1 huge pages");
    sandbox.shrink_for(&[]).await.expect("shrink").await.expect("given back");
    assert_eq!(told().await, "0 huge pages");
    assert_eq!(told().await, "2 CPUs, memory in slot 3");
    sandbox.kill("enough");
    sandbox.ended().await;
    let error = sandbox.grow_for(&[limits(3, 100)]).await.expect_err("no VM");
    let wanted = "the VM cannot grow from 2 vCPUs and 300 MiB to 3 vCPUs and 400 MiB: enough";
    assert_eq!((error.code, error.message.as_str()), (Code::Unavailable, wanted));
    sandbox.stop("enough").await.expect("stop");
    place.assert_clean();
}

async fn a_killed_vm_fails_everything_with_a_reason() {
    let place = Place::new();
    let (sandbox, mut events) = Sandbox::launch(place.launch("")).expect("launch");
    sandbox.start("c1").await.expect("started");
    let signal = Signal { container: "hang", exec: "", signal: 9, all: false };
    let hang = sandbox.signal(signal);
    let kill = async {
        let stream = sandbox.expect_stream();
        let pid = nix::unistd::Pid::from_raw(sandbox.pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("kill");
        stream.connected().await.expect_err("no stream comes any more")
    };
    let (hung, stream) = tokio::join!(hang, kill);
    let expected = "husk-vmm was killed by signal 9";
    assert_eq!(
        (hung.expect_err("gone").message.as_str(), stream.message.as_str()),
        (expected, expected)
    );
    while events.recv().await.is_some() {}
    let ended = sandbox.ended().await;
    assert_eq!(ended.reason, expected);
    assert_eq!(ended.console, "console says hello\n");
    sandbox.stop("gone").await.expect("stop");
    place.assert_clean();
}

async fn a_vm_that_cannot_be_built_says_why() {
    let place = Place::new();
    let (sandbox, _events) = Sandbox::launch(place.launch("")).expect("launch");
    // The fake takes this name as its word to end as a panic would end it.
    let error = sandbox
        .create("fail", Vec::new(), Terminal::default(), vec![], vec![])
        .await
        .expect_err("fails");
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(error.message, "the guest kernel panicked");
    assert!(!sandbox.ended().await.oom);
    sandbox.stop("gone").await.expect("stop");
    place.assert_clean();
}

async fn a_panic_for_want_of_memory_is_told_as_one() {
    let place = Place::new();
    let (sandbox, _events) = Sandbox::launch(place.launch("")).expect("launch");
    let greedy = sandbox.create("greedy", vec![], Terminal::default(), vec![], vec![]);
    let error = greedy.await.expect_err("the guest panics");
    assert!(error.message.contains("it had no memory left and nothing to kill"), "{error}");
    assert!(sandbox.ended().await.oom);
    sandbox.stop("gone").await.expect("stop");
    place.assert_clean();
}

async fn a_monitor_that_cannot_run_is_reported() {
    let place = Place::new();
    let mut launch = place.launch("");
    launch.settings.assets.vmm = place.path("missing");
    let error = Sandbox::launch(launch.clone()).expect_err("missing");
    assert!(error.message.contains("missing"), "{error}");
    place.assert_clean();
    // One that ends at once: what it wrote to stderr is the reason.
    let script = place.path("script");
    fs::write(&script, "#!/bin/sh\necho no such luck >&2\nexit 4\n").expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("mode");
    launch.settings.assets.vmm = script;
    let (sandbox, _events) = Sandbox::launch(launch).expect("launch");
    let error = sandbox.start("c1").await.expect_err("ended");
    assert_eq!(error.message, "husk-vmm exited with status 4: no such luck");
    sandbox.stop("gone").await.expect("stop");
    place.assert_clean();
}

async fn a_missing_kvm_leaves_nothing() {
    let place = Place::new();
    let launch = Launch { kvm: place.path("kvm"), ..place.launch("") };
    let error = Sandbox::launch(launch).expect_err("no kvm");
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains("kvm_intel"), "{error}");
    place.assert_clean();
}

async fn a_crash_is_cleaned_up() {
    let place = Place::new();
    let (sandbox, _events) = Sandbox::launch(place.launch("")).expect("launch");
    sandbox.start("c1").await.expect("started");
    let shared = sandbox.share_container("c1", &place.path("rootfs"), &[]).expect("share");
    let mounts = [husk_sandbox::mount::Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["size=1m".into()],
    }];
    let rootfs = place.path("rootfs");
    let mounted = sandbox.mount_rootfs(&mounts, &rootfs).expect("mount");
    assert!(!rootfs.join("hello").exists());
    let pid = sandbox.pid();
    assert!(run_dir::has_vm(&place.path("run"), "ns", "pod"));
    std::mem::forget((shared, mounted));
    run_dir::clean(&place.path("run"), "ns", "pod").expect("clean");
    // The supervisor, still ours, reaps it.
    sandbox.ended().await;
    assert!(!is_alive(pid));
    assert!(rootfs.join("hello").exists(), "unmounted, and nothing of it removed");
    run_dir::clean(&place.path("run"), "ns", "pod").expect("again");
    place.assert_clean();
}

/// The fake husk-vmm.
fn monitor() -> ExitCode {
    // SAFETY: the contract of husk-vmm: its control socket is descriptor 3.
    let control = Packets(unsafe { OwnedFd::from_raw_fd(3) });
    let open = fs::read_dir("/proc/self/fd").expect("fds").flatten().count();
    // 0 to 3, and the directory itself.
    assert_eq!(open, 5, "a descriptor was inherited");
    let (command, files): (Command, Vec<OwnedFd>) =
        control.receive().expect("receive").expect("boot");
    let Command::Boot(config) = command else { panic!("not a boot") };
    let text = |index: usize| {
        let mut bytes = [0; 32];
        let file = File::from(files[index].try_clone().expect("clone"));
        let len = file.read_at(&mut bytes, 0).expect("read");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let mut seen = format!(
        "{} {} {} {} {}",
        config.vcpus,
        config.memory_mib,
        config.cmdline.rsplit(' ').next().unwrap_or_default(),
        text(config.kernel),
        text(config.initramfs.expect("image"))
    );
    let husk_vmm::config::Console::Log(log) = config.console else { panic!("not a log") };
    File::from(files[log].try_clone().expect("clone"))
        .write_all(b"console says hello\n")
        .expect("log");
    control.send(&Event::Running { started_ns: 11, running_ns: 12 }, &[]).expect("send");
    // A connection that nobody expects is closed and does no harm.
    let (near, far) = UnixStream::pair().expect("pair");
    control.send(&Event::Connect { port: 99 }, &[far.as_fd()]).expect("send");
    drop(far);
    assert_eq!((&near).read(&mut [0]).expect("closed"), 0);
    // It lives as long as this process.
    let control: &'static Packets<OwnedFd> = Box::leak(Box::new(control));
    std::thread::spawn(|| network::serve(control));
    let mut agent = connect(control, CONTROL_PORT);
    send(
        &mut agent,
        0,
        Body::Hello(guest::Hello { version: PROTOCOL_VERSION, ..Default::default() }),
    );
    let setup = receive(&mut agent).expect("setup");
    let Some(Body::Setup(said)) = setup.body else { panic!("not a setup") };
    assert_eq!(said.entropy.len(), 64);
    assert!(said.realtime_ns > 1 << 60);
    seen.insert_str(0, &format!("{} ", said.hostname));
    answer(&mut agent, setup.id, response::Result::Done(guest::Done::new()));
    let share = config.share.expect("share").directory;
    let share = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&files[share]));
    while let Some(frame) = receive(&mut agent) {
        let Some(Body::Request(guest::Request { verb: Some(verb), .. })) = frame.body else {
            panic!("not a request")
        };
        let process = || response::Result::Process(guest::Process { pid: 7, ..Default::default() });
        match verb {
            Verb::Create(create) if create.container == "greedy" => {
                let words = b"Kernel panic - not syncing: System is deadlocked on memory\n";
                File::from(files[log].try_clone().expect("clone")).write_all(words).expect("log");
                control.send(&Event::Exited(ExitReason::Panic), &[]).expect("send");
                return ExitCode::SUCCESS;
            }
            Verb::Create(create) if create.container == "fail" => {
                control.send(&Event::Exited(ExitReason::Panic), &[]).expect("send");
                return ExitCode::SUCCESS;
            }
            Verb::Create(create) => {
                for file in ["rootfs/hello", "mounts/0"] {
                    let path = format!("{share}/{}/{file}", create.container);
                    seen += &format!(" {}", fs::read_to_string(path).expect("shared"));
                }
                let mut stdout = connect(control, create.stdio.stdout_port);
                stdout.write_all(seen.as_bytes()).expect("stdout");
                answer(&mut agent, frame.id, process());
            }
            Verb::Start(start) => {
                answer(&mut agent, frame.id, process());
                let exit =
                    guest::Exit { container: start.container, status: 3, ..Default::default() };
                let kind = Some(guest::event::Kind::Exit(exit));
                send(&mut agent, 0, Body::Event(guest::Event { kind, ..Default::default() }));
            }
            Verb::Signal(_) => {}
            Verb::SetSize(size) => {
                answer(&mut agent, frame.id, response::Result::Done(guest::Done::new()));
                let message = format!("{} CPUs, memory in slot {}", size.cpus, size.memory_slot);
                let line = guest::Log { message, ..Default::default() };
                let kind = Some(guest::event::Kind::Log(line));
                send(&mut agent, 0, Body::Event(guest::Event { kind, ..Default::default() }));
            }
            Verb::SetHugePages(told) => {
                answer(&mut agent, frame.id, response::Result::Done(guest::Done::new()));
                let message = format!("{} huge pages", told.pages);
                let line = guest::Log { message, ..Default::default() };
                let kind = Some(guest::event::Kind::Log(line));
                send(&mut agent, 0, Body::Event(guest::Event { kind, ..Default::default() }));
            }
            Verb::SetNetwork(told) => {
                answer(&mut agent, frame.id, response::Result::Done(guest::Done::new()));
                let line = guest::Log { message: network::describe(&told), ..Default::default() };
                let kind = Some(guest::event::Kind::Log(line));
                send(&mut agent, 0, Body::Event(guest::Event { kind, ..Default::default() }));
            }
            _ => {
                let error = guest::Error {
                    code: guest::error::Code::UNIMPLEMENTED.into(),
                    message: "not in a fake".into(),
                    ..Default::default()
                };
                answer(&mut agent, frame.id, response::Result::Error(error));
            }
        }
    }
    // The host hung up.
    std::thread::park_timeout(Duration::from_secs(60));
    ExitCode::FAILURE
}

fn connect(control: &Packets<OwnedFd>, port: u32) -> UnixStream {
    let (near, far) = UnixStream::pair().expect("pair");
    control.send(&Event::Connect { port }, &[far.as_fd()]).expect("send");
    near
}

fn send(stream: &mut UnixStream, id: u64, body: Body) {
    let frame = Frame { id, body: Some(body), ..Default::default() };
    let bytes = frame.write_to_bytes().expect("bytes");
    stream.write_all(&(bytes.len() as u32).to_le_bytes()).expect("length");
    stream.write_all(&bytes).expect("frame");
}

fn answer(stream: &mut UnixStream, id: u64, result: response::Result) {
    send(
        stream,
        id,
        Body::Response(guest::Response { result: Some(result), ..Default::default() }),
    );
}

fn receive(stream: &mut UnixStream) -> Option<Frame> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).ok()?;
    let len = u32::from_le_bytes(prefix) as usize;
    assert!(len <= MAX_FRAME);
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).ok()?;
    Some(Frame::parse_from_bytes(&bytes).expect("frame"))
}
