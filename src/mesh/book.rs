//! The addresses this node dials, and when. Pure: time and randomness come with the calls.

use std::{collections::BTreeMap, net::SocketAddr};

use tokio::time::{Duration, Instant};

use super::backoff::Backoff;
use crate::types::NodeKey;

/// Dials at a time. Further ones wait until one ends.
const DIALS_MAX: usize = 32;

/// Learnt addresses kept for one key. Past it a new one replaces a worse one, or is ignored.
const LEARNT_PER_KEY_MAX: usize = 2;

/// Two addresses of one node are tried one after the other, at least this far apart.
const SIBLING_WAIT: Duration = Duration::from_millis(200);

pub(super) type TargetId = u64;

/// Somewhere to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// From the configuration; whoever answers is welcome.
    Configured {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
    },
    /// Told by a UNL member; only this key is welcome there.
    Learnt {
        /// Who should be there.
        key: NodeKey,
        /// Where.
        addr: SocketAddr,
    },
}

/// One address that is now to be dialled.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dial {
    pub(super) id: TargetId,
    pub(super) place: Place,
    /// Counts the tries, so that a name with several addresses can take turns.
    pub(super) attempt: u32,
}

/// Where an address is from, the least trusted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Told by a UNL member.
    Member,
    /// Its node is linked there.
    OwnLink,
    /// The configuration.
    Config,
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This node, or another connection to the same node, is linked.
    Linked,
    /// Nothing came of it; try again later.
    Failed,
    /// Another key answered than the one looked for.
    WrongKey,
    /// This node answered itself.
    Own,
}

#[derive(Debug)]
enum State {
    /// To be dialled then.
    Waiting(Instant),
    /// Dialled, and not yet a link nor a failure.
    Dialling,
    /// Its node is linked: nothing to do until that link ends.
    Linked,
    /// It is this node's own address: never dialled again.
    Own,
}

#[derive(Debug)]
struct Target {
    place: Place,
    source: Source,
    /// Who answered there last, or should.
    key: Option<NodeKey>,
    backoff: Backoff,
    state: State,
    attempt: u32,
}

/// All addresses.
#[derive(Debug, Default)]
pub(super) struct Book {
    targets: BTreeMap<TargetId, Target>,
    next_id: TargetId,
}

impl Book {
    pub(super) fn new(peers: Vec<(String, u16)>, now: Instant) -> Book {
        let mut book = Book::default();
        for (host, port) in peers {
            book.configure(host, port, now);
        }
        book
    }

    /// Dials an address that an operator gave, from now on; nothing when it is known.
    pub(super) fn configure(&mut self, host: String, port: u16, now: Instant) {
        // What listens everywhere is reached on this machine; older configurations say so.
        let host = match host.as_str() {
            "0.0.0.0" => "127.0.0.1".to_owned(),
            "::" => "::1".to_owned(),
            _ => host,
        };
        let place = Place::Configured { host, port };
        if self.targets.values().all(|target| target.place != place) {
            self.add(place, Source::Config, None, State::Waiting(now));
        }
    }

    fn add(&mut self, place: Place, source: Source, key: Option<NodeKey>, state: State) {
        let target = Target { place, source, key, backoff: Backoff::default(), state, attempt: 0 };
        self.targets.insert(self.next_id, target);
        self.next_id += 1;
    }

    /// A UNL member `key` is said to be at `addr`.
    pub(super) fn learn(&mut self, key: NodeKey, addr: SocketAddr, source: Source, now: Instant) {
        let learnt = |target: &Target| matches!(target.place, Place::Learnt { key: k, .. } if k == key);
        let same: Vec<TargetId> = self.targets.iter().filter(|(_, t)| learnt(t)).map(|(id, _)| *id).collect();
        let place = Place::Learnt { key, addr };
        if let Some(id) = same.iter().find(|id| self.targets[id].place == place) {
            if let Some(target) = self.targets.get_mut(id) {
                target.source = target.source.max(source);
            }
            return;
        }
        if same.len() >= LEARNT_PER_KEY_MAX {
            // Hearsay displaces only hearsay that failed; what we saw ourselves displaces anything.
            let may_go = |target: &Target| match source {
                Source::Member => target.source == Source::Member && target.backoff.failures() > 0,
                Source::OwnLink | Source::Config => true,
            };
            let target = |id: &TargetId| &self.targets[id];
            let worst = same.into_iter().filter(|id| may_go(target(id))).max_by_key(|id| {
                let target = target(id);
                (target.source == Source::Member, target.backoff.failures())
            });
            match worst {
                Some(id) => self.targets.remove(&id),
                None => return,
            };
        }
        let state = match source {
            Source::OwnLink => State::Linked,
            Source::Member | Source::Config => State::Waiting(now),
        };
        self.add(place, source, Some(key), state);
    }

    /// Forgets learnt addresses whose key is not wanted any more.
    pub(super) fn retain(&mut self, wanted: impl Fn(&NodeKey) -> bool) {
        self.targets.retain(|_, target| match &target.place {
            Place::Configured { .. } => true,
            Place::Learnt { key, .. } => wanted(key),
        });
    }

    fn dials(&self) -> usize {
        self.targets.values().filter(|target| matches!(target.state, State::Dialling)).count()
    }

    /// When `take_due` should be called next. `None` while nothing waits, or too many dials are under way.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.dials() >= DIALS_MAX {
            return None;
        }
        let due = |target: &Target| match target.state {
            State::Waiting(due) => Some(due),
            _ => None,
        };
        self.targets.values().filter_map(due).min()
    }

    /// What to dial now. Each must be answered with `ended` or `identified`-then-`ended`.
    pub(super) fn take_due(&mut self, now: Instant, linked: impl Fn(&NodeKey) -> bool) -> Vec<Dial> {
        let mut dials = Vec::new();
        let mut room = DIALS_MAX.saturating_sub(self.dials());
        let dialling = |target: &Target| matches!(target.state, State::Dialling).then_some(target.key).flatten();
        let mut busy: Vec<NodeKey> = self.targets.values().filter_map(dialling).collect();
        for (id, target) in &mut self.targets {
            match target.state {
                State::Waiting(due) if due <= now && room > 0 => {}
                _ => continue,
            }
            match target.key {
                Some(key) if linked(&key) => target.state = State::Linked,
                Some(key) if busy.contains(&key) => target.state = State::Waiting(now + SIBLING_WAIT),
                key => {
                    busy.extend(key);
                    target.state = State::Dialling;
                    target.attempt = target.attempt.wrapping_add(1);
                    room -= 1;
                    dials.push(Dial { id: *id, place: target.place.clone(), attempt: target.attempt });
                }
            }
        }
        dials
    }

    /// `key` answered there.
    pub(super) fn identified(&mut self, id: TargetId, key: NodeKey) {
        if let Some(target) = self.targets.get_mut(&id) {
            target.key = Some(key);
        }
    }

    /// A dial ended.
    pub(super) fn ended(&mut self, id: TargetId, outcome: Outcome, now: Instant, random: u8) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        match (outcome, &target.place) {
            (Outcome::Own | Outcome::WrongKey, Place::Learnt { .. }) => {
                self.targets.remove(&id);
            }
            (Outcome::Own, Place::Configured { .. }) => target.state = State::Own,
            (Outcome::Linked, _) => target.state = State::Linked,
            (Outcome::Failed | Outcome::WrongKey, _) => {
                target.state = State::Waiting(now + target.backoff.next(random));
            }
        }
    }

    /// The link to `key` ended. After a `stable` one the waits start small again.
    pub(super) fn link_down(&mut self, key: &NodeKey, stable: bool, now: Instant, random: u8) {
        for target in self.targets.values_mut().filter(|target| target.key.as_ref() == Some(key)) {
            if stable {
                target.backoff.reset();
            }
            if matches!(target.state, State::Linked) {
                target.state = State::Waiting(now + target.backoff.next(random));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeKey = NodeKey([1; 32]);
    const B: NodeKey = NodeKey([2; 32]);

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn ids(dials: &[Dial]) -> Vec<TargetId> {
        dials.iter().map(|dial| dial.id).collect()
    }

    #[test]
    fn a_failed_dial_comes_again_after_its_wait_and_a_linked_one_when_the_link_ends() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut book = Book::new(vec![("a".to_owned(), 1)], start);
        assert_eq!(ids(&book.take_due(start, |_| false)), [0]);
        assert_eq!(book.next_due(), None);
        book.ended(0, Outcome::Failed, start, 0);
        assert_eq!(book.next_due(), Some(ms(100)));
        assert_eq!(book.take_due(ms(99), |_| false), []);
        assert_eq!(ids(&book.take_due(ms(100), |_| false)), [0]);
        book.identified(0, A);
        book.ended(0, Outcome::Linked, ms(100), 0);
        assert_eq!(book.next_due(), None);
        book.link_down(&B, true, ms(200), 0);
        assert_eq!(book.next_due(), None, "another node's link");
        book.link_down(&A, true, ms(200), 0);
        assert_eq!(book.next_due(), Some(ms(300)));
        assert_eq!(book.take_due(ms(300), |key| *key == A), [], "linked by the other side meanwhile");
        book.link_down(&A, false, ms(400), 0);
        assert_eq!(book.next_due(), Some(ms(600)), "an unstable link does not reset the wait");
    }

    #[test]
    fn an_own_address_is_dialled_once_and_any_address_means_loopback() {
        let start = Instant::now();
        let mut book = Book::new(vec![("0.0.0.0".to_owned(), 1)], start);
        let dials = book.take_due(start, |_| false);
        assert_eq!(dials[0].place, Place::Configured { host: "127.0.0.1".to_owned(), port: 1 });
        book.ended(0, Outcome::Own, start, 0);
        assert_eq!(book.next_due(), None);
    }

    #[test]
    fn an_address_given_twice_is_dialled_once() {
        let start = Instant::now();
        let mut book = Book::new(vec![("a".to_owned(), 1), ("a".to_owned(), 1)], start);
        book.configure("a".to_owned(), 1, start);
        book.configure("a".to_owned(), 2, start);
        assert_eq!(ids(&book.take_due(start, |_| false)), [0, 1]);
    }

    #[test]
    fn addresses_of_one_node_are_not_dialled_at_once() {
        let start = Instant::now();
        let mut book = Book::default();
        book.learn(A, addr(1), Source::Member, start);
        book.learn(A, addr(1), Source::Member, start);
        book.learn(A, addr(2), Source::Member, start);
        book.learn(B, addr(3), Source::Member, start);
        assert_eq!(ids(&book.take_due(start, |_| false)), [0, 2]);
        assert_eq!(book.next_due(), Some(start + SIBLING_WAIT));
    }

    #[test]
    fn learnt_addresses_are_bounded_and_a_wrong_one_is_forgotten() {
        let start = Instant::now();
        let mut book = Book::default();
        for port in 1..10 {
            book.learn(A, addr(port), Source::Member, start);
        }
        assert_eq!(book.targets.len(), LEARNT_PER_KEY_MAX);
        assert_eq!(ids(&book.take_due(start, |_| false)), [0]);
        book.ended(0, Outcome::WrongKey, start, 0);
        assert_eq!(book.targets.len(), 1);
        book.learn(A, addr(9), Source::Member, start);
        book.take_due(start, |_| false);
        book.ended(1, Outcome::Failed, start, 0);
        book.learn(A, addr(8), Source::Member, start);
        let places: Vec<&Place> = book.targets.values().map(|target| &target.place).collect();
        assert_eq!(places, [&Place::Learnt { key: A, addr: addr(9) }, &Place::Learnt { key: A, addr: addr(8) }]);
        book.learn(A, addr(1), Source::OwnLink, start);
        book.learn(A, addr(2), Source::OwnLink, start);
        let seen = [&Place::Learnt { key: A, addr: addr(1) }, &Place::Learnt { key: A, addr: addr(2) }];
        assert_eq!(book.targets.values().map(|target| &target.place).collect::<Vec<_>>(), seen);
        book.learn(A, addr(3), Source::Member, start);
        assert_eq!(book.targets.values().map(|target| &target.place).collect::<Vec<_>>(), seen, "hearsay");
        assert_eq!(book.next_due(), None, "linked there");
        book.retain(|key| *key == B);
        assert!(book.targets.is_empty());
    }

    #[test]
    fn no_more_than_the_limit_are_dialled_at_once() {
        let start = Instant::now();
        let mut book = Book::new((0..40).map(|port| ("a".to_owned(), port)).collect(), start);
        assert_eq!(book.take_due(start, |_| false).len(), DIALS_MAX);
        assert_eq!(book.next_due(), None);
        book.ended(3, Outcome::Failed, start, 0);
        assert_eq!(book.next_due(), Some(start));
        assert_eq!(ids(&book.take_due(start, |_| false)), [32]);
    }
}
