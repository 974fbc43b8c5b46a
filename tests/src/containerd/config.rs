// SPDX-License-Identifier: Apache-2.0

//! Containers of a whole config.json, for what ctr has no flag for: containerd's base spec,
//! changed here and there, and what their processes then find, checked by small scripts.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::Lab;
use super::process::{Output, Running};

/// Ends the output of a script.
const END: &str = "== end";

/// What is checked, a script for the container's shell, and what the script says, with all
/// white space alike. A failing script's words are on stderr, and are looked at, too.
pub type Check<'a> = (&'a str, &'a str, &'a str);

/// A config.json.
#[derive(Clone)]
pub struct Config(Value);

impl Config {
    /// The base spec, with a root of busybox that must not be changed.
    pub fn new(lab: &Lab) -> Config {
        let mut spec = lab.spec();
        spec["root"] = json!({ "path": lab.rootfs() });
        spec["process"]["terminal"] = false.into();
        spec["process"]["env"] = json!(["PATH=/bin"]);
        spec["process"]["args"] = json!(["sh", "-c", ""]);
        spec["linux"]["cgroupsPath"] = "/default/configured".into();
        Config(spec)
    }

    /// With a copy of the root, which may be changed, in a directory.
    pub fn own_root(mut self, lab: &Lab, directory: &Path) -> Config {
        let root = directory.join("rootfs");
        let copied = Command::new("cp").arg("-a").arg(lab.rootfs()).arg(&root).status();
        assert!(copied.expect("cp").success(), "cp");
        self.0["root"]["path"] = json!(root);
        self
    }

    /// Replaces the value at `/a/b`.
    pub fn set(mut self, pointer: &str, value: Value) -> Config {
        let names = pointer.split('/').skip(1);
        *names.fold(&mut self.0, |place, name| &mut place[name]) = value;
        self
    }

    /// Adds to the list at `/a/b`.
    pub fn add(mut self, pointer: &str, values: Value) -> Config {
        let list = self.0.pointer_mut(pointer).and_then(Value::as_array_mut).expect(pointer);
        list.extend(values.as_array().expect("a list").iter().cloned());
        self
    }

    /// What the container's shell does.
    pub fn script(self, script: &str) -> Config {
        let mut config = self;
        config.0["process"]["args"][2] = script.into();
        config
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(&self, lab: &Lab, id: &str) -> Output {
        let mut running = self.start(lab, id);
        running.close_stdin();
        running.wait()
    }

    /// Starts it.
    pub fn start(&self, lab: &Lab, id: &str) -> Running {
        // Beside containerd's own, for the file has to be there until ctr has read it.
        let file = lab.containerd_path(&format!("{id}.json"));
        fs::write(&file, self.0.to_string()).expect("write config.json");
        let file = file.display().to_string();
        lab.ctr_start(&["run", "--rm", "--runtime", lab.runtime(), "--config", &file, id])
    }

    /// Runs a container whose first process makes these checks and then waits, until what is
    /// returned is dropped or finished.
    #[track_caller]
    pub fn check<'a>(&self, lab: &'a Lab, id: &'a str, checks: &[Check]) -> Checked<'a> {
        let script = format!("{}exec cat >/dev/null", script(checks));
        let running = self.clone().script(&script).start(lab, id);
        let said = running.until(END, |said| said.contains(END).then(|| said.to_owned()));
        compare(id, &said, checks);
        Checked { lab, id, running }
    }
}

/// A container that made its checks.
pub struct Checked<'a> {
    lab: &'a Lab,
    id: &'a str,
    running: Running,
}

impl Checked<'_> {
    /// Makes checks in a further process of the container.
    #[track_caller]
    pub fn exec(&self, checks: &[Check]) {
        let said = self.lab.exec_sh(self.id, &script(checks));
        compare(&format!("exec in {}", self.id), &said, checks);
    }

    /// Lets the container end.
    #[track_caller]
    pub fn finish(mut self) {
        self.running.close_stdin();
        self.running.wait().ended(0);
    }
}

/// The script that makes these checks.
pub fn script(checks: &[Check]) -> String {
    let each = checks.iter().enumerate().map(|(number, (_, script, _))| {
        format!("echo; echo '== {number}'; (\n{script}\n) 2>&1 </dev/null\n")
    });
    each.chain([format!("echo; echo '{END}'\n")]).collect()
}

/// Compares what the script of these checks said, prints each and fails if any of them did.
#[track_caller]
pub fn compare(who: &str, said: &str, checks: &[Check]) {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut failed = String::new();
    for (number, (what, script, expected)) in checks.iter().enumerate() {
        let after = said.split_once(&format!("== {number}\n")).map_or("", |(_, after)| after);
        let answer = words(after.split_once("\n== ").map_or(after, |(answer, _)| answer));
        match answer == words(expected) {
            true => println!("  {who}: {what}"),
            false => {
                failed += &format!(
                    "{who}: {what}\n  script:   {script}\n  expected: {}\n  answer:   {answer}\n",
                    words(expected)
                );
            }
        }
    }
    assert!(failed.is_empty(), "not as expected:\n{failed}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKS: [Check; 2] = [("one", "echo 1; echo 2", "1 2"), ("two", "printf ' x'", "x")];

    #[test]
    fn answers_are_told_apart() {
        let output = Command::new("sh").args(["-c", &script(&CHECKS)]).output();
        let said = String::from_utf8(output.expect("sh").stdout).expect("UTF-8");
        compare("test", &said, &CHECKS);
        let wrong = [CHECKS[0], ("two", "printf ' x'", "y")];
        assert!(std::panic::catch_unwind(|| compare("test", &said, &wrong)).is_err());
    }
}
