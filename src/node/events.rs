//! What happens in the node, told as it happens: one bounded channel of JSON events, for whoever listens over HTTP.
//!
//! Telling never waits: a listener that does not keep up loses its place. Where nobody can listen nothing is made.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::{Node, alerts::Alert};
use crate::{
    consensus::Stage,
    http::{Event, Subscription},
    types::{Attempt, Seq},
};

/// Events that a listener may be behind, and that are kept for one whose connection broke. Past it a listener is dropped.
const EVENTS_MAX: usize = 512;

/// Listeners at a time. Past it one more is refused.
const LISTENERS_MAX: usize = 128;

/// Where events are told. Clones are the same place.
#[derive(Debug, Clone)]
pub(super) struct Events(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    sender: broadcast::Sender<Arc<Event>>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<Arc<Event>>,
}

impl Events {
    /// Nobody can listen where it `is_on` not.
    pub(super) fn new(is_on: bool) -> Events {
        let inner = || Inner { sender: broadcast::channel(EVENTS_MAX).0, kept: Mutex::default() };
        Events(is_on.then(|| Arc::new(inner())))
    }

    /// Tells of one thing. `data` is made only where somebody can listen.
    pub(super) fn tell(&self, name: &'static str, data: impl FnOnce() -> Value) {
        let Some(inner) = &self.0 else { return };
        let data = data().to_string();
        let mut kept = inner.kept();
        kept.last += 1;
        let event = Arc::new(Event { id: kept.last, name, data });
        kept.events.push_back(event.clone());
        if kept.events.len() > EVENTS_MAX {
            kept.events.pop_front();
        }
        // Nobody may listen.
        let _ = inner.sender.send(event);
    }

    /// Everything after this event, or from now on. `None` when as many listen as may.
    pub(super) fn listen(&self, after: Option<u64>) -> Option<Subscription> {
        let inner = self.0.as_ref()?;
        // Held, so that no event is missing or told twice.
        let kept = inner.kept();
        if inner.sender.receiver_count() >= LISTENERS_MAX {
            return None;
        }
        // A number from before the node's start is of no use.
        let after = after.filter(|after| *after <= kept.last);
        let past = match after {
            None => Vec::new(),
            Some(after) => kept.events.iter().filter(|event| event.id > after).cloned().collect(),
        };
        Some(Subscription { past, future: inner.sender.subscribe() })
    }

    /// Whether anybody listens, now.
    pub(super) fn is_heard(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.sender.receiver_count() > 0)
    }

    fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was told last of what is told only when it changes.
#[derive(Debug, Default)]
pub(super) struct Last {
    stage: Option<(Seq, Attempt, Stage)>,
    users: Option<(usize, usize)>,
    alerts: Vec<Alert>,
    settlement: Value,
}

impl Node {
    /// Tells of the stage of the round, when it is another.
    pub(super) fn tell_stage(&mut self) {
        if !self.events.is_on() {
            return;
        }
        let now = self.core.standing();
        if self.told_last.stage.replace(now) != Some(now) {
            let (seq, attempt, stage) = now;
            self.events.tell("stage", || json!({ "seq": seq, "attempt": attempt, "stage": stage.name() }));
        }
    }

    /// Tells of what changes slowly, when it has changed: users, alerts, settling.
    pub(super) fn tell_changes(&mut self) {
        if !self.events.is_on() {
            return;
        }
        let users = (self.core.summary().users, self.gateway.as_ref().map_or(0, |gateway| gateway.users()));
        if self.told_last.users.replace(users) != Some(users) {
            self.events.tell("users", || json!({ "users": users.0, "local_users": users.1 }));
        }
        let alerts = self.alerts();
        if self.told_last.alerts != alerts {
            self.events.tell("alerts", || {
                let (texts, kinds): (Vec<&str>, Vec<&str>) =
                    alerts.iter().map(|alert| (&*alert.text, alert.kind.name())).unzip();
                json!({ "alerts": texts, "alert_kinds": kinds })
            });
            self.told_last.alerts = alerts;
        }
        let settlement = self.settling_status();
        if self.told_last.settlement != settlement {
            self.events.tell("settlement", || settlement.clone());
            self.told_last.settlement = settlement;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(events: &Events, count: u64) {
        (0..count).for_each(|n| events.tell("test", || json!({ "n": n })));
    }

    #[test]
    fn a_listener_hears_what_follows_its_last_event_once_and_in_order() {
        let events = Events::new(true);
        told(&events, 3);
        let mut heard = events.listen(Some(1)).unwrap();
        told(&events, 2);
        let past: Vec<u64> = heard.past.iter().map(|event| event.id).collect();
        let future: Vec<u64> = std::iter::from_fn(|| heard.future.try_recv().ok()).map(|event| event.id).collect();
        assert_eq!((past, future), (vec![2, 3], vec![4, 5]));
        assert!(events.listen(None).unwrap().past.is_empty());
        assert!(events.listen(Some(99)).unwrap().past.is_empty(), "a number of another process");
    }

    #[test]
    fn what_is_kept_and_who_listens_is_bounded_and_nothing_is_made_for_nobody() {
        let events = Events::new(true);
        told(&events, 2 * EVENTS_MAX as u64);
        assert_eq!(events.listen(Some(0)).unwrap().past.len(), EVENTS_MAX);
        let listeners: Vec<Subscription> = std::iter::from_fn(|| events.listen(None)).take(10_000).collect();
        assert_eq!(listeners.len(), LISTENERS_MAX);
        drop(listeners);
        assert!(events.listen(None).is_some());
        Events::new(false).tell("test", || unreachable!("nobody can listen"));
    }
}
