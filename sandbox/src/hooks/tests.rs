// SPDX-License-Identifier: Apache-2.0

use super::*;
use serde_json::json;

/// A container in a bundle of its own, with hooks of config.json.
struct Place {
    bundle: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { bundle: tempfile::tempdir().expect("directory") }
    }

    fn hooks(&self, hooks: Value) -> HostHooks {
        let hooks: Hooks = serde_json::from_value(hooks).expect("hooks");
        hooks.check().expect("fine");
        let annotations = json!({"a": "b"});
        hooks.on_host("c1", self.bundle.path(), annotations.as_object().expect("object"))
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.bundle.path().join(name)).expect(name)
    }
}

/// A hook that runs a line of shell.
fn shell(line: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/bin:/usr/bin"]})
}

#[tokio::test]
async fn hooks_run_in_the_bundle_in_order_and_are_told_the_state() {
    let place = Place::new();
    let hooks = place.hooks(json!({
        "prestart": [shell("cat >state; echo prestart >>order")],
        "createRuntime": [shell("echo one >>order"), shell("echo two >>order; env >env; echo $0 >name")],
    }));
    hooks.before_create(17).await.expect("both ran");
    assert_eq!(place.read("order"), "prestart\none\ntwo\n");
    let state: Value = serde_json::from_str(&place.read("state")).expect("JSON");
    assert_eq!(
        state,
        json!({"ociVersion": OCI_VERSION, "id": "c1", "status": "creating", "pid": 17,
               "bundle": place.bundle.path(), "annotations": {"a": "b"}})
    );
    let env = place.read("env");
    assert!(env.contains("PATH=/bin:/usr/bin"), "{env}");
    assert!(!env.contains("CARGO"), "only its own environment: {env}");
    assert_eq!(place.read("name"), "sh\n");
}

#[tokio::test]
async fn the_first_failure_counts_and_tells_what_was_said() {
    let place = Place::new();
    let hooks = place.hooks(json!({
        "createRuntime": [
            shell("echo to stdout; echo to stderr >&2; exit 7"),
            shell("echo ran >second"),
        ],
    }));
    let error = hooks.before_create(1).await.expect_err("the first fails").message;
    for part in ["createRuntime", "/bin/sh", "status 7", "to stdout", "to stderr"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!place.bundle.path().join("second").exists());
    let hooks = place.hooks(json!({"prestart": [{"path": "/nonexistent/hook"}]}));
    let error = hooks.before_create(1).await.expect_err("there is none").message;
    assert!(error.contains("/nonexistent/hook") && error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn a_hook_that_takes_too_long_is_killed_with_what_it_started() {
    let place = Place::new();
    let mut slow = shell("echo $$ >pid; echo waiting; sleep 100000 & wait");
    slow["timeout"] = 1.into();
    let hooks = place.hooks(json!({"prestart": [slow]}));
    let error = hooks.before_create(1).await.expect_err("killed").message;
    assert!(error.contains("within 1 s") && error.contains("waiting"), "{error}");
    let group = Pid::from_raw(place.read("pid").trim().parse().expect("pid"));
    gone(group).await;
}

/// Waits until no process of the group runs. The hook itself is reaped; what it started is
/// a zombie until init has reaped it.
async fn gone(group: Pid) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while alive_in(group) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the group is gone");
}

/// Whether a process of the group runs.
fn alive_in(group: Pid) -> bool {
    std::fs::read_dir("/proc").expect("proc").flatten().any(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        fields.get(2) == Some(&group.to_string().as_str()) && fields.first() != Some(&"Z")
    })
}

#[tokio::test]
async fn a_hook_that_nobody_waits_for_is_killed() {
    let place = Place::new();
    let hooks =
        place.hooks(json!({"prestart": [shell("echo $$ >pid; mv pid ready; sleep 100000")]}));
    let ready = place.bundle.path().join("ready");
    let begun = async {
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = hooks.before_create(1) => panic!("{done:?}"),
        () = begun => {}
    }
    gone(Pid::from_raw(place.read("ready").trim().parse().expect("pid"))).await;
}

#[tokio::test]
async fn a_state_that_is_not_read_and_a_daemon_left_behind_hold_nobody_up() {
    let place = Place::new();
    let hooks: Hooks = serde_json::from_value(json!({
        "prestart": [shell("trap '' PIPE; while :; do echo x; done 2>&1 & echo $! >child")],
    }))
    .expect("hooks");
    let long = json!({"long": "x".repeat(1 << 20)});
    let hooks = hooks.on_host("c1", place.bundle.path(), long.as_object().expect("object"));
    hooks.before_create(1).await.expect("ran");
    let child = Pid::from_raw(place.read("child").trim().parse().expect("pid"));
    nix::sys::signal::kill(child, Signal::SIGKILL).expect("it still runs");
}

#[tokio::test]
async fn later_hooks_run_in_any_case() {
    let place = Place::new();
    let hooks = place.hooks(json!({
        "poststart": [shell("exit 1"), shell("echo started >>order")],
        "poststop": [shell("exit 2"), shell("echo stopped >>order; cat >state")],
    }));
    assert_eq!(hooks.after_start(1).await.len(), 1);
    let poststop = hooks.poststop().expect("there are some");
    // As a state file keeps it.
    let json = serde_json::to_string(&poststop).expect("JSON");
    let poststop: Poststop = serde_json::from_str(&json).expect("the same");
    let errors = poststop.run_blocking();
    assert!(errors.len() == 1 && errors[0].message.contains("status 2"), "{errors:?}");
    assert_eq!(place.read("order"), "started\nstopped\n");
    let state: Value = serde_json::from_str(&place.read("state")).expect("JSON");
    assert_eq!((&state["status"], state.get("pid")), (&json!("stopped"), None));
    assert!(place.hooks(json!({})).poststop().is_none());
}

#[test]
fn what_cannot_run_is_refused_before() {
    for (hook, part) in [
        (json!({"path": "relative"}), "absolute"),
        (json!({"path": "/x", "timeout": 0}), "timeout"),
        (json!({"path": "/x", "timeout": -1}), "timeout"),
    ] {
        for kind in [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ] {
            let hooks: Hooks = serde_json::from_value(json!({kind: [hook]})).expect("hooks");
            assert!(!hooks.is_empty());
            let error = hooks.check().expect_err(kind);
            assert!(error.message.contains(kind) && error.message.contains(part), "{error}");
            assert_eq!(error.code, crate::Code::InvalidArgument);
        }
    }
}
