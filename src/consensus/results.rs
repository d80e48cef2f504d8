//! Running closed ledgers, one at a time, and agreeing on what each run led to.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Consensus, Effect, Execution,
    header::{self, Candidate, ClosedLedger, ExecResult, Input},
    journal::Record,
    limits::EXECUTIONS_MAX,
    messages::{Message, ResultCert, Signed},
};
use crate::types::{NodeKey, Sig, UserKey};

impl Consensus {
    /// The agreed result of the tip, once it is known.
    pub(super) fn result_cert(&self) -> Option<ResultCert> {
        if self.tip.seq == 0 {
            return Some(ResultCert { result: self.genesis.result(), sigs: Vec::new() });
        }
        let mut by_value: BTreeMap<&ExecResult, Vec<(NodeKey, Sig)>> = BTreeMap::new();
        for (from, signed) in &self.results {
            by_value.entry(&signed.body).or_default().push((*from, signed.sig));
        }
        let (result, sigs) = by_value.into_iter().find(|(_, sigs)| sigs.len() >= self.quorum.q)?;
        Some(ResultCert { result: result.clone(), sigs })
    }

    /// The contract ran.
    pub(super) fn executed(&mut self, result: ExecResult) {
        if !self.trusted {
            return;
        }
        assert!(std::mem::take(&mut self.running), "a run ends after it was asked for");
        let seq = result.of_seq;
        if let Some(agreed) = self.agreed.get(&seq)
            && agreed.result != result
        {
            // Known to be wrong before it was signed: never sign it.
            let agreed = agreed.result.clone();
            return self.diverge(result, agreed);
        }
        self.state_root = result.state_root;
        let signed = self.sign(result.clone());
        self.mine.insert(seq, result);
        self.effects.push(Effect::Persist(Record::Result(Box::new(signed.clone()))));
        if self.is_member(&self.params.me) && seq == self.tip.seq {
            self.effects.push(Effect::Sync);
            self.effects.push(Effect::Broadcast(Message::Result(signed.clone())));
            self.results.insert(self.params.me, signed);
            self.fresh();
        }
        if !self.runs.is_empty() {
            // The next run replaces the pre-state kept of this one.
            self.effects.push(Effect::Sync);
            self.run_next();
        }
        self.compare_results();
        self.ask_for_more();
    }

    /// Looks for the tip's agreed result, and compares what is agreed with what I have.
    pub(super) fn compare_results(&mut self) {
        if let Some(cert) = self.result_cert() {
            self.agree(cert);
        } else {
            self.look_for_split();
        }
    }

    /// A quorum stands behind this result; without signatures when a closed ledger says so.
    pub(super) fn agree(&mut self, agreed: ResultCert) {
        let seq = agreed.result.of_seq;
        if std::mem::replace(&mut self.split, false) {
            self.effects.push(Effect::SplitHealed(seq));
        }
        if seq > self.settled && self.trusted {
            self.agreed.entry(seq).or_insert(agreed);
        }
    }

    /// Hands out what is agreed and equal to mine, in order; stops at what differs. Whether there was something.
    pub(super) fn settle_results(&mut self) -> bool {
        let Some((&seq, mine)) = self.mine.first_key_value() else { return false };
        let Some(agreed) = self.agreed.get(&seq) else { return false };
        let (mine, agreed) = (mine.clone(), agreed.clone());
        self.mine.remove(&seq);
        self.agreed.remove(&seq);
        self.settled = seq;
        if mine == agreed.result {
            self.effects.push(Effect::Deliver(Box::new(agreed)));
        } else {
            self.diverge(mine, agreed.result);
        }
        true
    }

    pub(super) fn diverge(&mut self, mine: ExecResult, agreed: ExecResult) {
        if std::mem::replace(&mut self.trusted, false) {
            self.agreed.clear();
            self.mine.clear();
            self.runs.clear();
            self.running = false;
            self.effects.push(Effect::Diverged { mine: Box::new(mine), agreed: Box::new(agreed) });
        }
    }

    pub(super) fn look_for_split(&mut self) {
        let mut votes: BTreeMap<&ExecResult, usize> = BTreeMap::new();
        for signed in self.results.values() {
            *votes.entry(&signed.body).or_insert(0) += 1;
        }
        let best = votes.values().max().copied().unwrap_or(0);
        let hopeless = best + (self.quorum.n - self.results.len()) < self.quorum.q;
        if hopeless && !self.split {
            self.split = true;
            let all = self.results.values().map(|signed| (signed.from, signed.body.clone())).collect();
            self.effects.push(Effect::Split(all));
        }
    }

    pub(super) fn restore_results(
        &mut self,
        result: Option<Signed<ExecResult>>,
        unexecuted: &[(ClosedLedger, Vec<Input>)],
    ) {
        let Some(result) = result else { return };
        let seq = result.body.of_seq;
        match unexecuted.first() {
            // The ledger after my last result says what was agreed.
            Some((next, _)) => {
                let agreed = next.candidate.header.result.clone();
                if agreed != result.body {
                    self.diverge(result.body, agreed);
                }
            }
            None => {
                assert_eq!(seq, self.tip.seq, "the tip is executed");
                self.mine.insert(seq, result.body.clone());
                if self.is_member(&self.params.me) {
                    self.results.insert(self.params.me, result);
                }
            }
        }
    }

    pub(super) fn restore_executions(
        &mut self,
        unexecuted: Vec<(ClosedLedger, Vec<Input>)>,
        mut users: BTreeSet<UserKey>,
    ) {
        let Some((first, _)) = unexecuted.first() else { return };
        self.settled = first.candidate.header.seq - 1;
        if !self.trusted {
            return;
        }
        // A run may have been cut anywhere, even behind its last write: it starts from its pre-state.
        self.effects.push(Effect::Rollback(first.candidate.header.seq));
        for (at, (closed, inputs)) in unexecuted.iter().enumerate() {
            users = closed.candidate.users_after(&users);
            self.execute(&closed.candidate, users.clone(), inputs.clone());
            if let Some((next, _)) = unexecuted.get(at + 1) {
                let agreed = ResultCert { result: next.candidate.header.result.clone(), sigs: Vec::new() };
                self.agreed.insert(closed.candidate.header.seq, agreed);
            }
        }
    }

    pub(super) fn execute(&mut self, candidate: &Candidate, users: BTreeSet<UserKey>, inputs: Vec<Input>) {
        let header = candidate.header.clone();
        let hash = header.hash();
        let inputs = header::execution_order(&header, inputs);
        self.runs.push_back(Box::new(Execution { header, hash, users, inputs }));
        self.run_next();
    }

    /// Hands out the next run, if none is under way.
    pub(super) fn run_next(&mut self) {
        if !self.running
            && let Some(run) = self.runs.pop_front()
        {
            self.running = true;
            self.effects.push(Effect::Execute(run));
        }
    }

    pub(super) fn has_room_to_execute(&self) -> bool {
        self.unexecuted() < EXECUTIONS_MAX
    }

    /// Closed ledgers not run yet.
    pub(super) fn unexecuted(&self) -> usize {
        self.runs.len() + usize::from(self.running)
    }
}
