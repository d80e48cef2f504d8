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
/// Ledgers remembered as run, so that late messages are not kept for them.
const DONE_MAX: usize = 64;

/// Messages for ledgers not run yet, and the run under way.
#[derive(Debug, Default)]
pub struct PartyLine {
    running: Option<(Hash, mpsc::Sender<NplIn>)>,
    waiting: BTreeMap<Hash, Waiting>,
    order: VecDeque<Hash>,
    done: VecDeque<Hash>,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: Vec<NplIn>,
    bytes: BTreeMap<NodeKey, u64>,
}

impl PartyLine {
    /// A run begins: it gets what waited for it, and what comes from now on.
    pub fn begin(&mut self, ledger: Hash, incoming: mpsc::Sender<NplIn>) {
        self.order.retain(|other| *other != ledger);
        for message in self.waiting.remove(&ledger).unwrap_or_default().messages {
            // Full or closed: the contract does not read; nothing that must be equal on all nodes depends on it.
            let _ = incoming.try_send(message);
        }
        self.running = Some((ledger, incoming));
    }

    /// The run ended.
    pub fn end(&mut self, ledger: Hash) {
        self.running.take_if(|(running, _)| *running == ledger);
        self.done.push_back(ledger);
        if self.done.len() > DONE_MAX {
            self.done.pop_front();
        }
    }

    /// A peer's message for the run of `ledger`.
    pub fn heard(&mut self, ledger: Hash, message: NplIn) {
        if let Some((running, incoming)) = &self.running
            && *running == ledger
        {
            let _ = incoming.try_send(message);
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
        let (from, len) = match &message {
            NplIn::Data { from, data } => (*from, data.len() as u64),
            NplIn::End { from, .. } => (*from, 0),
        };
        // A frame costs more than its bytes.
        let bytes = waiting.bytes.entry(from).or_insert(0);
        *bytes += len + 64;
        if *bytes <= NPL_LEDGER_BYTES_MAX + (1 << 20) {
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
    fn invented_ledgers_push_out_each_other_only() {
        let mut line = PartyLine::default();
        for i in 0..100 {
            line.heard(Hash([i; 32]), data(1, "x"));
        }
        assert_eq!(line.waiting.len(), WAITING_LEDGERS_MAX);
        assert_eq!(line.order.len(), WAITING_LEDGERS_MAX);
    }
}
