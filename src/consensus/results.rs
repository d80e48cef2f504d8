//! Running closed ledgers, one at a time, and agreeing on what each run led to.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Consensus, Effect, Execution, Running,
    header::{self, Candidate, ClosedLedger, ExecResult, Header, Input},
    journal::{Record, is_time_up},
    limits::EXECUTIONS_MAX,
    messages::{Message, Overtime, ResultCert, Signed},
    overtime::Verdict,
};
use crate::types::{NodeKey, Sig, UserKey};

/// What the journal knows of the last run.
pub(super) struct LastRun {
    pub result: Option<Signed<ExecResult>>,
    pub adopted: Option<ExecResult>,
    pub limited: Option<(ClosedLedger, Vec<Input>)>,
    pub overtime: Option<Signed<Overtime>>,
    /// Of the ledger of `result`.
    pub users: BTreeSet<UserKey>,
}

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
        assert!(self.running.take().is_some(), "a run ends after it was asked for");
        let seq = result.of_seq;
        if self.redo == Some(seq) {
            return self.redone(result);
        }
        if self.verdict(seq) == Some(Verdict::Limited) && !is_time_up(&result) {
            // It ended when it was being ended.
            let limited = self.limited(seq, result.of_hash);
            return self.sign_limited(limited, Vec::new());
        }
        if let Some(agreed) = self.agreed.get(&seq)
            && *agreed != result
        {
            // Known to be wrong before it was signed: never sign it.
            let agreed = agreed.clone();
            return self.diverge(result, agreed);
        }
        self.sign_result(result);
    }

    /// The only place that signs a RESULT.
    pub(super) fn sign_result(&mut self, result: ExecResult) {
        let seq = result.of_seq;
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
        self.run_next_behind_record();
        self.compare_results();
        self.ask_for_more();
    }

    pub(super) fn run_next_behind_record(&mut self) {
        if !self.runs.is_empty() {
            // The next run replaces the pre-state kept of this one.
            self.effects.push(Effect::Sync);
            self.run_next();
        }
    }

    /// Looks for the tip's agreed result, and compares what is agreed with what I have.
    pub(super) fn compare_results(&mut self) {
        if let Some(cert) = self.result_cert() {
            self.agree(cert.result);
        } else {
            self.look_for_split();
        }
    }

    /// A quorum stands behind this result.
    pub(super) fn agree(&mut self, agreed: ExecResult) {
        let seq = agreed.of_seq;
        if std::mem::replace(&mut self.split, false) {
            self.effects.push(Effect::SplitHealed(seq));
        }
        if seq > self.settled && self.trusted {
            self.agreed.insert(seq, agreed);
        }
    }

    /// Hands out what is agreed and equal to mine, in order; stops at what differs. Whether there was something.
    pub(super) fn settle_results(&mut self) -> bool {
        let Some((&seq, mine)) = self.mine.first_key_value() else { return false };
        let Some(agreed) = self.agreed.get(&seq) else { return false };
        let (mine, agreed) = (mine.clone(), agreed.clone());
        if mine != agreed && is_time_up(&mine) && self.redo(seq) {
            return false;
        }
        self.mine.remove(&seq);
        self.agreed.remove(&seq);
        self.settled = seq;
        self.limited.take_if(|run| run.header.seq == seq);
        if mine != agreed && is_time_up(&agreed) {
            self.undo(&agreed);
        } else if mine != agreed {
            self.diverge(mine, agreed);
            return true;
        }
        self.effects.push(Effect::Deliver(Box::new(agreed)));
        true
    }

    pub(super) fn diverge(&mut self, mine: ExecResult, agreed: ExecResult) {
        if std::mem::replace(&mut self.trusted, false) {
            self.agreed.clear();
            self.mine.clear();
            self.runs.clear();
            self.running = None;
            (self.cut, self.limited, self.redo) = (None, None, None);
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

    /// Goes on from the last run that the journal knows.
    pub(super) fn restore_results(&mut self, last: LastRun, next: Option<&Header>) {
        if let Some(overtime) = last.overtime {
            assert_eq!(overtime.body.of_hash, self.tip.hash, "OVERTIME is of the tip");
            self.overtimes.insert(self.params.me, overtime);
        }
        let Some(result) = last.result else { return };
        let (seq, outcome) = (result.body.of_seq, last.adopted.unwrap_or_else(|| result.body.clone()));
        if is_time_up(&outcome) {
            // Signed, maybe, before the state was put back.
            self.effects.push(Effect::Undo { seq, state_root: outcome.state_root, senders: Vec::new() });
        }
        self.limited = last.limited.map(|(ledger, inputs)| execution(&ledger.candidate, last.users, inputs));
        self.mine.insert(seq, outcome);
        match next {
            // The ledger after my last result says what was agreed.
            Some(next) => {
                self.agreed.insert(seq, next.result.clone());
                self.settle_results();
            }
            None => {
                assert_eq!(seq, self.tip.seq, "the tip is executed");
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
        if self.redo.is_none() {
            // A run may have been cut anywhere, even behind its last write: it starts from its pre-state.
            self.effects.push(Effect::Rollback(first.candidate.header.seq));
        }
        for (closed, _) in &unexecuted[1..] {
            let agreed = closed.candidate.header.result.clone();
            self.agreed.insert(agreed.of_seq, agreed);
        }
        for (closed, inputs) in unexecuted {
            users = closed.candidate.users_after(&users);
            let run = execution(&closed.candidate, users.clone(), inputs);
            if self.overtimes.contains_key(&self.params.me) && run.hash == self.tip.hash {
                // It was cut before the restart, and waits for what the others say.
                self.cut = Some(run);
            } else {
                self.runs.push_back(run);
            }
        }
        self.run_next();
    }

    pub(super) fn execute(&mut self, candidate: &Candidate, users: BTreeSet<UserKey>, inputs: Vec<Input>) {
        self.runs.push_back(execution(candidate, users, inputs));
        self.run_next();
    }

    /// Hands out the next run, if none is under way.
    pub(super) fn run_next(&mut self) {
        if self.running.is_some() || self.cut.is_some() {
            return;
        }
        let Some(mut run) = self.runs.pop_front() else { return };
        let seq = run.header.seq;
        match self.verdict(seq) {
            // Elsewhere its time was up already: there is nothing to run.
            Some(Verdict::Limited) => self.sign_limited_run(run),
            verdict => {
                run.is_limited = verdict.is_none();
                self.running = Some(Running { seq, is_ending: false });
                self.effects.push(Effect::Execute(run));
            }
        }
    }

    pub(super) fn has_room_to_execute(&self) -> bool {
        self.unexecuted() < EXECUTIONS_MAX
    }

    /// Closed ledgers not run yet.
    pub(super) fn unexecuted(&self) -> usize {
        self.runs.len() + usize::from(self.running.is_some()) + usize::from(self.cut.is_some())
    }
}

/// What is told of a closed ledger to whoever runs it.
fn execution(candidate: &Candidate, users: BTreeSet<UserKey>, inputs: Vec<Input>) -> Box<Execution> {
    let header = candidate.header.clone();
    let hash = header.hash();
    let inputs = header::execution_order(&header, inputs);
    Box::new(Execution { header, hash, users, inputs, is_limited: true })
}
