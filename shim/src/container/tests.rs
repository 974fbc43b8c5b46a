// SPDX-License-Identifier: Apache-2.0

use super::*;
use containerd_shim_protos::shim::event::Envelope;
use husk_sandbox::Spec;
use std::path::Path;
use tokio::sync::mpsc::Receiver;

fn exit(status: u32) -> Exit {
    Exit { status, at: Duration::from_secs(9) }
}

fn container() -> (Container, Receiver<Envelope>) {
    let (events, published) = Events::collected("ns");
    let request = CreateTaskRequest {
        id: "c".into(),
        bundle: "/bundle".into(),
        rootfs: vec![Mount { type_: "overlay".into(), ..Default::default() }],
        ..Default::default()
    };
    let hooks = Spec::parse(b"{}").expect("spec").host_hooks("c", Path::new("/bundle"));
    (Container::new(&request, 42, None, hooks, events), published)
}

fn with_exec(id: &str) -> (Container, Receiver<Envelope>) {
    let (container, published) = container();
    for input in [Input::Made, Input::Start, Input::Started] {
        container.apply("", input).expect("input");
    }
    let process = Process::new(State::Created, Stdio::default());
    container.inner().execs.insert(id.into(), Exec { process, spec: Vec::new() });
    container.apply(id, Input::Start).expect("start");
    (container, published)
}

#[test]
fn the_create_event_has_all_that_a_create_has() {
    let (container, mut published) = container();
    container.apply("", Input::Made).expect("made");
    let envelope = published.try_recv().expect("an event");
    let create: message::TaskCreate =
        protobuf::Message::parse_from_bytes(&envelope.event.value).expect("create");
    assert_eq!((create.container_id.as_str(), create.bundle.as_str()), ("c", "/bundle"));
    assert_eq!((create.pid, create.rootfs[0].type_.as_str()), (42, "overlay"));
    assert!(create.io.is_some());
}

/// Topics without `/tasks/`; exits with whose they are and their status.
fn seen(published: &mut Receiver<Envelope>) -> Vec<String> {
    let mut seen = Vec::new();
    while let Ok(envelope) = published.try_recv() {
        let topic = envelope.topic.trim_start_matches("/tasks/").to_owned();
        seen.push(match topic.as_str() {
            "exit" => {
                let exit: message::TaskExit =
                    protobuf::Message::parse_from_bytes(&envelope.event.value).expect("exit");
                assert_eq!((exit.container_id.as_str(), exit.pid), ("c", 42));
                assert_eq!(exit.exited_at.seconds, 9);
                format!("exit {} {}", exit.id, exit.exit_status)
            }
            _ => topic,
        });
    }
    seen
}

#[test]
fn a_life_is_told_in_order() {
    let (container, mut published) = container();
    container.apply("", Input::Made).expect("made");
    container.apply("", Input::Start).expect("start");
    assert_eq!(container.exited("", exit(7)), AfterExit::Nothing);
    container.apply("", Input::Started).expect("started");
    assert_eq!(seen(&mut published), ["create", "start", "exit c 7"]);
    assert_eq!(container.inner().status("").expect("status"), Status::STOPPED);
}

#[test]
fn execs_exit_before_the_first_process() {
    let (container, mut published) = with_exec("e");
    container.apply("e", Input::Started).expect("started");
    assert_eq!(container.exited("", exit(137)), AfterExit::EndExecs);
    assert_eq!(container.inner().status("").expect("status"), Status::RUNNING);
    assert_eq!(container.exited("e", exit(137)), AfterExit::Nothing);
    let expected = ["create", "start", "exec-started", "exit e 137", "exit c 137"];
    assert_eq!(seen(&mut published), expected);
}

#[test]
fn an_exec_that_never_reports_holds_the_exit_up_only_so_long() {
    let (container, mut published) = with_exec("e");
    container.apply("e", Input::Started).expect("started");
    container.exited("", exit(0));
    container.release_exit();
    container.release_exit();
    assert_eq!(seen(&mut published), ["create", "start", "exec-started", "exit c 0"]);
    container.exited("e", exit(137));
    assert_eq!(seen(&mut published), ["exit e 137"]);
}

#[test]
fn a_lost_vm_ends_everything_once_and_execs_first() {
    let (container, mut published) = with_exec("e");
    container.apply("e", Input::Started).expect("started");
    container.lost(exit(137));
    container.lost(exit(137));
    container.exited("", exit(1));
    let expected = ["create", "start", "exec-started", "exit e 137", "exit c 137"];
    assert_eq!(seen(&mut published), expected);
}

#[test]
fn a_lost_vm_does_not_change_how_the_first_process_had_ended() {
    let (container, mut published) = with_exec("e");
    container.apply("e", Input::Started).expect("started");
    container.exited("", exit(5));
    container.lost(exit(137));
    let expected = ["create", "start", "exec-started", "exit e 137", "exit c 5"];
    assert_eq!(seen(&mut published), expected);
}

#[test]
fn an_exec_that_exits_while_it_is_started_is_told_after_its_start() {
    let (container, mut published) = with_exec("e");
    container.exited("e", exit(3));
    container.apply("e", Input::Started).expect("started");
    assert_eq!(seen(&mut published), ["create", "start", "exec-started", "exit e 3"]);
}

#[test]
fn an_exec_that_exits_while_it_is_started_is_told_before_the_first_process() {
    let (container, mut published) = with_exec("e");
    assert_eq!(container.exited("e", exit(137)), AfterExit::Nothing);
    assert_eq!(container.exited("", exit(137)), AfterExit::EndExecs);
    container.apply("e", Input::Started).expect("started");
    let expected = ["create", "start", "exec-started", "exit e 137", "exit c 137"];
    assert_eq!(seen(&mut published), expected);
}

#[test]
fn an_exec_that_could_not_be_started_holds_no_exit_up() {
    let (container, mut published) = with_exec("e");
    assert_eq!(container.exited("", exit(1)), AfterExit::EndExecs);
    container.apply("e", Input::NotStarted).expect("not started");
    assert_eq!(seen(&mut published), ["create", "start", "exit c 1"]);
}

#[test]
fn ooms_are_told_but_not_all_the_time() {
    let (container, mut published) = container();
    for _ in 0..1000 {
        container.oom();
    }
    assert_eq!(seen(&mut published), ["oom"]);
}

#[test]
fn a_paused_container_says_so_until_it_is_resumed() {
    let (container, mut published) = with_exec("e");
    container.set_paused(true);
    assert_eq!(container.inner().status("").expect("status"), Status::PAUSED);
    container.set_paused(false);
    assert_eq!(container.inner().status("").expect("status"), Status::RUNNING);
    assert_eq!(seen(&mut published), ["create", "start", "paused", "resumed"]);
}

#[tokio::test]
async fn waiters_are_told_after_the_event() {
    let (container, mut published) = with_exec("e");
    let mut waiter = container.inner().watch_exit("").expect("watch");
    container.lost(exit(137));
    assert_eq!(seen(&mut published).last().map(String::as_str), Some("exit c 137"));
    let known = waiter.wait_for(Option::is_some).await.expect("exit");
    assert_eq!(known.map(|exit| exit.status), Some(137));
    assert!(container.inner().watch_exit("nobody").is_err());
}
