//! Running closed ledgers, one at a time, and agreeing on what each run led to.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::{
    Consensus, Effect, Execution, Lost,
    header::{self, Candidate, ClosedLedger, ExecResult, Header, Input},
    join::{Join, Lacks},
    journal::{Record, is_time_up},
    limits::{EXECUTIONS_BYTES_MAX, EXECUTIONS_MAX, SYNC_LEDGERS_LEFT, SYNC_LEDGERS_MIN},
    messages::{Message, Overtime, ResultCert, Scope, Signed},
    mutation::mutated,
    overtime::Verdict,
};
use crate::types::{NodeKey, Seq, Sig, UserKey};

/// Ledgers to be run, as many as may wait in memory: those that come next, without a gap.
#[derive(Debug)]
pub(super) struct Runs {
    waiting: VecDeque<(Candidate, Vec<Input>)>,
    /// Payload bytes of those.
    bytes: usize,
    /// The last ledger that waits, is being run or was run.
    last: Seq,
    pub running: Option<Running>,
    /// The run that was cut, until it is decided what that means. No other one is handed out before.
    pub cut: Option<Arc<Execution>>,
    /// The run that was handed out last: it may have to be done once more.
    pub handed_out: Option<Arc<Execution>>,
    /// A run to be handed out again, before all that wait.
    pub again: Option<Arc<Execution>>,
    /// Users of the ledger that was handed out last.
    users: BTreeSet<UserKey>,
    /// The UNL that it fixed, ascending.
    unl: Vec<NodeKey>,
    /// Whether the next ones were asked of the database.
    loading: bool,
}

/// A run that was handed out and has not ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub seq: Seq,
    /// Whether it was asked to end.
    pub is_ending: bool,
}

/// What the journal knows of the last run.
pub(super) struct LastRun {
    pub result: Option<Signed<ExecResult>>,
    pub adopted: Option<ExecResult>,
    pub limited: Option<(ClosedLedger, Vec<Input>)>,
    pub overtime: Option<Signed<Overtime>>,
    /// As the ledger of `result` left them.
    pub users: BTreeSet<UserKey>,
    pub unl: Vec<NodeKey>,
}

impl Runs {
    /// None, after the run of `executed`; `users` and `unl` are as that ledger left them.
    pub fn after(executed: Seq, users: BTreeSet<UserKey>, unl: Vec<NodeKey>) -> Runs {
        Runs {
            waiting: VecDeque::new(),
            bytes: 0,
            last: executed,
            running: None,
            cut: None,
            handed_out: None,
            again: None,
            users,
            unl,
            loading: false,
        }
    }

    /// Whether nothing of a run that was handed out is undecided.
    fn is_idle(&self) -> bool {
        self.running.is_none() && self.cut.is_none() && self.again.is_none()
    }

    fn push(&mut self, candidate: Candidate, inputs: Vec<Input>) {
        assert_eq!(candidate.header.seq, self.last + 1, "ledgers are run in order");
        self.last += 1;
        self.bytes += payload_bytes(&inputs);
        self.waiting.push_back((candidate, inputs));
    }

    /// The next run, if none is under way.
    fn next(&mut self) -> Option<Arc<Execution>> {
        if self.running.is_some() || self.cut.is_some() {
            return None;
        }
        if let Some(again) = self.again.take() {
            return Some(again);
        }
        let (candidate, inputs) = self.waiting.pop_front()?;
        self.bytes -= payload_bytes(&inputs);
        self.users = candidate.users_after(&self.users);
        self.unl = candidate.unl_after(&self.unl);
        Some(execution(&candidate, self.users.clone(), self.unl.clone(), inputs))
    }

    /// Ledgers that wait.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one more ledger may wait here.
    fn has_room(&self, inputs: &[Input]) -> bool {
        let fits = self.waiting.is_empty() || self.bytes + payload_bytes(inputs) <= EXECUTIONS_BYTES_MAX;
        fits && self.waiting.len() < EXECUTIONS_MAX
    }

    /// Whether there is room for as many as are loaded at once.
    fn has_room_to_load(&self) -> bool {
        self.waiting.len() <= EXECUTIONS_MAX / 2 && self.bytes <= EXECUTIONS_BYTES_MAX / 2
    }
}

fn payload_bytes(inputs: &[Input]) -> usize {
    inputs.iter().map(|input| input.payload.len()).sum()
}

/// What is told of a closed ledger to whoever runs it.
fn execution(candidate: &Candidate, users: BTreeSet<UserKey>, unl: Vec<NodeKey>, inputs: Vec<Input>) -> Arc<Execution> {
    let (header, hash) = (candidate.header.clone(), candidate.header.hash());
    let inputs = header::execution_order(&header, inputs);
    Arc::new(Execution { header, hash, users, unl, inputs, is_limited: true })
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
        assert!(self.runs.running.take().is_some(), "a run ends after it was asked for");
        let seq = result.of_seq;
        if self.redo == Some(seq) {
            return self.redone(result);
        }
        assert_eq!(seq, self.executed + 1, "ledgers are run in order");
        if self.verdict(seq) == Some(Verdict::Limited) && !is_time_up(&result) {
            // It ended when it was being ended. Members that said one thing here and another elsewhere may have made it so.
            let limited = self.limited(seq, result.of_hash);
            self.limited = self.runs.handed_out.take();
            return self.sign_limited(limited, Vec::new());
        }
        if let Some(agreed) = self.agreed.get(&seq)
            && agreed.result != result
        {
            // Known to be wrong before it was signed: never sign it.
            let agreed = agreed.result.clone();
            return self.diverge(result, agreed);
        }
        self.sign_result(result);
    }

    /// The only place that signs a RESULT.
    pub(super) fn sign_result(&mut self, result: ExecResult) {
        let seq = result.of_seq;
        self.executed = seq;
        self.state_root = result.state_root;
        // Counted by the UNL that the ledger fixed, which may be another by now.
        let scope = Scope { unl_hash: header::unl_hash(&self.runs.unl), ..self.scope };
        let signed = self.sign_in(result.clone(), &scope);
        self.mine.insert(seq, result);
        self.effects.push(Effect::Persist(Record::Result(Box::new(signed.clone()))));
        self.own_result = Some(signed);
        self.say_result();
        self.run_next();
        self.compare_results();
        self.ask_for_more();
    }

    /// Tells my result of the tip, which is journaled, if I may.
    pub(super) fn say_result(&mut self) {
        let Some(signed) = self.own_result.as_ref().filter(|result| result.body.of_hash == self.tip.hash) else {
            return;
        };
        if self.may_vote() {
            let signed = signed.clone();
            self.effects.push(Effect::Sync);
            self.effects.push(Effect::Broadcast(Message::Result(signed.clone())));
            self.results.insert(self.params.me, signed);
            self.fresh();
        }
    }

    /// Looks for the tip's agreed result, and compares what is agreed with what I have.
    pub(super) fn compare_results(&mut self) {
        self.tell_differing();
        if let Some(cert) = self.result_cert() {
            self.agree(cert);
        } else {
            self.look_for_split();
        }
    }

    /// Says, once for each that comes, what the members' results are while these are not all equal.
    fn tell_differing(&mut self) {
        let mut values = self.results.values().map(|signed| &signed.body);
        let first = values.next();
        if self.results.len() > self.differing_told && values.any(|other| Some(other) != first) {
            self.differing_told = self.results.len();
            let all = self.results.values().map(|signed| (signed.from, signed.body.clone())).collect();
            self.effects.push(Effect::Differ(all));
        }
    }

    /// A quorum stands behind this result; without signatures when a closed ledger says so.
    pub(super) fn agree(&mut self, agreed: ResultCert) {
        let seq = agreed.result.of_seq;
        if std::mem::replace(&mut self.split, false) {
            self.effects.push(Effect::SplitHealed(seq));
        }
        self.note_agreed(agreed);
    }

    /// Keeps an agreed result until it is compared. Of a ledger that does not wait in memory the next header tells it
    /// when that is loaded.
    fn note_agreed(&mut self, agreed: ResultCert) {
        let seq = agreed.result.of_seq;
        if seq > self.settled && seq <= self.runs.last && self.trusted {
            // The first one is kept: the signatures of a quorum prove it before the next header does.
            self.agreed.entry(seq).or_insert(agreed);
        }
    }

    /// Hands out what is agreed and equal to mine, in order; stops at what differs. Whether there was something.
    pub(super) fn settle_results(&mut self) -> bool {
        let Some((&seq, mine)) = self.mine.first_key_value() else { return false };
        let Some(agreed) = self.agreed.get(&seq) else { return false };
        let (mine, agreed) = (mine.clone(), agreed.clone());
        if mine != agreed.result && is_time_up(&mine) && self.redo(seq) {
            return false;
        }
        self.mine.remove(&seq);
        self.agreed.remove(&seq);
        self.settled = seq;
        self.limited.take_if(|run| run.header.seq == seq);
        let result = &agreed.result;
        if mine != *result && is_time_up(result) {
            self.undo(result);
        } else if mine != *result {
            if mutated!(SecondResult) {
                let second = self.sign_in(result.clone(), &self.scope);
                self.effects.push(Effect::Broadcast(Message::Result(second)));
            }
            self.diverge(mine, agreed.result);
            return true;
        }
        self.effects.push(Effect::Deliver(Box::new(agreed)));
        true
    }

    pub(super) fn diverge(&mut self, mine: ExecResult, agreed: ExecResult) {
        if self.trusted {
            let from = agreed.of_seq + 1;
            self.effects.push(Effect::Diverged { mine: Box::new(mine), agreed: Box::new(agreed) });
            self.lose_state(from, Lost::Diverged);
        }
    }

    /// There is no state to run ledgers on: one from before the run of `from`, or of a later ledger, is to be fetched.
    fn lose_state(&mut self, from: Seq, why: Lost) {
        self.trusted = false;
        self.agreed.clear();
        self.mine.clear();
        self.runs = Runs::after(self.executed, BTreeSet::new(), Vec::new());
        (self.limited, self.redo) = (None, None);
        self.effects.push(Effect::SyncState { from, why });
    }

    /// The state on disk is none that a run left. What I have signed was right, as far as I know.
    pub(super) fn state_lost(&mut self) {
        if self.trusted {
            self.lose_state(self.executed + 1, Lost::Damaged);
        }
    }

    /// The agreed state after the ledger of this result was fetched and is on disk. It is vouched for by those who agreed
    /// on it; I sign what my own runs on top of it lead to.
    pub(super) fn synced(&mut self, result: ExecResult, users: BTreeSet<UserKey>, unl: Vec<NodeKey>) {
        if self.is_bare() {
            // It came too late: since then ledgers were passed over.
            return;
        }
        assert!(!self.trusted, "a state is fetched when it is asked for");
        let seq = result.of_seq;
        assert!((self.executed..self.tip.seq).contains(&seq), "of a ledger with a next one, that was not run before");
        let joined = self.lacks_state_since_join();
        self.join = self.join.map(|join| Join { lacks: Lacks::Nothing, ..join });
        self.runs_all = seq == self.executed && !joined;
        (self.executed, self.settled, self.state_root) = (seq, seq, result.state_root);
        self.runs = Runs::after(seq, users, unl);
        self.trusted = true;
        self.effects.push(Effect::Persist(Record::Synced(Box::new(result))));
    }

    /// Whether so many ledgers wait that fetching the state is quicker than running them: once none lacks any more, and
    /// somebody is linked who can have it.
    fn is_too_slow(&self) -> bool {
        self.tip.seq - self.executed > SYNC_LEDGERS_MIN
            && self.tip.seq + 1 >= self.best_peer_tip()
            && self.links.iter().any(|peer| self.is_member(peer))
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

    /// Goes on from the last run that the journal knows. `next` is the ledger after it.
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
        self.limited = last.limited.map(|(ledger, inputs)| execution(&ledger.candidate, last.users, last.unl, inputs));
        self.mine.insert(seq, outcome);
        match next {
            // The ledger after my last result says what was agreed.
            Some(next) => {
                self.agreed.insert(seq, by_header(&next.result));
                self.settle_results();
            }
            None => {
                assert_eq!(seq, self.tip.seq, "the tip is executed");
                if self.may_vote() && result.from == self.params.me {
                    self.results.insert(self.params.me, result);
                }
            }
        }
    }

    pub(super) fn restore_executions(&mut self, unexecuted: Vec<(ClosedLedger, Vec<Input>)>) {
        let Some((first, _)) = unexecuted.first() else { return };
        let first = first.candidate.header.seq;
        self.settled = first - 1;
        if !self.trusted {
            return;
        }
        // A run may have been cut anywhere, even behind its last write: it starts from its pre-state.
        if self.redo.is_none() {
            self.effects.push(Effect::Rollback(first));
        }
        self.queue_runs(unexecuted);
    }

    /// A ledger was closed: its run waits here if there is room and no other waits in the database.
    pub(super) fn execute(&mut self, candidate: &Candidate, inputs: Vec<Input>) {
        if self.runs.last + 1 == candidate.header.seq && self.runs.has_room(&inputs) {
            self.runs.push(candidate.clone(), inputs);
            self.run_next();
        }
    }

    /// Asks the database for the ledgers that come next, once there is room for them.
    pub(super) fn load_runs(&mut self) {
        let behind = self.trusted && self.runs.last < self.tip.seq;
        if behind && !self.runs.loading && self.runs.has_room_to_load() {
            self.runs.loading = true;
            self.effects.push(Effect::Load(self.runs.last + 1));
        }
    }

    /// The database has read them.
    pub(super) fn loaded(&mut self, ledgers: Vec<(ClosedLedger, Vec<Input>)>) {
        assert!(!ledgers.is_empty(), "a closed ledger is in the database until it was run");
        // What was asked for before this node's state was found to be another is of no use.
        let first = ledgers.first().map(|(closed, _)| closed.candidate.header.seq);
        if self.trusted && self.runs.loading && first == Some(self.runs.last + 1) {
            self.runs.loading = false;
            self.queue_runs(ledgers);
        }
    }

    fn queue_runs(&mut self, ledgers: Vec<(ClosedLedger, Vec<Input>)>) {
        for (closed, inputs) in ledgers {
            if closed.candidate.header.seq > 1 {
                self.note_agreed(by_header(&closed.candidate.header.result));
            }
            // A header may show that the run before went wrong: then nothing is run on top of it.
            while self.settle_results() {}
            if !self.trusted {
                return;
            }
            self.runs.push(closed.candidate, inputs);
        }
        // The last of them may be the tip, whose result may be agreed on already.
        self.compare_results();
        self.run_next();
    }

    /// Hands out the next run, if none is under way.
    pub(super) fn run_next(&mut self) {
        // What was left at the last end waits for the start: by then it is known whether there is room.
        if self.is_paused() || self.round_started.is_none() {
            return;
        }
        self.runs_all &= self.tip.seq - self.executed > SYNC_LEDGERS_LEFT;
        if self.runs.is_idle() && self.is_too_slow() && !self.runs_all {
            return self.lose_state(self.tip.seq - SYNC_LEDGERS_LEFT, Lost::Behind);
        }
        let Some(mut run) = self.runs.next() else { return };
        let seq = run.header.seq;
        let verdict = self.verdict(seq);
        if verdict == Some(Verdict::Limited) {
            // Its time was up elsewhere: there is nothing to run.
            return self.sign_limited_run(run);
        }
        // Of an older ledger the next header, which may still have to be loaded, says how the run ended.
        Arc::make_mut(&mut run).is_limited = verdict.is_none() && seq == self.tip.seq;
        if run.is_limited && self.overtimes.contains_key(&self.params.me) {
            // It was cut before a restart, and waits for what the others say.
            self.runs.cut = Some(run);
            return;
        }
        self.runs.running = Some(Running { seq, is_ending: false });
        // It replaces the pre-state kept of the run before, whose result must be on disk by then.
        self.effects.push(Effect::Sync);
        self.runs.handed_out = Some(run.clone());
        self.effects.push(Effect::Execute(run));
    }

    /// Closed ledgers not run yet.
    pub(super) fn unexecuted(&self) -> Seq {
        self.tip.seq - self.executed
    }
}

/// A result that a closed ledger says was agreed on.
pub(super) fn by_header(result: &ExecResult) -> ResultCert {
    ResultCert { result: result.clone(), sigs: Vec::new() }
}
