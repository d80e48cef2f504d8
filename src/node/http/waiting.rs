//! Who waits over HTTP for what becomes of an input.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::super::{Node, NodeError, users::Finality};
use crate::{
    consensus::{Event, Refused, SignedRef, header::Input, messages::ResultCert},
    types::{Hash, Seq},
};

/// Inputs that somebody waits for. Past it one is taken all the same, and nobody hears what becomes of it.
const INPUTS_MAX: usize = 1_024;

/// Who wait for one input. Past it, the same.
const EACH_MAX: usize = 8;

/// The last ledger whose result is agreed on, the signatures under that, when they are known, and what was final then.
#[derive(Debug, Clone)]
pub(in crate::node) struct Agreed {
    pub(in crate::node) seq: Seq,
    pub(in crate::node) tip: Option<ResultCert>,
    pub(in crate::node) finality: Finality,
}

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum Became {
    /// A ledger that closed just now holds it.
    Accepted { seq: Seq, ledger: Hash },
    /// Its nonce is in this ledger already: with it, or with another one.
    InLedger(Seq),
    /// It is not taken.
    Refused(Refused),
    /// The user has sent as much as it may.
    Rate,
    /// No ledger holds it, and none ever will.
    Expired,
}

/// Who waits, by the id of the input.
#[derive(Debug, Default)]
pub(in crate::node) struct Waiting(BTreeMap<Hash, Vec<oneshot::Sender<Became>>>);

impl Waiting {
    fn wait(&mut self, id: Hash, answer: oneshot::Sender<Became>) {
        if self.0.len() >= INPUTS_MAX {
            self.0.retain(|_, waiting| {
                waiting.retain(|answer| !answer.is_closed());
                !waiting.is_empty()
            });
        }
        if self.0.len() >= INPUTS_MAX && !self.0.contains_key(&id) {
            return;
        }
        let waiting = self.0.entry(id).or_default();
        waiting.retain(|answer| !answer.is_closed());
        if waiting.len() < EACH_MAX {
            waiting.push(answer);
        }
    }

    /// Tells them, who wait no more.
    pub(in crate::node) fn tell(&mut self, id: &Hash, became: Became) {
        for answer in self.0.remove(id).into_iter().flatten() {
            // It may have waited long enough.
            let _ = answer.send(became);
        }
    }

    /// Tells of the inputs of a closed ledger.
    pub(in crate::node) fn accepted(&mut self, seq: Seq, ledger: Hash, signed: &[SignedRef]) {
        if !self.0.is_empty() {
            signed.iter().for_each(|input| self.tell(&input.id, Became::Accepted { seq, ledger }));
        }
    }
}

impl Node {
    pub(super) fn submit_over_http(
        &mut self,
        input: Input,
        id: Hash,
        answer: oneshot::Sender<Became>,
    ) -> Result<(), NodeError> {
        if self.gateway.as_ref().is_some_and(|gateway| !gateway.allows(&input.user)) {
            let _ = answer.send(Became::Rate);
            return Ok(());
        }
        self.waiting.wait(id, answer);
        self.handle(Event::SignedInput(input))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: Became = Became::Accepted { seq: 3, ledger: Hash([9; 32]) };

    #[test]
    fn each_who_waits_for_an_input_hears_once_what_became_of_it() {
        let mut waiting = Waiting::default();
        let ids = [Hash([1; 32]), Hash([2; 32])];
        let mut wait = |id| {
            let (answer, answered) = oneshot::channel();
            waiting.wait(id, answer);
            answered
        };
        let mut heard = [wait(ids[0]), wait(ids[0]), wait(ids[1])];
        let closed = SignedRef { user: crate::types::UserKey([0; 32]), nonce: 1, id: ids[0] };
        waiting.accepted(3, Hash([9; 32]), &[closed]);
        waiting.tell(&ids[0], Became::Expired);
        assert_eq!(heard.each_mut().map(|answered| answered.try_recv().ok()), [Some(ACCEPTED), Some(ACCEPTED), None]);
    }

    #[test]
    fn who_waits_is_bounded_and_who_went_makes_room() {
        let mut waiting = Waiting::default();
        let id = |n: u64| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            Hash(id)
        };
        let mut kept = Vec::new();
        for n in 0..2 * INPUTS_MAX as u64 {
            let (answer, answered) = oneshot::channel();
            waiting.wait(id(n), answer);
            kept.push(answered);
        }
        assert_eq!(waiting.0.len(), INPUTS_MAX);
        for _ in 0..2 * EACH_MAX {
            let (answer, answered) = oneshot::channel();
            waiting.wait(id(0), answer);
            kept.push(answered);
        }
        assert_eq!(waiting.0[&id(0)].len(), EACH_MAX);
        kept.clear();
        let (answer, _answered) = oneshot::channel();
        waiting.wait(id(0), answer);
        assert_eq!(waiting.0.len(), 1);
    }
}
