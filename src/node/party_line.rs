//! The party line between the nodes' runs of one ledger: which message belongs to which run, and what waits for one.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::mpsc;

use crate::{
    config::caps::NPL_LEDGER_BYTES_MAX,
    contract::NplIn,
    types::{Hash, NodeKey},
};

/// Ledgers whose messages are kept before this node runs them. Beyond, the oldest are dropped.
const WAITING_LEDGERS_MAX: usize = 4;
/// Bytes of one peer's messages for one ledger that are kept, or passed to the run: what its contract may write, and what
/// the messages cost beside it. Past it they are dropped.
const PEER_BYTES_MAX: u64 = NPL_LEDGER_BYTES_MAX + (1 << 20);
/// What a message costs beside its bytes, against many empty ones.
const MESSAGE_COST_BYTES: u64 = 64;
/// Ledgers remembered as run, so that late messages are not kept for them.
const DONE_MAX: usize = 64;

/// Messages for ledgers not run yet, and the run under way.
#[derive(Debug, Default)]
pub struct PartyLine {
    running: Option<Running>,
    waiting: BTreeMap<Hash, Waiting>,
    order: VecDeque<Hash>,
    done: VecDeque<Hash>,
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

/// Bytes of each peer for one ledger.
#[derive(Debug, Default)]
struct Heard(BTreeMap<NodeKey, u64>);

impl Heard {
    /// Counts a message, and says whether it is within the bound.
    fn may_have(&mut self, message: &NplIn) -> bool {
        let (from, len) = match message {
            NplIn::Data { from, data } => (*from, data.len() as u64),
            NplIn::End { from, .. } => (*from, 0),
        };
        let bytes = self.0.entry(from).or_insert(0);
        *bytes += len + MESSAGE_COST_BYTES;
        *bytes <= PEER_BYTES_MAX
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

    /// A peer's message for the run of `ledger`.
    pub fn heard(&mut self, ledger: Hash, message: NplIn) {
        if let Some(running) = &mut self.running
            && running.ledger == ledger
        {
            if running.heard.may_have(&message) {
                let _ = running.incoming.try_send(message);
            }
        } else if !self.done.contains(&ledger) {
            self.keep(ledger, message);
        }
    }

    fn keep(&mut self, ledger: Hash, message: NplIn) {
        if !self.waiting.contains_key(&ledger) {
            self.order.push_back(ledger);
            if self.order.len() > WAITING_LEDGERS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.waiting.remove(&oldest);
            }
        }
        let waiting = self.waiting.entry(ledger).or_default();
        if waiting.heard.may_have(&message) {
            waiting.messages.push(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn data(from: u8, text: &'static str) -> NplIn {
        NplIn::Data { from: NodeKey([from; 32]), data: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn a_run_gets_what_came_before_it_began_and_nothing_of_another_ledger() {
        let mut line = PartyLine::default();
        let [ours, other] = [1, 2].map(|i| Hash([i; 32]));
        line.heard(ours, data(1, "early"));
        line.heard(other, data(1, "for another"));
        let (tx, mut rx) = mpsc::channel(8);
        line.begin(ours, tx);
        line.heard(ours, data(2, "late"));
        line.end(ours);
        line.heard(ours, data(2, "too late"));
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
        (0..12).for_each(|_| line.heard(ours, piece(1)));
        let (tx, mut rx) = mpsc::channel(64);
        line.begin(ours, tx);
        (0..12).for_each(|_| line.heard(ours, piece(1)));
        line.heard(ours, piece(2));
        let heard = std::iter::from_fn(|| rx.try_recv().ok()).collect::<Vec<NplIn>>();
        assert_eq!(heard.iter().filter(|message| **message == piece(1)).count(), 16, "17 MiB less what they cost");
        assert_eq!(heard.last(), Some(&piece(2)), "another peer");
    }

    #[test]
    fn invented_ledgers_push_out_each_other_only() {
        let mut line = PartyLine::default();
        for i in 0..100 {
            line.heard(Hash([i; 32]), data(1, "x"));
        }
        assert_eq!(line.waiting.len(), WAITING_LEDGERS_MAX);
        assert_eq!(line.order.len(), WAITING_LEDGERS_MAX);
    }
}
