// SPDX-License-Identifier: Apache-2.0

//! containerd's events, as `ctr events` prints them: one a line, with time, namespace, topic
//! and content.

use serde_json::Value;

use super::Lab;
use super::process::Running;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Such as `/tasks/start`.
    pub topic: String,
    pub content: Value,
}

impl Event {
    fn parse(line: &str) -> Option<Event> {
        let (head, content) = line.split_at(line.find('{')?);
        let topic = head.split_whitespace().last()?;
        let content = serde_json::from_str(content).ok()?;
        topic.starts_with('/').then(|| Event { topic: topic.to_owned(), content })
    }

    /// The container it is about.
    pub fn container(&self) -> &str {
        self.text("container_id")
    }

    /// A field's text; empty if it has none.
    pub fn text(&self, field: &str) -> &str {
        self.content[field].as_str().unwrap_or_default()
    }

    /// A field's number; protobuf's JSON leaves out what is 0.
    pub fn number(&self, field: &str) -> u64 {
        self.content[field].as_u64().unwrap_or_default()
    }
}

/// Listens until it is dropped.
pub struct Events(Running);

impl Events {
    /// Listens; what happens after this returns is heard.
    pub fn listen(lab: &Lab) -> Events {
        let events = Events(lab.ctr_start(&["events"]));
        // ctr does not say when it is subscribed. So make an event until one is heard.
        for round in 0.. {
            assert!(round < 100, "`ctr events` hears nothing");
            let label = format!("heard={round}");
            lab.ctr(&["images", "label", super::IMAGE, &label]).ended(0);
            if events.all().iter().any(|event| event.topic == "/images/update") {
                break;
            }
        }
        lab.ctr(&["images", "label", super::IMAGE, "heard="]).ended(0);
        events
    }

    /// All that was heard so far.
    pub fn all(&self) -> Vec<Event> {
        parse(&self.0.stdout())
    }

    /// Those about tasks of this container.
    pub fn of(&self, container: &str) -> Vec<Event> {
        tasks_of(self.all(), container)
    }

    /// Waits for an event about this container's task and returns all until then.
    #[track_caller]
    pub fn until(&self, container: &str, topic: &str) -> Vec<Event> {
        self.0.until(&format!("event {topic} of {container}"), |said| {
            let events = tasks_of(parse(said), container);
            events.iter().any(|event| event.topic == topic).then_some(events)
        })
    }
}

/// The topics without `/tasks/`, in order, in one line.
pub fn topics(events: &[Event]) -> String {
    let topics = events.iter().map(|event| event.topic.trim_start_matches("/tasks/"));
    topics.collect::<Vec<_>>().join(" ")
}

fn parse(said: &str) -> Vec<Event> {
    // The last line may not be whole yet.
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    whole.lines().filter_map(Event::parse).collect()
}

fn tasks_of(mut events: Vec<Event>, container: &str) -> Vec<Event> {
    events.retain(|event| event.topic.starts_with("/tasks/") && event.container() == container);
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ctr_is_read() {
        let line = "2026-11-22 05:49:00.052 +0000 UTC default /tasks/exit \
                    {\"container_id\":\"a\",\"id\":\"a\",\"pid\":7,\"exit_status\":137}\n";
        let events = parse(line);
        assert_eq!(topics(&events), "exit");
        assert_eq!(events[0].container(), "a");
        assert_eq!(events[0].number("exit_status"), 137);
        assert_eq!(parse(line.trim_end()), []);
    }
}
