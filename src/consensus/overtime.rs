//! Runs that took longer than the wall-time limit. Clocks and machines differ, so no node signs on its own clock that
//! the time was up: it says OVERTIME, and what counts follows from what the others say.
//!
//! - A quorum of OVERTIMEs: the run is over its time. Whoever has signed no result signs `Limit(Time)`.
//! - n - q + 1 equal results of nodes that sent no OVERTIME: a quorum of OVERTIMEs cannot be any more. The run is done
//!   again without the limit, and what comes of it is signed.
//! - Neither: wait. While all members are up one of the two comes about; else a missing member decides, when it is back.
//!
//! Source: `docs/protocol.md`, "Overtime".

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Consensus, Effect, Execution,
    header::ExecResult,
    journal::{Record, is_time_up},
    messages::{Message, Overtime, Signed},
    results::Running,
    votes::{Counted, count_once},
};
use crate::types::{Hash, LimitKind, Seq, Status, UserKey};

/// What is known about the time of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was up.
    Limited,
    /// The run ends, however long it takes here.
    Unlimited,
}

impl Consensus {
    /// The run was cut: at its limit, or because it was asked for.
    pub(super) fn cut_short(&mut self, run: Arc<Execution>) {
        if !self.trusted {
            return;
        }
        let running = self.runs.running.take().expect("a run ends after it was asked for");
        assert_eq!(running.seq, run.header.seq, "the run that was handed out");
        self.runs.cut = Some(run);
        self.say_overtime();
    }

    /// Says of the run that was cut that it took too long here, if it is not decided what that means, and I may.
    pub(super) fn say_overtime(&mut self) {
        let Some(run) = &self.runs.cut else { return };
        let (of_seq, of_hash) = (run.header.seq, run.hash);
        // Of an older ledger the next header, which may still have to be loaded, says what counts.
        let undecided = of_seq == self.tip.seq && self.verdict(of_seq).is_none();
        if undecided && self.may_vote() && !self.overtimes.contains_key(&self.params.me) {
            let overtime = self.sign_vote(Overtime { of_seq, of_hash });
            self.effects.push(Effect::Persist(Record::Overtime(Box::new(overtime.clone()))));
            self.effects.push(Effect::Sync);
            self.effects.push(Effect::Broadcast(Message::Overtime(overtime.clone())));
            self.overtimes.insert(self.params.me, overtime);
            self.fresh();
        }
    }

    pub(super) fn on_overtime(&mut self, overtime: Signed<Overtime>) {
        if overtime.body.of_hash == self.tip.hash
            && self.is_other_member(&overtime.from)
            && count_once(&mut self.overtimes, overtime) == Counted::New
        {
            self.fresh();
        }
    }

    /// Goes on with a run that was cut, or ends one whose time was up elsewhere, when that is decided.
    pub(super) fn resolve_overtime(&mut self) -> bool {
        if let Some(run) = &self.runs.cut {
            let verdict = self.verdict(run.header.seq);
            let run = verdict.and_then(|_| self.runs.cut.take());
            match (verdict, run) {
                (Some(Verdict::Limited), Some(run)) => self.sign_limited_run(run),
                (Some(Verdict::Unlimited), Some(run)) => {
                    self.runs.again = Some(run);
                    self.run_next();
                }
                _ => return false,
            }
            return true;
        }
        let Some(Running { seq, is_ending: false }) = self.runs.running else { return false };
        if self.redo == Some(seq) || self.verdict(seq) != Some(Verdict::Limited) {
            return false;
        }
        // It may never end by itself.
        self.runs.running = Some(Running { seq, is_ending: true });
        self.effects.push(Effect::EndRun(seq));
        true
    }

    /// Whether the time of this run, which I have signed no result of, was up.
    pub(super) fn verdict(&self, seq: Seq) -> Option<Verdict> {
        let of = |result: &ExecResult| if is_time_up(result) { Verdict::Limited } else { Verdict::Unlimited };
        if let Some(agreed) = self.agreed.get(&seq) {
            return Some(of(&agreed.result));
        }
        if seq != self.tip.seq {
            return None;
        }
        if self.overtimes.len() >= self.quorum.q {
            return Some(Verdict::Limited);
        }
        let mut votes: BTreeMap<&ExecResult, usize> = BTreeMap::new();
        for (signer, signed) in &self.results {
            // Who says that the time was up has seen a quorum of OVERTIMEs, whatever it sent itself.
            if is_time_up(&signed.body) || !self.overtimes.contains_key(signer) {
                *votes.entry(&signed.body).or_insert(0) += 1;
            }
        }
        votes.into_iter().find(|(_, votes)| *votes >= self.quorum.blocking()).map(|(result, _)| of(result))
    }

    /// The result of a run whose time was up, on top of my last run.
    pub(super) fn limited(&self, of_seq: Seq, of_hash: Hash) -> ExecResult {
        ExecResult {
            of_seq,
            of_hash,
            state_root: self.state_root,
            outputs_root: Hash::ZERO,
            status: Status::Limit(LimitKind::Time),
            unl_req: None,
        }
    }

    /// Signs that the time of a run was up. It is kept until a quorum has said the same.
    pub(super) fn sign_limited_run(&mut self, run: Arc<Execution>) {
        let result = self.limited(run.header.seq, run.hash);
        let senders = run.senders();
        self.limited = Some(run);
        self.sign_limited(result, senders);
    }

    /// Signs that the time of a run was up that has ended, or was not begun.
    pub(super) fn sign_limited(&mut self, result: ExecResult, senders: Vec<UserKey>) {
        // Behind the result or before it: a restart puts the state back in both cases.
        self.effects.push(Effect::Undo { seq: result.of_seq, state_root: result.state_root, senders });
        self.sign_result(result);
    }

    /// A quorum says that the time of my last run was up, but I was quick enough and signed what came of it.
    pub(super) fn undo(&mut self, agreed: &ExecResult) {
        self.state_root = agreed.state_root;
        self.effects.push(Effect::Persist(Record::Adopted(Box::new(agreed.clone()))));
        // From the record on the state on disk may be either; before it, it must be mine.
        self.effects.push(Effect::Sync);
        self.effects.push(Effect::Undo { seq: agreed.of_seq, state_root: agreed.state_root, senders: Vec::new() });
    }

    /// A quorum has another result than the `Limit(Time)` that I signed, which takes members that said one thing to me
    /// and another to others. My state is the one before, so that the run can still be done. Whether it is.
    pub(super) fn redo(&mut self, seq: Seq) -> bool {
        match self.limited.take_if(|run| run.header.seq == seq) {
            Some(run) => {
                self.effects.push(Effect::Rollback(seq));
                self.redo = Some(seq);
                self.runs.again = Some(run);
                self.run_next();
                true
            }
            None => self.redo == Some(seq),
        }
    }

    /// The run that was done after all has ended.
    pub(super) fn redone(&mut self, result: ExecResult) {
        let seq = result.of_seq;
        self.redo = None;
        let agreed = self.agreed.get(&seq).expect("it was run for it").result.clone();
        if result != agreed {
            return self.diverge(result, agreed);
        }
        self.state_root = agreed.state_root;
        self.effects.push(Effect::Persist(Record::Adopted(Box::new(agreed.clone()))));
        self.mine.insert(seq, agreed);
        self.run_next();
    }
}
