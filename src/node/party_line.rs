//! The party line between the nodes' runs of one ledger: which message belongs to which run, what waits for one, and
//! what a run that is done again is told once more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    config::caps::NPL_LEDGER_BYTES_MAX,
    contract::NplIn,
    types::{Hash, NodeKey},
};

/// Ledgers whose messages are kept before this node runs them. Beyond, the oldest are dropped.
const WAITING_LEDGERS_MAX: usize = 4;
/// Bytes of one peer's messages for one ledger that are kept, or passed to the run: what its contract may write, and what
/// the messages cost beside it. Past it they are dropped. As much is kept of the own run's.
const PEER_BYTES_MAX: u64 = NPL_LEDGER_BYTES_MAX + (1 << 20);
/// What a message costs beside its bytes, against many empty ones.
const MESSAGE_COST_BYTES: u64 = 64;
/// Ledgers remembered as run, so that late messages are not kept for them.
const DONE_MAX: usize = 64;
/// Messages of this node's run that are kept, to be told again: a peer's queue has room for twice as many. The rest is
/// not told again.
const SENT_MAX: usize = 16_384;
/// How often a peer is told again what this node's run of one ledger said; more often its process cannot have ended.
const RESENT_MAX: u32 = 4;

/// Messages for ledgers not run yet, the run under way, and what this node's run of the last ledger said.
#[derive(Debug, Default)]
pub struct PartyLine {
    running: Option<Running>,
    waiting: BTreeMap<Hash, Waiting>,
    order: VecDeque<Hash>,
    done: VecDeque<Hash>,
    /// The last closed ledger.
    last: Option<Hash>,
    /// Encoded messages of this node's run of it.
    sent: Vec<Bytes>,
    sent_bytes: u64,
    /// How often each peer was told them again.
    resent: BTreeMap<NodeKey, u32>,
}

#[derive(Debug)]
struct Running {
    ledger: Hash,
    incoming: mpsc::Sender<NplIn>,
    heard: Heard,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: Vec<NplIn>,
    heard: Heard,
}

/// What each peer said in one run: messages come again when one of two nodes does its run again.
#[derive(Debug, Default)]
struct Heard(BTreeMap<NodeKey, (BTreeSet<u64>, u64)>);

impl Heard {
    /// Whether this is the peer's first message of that number, and not too much of it.
    fn is_new(&mut self, message: &NplIn, counter: u64) -> bool {
        let (from, len, counter) = match message {
            NplIn::Data { from, data } => (from, data.len(), counter),
            NplIn::End { from, .. } => (from, 0, u64::MAX),
        };
        let (counters, bytes) = self.0.entry(*from).or_default();
        let cost = len as u64 + MESSAGE_COST_BYTES;
        let new = *bytes + cost <= PEER_BYTES_MAX && counters.insert(counter);
        *bytes += if new { cost } else { 0 };
        new
    }
}

impl PartyLine {
    /// A run begins: it gets what waited for it, and what comes from now on.
    pub fn begin(&mut self, ledger: Hash, incoming: mpsc::Sender<NplIn>) {
        self.order.retain(|other| *other != ledger);
        let Waiting { messages, heard } = self.waiting.remove(&ledger).unwrap_or_default();
        for message in messages {
            // Full or closed: the contract does not read; nothing that must be equal on all nodes depends on it.
            let _ = incoming.try_send(message);
        }
        if self.last == Some(ledger) {
            (self.sent, self.sent_bytes) = (Vec::new(), 0);
        }
        self.running = Some(Running { ledger, incoming, heard });
    }

    /// The run ended.
    pub fn end(&mut self, ledger: Hash) {
        self.running.take_if(|running| running.ledger == ledger);
        self.done.push_back(ledger);
        if self.done.len() > DONE_MAX {
            self.done.pop_front();
        }
    }

    /// The ledger that is run now.
    pub fn running(&self) -> Option<Hash> {
        self.running.as_ref().map(|running| running.ledger)
    }

    /// A peer's message for the run of `ledger`, the peer's `counter`th of that run.
    pub fn heard(&mut self, ledger: Hash, counter: u64, message: NplIn) {
        match &mut self.running {
            Some(running) if running.ledger == ledger => {
                if running.heard.is_new(&message, counter) {
                    let _ = running.incoming.try_send(message);
                }
            }
            _ if self.done.contains(&ledger) => {}
            _ => self.keep(ledger, counter, message),
        }
    }

    fn keep(&mut self, ledger: Hash, counter: u64, message: NplIn) {
        if !self.waiting.contains_key(&ledger) {
            self.order.push_back(ledger);
            if self.order.len() > WAITING_LEDGERS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.waiting.remove(&oldest);
            }
        }
        let waiting = self.waiting.entry(ledger).or_default();
        if waiting.heard.is_new(&message, counter) {
            waiting.messages.push(message);
        }
    }

    /// A ledger was closed: nobody does the run of the one before again.
    pub fn closed(&mut self, ledger: Hash) {
        self.last = Some(ledger);
        (self.sent, self.sent_bytes) = (Vec::new(), 0);
        self.resent.clear();
    }

    /// This node's run of `ledger` says something to the others. It is kept until the next ledger is closed.
    pub fn said(&mut self, ledger: Hash, message: Bytes) {
        let cost = message.len() as u64 + MESSAGE_COST_BYTES;
        if self.last == Some(ledger) && self.sent.len() < SENT_MAX && self.sent_bytes + cost <= PEER_BYTES_MAX {
            self.sent_bytes += cost;
            self.sent.push(message);
        }
    }

    /// What a peer that does its run of `ledger` again is told once more.
    pub fn again(&mut self, ledger: Hash, peer: NodeKey) -> Vec<Bytes> {
        if self.last != Some(ledger) {
            return Vec::new();
        }
        let times = self.resent.entry(peer).or_insert(0);
        *times += 1;
        if *times <= RESENT_MAX { self.sent.clone() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(from: u8, text: &'static str) -> NplIn {
        NplIn::Data { from: NodeKey([from; 32]), data: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn a_run_gets_what_came_before_it_began_and_nothing_of_another_ledger() {
        let mut line = PartyLine::default();
        let [ours, other] = [1, 2].map(|i| Hash([i; 32]));
        line.heard(ours, 0, data(1, "early"));
        line.heard(other, 0, data(1, "for another"));
        let (tx, mut rx) = mpsc::channel(8);
        line.begin(ours, tx);
        line.heard(ours, 0, data(2, "late"));
        line.end(ours);
        line.heard(ours, 1, data(2, "too late"));
        assert_eq!(rx.try_recv(), Ok(data(1, "early")));
        assert_eq!(rx.try_recv(), Ok(data(2, "late")));
        assert!(rx.try_recv().is_err());
        assert_eq!(line.waiting.len(), 1, "what is run is not kept for");
    }

    #[test]
    fn a_peer_is_heard_up_to_its_bytes_in_one_ledger_before_and_during_the_run() {
        let mut line = PartyLine::default();
        let ours = Hash([1; 32]);
        let piece = |from| NplIn::Data { from: NodeKey([from; 32]), data: Bytes::from(vec![0; 1 << 20]) };
        (0..12).for_each(|counter| line.heard(ours, counter, piece(1)));
        let (tx, mut rx) = mpsc::channel(64);
        line.begin(ours, tx);
        (12..24).for_each(|counter| line.heard(ours, counter, piece(1)));
        line.heard(ours, 0, piece(2));
        let heard = std::iter::from_fn(|| rx.try_recv().ok()).collect::<Vec<NplIn>>();
        assert_eq!(heard.iter().filter(|message| **message == piece(1)).count(), 16, "17 MiB less what they cost");
        assert_eq!(heard.last(), Some(&piece(2)), "another peer");
    }

    #[test]
    fn invented_ledgers_push_out_each_other_only() {
        let mut line = PartyLine::default();
        for i in 0..100 {
            line.heard(Hash([i; 32]), 0, data(1, "x"));
        }
        assert_eq!(line.waiting.len(), WAITING_LEDGERS_MAX);
        assert_eq!(line.order.len(), WAITING_LEDGERS_MAX);
    }

    #[test]
    fn what_comes_again_is_told_once_also_across_the_begin_of_the_run() {
        let mut line = PartyLine::default();
        let ours = Hash([1; 32]);
        line.heard(ours, 0, data(1, "a"));
        line.heard(ours, 0, data(1, "a"));
        let (tx, mut rx) = mpsc::channel(8);
        line.begin(ours, tx);
        for (counter, text) in [(0, "a"), (1, "b"), (1, "b")] {
            line.heard(ours, counter, data(1, text));
        }
        line.heard(ours, 0, data(2, "a"));
        let heard: Vec<NplIn> = std::iter::from_fn(|| rx.try_recv().ok()).collect();
        assert_eq!(heard, [data(1, "a"), data(1, "b"), data(2, "a")]);
    }

    #[test]
    fn what_a_run_said_is_told_again_until_the_next_ledger_is_closed_and_not_for_ever() {
        let mut line = PartyLine::default();
        let ([ours, next], peer) = ([1, 2].map(|i| Hash([i; 32])), NodeKey([9; 32]));
        let said = |text: &'static str| Bytes::from_static(text.as_bytes());
        line.said(ours, said("of no ledger that is the last"));
        line.closed(ours);
        line.said(ours, said("one"));
        line.said(next, said("of another"));
        for _ in 0..RESENT_MAX {
            assert_eq!(line.again(ours, peer), ["one"]);
        }
        assert!(line.again(ours, peer).is_empty(), "nobody asks that often");
        assert_eq!(line.again(ours, NodeKey([8; 32])), ["one"]);
        // Done again, it says what it says then.
        line.begin(ours, mpsc::channel(1).0);
        line.said(ours, said("two"));
        assert_eq!(line.again(ours, NodeKey([7; 32])), ["two"]);
        for _ in 0..SENT_MAX {
            line.said(ours, said("x"));
        }
        assert_eq!(line.sent.len(), SENT_MAX);
        line.closed(next);
        assert!(line.again(ours, NodeKey([6; 32])).is_empty());
    }
}
