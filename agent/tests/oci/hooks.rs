// SPDX-License-Identifier: Apache-2.0

//! Hooks: where, when and in which order they run, and what follows from a failure
//! (runtime-spec, runtime.md "Lifecycle", config.md "POSIX-platform Hooks").

use serde_json::{Value, json};

use crate::bundle::{Bundle, ended};

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A container with hooks of every kind that write their kind, and the status that they are
/// told, into one file.
fn with_hooks(name: &str) -> Option<Bundle> {
    let mut bundle = Bundle::new(name, &["sleep", "1000"])?;
    let log = bundle.path("log");
    std::fs::create_dir(&log).expect("create");
    bundle
        .push("/mounts", json!({"destination": "/log", "source": log, "options": ["bind", "rw"]}));
    for kind in KINDS {
        // Only the startContainer hooks see the container's files.
        let log = if kind == "startContainer" { "/log".into() } else { log.clone() };
        let script = format!(
            "state=$(cat); status=${{state##*\\\"status\\\":\\\"}}; \
             echo {kind} ${{status%%\\\"*}} $ONLY >> {}/all",
            log.display()
        );
        bundle.config["hooks"][kind] = json!([hook(&script)]);
    }
    Some(bundle)
}

fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin", "ONLY=x"]})
}

impl Bundle {
    fn hooks_that_ran(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("log/all")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

#[test]
fn hooks_run_in_their_order_and_are_told_the_state() {
    let Some(bundle) = with_hooks("hooks") else { return };
    let pid = bundle.create();
    let created = ["prestart creating x", "createRuntime creating x", "createContainer creating x"];
    assert_eq!(bundle.hooks_that_ran(), created);
    bundle.on(&["start"]).ok();
    let started = ["startContainer created x", "poststart running x"];
    assert_eq!(bundle.hooks_that_ran()[3..], started);
    bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
    ended(pid);
    assert_eq!(bundle.hooks_that_ran().len(), 5);
    bundle.on(&["delete"]).ok();
    assert_eq!(bundle.hooks_that_ran()[5..], ["poststop stopped x"]);
}

#[test]
fn hooks_of_the_runtime_see_the_process_and_its_state() {
    let Some(mut bundle) = Bundle::new("hookstate", &["sleep", "1000"]) else { return };
    let script = format!(
        "{} oci --root {} state {} > {}",
        env!("CARGO_BIN_EXE_husk-agent"),
        bundle.root.display(),
        bundle.id,
        bundle.path("state").display()
    );
    bundle.config["hooks"] = json!({"createRuntime": [hook(&script)]});
    let pid = bundle.create();
    let state: Value =
        serde_json::from_slice(&std::fs::read(bundle.path("state")).expect("state")).expect("JSON");
    assert_eq!((&state["status"], &state["pid"]), (&json!("creating"), &json!(pid)));
    bundle.kill_and_delete(pid);
}

#[test]
fn a_hook_that_fails_before_the_container_is_there_undoes_it() {
    for kind in &KINDS[..3] {
        let Some(mut bundle) = with_hooks(&format!("undo-{kind}")) else { return };
        bundle.config["hooks"][*kind] = json!([hook("echo broken >&2; exit 3"), hook("touch not")]);
        let error = bundle.on(&["create"]).fails(1);
        for word in [kind, "broken", "exit status: 3"] {
            assert!(error.contains(word), "{kind}: {word} is not in {error}");
        }
        let ran = bundle.hooks_that_ran();
        let before = KINDS.iter().position(|k| k == kind).expect("a kind");
        assert_eq!(ran.len(), before + 1, "{kind}: {ran:?}");
        assert_eq!(ran.last().map(String::as_str), Some("poststop stopped x"));
        assert!(!bundle.path("not").exists(), "{kind}: the hook after the failed one ran");
    }
}

#[test]
fn a_hook_that_fails_around_the_start_stops_the_container() {
    for kind in &KINDS[3..5] {
        let Some(mut bundle) = with_hooks(&format!("stop-{kind}")) else { return };
        bundle.config["hooks"][*kind] = json!([hook("exit 3")]);
        let pid = bundle.create();
        let error = bundle.on(&["start"]).fails(1);
        assert!(error.contains(kind) && error.contains("exit status: 3"), "{kind}: {error}");
        assert_ne!(ended(pid), 0);
        assert_eq!(bundle.status(), "stopped", "{kind}");
        bundle.on(&["delete"]).ok();
        let ran = bundle.hooks_that_ran();
        assert_eq!(ran.last().map(String::as_str), Some("poststop stopped x"), "{kind}: {ran:?}");
    }
}

#[test]
fn hooks_that_fail_after_the_end_are_told_and_do_not_stop_the_others() {
    let Some(mut bundle) = with_hooks("poststop") else { return };
    let good = bundle.config["hooks"]["poststop"][0].clone();
    bundle.config["hooks"]["poststop"] = json!([hook("exit 3"), good]);
    let pid = bundle.start();
    bundle.oci(&["kill", &bundle.id, "KILL"]).ok();
    ended(pid);
    let ran = bundle.on(&["delete"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.err.contains("poststop hook"), "{ran:?}");
    assert_eq!(bundle.hooks_that_ran().last().map(String::as_str), Some("poststop stopped x"));
}

#[test]
fn a_hook_that_takes_too_long_fails() {
    let Some(mut bundle) = Bundle::new("slowhook", &["true"]) else { return };
    let mut slow = hook("exec sleep 1000");
    slow["timeout"] = 1.into();
    bundle.config["hooks"] = json!({"createRuntime": [slow]});
    let error = bundle.run().fails(1);
    assert!(error.contains("killed after its timeout of 1 s"), "{error}");
}
