// SPDX-License-Identifier: Apache-2.0

//! Many pods at once, and pods under which something is killed at any moment of their lives.
//!
//! HUSK_TEST_PODS and HUSK_TEST_ROUNDS say how many; HUSK_TEST_SEED repeats the kills of a run
//! that printed it, as far as the machine's own timing lets them come again.

use std::env;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use husk_tests::containerd::HUSK_SHIM;
use husk_tests::containerd::leftovers::pids_of;
use husk_tests::containerd::process::{LIMIT, eventually};
use husk_tests::cri::api::NamespaceMode;
use husk_tests::cri::container::{Container, mount};
use husk_tests::cri::grpc::Refusal;
use husk_tests::cri::pod::{Pod, namespaces};
use husk_tests::cri::{self, Cri, api, case, husk_case};
use husk_tests::random::Random;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PODS: usize = 16;
const AT_ONCE: usize = 8;

const ROUNDS: usize = 10;

/// The number that the environment names, or this one.
fn setting(name: &str, usual: usize) -> usize {
    env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

#[test]
fn many_pods() {
    let pods = setting("HUSK_TEST_PODS", PODS);
    let subject = format!(
        "{pods} pods of three containers, {AT_ONCE} at a time: each has its own files, exit codes, \
         addresses and ports, and all of them go"
    );
    case(&subject, |cri| {
        // By itself: plugins for ports that run at once fail over the chains that the first makes.
        whole_life(cri, 0);
        let next = AtomicUsize::new(1);
        let work = || {
            while let number = next.fetch_add(1, Ordering::Relaxed)
                && number < pods
            {
                whole_life(cri, number);
            }
        };
        thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
    });
}

/// A pod from its start to its end; every fifth has a network of its own.
fn whole_life(cri: &Cri, number: usize) {
    let name = format!("pod-{number}");
    let bridged = number.is_multiple_of(5);
    let pod = cri.pod(&name, |config| {
        if bridged {
            config.hostname = name.clone();
            on_bridge(config, 20_000 + number);
        }
    });
    let volume = pod.volume("v");
    let with_volume = |config: &mut api::ContainerConfig| mount(config, &volume, "/v", false);
    let code = number % 7;
    let line = format!("echo {name} >/v/name; exit {code}");
    let first = pod.start("first", &["sh", "-c", &line], with_volume);
    assert_eq!(first.exit_code(), code as i32, "exit code of {name}'s first");
    let second = pod.start("second", &["sleep", "100000"], with_volume);
    let third = pod.start("third", &["sh", "-c", "cat /v/name; sleep 100000"], with_volume);
    third.until_logged(&name);
    assert_eq!(second.exec_sh("cat /v/name"), name);
    if bridged {
        assert_eq!(second.exec_sh("hostname"), name);
        let address = pod.status().network.unwrap_or_default().ip;
        let own = second.exec_sh("ip -4 -o address show dev eth0");
        assert!(own.contains(&format!(" {address}/")), "{name} has not {address}: {own}");
    }
    if number.is_multiple_of(3) {
        third.remove_running();
    }
    pod.remove();
}

/// Puts a pod on the bridge, with a port of the host.
fn on_bridge(config: &mut api::PodSandboxConfig, host_port: usize) {
    namespaces(config).network = NamespaceMode::POD.into();
    config.port_mappings.push(api::PortMapping {
        container_port: 80,
        host_port: host_port.try_into().expect("a port"),
        ..Default::default()
    });
}

/// What can be killed under a pod.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Shim,
    Vmm,
    Containerd,
}

const VICTIMS: [Victim; 3] = [Victim::Shim, Victim::Vmm, Victim::Containerd];

/// The steps of a pod that may be struck, in order.
const STEPS: [&str; 11] = [
    "run",
    "create a",
    "start a",
    "exec in a",
    "create b",
    "start b",
    "exec in b",
    "stop a",
    "remove a",
    "stop the pod",
    "remove the pod",
];

#[test]
fn kills() {
    let rounds = setting("HUSK_TEST_ROUNDS", ROUNDS);
    let subject = format!(
        "{rounds} times shim, VMM or containerd killed at a random moment of a pod: the pod can \
         be removed, nothing of it is left, another pod never notices"
    );
    husk_case(&subject, |cri| {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as usize);
        let seed = setting("HUSK_TEST_SEED", now);
        println!("HUSK_TEST_SEED={seed}");
        let mut random = Random(seed as u64 | 1);
        let bystander = cri.pod("bystander", |_| {});
        let steady = bystander.idle("steady");
        // Before the first look, since a restarted containerd has other descriptors.
        let restart = || {
            cri.lab.start_containerd();
            cri.until_ready();
        };
        cri.lab.end_containerd(Signal::SIGKILL);
        restart();
        let lengths = [false, true].map(|bridged| {
            let (told, done) = mpsc::channel();
            struck_life(cri, bridged, told).expect("a pod that nobody strikes");
            done.into_iter().collect::<Vec<Duration>>()
        });
        // Its shim has an event for containerd now, and so a connection.
        assert_eq!(steady.exec_sh("echo here"), "here");
        let mut before = cri.lab.look();
        let mut killed_so_far = 0;
        while killed_so_far < rounds {
            let victim = VICTIMS[random.below(VICTIMS.len())];
            let bridged = random.below(2) == 0;
            let step = random.below(STEPS.len());
            let delay = lengths[usize::from(bridged)][step] * random.below(1000) as u32 / 1000;
            let others = [HUSK_SHIM, "husk-vmm"].map(pids_of).concat();
            let (said, killed) = thread::scope(|scope| {
                let (told, done) = mpsc::channel();
                let life = scope.spawn(move || struck_life(cri, bridged, told));
                let killed =
                    strike(cri, victim, &others, &done, (step, delay), &|| life.is_finished());
                (life.join(), killed)
            });
            let outcome = match said.expect("an answer to each call") {
                Ok(()) => "it was done".to_owned(),
                Err((step, refusal)) => format!("{} failed: {refusal}", STEPS[step]),
            };
            if matches!(victim, Victim::Containerd) {
                restart();
                end_leases(cri);
            }
            killed_so_far += usize::from(killed);
            let retried = remove_all_but(&bystander.id);
            // A shim whose `start` was killed before it answered ends when nobody has given it any
            // work for a minute.
            let left = || [HUSK_SHIM, "husk-vmm"].map(pids_of).concat();
            eventually(LIMIT, || left().iter().all(|pid| others.contains(pid)));
            println!(
                "{killed_so_far}: {victim:?} {} {delay:?} into {:?}, bridge {bridged}: {outcome}{retried}",
                if killed { "killed" } else { "was not there" },
                STEPS[step],
            );
            assert_eq!(steady.exec_sh("echo here"), "here", "another pod");
            before = cri.lab.until_clean(&before).unwrap_or_else(|left| panic!("\n{left}"));
        }
        bystander.remove();
    });
}

/// Kills one that is not among the others, at its moment: so long after the step began, or when
/// it is done if that is sooner. Whether there was anything to kill.
fn strike(
    cri: &Cri,
    victim: Victim,
    others: &[i32],
    done: &Receiver<Duration>,
    (step, delay): (usize, Duration),
    is_over: &dyn Fn() -> bool,
) -> bool {
    for _ in 0..step {
        // An error is the end of a pod that failed by itself: it says so.
        let _ = done.recv();
    }
    let _ = done.recv_timeout(delay);
    let program = match victim {
        Victim::Shim => HUSK_SHIM,
        Victim::Vmm => "husk-vmm",
        Victim::Containerd => {
            cri.lab.end_containerd(Signal::SIGKILL);
            return true;
        }
    };
    // It may not have been started yet, or have ended already.
    let mut found = None;
    eventually(LIMIT, || {
        found = pids_of(program).into_iter().find(|pid| !others.contains(pid));
        found.is_some() || is_over()
    });
    found.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
}

/// How far a pod's life has come.
struct Progress {
    step: usize,
    began: Instant,
    told: Sender<Duration>,
}

impl Progress {
    /// The end of a step: tells its length, or gives it back with why it failed.
    fn done<T>(&mut self, step: Result<T, Refusal>) -> Result<T, (usize, Refusal)> {
        let value = step.map_err(|refusal| (self.step, refusal))?;
        // Nobody may listen any more.
        let _ = self.told.send(self.began.elapsed());
        self.step += 1;
        self.began = Instant::now();
        Ok(value)
    }
}

/// A pod's life as far as it comes, by the steps above, and the step that failed. Tells the
/// length of each step when it is done.
fn struck_life(cri: &Cri, bridged: bool, told: Sender<Duration>) -> Result<(), (usize, Refusal)> {
    let mut progress = Progress { step: 0, began: Instant::now(), told };
    let pod = progress.done(Pod::run(cri, "struck", |config| {
        if bridged {
            on_bridge(config, 20_000);
        }
    }))?;
    let volume = pod.volume("v");
    let with_volume = |config: &mut api::ContainerConfig| mount(config, &volume, "/v", false);
    let mut containers = Vec::new();
    for name in ["a", "b"] {
        let container = Container::create(&pod, name, &["sleep", "100000"], with_volume);
        let container = progress.done(container)?;
        progress.done(container.try_start())?;
        let line = "echo of $0 >/v/file; cat /v/file";
        let answer = progress.done(container.exec(&["sh", "-c", line, name], 0))?;
        if answer.exit_code == 0 {
            assert_eq!(String::from_utf8_lossy(&answer.stdout), format!("of {name}\n"));
        }
        containers.push(container);
    }
    progress.done(containers[0].try_stop(0))?;
    progress.done(containers[0].try_remove())?;
    progress.done(pod.try_stop())?;
    progress.done(pod.try_remove_only())
}

/// Ends the leases of what containerd had begun when it was killed. They hold a snapshot that
/// no container has got yet; it would let go of it when they expire, after a day.
fn end_leases(cri: &Cri) {
    for lease in cri.lab.ctr(&["leases", "ls", "-q"]).ended(0).text().lines() {
        cri.lab.ctr(&["leases", "rm", "--sync", lease]).ended(0);
    }
}

/// Removes each pod but one, as the kubelet does: again until it is done. What it was told
/// before.
fn remove_all_but(kept: &str) -> String {
    let mut told = String::new();
    for pod in cri::pods().iter().filter(|pod| *pod != kept) {
        let removed = eventually(LIMIT, || match cri::remove(pod) {
            Ok(()) => true,
            Err(refusal) => {
                told.push_str(&format!("; not removed at once: {refusal}"));
                false
            }
        });
        assert!(removed, "a pod cannot be removed{told}");
    }
    told
}
