//! Serves the contract's state to nodes that fetch it: keeps the state of a recent ledger readable, and answers from it
//! beside the loop, a few requests of a peer at a time, so that serving never slows a round.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::{Executor, Node};
use crate::{
    consensus::messages::{Message, StateBody, StateGet, StatePart, StateWant},
    mesh::{Class, Mesh},
    state::{Pin, sync::answer},
    types::{NodeKey, Seq},
    wire,
};

/// States kept readable for other nodes at a time. Past it none is offered until one has had its time, or is left alone.
const OFFERED_MAX: usize = 2;
const _: () = assert!(OFFERED_MAX < crate::state::PINS_MAX);

/// How long a state is kept readable at most. Whoever has not fetched all of it by then takes a later one; what it has of
/// it stays of use.
const OFFERED_TIME: Duration = Duration::from_secs(60);

/// After this time without a request a state makes room for another.
const LEFT_ALONE_TIME: Duration = Duration::from_secs(5);

/// A state this old is not offered to somebody new where another can be pinned: its differences add up.
const FRESH_TIME: Duration = Duration::from_secs(20);

/// Between two states being pinned, whoever asks for them: each takes a moment of the thread that runs need too.
const PINNING_TIME: Duration = Duration::from_millis(500);

/// Requests of one peer being answered. Past it one is not answered; the peer asks again, or another.
const ANSWERING_MAX: usize = 16;

/// Answers read at a time, for all peers together.
const READING_MAX: usize = 1;

/// A state that is offered.
#[derive(Debug)]
struct Offered {
    /// It is the one before the run of this ledger.
    next: Seq,
    pin: Pin,
    since: Instant,
    used: Instant,
}

/// What is offered to whom.
#[derive(Debug)]
pub(super) struct Offers {
    offered: Vec<Offered>,
    /// Who waits for the pin that is being made, with the request and the first ledger of which a state will do.
    waiting: Vec<(NodeKey, u64, Seq)>,
    is_pinning: bool,
    pinned_at: Option<Instant>,
    answering: BTreeMap<NodeKey, usize>,
    reading: Arc<Semaphore>,
}

/// What was done beside the loop.
#[derive(Debug)]
pub(super) enum Served {
    /// The state before the run of this ledger is pinned; or it cannot be now.
    Pinned(Option<(Seq, Pin)>),
    /// A request of this peer was answered.
    Answered(NodeKey),
}

impl Default for Offers {
    fn default() -> Offers {
        Offers {
            offered: Vec::new(),
            waiting: Vec::new(),
            is_pinning: false,
            pinned_at: None,
            answering: BTreeMap::new(),
            reading: Arc::new(Semaphore::new(READING_MAX)),
        }
    }
}

impl Offers {
    /// The state offered to who needs one from before the run of `from`, or of a later ledger: the newest.
    fn offer(&mut self, from: Seq, now: Instant, any_age: bool) -> Option<StateBody> {
        let fits = |it: &&mut Offered| it.next >= from && !it.pin.is_lost() && (any_age || now - it.since < FRESH_TIME);
        let offered = self.offered.iter_mut().filter(fits).max_by_key(|it| it.next)?;
        offered.used = now;
        let (entries, bytes) = (offered.pin.entries() as u64, offered.pin.bytes());
        Some(StateBody::Offer { next: offered.next, root: offered.pin.root(), entries, bytes })
    }

    /// Whether another state may be pinned; lets one go for it that nobody reads.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.offered.len() >= OFFERED_MAX
            && let Some(at) = self.offered.iter().position(|it| now - it.used >= LEFT_ALONE_TIME)
        {
            self.offered.remove(at);
        }
        self.offered.len() < OFFERED_MAX
    }

    /// Whether there is anything to be let go later.
    pub fn has_any(&self) -> bool {
        !self.offered.is_empty()
    }

    /// Lets go what had its time.
    pub fn look(&mut self, now: Instant) {
        self.offered.retain(|it| now - it.since < OFFERED_TIME && !it.pin.is_lost());
    }
}

impl Node {
    /// A peer asks for a part of the state.
    pub(super) fn on_state_get(&mut self, peer: NodeKey, get: StateGet) {
        let now = Instant::now();
        let StateGet { id, root, want } = get;
        if self.core.lacks_state_since_join() {
            // What is here belongs to no ledger that this node knows.
            return self.send(peer, &Message::StatePart(StatePart { id, body: StateBody::Nothing }));
        }
        if let StateWant::Offer(from) = want {
            return self.offer_state(peer, id, from, now);
        }
        let offers = &mut self.offers;
        let offered = offers.offered.iter_mut().find(|it| it.pin.root() == root && !it.pin.is_lost());
        let answering = offers.answering.entry(peer).or_insert(0);
        let Some(offered) = offered.filter(|_| *answering < ANSWERING_MAX) else {
            return self.send(peer, &Message::StatePart(StatePart { id, body: StateBody::Nothing }));
        };
        offered.used = now;
        *answering += 1;
        let (pin, mesh, reading, done) =
            (offered.pin.clone(), self.mesh.clone(), offers.reading.clone(), self.state_served_tx.clone());
        tokio::spawn(async move {
            let _turn = reading.acquire_owned().await;
            let work = move || wire::encode(&Message::StatePart(StatePart { id, body: answer(&pin, &want) }));
            let bytes = tokio::task::spawn_blocking(work).await.expect("reading a pinned state does not panic");
            send_bulk(&mesh, peer, bytes);
            let _ = done.send(Served::Answered(peer)).await;
        });
    }

    fn offer_state(&mut self, peer: NodeKey, id: u64, from: Seq, now: Instant) {
        self.offers.look(now);
        let nothing = Message::StatePart(StatePart { id, body: StateBody::Nothing });
        if let Some(body) = self.offers.offer(from, now, false) {
            return self.send(peer, &Message::StatePart(StatePart { id, body }));
        }
        // One request of each peer waits.
        self.offers.waiting.retain(|(waiting, ..)| *waiting != peer);
        let is_too_soon = self.offers.pinned_at.is_some_and(|at| now - at < PINNING_TIME);
        if !self.offers.is_pinning && (is_too_soon || !self.offers.make_room(now)) {
            let body = self.offers.offer(from, now, true);
            let answer = body.map_or(nothing, |body| Message::StatePart(StatePart { id, body }));
            return self.send(peer, &answer);
        }
        self.offers.waiting.push((peer, id, from));
        if !std::mem::replace(&mut self.offers.is_pinning, true) {
            let (executor, done): (Executor, _) = (self.executor.clone(), self.state_served_tx.clone());
            tokio::spawn(async move {
                let pinned = match executor.pin().await {
                    Ok(pinned) => pinned,
                    Err(error) => {
                        debug!(%error, "no state to offer now");
                        None
                    }
                };
                let _ = done.send(Served::Pinned(pinned)).await;
            });
        }
    }

    pub(super) fn on_state_served(&mut self, served: Served) {
        let now = Instant::now();
        match served {
            Served::Answered(peer) => {
                if let Some(answering) = self.offers.answering.get_mut(&peer) {
                    *answering -= 1;
                    if *answering == 0 {
                        self.offers.answering.remove(&peer);
                    }
                }
            }
            Served::Pinned(pinned) => {
                self.offers.is_pinning = false;
                self.offers.pinned_at = Some(now);
                if let Some((next, pin)) = pinned {
                    info!(next, root = %pin.root().short(), bytes = pin.bytes(), "offering the state to other nodes");
                    self.offers.offered.retain(|it| it.next != next);
                    self.offers.offered.push(Offered { next, pin, since: now, used: now });
                }
                for (peer, id, from) in std::mem::take(&mut self.offers.waiting) {
                    let body = self.offers.offer(from, now, true).unwrap_or(StateBody::Nothing);
                    self.send(peer, &Message::StatePart(StatePart { id, body }));
                }
            }
        }
    }
}

fn send_bulk(mesh: &Mesh, to: NodeKey, bytes: Vec<u8>) {
    if let Err(error) = mesh.send(&to, Class::Bulk, bytes.into()) {
        warn!(peer = %to.short(), %error, "a part of the state is not sent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        state::{Backend, open},
        types::Hash,
    };

    fn pin(root_of: &str) -> (tempfile::TempDir, Pin) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path(), Backend::Shadow, None).unwrap();
        std::fs::write(dir.path().join("state/file"), root_of).unwrap();
        let root = store.scan(true).unwrap().root;
        store.snapshot(1, root).unwrap();
        let pin = store.pin().unwrap();
        (dir, pin)
    }

    #[test]
    fn the_newest_state_that_will_do_is_offered_for_a_minute_and_one_left_alone_makes_room() {
        let (begun, mut offers) = (Instant::now(), Offers::default());
        let at = |s: u64| begun + Duration::from_secs(s);
        let pins = ["a", "b"].map(pin);
        for (number, (_, pin)) in pins.iter().enumerate() {
            assert!(offers.make_room(at(0)));
            let next = 10 * (number as u64 + 1);
            offers.offered.push(Offered { next, pin: pin.clone(), since: at(0), used: at(0) });
        }
        let next = |body: Option<StateBody>| match body {
            Some(StateBody::Offer { next, root, entries: 1, bytes: 1 }) if root != Hash::ZERO => next,
            None => 0,
            other => panic!("{other:?}"),
        };
        assert_eq!([5, 15, 21].map(|from| next(offers.offer(from, at(1), false))), [20, 20, 0]);
        assert!(!offers.make_room(at(2)), "both were asked for just now");
        assert_eq!(next(offers.offer(5, at(30), false)), 0, "too old for somebody new");
        assert_eq!(next(offers.offer(5, at(30), true)), 20);
        assert!(offers.make_room(at(31)) && offers.offered.len() == 1, "nobody asks for the other one");
        offers.look(at(59));
        assert_eq!(offers.offered.len(), 1);
        offers.look(at(60));
        assert!(offers.offered.is_empty());
    }
}
