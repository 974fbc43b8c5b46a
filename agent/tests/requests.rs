// SPDX-License-Identifier: Apache-2.0

//! The agent as the host sees it: requests, streams and events, with real containers but
//! without a VM. Ignored by default because they need root and a cgroup v2 hierarchy with
//! its controllers; they run in the lab.

mod guest;

use guest::{Guest, process, text};
use husk_protocol::agent::request::Verb;
use husk_protocol::agent::response::Result as Outcome;
use husk_protocol::agent::signal::Scope;
use husk_protocol::agent::{Pause, Pids, Resize, Resume, SetSize, Signal, Stats, Stdio, Update};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn signal(container: &str, exec: &str, signal: i32, scope: Scope) -> Verb {
    Verb::Signal(Signal {
        container: container.into(),
        exec: exec.into(),
        signal: signal as u32,
        scope: scope.into(),
        ..Default::default()
    })
}

/// Creates and starts a container that sleeps.
async fn sleeper(guest: &mut Guest, id: &str) {
    let spec = guest.spec(&["sleep", "1000"]);
    guest.create(id, &spec, Stdio::new()).await.expect("create");
    guest.start_container(id).await.expect("start");
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn a_container_runs_and_leaves_nothing() {
    let mut guest = Guest::start("runs").await;
    let script = "read line; echo got $line; echo err >&2; hostname; echo $$; exit 7";
    let spec = guest.spec(&["sh", "-c", script]);
    let streams = guest.streams();
    guest.create("c1", &spec, streams.stdio.clone()).await.expect("create");
    let exists = guest.create("c1", &spec, Stdio::new()).await.expect_err("twice");
    assert!(exists.contains("ALREADY_EXISTS"), "{exists}");
    let (mut stdin, mut stdout, mut stderr) = streams.accept().await;
    stdin.write_all(b"hello\n").await.expect("write");
    guest.start_container("c1").await.expect("start");
    assert_eq!(text(&mut stdout).await, "got hello\ninside\n1\n");
    assert_eq!(text(&mut stderr).await, "err\n");
    assert_eq!(guest.exit("c1").await.status, 7);
    let finished = guest.call(signal("c1", "", 9, Scope::PROCESS)).await.expect_err("finished");
    assert!(finished.contains("NOT_FOUND") && finished.contains("process already finished"));
    guest.delete("c1", "").await.expect("delete");
    guest.delete("c1", "").await.expect("delete again");
    let unknown = guest.start_container("c1").await.expect_err("unknown");
    assert!(unknown.contains("NOT_FOUND"), "{unknown}");
    guest.assert_clean().await;
}

/// A FIFO whose reader gets an answer when this is dropped: an agent that reads it itself would
/// not end with a test that has failed.
struct Slow(std::path::PathBuf);

impl Drop for Slow {
    fn drop(&mut self) {
        let open = std::fs::File::options().read(true).write(true).open(&self.0);
        let _ = open.and_then(|mut fifo| std::io::Write::write_all(&mut fifo, b"1\n"));
    }
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn a_slow_resize_holds_up_nobody() {
    let mut guest = Guest::start("resize").await;
    let cpus = guest.directory.join("cpus");
    std::fs::create_dir_all(cpus.join("cpu1")).expect("a CPU");
    // Who reads its state waits until there is a writer.
    let online = Slow(cpus.join("cpu1/online"));
    nix::unistd::mkfifo(&online.0, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    if !guest.mount_over(Some(&cpus), "/sys/devices/system/cpu") {
        return;
    }
    let resized = guest.ask(Verb::SetSize(SetSize { cpus: 2, ..Default::default() })).await;
    sleeper(&mut guest, "c1").await;
    guest.call(signal("c1", "", 9, Scope::PROCESS)).await.expect("signal");
    assert_eq!(guest.exit("c1").await.status, 137);
    guest.delete("c1", "").await.expect("delete");
    let answered = format!("response {resized}");
    assert!(!guest.order.contains(&answered), "the resize has not waited: {:?}", guest.order);
    println!("while a CPU did not answer: {:?}", guest.order);
    let fifo = online.0.clone();
    let written = tokio::task::spawn_blocking(move || std::fs::write(fifo, "1\n"));
    written.await.expect("no panic").expect("write");
    assert_eq!(guest.answer(resized).await, Ok(Outcome::Done(Default::default())));
    guest.mount_over(None, "/sys/devices/system/cpu");
    guest.assert_clean().await;
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn processes_get_what_the_spec_says() {
    let mut guest = Guest::start("spec").await;
    let script = "env; cat /proc/self/status; ulimit -n; umask; pwd; cat /proc/self/cgroup; \
                  ls /proc/self/fd; hostname x; sync; echo alive";
    let mut spec = guest.spec(&["sh", "-c", script]);
    spec["process"]["cwd"] = "/made/for/me".into();
    let mut streams = guest.streams();
    guest.create("c1", &spec, streams.stdio.clone()).await.expect("create");
    guest.start_container("c1").await.expect("start");
    let init = streams.stdout_text().await;
    assert_eq!(guest.exit("c1").await.status, 0);
    guest.delete("c1", "").await.expect("delete");

    // A filter that kills can only be seen to be there by what it does to a child of sh.
    sleeper(&mut guest, "c2").await;
    let mut exec = process(&["sh", "-c", script]);
    exec["cwd"] = "/made/for/me".into();
    streams = guest.streams();
    guest.exec("c2", "e1", &exec, streams.stdio.clone()).await.expect("exec");
    let joined = streams.stdout_text().await;
    assert_eq!(guest.exit("c2/e1").await.status, 0);
    for (what, out) in [("init", &init), ("exec", &joined)] {
        for line in ["HOME=/root", "FIRST=1", "900", "0022", "/made/for/me", "0::/", "alive"] {
            assert!(out.lines().any(|l| l == line), "{what} has no line {line}");
        }
        for field in ["CapBnd:\t00000000000000e3", "CapEff:\t00000000000000e3", "NoNewPrivs:\t1"] {
            assert!(out.contains(field), "{what} has no {field}");
        }
        assert!(out.contains("Seccomp:\t2"), "{what} has no filter");
        assert!(out.contains("SigBlk:\t0000000000000000"), "{what} has blocked signals");
        // ls has its own descriptor for the directory.
        let fds = out.lines().filter(|l| l.len() == 1 && l.parse::<u32>().is_ok()).count();
        assert_eq!(fds, 4, "{what} has stray descriptors");
    }
    guest.delete("c2", "").await.expect("delete");
    guest.assert_clean().await;
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn execs_are_told_before_the_container() {
    let mut guest = Guest::start("order").await;
    for round in 0..20 {
        let id = format!("c{round}");
        sleeper(&mut guest, &id).await;
        let execs: Vec<String> = (0..5).map(|n| format!("e{n}")).collect();
        for exec in &execs {
            let sleep = process(&["sleep", "1000"]);
            guest.exec(&id, exec, &sleep, Stdio::new()).await.expect("exec");
        }
        guest.call(signal(&id, "", 9, Scope::PROCESS)).await.expect("kill");
        assert_eq!(guest.exit(&id).await.status, 137);
        let exits: Vec<&String> =
            guest.order.iter().filter(|e| e.starts_with(&format!("exit {id}"))).collect();
        assert_eq!(exits.len(), 6, "{exits:?}");
        assert_eq!(exits[5], &format!("exit {id}"));
        guest.delete(&id, "").await.expect("delete");
    }
    guest.assert_clean().await;
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn ends_follow_the_answers_that_announce_them() {
    let mut guest = Guest::start("short").await;
    let spec = guest.spec(&["true"]);
    for round in 0..50 {
        let id = format!("c{round}");
        guest.create(&id, &spec, Stdio::new()).await.expect("create");
        guest.order.clear();
        guest.start_container(&id).await.expect("start");
        assert_eq!(guest.exit(&id).await.status, 0);
        assert!(guest.order[0].starts_with("response"), "{:?}", guest.order);
        guest.delete(&id, "").await.expect("delete");
    }
    sleeper(&mut guest, "c").await;
    for round in 0..50 {
        let exec = format!("e{round}");
        guest.order.clear();
        guest.exec("c", &exec, &process(&["true"]), Stdio::new()).await.expect("exec");
        assert_eq!(guest.exit(&format!("c/{exec}")).await.status, 0);
        assert!(guest.order[0].starts_with("response"), "{:?}", guest.order);
    }
    guest.delete("c", "").await.expect("delete");
    guest.assert_clean().await;
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn programs_that_cannot_run_are_named() {
    let mut guest = Guest::start("errors").await;
    sleeper(&mut guest, "s").await;
    for (program, want) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/nope", "exec: \"/nope\": stat /nope: no such file or directory"),
        ("/etc/plain", "exec: \"/etc/plain\": permission denied"),
        ("/etc", "exec: \"/etc\": is a directory"),
    ] {
        let spec = guest.spec(&[program]);
        let error = guest.create("c", &spec, Stdio::new()).await.expect_err(program);
        assert_eq!(error, format!("Ok(INVALID_ARGUMENT): {want}"));
        guest.delete("c", "").await.expect("delete");
        let error = guest.exec("s", "e", &process(&[program]), Stdio::new()).await;
        assert_eq!(error.expect_err(program), format!("Ok(INVALID_ARGUMENT): {want}"));
    }
    let odd = guest.directory.join("share/rootfs/bin/odd");
    std::fs::write(&odd, "no header").expect("write");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&odd, mode).expect("chmod");
    let spec = guest.spec(&["odd"]);
    guest.create("c", &spec, Stdio::new()).await.expect("create");
    let error = guest.start_container("c").await.expect_err("start");
    assert!(error.ends_with("exec /bin/odd: exec format error"), "{error}");
    let mut lost = process(&["true"]);
    lost["cwd"] = "/lost".into();
    let error = guest.exec("s", "e", &lost, Stdio::new()).await.expect_err("cwd");
    assert!(error.contains("chdir to cwd (\"/lost\")"), "{error}");
    guest.delete("c", "").await.expect("delete");

    let mut spec = guest.spec(&["true"]);
    spec["root"]["path"] = "/nowhere".into();
    let error = guest.create("c", &spec, Stdio::new()).await.expect_err("root");
    assert!(error.contains("rootfs /nowhere: no such file or directory"), "{error}");
    let mut spec = guest.spec(&["true"]);
    spec["mounts"][0] = json!({"destination": "/x", "type": "nofs", "source": "x"});
    let error = guest.create("c", &spec, Stdio::new()).await.expect_err("mount");
    assert!(error.contains("nofs") && error.contains("no such device"), "{error}");
    guest.delete("s", "").await.expect("delete");
    guest.assert_clean().await;
    assert_eq!(guest.events.iter().filter(|event| event.has_exit()).count(), 1);
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn terminals_have_a_size_an_owner_and_a_tail() {
    let mut guest = Guest::start("tty").await;
    let script = "stty size; stat -c %u:%a /dev/console; test -t 0 && test -t 2 && tty; \
                  read x; stty size; echo last";
    let mut spec = guest.spec(&["sh", "-c", script]);
    spec["process"]["user"]["uid"] = 1000.into();
    spec["process"]["terminal"] = true.into();
    for exec in ["", "e1"] {
        let streams = guest.streams();
        let stdio =
            Stdio { stderr_port: 0, terminal: true, rows: 33, cols: 99, ..streams.stdio.clone() };
        if exec.is_empty() {
            guest.create("c1", &spec, stdio).await.expect("create");
            guest.start_container("c1").await.expect("start");
        } else {
            sleeper(&mut guest, "c1").await;
            guest.exec("c1", exec, &spec["process"], stdio).await.expect("exec");
        }
        let (mut stdin, _) = streams.stdin.accept().await.expect("stdin");
        let (mut stdout, _) = streams.stdout.accept().await.expect("stdout");
        let mut seen = String::new();
        while !seen.contains("/dev/pts/0\r\n") {
            let mut bytes = [0; 512];
            let length = stdout.read(&mut bytes).await.expect("read");
            assert_ne!(length, 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
        assert!(seen.starts_with("33 99\r\n"), "{seen}");
        assert!(!exec.is_empty() || seen.contains("1000:620\r\n"), "{seen}");
        let resize = Resize {
            container: "c1".into(),
            exec: exec.into(),
            rows: 44,
            cols: 111,
            ..Default::default()
        };
        guest.call(Verb::Resize(resize)).await.expect("resize");
        stdin.write_all(b"go\n").await.expect("write");
        let tail = text(&mut stdout).await;
        assert!(tail.ends_with("44 111\r\nlast\r\n"), "{tail}");
        let process = if exec.is_empty() { "c1".to_owned() } else { format!("c1/{exec}") };
        assert_eq!(guest.exit(&process).await.status, 0);
        guest.delete("c1", "").await.expect("delete");
        guest.events.clear();
    }
    guest.assert_clean().await;
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn a_container_is_paused_signalled_and_listed() {
    let mut guest = Guest::start("pause").await;
    sleeper(&mut guest, "c1").await;
    guest.exec("c1", "e1", &process(&["sleep", "1000"]), Stdio::new()).await.expect("exec");
    let pids = guest.call(Verb::Pids(Pids { container: "c1".into(), ..Default::default() }));
    let Ok(Outcome::Pids(pids)) = pids.await else { panic!("no pids") };
    let mut execs: Vec<&str> = pids.pids.iter().map(|pid| pid.exec.as_str()).collect();
    execs.sort_unstable();
    assert_eq!(execs, ["", "e1"]);

    let pause = || Verb::Pause(Pause { container: "c1".into(), ..Default::default() });
    let resume = || Verb::Resume(Resume { container: "c1".into(), ..Default::default() });
    guest.call(pause()).await.expect("pause");
    let refused = guest.exec("c1", "e2", &process(&["true"]), Stdio::new()).await;
    assert!(refused.expect_err("paused").contains("FAILED_PRECONDITION"));
    guest.call(resume()).await.expect("resume");
    assert_eq!(guest.output("c1", "e2", &process(&["echo", "on"])).await, ("on\n".into(), 0));

    guest.call(signal("c1", "e1", 15, Scope::PROCESS)).await.expect("term");
    assert_eq!(guest.exit("c1/e1").await.status, 143);
    let taken = guest.exec("c1", "e1", &process(&["true"]), Stdio::new()).await;
    assert!(taken.expect_err("taken").contains("ALREADY_EXISTS"));
    guest.delete("c1", "e1").await.expect("delete");
    guest.call(pause()).await.expect("pause");
    guest.call(signal("c1", "", 9, Scope::ALL)).await.expect("kill all");
    assert_eq!(guest.exit("c1").await.status, 137);
    let refused = guest.exec("c1", "e3", &process(&["true"]), Stdio::new()).await;
    assert!(refused.expect_err("stopped").contains("FAILED_PRECONDITION"));
    guest.delete("c1", "").await.expect("delete");

    let spec = guest.spec(&["true"]);
    guest.create("c2", &spec, Stdio::new()).await.expect("create");
    guest.call(signal("c2", "", 9, Scope::PROCESS)).await.expect("kill");
    assert_eq!(guest.exit("c2").await.status, 137);
    let refused = guest.start_container("c2").await.expect_err("start");
    assert!(refused.contains("FAILED_PRECONDITION"), "{refused}");
    guest.delete("c2", "").await.expect("delete");
    guest.assert_clean().await;
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn limits_hold_change_and_are_counted() {
    let mut guest = Guest::start("limits").await;
    let mut spec = guest.spec(&["sleep", "1000"]);
    let limits = json!({
        "memory": {"limit": 67_108_864, "swap": 67_108_864},
        "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000},
        "pids": {"limit": 20},
    });
    for (key, value) in limits.as_object().expect("object") {
        spec["linux"]["resources"][key] = value.clone();
    }
    guest.create("c1", &spec, Stdio::new()).await.expect("create");
    guest.start_container("c1").await.expect("start");
    let read = process(&["cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max"]);
    assert_eq!(guest.output("c1", "e1", &read).await, ("67108864\n20\n".into(), 0));
    let resources = json!({"pids": {"limit": 30}, "memory": {"limit": 33_554_432}}).to_string();
    let update =
        Update { container: "c1".into(), resources: resources.into_bytes(), ..Default::default() };
    guest.call(Verb::Update(update)).await.expect("update");
    assert_eq!(guest.output("c1", "e1", &read).await, ("33554432\n30\n".into(), 0));
    let stats = Stats { containers: vec!["c1".into()], ..Default::default() };
    let Ok(Outcome::Stats(stats)) = guest.call(Verb::Stats(stats)).await else { panic!("stats") };
    let stats = &stats.stats[0];
    assert_eq!(stats.memory.usage_limit, 33_554_432);
    assert_eq!((stats.pids.current, stats.pids.limit), (1, 30));
    assert!(stats.cpu.usage_usec > 0 && stats.memory.usage > 0);
    assert!(stats.memory.stat.contains_key("anon"));

    // Too much memory: the exec is killed and says why; the container lives.
    let hog = process(&["sh", "-c", "head -c 100000000 /dev/zero | tail"]);
    guest.exec("c1", "hog", &hog, Stdio::new()).await.expect("exec");
    guest.exit("c1/hog").await;
    assert!(guest.order.contains(&"oom c1".to_owned()), "{:?}", guest.order);
    let hog = process(&["tail", "/dev/zero"]);
    guest.exec("c1", "hog2", &hog, Stdio::new()).await.expect("exec");
    let exit = guest.exit("c1/hog2").await;
    assert_eq!((exit.status, exit.oom), (137, true));
    assert_eq!(guest.output("c1", "e2", &process(&["echo", "on"])).await, ("on\n".into(), 0));
    guest.delete("c1", "").await.expect("delete");
    guest.assert_clean().await;
}

#[tokio::test]
#[ignore = "needs root and cgroup v2"]
async fn output_is_whole_and_a_reader_that_stalls_blocks_nobody() {
    let mut guest = Guest::start("io").await;
    sleeper(&mut guest, "c1").await;
    let streams = guest.streams();
    let count = process(&["sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x; echo end >&2"]);
    guest.exec("c1", "e1", &count, streams.stdio.clone()).await.expect("exec");
    let (_stdin, mut stdout, mut stderr) = streams.accept().await;
    let (out, err) = tokio::join!(text(&mut stdout), text(&mut stderr));
    assert_eq!((out.len(), err.as_str()), (20_000_000, "end\n"));
    assert!(out.bytes().all(|byte| byte == b'x'));
    assert_eq!(guest.exit("c1/e1").await.status, 0);

    let streams = guest.streams();
    guest.exec("c1", "e2", &process(&["yes"]), streams.stdio.clone()).await.expect("exec");
    let _stalled = streams.accept().await;
    guest.call(signal("c1", "e2", 9, Scope::PROCESS)).await.expect("kill");
    assert_eq!(guest.exit("c1/e2").await.status, 137);
    guest.delete("c1", "e2").await.expect("delete");

    // A pipe whose reader is gone kills the writer, as everywhere.
    let streams = guest.streams();
    guest.exec("c1", "e3", &process(&["yes"]), streams.stdio.clone()).await.expect("exec");
    drop(streams.accept().await);
    assert_eq!(guest.exit("c1/e3").await.status, 141);

    let user = json!({"uid": 1000, "gid": 1000, "additionalGids": [5, 7]});
    let mut reopen = process(&["sh", "-c", "id; echo again > /dev/stdout"]);
    reopen["user"] = user;
    let (out, status) = guest.output("c1", "e4", &reopen).await;
    assert_eq!(out, "uid=1000(user) gid=1000 groups=5,7\nagain\n");
    assert_eq!(status, 0);
    guest.delete("c1", "").await.expect("delete");
    guest.assert_clean().await;
}
