//! Rules A to F: what follows from everything held, whatever came last. Repeated until nothing changes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Consensus, Effect, SignedRef, Timer,
    fetch::{first_missing, forget_held},
    header::{Before, Candidate, ClosedLedger, Derived, ExecResult, Input, Origin, derive, determined},
    journal::Record,
    limits::HOST_MISSED_MAX,
    messages::{
        Advance, AdvanceVote, Basis, Certificate, Message, Novel, Precommit, Prevote, Propose, ResultCert, Tc, Vote,
    },
    mutation::mutated,
    round::{Round, Want},
    rules,
    votes::ATTEMPTS_MAX,
};
use crate::types::{Attempt, Hash, NodeKey, Seq};

impl Consensus {
    pub(super) fn step(&mut self) {
        if self.is_paused() {
            // What is agreed on already is handed out; all else waits.
            while self.settle_results() {}
            return;
        }
        loop {
            self.round.wanted.clear();
            if self.adopt_ledgers() || self.is_bare() {
                // Nothing is voted about a ledger that is closed already.
                break;
            }
            let changed = self.look_at_silence()
                || self.settle_results()
                || self.resolve_overtime()
                || self.send_novel()
                || self.prevote_first()
                || self.follow_advances()
                || self.enter_by_tc()
                || self.precommit()
                || self.close_by_precommits()
                || self.close_by_certificate()
                || self.leave_hopeless_attempt()
                || self.propose()
                || self.prevote_proposal();
            if !changed {
                break;
            }
        }
        self.load_runs();
        self.look_for_state();
        self.ask_ranges();
        self.want_listed_inputs();
        self.fetch();
    }

    // ---- Stage 0 ------------------------------------------------------------------------------------------------

    /// Sends NOVEL once: when the last ledger's result is signed or known, and there is work or it is time.
    fn send_novel(&mut self) -> bool {
        if self.round.mine.novel.is_some() || !self.may_vote() || !self.round_may_start() {
            return false;
        }
        let started = self.round_started.expect("set at start");
        let earliest = started + self.params.min_round_ms;
        let latest = started + self.params.roundtime_ms.max(self.params.min_round_ms);
        let work = !self.round.novels.is_empty() || (self.params.eager && self.has_work());
        // Where so many have begun, one that is sound has, and held its own pause. Whoever waited on would be late for
        // every round, and what it votes for and holds in none of them.
        let begun = self.round.novels.len() >= self.quorum.blocking();
        let due = if begun {
            self.now
        } else if work {
            earliest
        } else {
            latest
        };
        if self.now < due {
            self.effects.push(Effect::SetTimer(Timer::Pace, due));
            return false;
        }
        self.round_started = Some(self.now);
        let (users_add, users_del) = self.presence.novel(&self.users);
        let inputs = self.pool.list(self.round.seq, &self.tip.hash, self.params.input_window);
        let novel = self.sign_vote(Novel {
            seq: self.round.seq,
            parent: self.tip.hash,
            time_slot: self.wall / self.params.time_res_ms,
            users_add,
            users_del,
            inputs,
            unl_vote: self.unl_vote,
            settlement: self.settlement_vote.clone(),
        });
        self.effects.push(Effect::Persist(Record::Novel(Box::new(novel.clone()))));
        self.effects.push(Effect::Sync);
        self.effects.push(Effect::Broadcast(Message::Novel(novel.clone())));
        (self.unl_vote_told, self.settlement_vote_told) = (true, true);
        self.note_unl_vote(self.params.me, self.unl_vote);
        self.round.novels.insert(self.params.me, novel.clone());
        self.round.mine.novel = Some(novel);
        self.fresh();
        true
    }

    /// Whether there is something to propose that no NOVEL of mine said yet.
    fn has_work(&self) -> bool {
        self.pool.has_unproposed()
            || self.unl_vote.is_some() && !self.unl_vote_told
            || self.settlement_vote.is_some() && !self.settlement_vote_told
    }

    /// My result of the tip, or that its run took too long here, is signed; or it is agreed on without me, or I have none
    /// to give.
    fn round_may_start(&self) -> bool {
        let me = &self.params.me;
        let signed = self.results.contains_key(me) || self.overtimes.contains_key(me);
        signed || !self.trusted || self.result_cert().is_some()
    }

    // ---- Rule A: PREVOTE in attempt 0 ---------------------------------------------------------------------------

    fn prevote_first(&mut self) -> bool {
        if !self.may_vote() || self.round.attempt != 0 || !rules::may_prevote_first(&self.round.signed()) {
            return false;
        }
        if !self.is_derived() {
            return false;
        }
        if !self.round.first_timer_started {
            self.round.first_timer_started = true;
            self.set_attempt_timer();
            let grace_due = self.now + self.params.grace_ms;
            self.round.grace_due = Some(grace_due);
            self.effects.push(Effect::SetTimer(Timer::Grace, grace_due));
        }
        let all_in = self.unl.iter().all(|node| self.round.novels.contains_key(node) || self.is_suspect(node));
        if !(all_in || self.round.grace_over || self.is_determined()) {
            return false;
        }
        self.effects.push(Effect::Cancel(Timer::Grace));
        self.derive_own().is_some_and(|candidate| self.cast_prevote(0, candidate))
    }

    /// The header that all novels held lead to, once there are enough of them and every byte is here.
    fn derive_own(&mut self) -> Option<Candidate> {
        if !self.is_derived() {
            return None;
        }
        match &self.round.derived {
            Some((_, Derived::Ready(candidate))) => Some((**candidate).clone()),
            _ => None,
        }
    }

    /// Whether there is such a header. What it needs is wanted.
    fn is_derived(&mut self) -> bool {
        if self.round.novels.len() < self.quorum.q {
            return false;
        }
        let Some(ResultCert { result, .. }) = self.result_cert() else { return false };
        // The same novels lead to the same header, and need the same inputs until the last of them is here.
        let count = self.round.novels.len();
        let cached = match &mut self.round.derived {
            Some((novels, Derived::Ready(_))) => *novels == count,
            Some((novels, Derived::Need(ids))) => {
                forget_held(&self.pool, ids);
                *novels == count && !ids.is_empty()
            }
            None => false,
        };
        if !cached {
            let novels: Vec<&Novel> = self.round.novels.values().map(|novel| &novel.body).collect();
            let derived = self.derive(&novels, &result);
            self.round.derived = Some((count, derived));
        }
        match &self.round.derived.as_ref().expect("just set").1 {
            Derived::Ready(_) => true,
            Derived::Need(ids) => {
                let ids = first_missing(&self.pool, ids);
                self.want_inputs_listed_by_novels(&ids);
                false
            }
        }
    }

    fn is_determined(&mut self) -> bool {
        let count = self.round.novels.len();
        match self.round.determined {
            Some((novels, known)) if novels == count => known,
            _ => {
                let Some(ResultCert { result, .. }) = self.result_cert() else { return false };
                let novels: Vec<&Novel> = self.round.novels.values().map(|novel| &novel.body).collect();
                let found = self.with_before(|before| determined(before, &novels, &result));
                self.round.determined = Some((count, found));
                found
            }
        }
    }

    /// The header after the last ledger that these novels and this result lead to.
    fn derive(&self, novels: &[&Novel], result: &ExecResult) -> Derived {
        let derived = self.with_before(|before| derive(before, novels, result));
        #[cfg(test)]
        if mutated!(ArrivalOrder)
            && let Derived::Ready(mut candidate) = derived
        {
            candidate.inputs.sort_by_key(|id| super::mutation::arrival(self.params.me, *id));
            candidate.header.inputs_root = super::header::inputs_root(&candidate.inputs);
            return Derived::Ready(candidate);
        }
        derived
    }

    pub(super) fn with_before<T>(&self, work: impl FnOnce(&Before) -> T) -> T {
        work(&Before {
            chain_id: self.scope.chain_id,
            seq: self.round.seq,
            parent: self.tip.hash,
            parent_time_ms: self.tip.time_ms,
            users: &self.users,
            users_root: self.users_root,
            settlement: &self.tip.settlement,
            unl: &self.unl,
            unl_hash: self.scope.unl_hash,
            quorum: self.quorum,
            time_res_ms: self.params.time_res_ms,
            input_window: self.params.input_window,
            is_ledgered: &|key| self.window.contains_key(key),
            input: &|id| self.pool.get(id),
        })
    }

    /// The only place that signs a PREVOTE.
    fn cast_prevote(&mut self, attempt: Attempt, candidate: Candidate) -> bool {
        if !self.may_vote() || !rules::may_prevote(&self.round.signed(), attempt) {
            return false;
        }
        assert!(candidate.inputs.iter().all(|id| self.pool.contains(id)), "bytes are held before a vote");
        let ledger_hash = candidate.header.hash();
        let vote = self.sign_vote(Prevote(Vote { seq: self.round.seq, attempt, ledger_hash }));
        self.effects.push(Effect::Persist(Record::Prevote(vote.clone(), Box::new(candidate.clone()))));
        self.effects.push(Effect::Sync);
        self.effects.push(Effect::Broadcast(Message::Prevote(vote.clone())));
        self.round.candidates.insert(ledger_hash, candidate);
        self.round.prevotes.entry(attempt).or_default().add(vote.clone());
        self.round.mine.prevotes.insert(attempt, vote);
        self.fresh();
        true
    }

    // ---- Rule B: follow those who gave an attempt up ------------------------------------------------------------

    fn follow_advances(&mut self) -> bool {
        let mut best: BTreeMap<NodeKey, Attempt> = BTreeMap::new();
        for (attempt, votes) in &self.round.advances {
            // Ascending by attempt: the last one of a sender is its best.
            best.extend(votes.keys().map(|from| (*from, *attempt)));
        }
        let mut attempts: Vec<Attempt> = best.into_values().collect();
        attempts.sort_unstable_by(|a, b| b.cmp(a));
        let Some(&wanted) = attempts.get(self.quorum.blocking() - 1) else { return false };
        let asked = self.round.signed().advance.unwrap_or(0);
        wanted > self.round.attempt.max(asked) && self.advance_to(wanted)
    }

    fn enter_by_tc(&mut self) -> bool {
        let complete = |votes: &BTreeMap<_, _>| votes.len() >= self.quorum.q;
        let newest = self.round.advances.iter().rev().find(|(_, votes)| complete(votes));
        let Some((&attempt, votes)) = newest else { return false };
        // An attempt that a POLC led into may lack its Tc: it is what others enter by.
        if attempt < self.round.attempt || self.round.tcs.contains_key(&attempt) {
            return false;
        }
        let tc = Tc { votes: votes.values().cloned().collect() };
        self.keep_tc(tc);
        self.enter_attempt(attempt);
        true
    }

    /// The only place that signs an ADVANCE. Whether it did.
    pub(super) fn advance_to(&mut self, attempt: Attempt) -> bool {
        let best_polc = self.round.best_polc().cloned();
        let best = best_polc.as_ref().map(|polc| polc.vote.attempt);
        let allowed = rules::may_advance(&self.round.signed(), self.round.attempt, best, attempt);
        if !allowed || attempt > ATTEMPTS_MAX || !self.may_vote() {
            return false;
        }
        let high = rules::reported_high(best_polc.as_ref().map(|polc| (polc.vote.attempt, polc.vote.ledger_hash)));
        let best_polc = best_polc.filter(|_| high.is_some());
        let vote = self.sign_vote(AdvanceVote { seq: self.round.seq, attempt, high });
        let advance = Advance { vote: vote.clone(), polc: best_polc };
        self.effects.push(Effect::Persist(Record::Advance(Box::new(advance.clone()))));
        self.effects.push(Effect::Sync);
        self.effects.push(Effect::Broadcast(Message::Advance(advance.clone())));
        self.round.add_advance(vote);
        self.round.mine.advance = Some(advance);
        self.fresh();
        true
    }

    /// Keeps the Tc of an attempt not below mine, on disk with the next commit.
    pub(super) fn keep_tc(&mut self, tc: Tc) {
        let attempt = tc.attempt();
        if attempt >= self.round.attempt && !self.round.tcs.contains_key(&attempt) {
            let polc = tc.high().and_then(|(high, _)| self.round.polcs.get(&high)).cloned();
            self.effects.push(Effect::Persist(Record::Entered(tc.clone(), polc)));
            self.round.tcs.insert(attempt, tc);
            self.fresh();
        }
    }

    /// Nothing for an attempt that is not above mine restarts its timer.
    pub(super) fn enter_attempt(&mut self, attempt: Attempt) {
        if attempt <= self.round.attempt {
            return;
        }
        self.effects.push(Effect::Cancel(Timer::Attempt(self.round.attempt)));
        self.round.attempt = attempt;
        self.round.proposals = self.round.proposals.split_off(&attempt);
        // One proposal an attempt rests on them. Kept for longer, those of equivocators would fill the room.
        self.round.other_novels.clear();
        self.set_attempt_timer();
        if let Some(forward) = self.round.tc_forward() {
            self.effects.push(Effect::Broadcast(forward));
        }
        self.fresh();
    }

    pub(super) fn set_attempt_timer(&mut self) {
        let attempt = self.round.attempt;
        let factor = (1 << attempt.min(4)) + u64::from(attempt.saturating_sub(4));
        let at = self.now + self.params.attempt_ms * factor;
        self.round.attempt_due = Some(at);
        self.effects.push(Effect::SetTimer(Timer::Attempt(attempt), at));
    }

    // ---- Rule C: PRECOMMIT on a POLC ----------------------------------------------------------------------------

    fn precommit(&mut self) -> bool {
        let mut found = false;
        for (attempt, tally) in &self.round.prevotes {
            if !self.round.polcs.contains_key(attempt)
                && let Some(polc) = tally.certificate(self.quorum)
            {
                self.round.polcs.insert(*attempt, polc);
                found = true;
            }
        }
        let Some(polc) = self.round.best_polc().cloned() else { return found };
        let Vote { attempt, ledger_hash, .. } = polc.vote;
        let allowed = rules::may_precommit(&self.round.signed(), self.round.attempt, attempt);
        if !allowed || !self.may_vote() {
            return found;
        }
        let holders: BTreeSet<NodeKey> = polc.sigs.iter().map(|(from, _)| *from).collect();
        let Some(candidate) = self.held(ledger_hash, &holders) else { return found };
        self.enter_attempt(attempt);
        let vote = self.sign_vote(Precommit(polc.vote));
        self.effects.push(Effect::Persist(Record::Precommit(vote.clone(), Box::new(candidate), polc)));
        self.effects.push(Effect::Sync);
        self.effects.push(Effect::Broadcast(Message::Precommit(vote.clone())));
        self.round.precommits.entry(attempt).or_default().add(vote.clone());
        self.round.mine.precommits.insert(attempt, vote);
        self.fresh();
        true
    }

    /// The body of a header when it and all its inputs are held; else they are wanted from `holders`.
    fn held(&mut self, ledger_hash: Hash, holders: &BTreeSet<NodeKey>) -> Option<Candidate> {
        let Some(candidate) = self.round.candidates.get(&ledger_hash) else {
            self.round.want(Want::Candidate(ledger_hash), holders.iter().copied());
            return None;
        };
        let missing = first_missing(&self.pool, &candidate.inputs);
        if missing.is_empty() {
            return Some(candidate.clone());
        }
        for id in missing {
            self.round.want(Want::Input(id), holders.iter().copied());
        }
        None
    }

    // ---- Rule D: close ------------------------------------------------------------------------------------------

    fn close_by_precommits(&mut self) -> bool {
        let mut certificates = self.round.precommits.values().filter_map(|tally| tally.certificate(self.quorum));
        let Some(qc) = certificates.next_back() else { return false };
        let holders: BTreeSet<NodeKey> = qc.sigs.iter().map(|(from, _)| *from).collect();
        match self.held(qc.vote.ledger_hash, &holders) {
            Some(candidate) => {
                self.close(candidate, qc);
                true
            }
            None => false,
        }
    }

    pub(super) fn close_by_certificate(&mut self) -> bool {
        let Some((qc, from)) = self.round.closed.clone() else { return false };
        let mut holders: BTreeSet<NodeKey> = qc.sigs.iter().map(|(signer, _)| *signer).collect();
        holders.insert(from);
        match self.held(qc.vote.ledger_hash, &holders) {
            Some(candidate) => {
                self.close(candidate, qc);
                self.ask_for_more();
                true
            }
            None => false,
        }
    }

    fn close(&mut self, candidate: Candidate, qc: Certificate) {
        let header = candidate.header.clone();
        let hash = header.hash();
        assert_eq!((header.seq, header.parent), (self.round.seq, self.tip.hash), "a ledger follows its parent");
        assert_eq!(qc.vote.ledger_hash, hash, "the certificate is this ledger's");
        self.note_own_in_qc(&qc);
        self.heard_from(qc.sigs.iter().map(|(signer, _)| *signer).collect());
        let ledger = ClosedLedger { candidate, qc };
        self.effects.push(Effect::Persist(Record::Ledger(Box::new(ledger.clone()))));
        let unl = ledger.candidate.unl_after(&self.unl);
        // In one transaction with the ledger: a vote that has done its work must not come back.
        self.drop_settled_vote(&unl);
        self.effects.push(Effect::Sync);
        self.push_closed(&ledger);
        self.effects.push(Effect::Cancel(Timer::Attempt(self.round.attempt)));
        self.effects.push(Effect::Cancel(Timer::Grace));

        let candidate = &ledger.candidate;
        let inputs: Vec<Input> =
            candidate.inputs.iter().map(|id| self.pool.remove(id).expect("bytes are held before a close")).collect();
        for input in &inputs {
            let before = self.window.insert(input.key(), header.seq);
            assert!(before.is_none(), "an input key occurs once in any window");
        }
        self.window.close(header.seq, self.params.input_window);
        if !(candidate.users_add.is_empty() && candidate.users_del.is_empty()) {
            self.users = candidate.users_after(&self.users);
            self.users_root = header.users_root;
        }
        let by_user = candidate.inputs.iter().zip(&inputs).filter(|(_, it)| matches!(it.origin, Origin::User { .. }));
        let signed = by_user.map(|(id, it)| SignedRef { user: it.user, nonce: it.nonce, id: *id }).collect();
        self.effects.push(Effect::LedgerClosed {
            ledger: Box::new(ledger.clone()),
            hash,
            attempt: ledger.qc.vote.attempt,
            signed,
        });
        if header.seq > 1 {
            self.agree(super::results::by_header(&header.result));
        }
        self.tip = super::Tip::of(&header);
        self.drop_recorded_settlement();
        self.results.clear();
        self.overtimes.clear();
        (self.split, self.differing_told) = (false, 0);
        // What this header says of the run before may show that mine went wrong: then nothing is run on top of it.
        while self.settle_results() {}
        if self.trusted {
            self.execute(candidate, inputs);
        }
        let changed = candidate.users_add.iter().chain(&candidate.users_del).copied();
        self.presence.closed(changed, &self.users);
        self.count_missed();
        if candidate.unl_change.is_some() {
            self.switch_unl(unl);
        }
        self.enter_seq(header.seq + 1);
    }

    /// Shows the ledger to those linked that may not know it is closed: members that have not precommitted, observers.
    fn push_closed(&mut self, ledger: &ClosedLedger) {
        if self.best_peer_tip() > self.round.seq {
            // Others have it for long; who is behind too asks for it.
            return;
        }
        let attempt = ledger.qc.vote.attempt;
        let precommitted: BTreeSet<NodeKey> =
            self.round.precommits.get(&attempt).map(|tally| tally.signers().copied().collect()).unwrap_or_default();
        let lagging: Vec<NodeKey> = self
            .links
            .iter()
            .filter(|node| !precommitted.contains(node))
            .filter(|node| self.peer_tips.get(node).is_none_or(|tip| *tip < self.round.seq))
            .copied()
            .collect();
        for node in lagging {
            self.closed_sent.insert(node, (self.round.seq, self.now));
            self.effects.push(Effect::Send(node, Consensus::closed_message(ledger)));
        }
    }

    fn count_missed(&mut self) {
        for node in self.unl.clone() {
            let missed = self.missed.entry(node).or_insert(0);
            *missed = if self.round.novels.contains_key(&node) { 0 } else { missed.saturating_add(1) };
            if *missed == HOST_MISSED_MAX && node != self.params.me {
                self.presence.forget_host(&node);
            }
        }
    }

    fn enter_seq(&mut self, seq: Seq) {
        let closed = std::mem::replace(&mut self.round, Round::new(seq));
        self.round = closed.next();
        if !self.catchup.holds(seq) {
            self.forget_dead();
        }
        self.fresh();
        let future = std::mem::take(&mut self.future);
        for ((from, ..), message) in future {
            // Nobody has checked it: only now it is known for which UNL it must be signed.
            if message.is_signed(&self.scope, &*self.crypto) || mutated!(UncheckedFuture) {
                self.receive(from, message);
            }
        }
    }

    // ---- Rules E and F: give up, propose ------------------------------------------------------------------------

    fn leave_hopeless_attempt(&mut self) -> bool {
        let hopeless = self.round.prevotes.get(&self.round.attempt).is_some_and(|tally| tally.is_hopeless(self.quorum));
        hopeless && self.advance_to(self.round.attempt + 1)
    }

    /// The node whose PROPOSE counts in an attempt.
    pub(super) fn coordinator(&self, attempt: Attempt) -> NodeKey {
        let n = self.unl.len() as u64;
        let hash = Hash::tagged("hp/coord/1", &self.tip.hash);
        let first = u64::from_le_bytes(hash.0[..8].try_into().expect("eight of 32 bytes")) % n;
        let index = (first + u64::from(attempt)) % n;
        self.unl[usize::try_from(index).expect("below the UNL's size")]
    }

    fn propose(&mut self) -> bool {
        let attempt = self.round.attempt;
        if attempt == 0
            || !self.may_vote()
            || self.coordinator(attempt) != self.params.me
            || self.round.mine.propose.as_ref().is_some_and(|sent| sent.body.attempt >= attempt)
            || !rules::may_prevote(&self.round.signed(), attempt)
        {
            return false;
        }
        // Who was restarted in a round has not begun its first attempt since.
        if mutated!(NoProposeAfterRestart) && !self.round.first_timer_started {
            return false;
        }
        let Some(tc) = self.round.tcs.get(&attempt).cloned() else { return false };
        let Some((candidate, basis)) = self.proposal(&tc) else { return false };
        let ledger_hash = candidate.header.hash();
        if !self.cast_prevote(attempt, candidate) {
            return false;
        }
        let propose = self.sign_vote(Propose { seq: self.round.seq, attempt, ledger_hash, tc, basis });
        self.effects.push(Effect::Broadcast(Message::Propose(propose.clone())));
        self.round.mine.propose = Some(propose);
        true
    }

    /// The value that a Tc leaves to its coordinator, and why.
    fn proposal(&mut self, tc: &Tc) -> Option<(Candidate, Basis)> {
        match rules::propose_value(tc.votes.iter().map(|vote| vote.body.high)) {
            Some((attempt, hash)) => {
                let polc = self.round.polcs.get(&attempt).filter(|polc| polc.vote.ledger_hash == hash)?.clone();
                let holders = polc.sigs.iter().map(|(from, _)| *from).collect();
                let candidate = self.held(hash, &holders)?;
                Some((candidate, Basis::Polc(polc)))
            }
            None => {
                let candidate = self.derive_own()?;
                let cert = self.result_cert()?;
                let novels = self.round.novels.values().map(|novel| (novel.from, novel.id())).collect();
                Some((candidate, Basis::Novels(novels, cert)))
            }
        }
    }

    /// Votes for the coordinator's value once everything it rests on is held.
    fn prevote_proposal(&mut self) -> bool {
        let attempt = self.round.attempt;
        if !self.may_vote() || !rules::may_prevote(&self.round.signed(), attempt) {
            return false;
        }
        if self.round.refused == Some(attempt) {
            return false;
        }
        let Some(propose) = self.round.proposals.get(&attempt).cloned() else { return false };
        let candidate = match &propose.body.basis {
            Basis::Polc(polc) => {
                let holders = polc.sigs.iter().map(|(from, _)| *from).collect();
                self.held(propose.body.ledger_hash, &holders)
            }
            Basis::Novels(..) if mutated!(UnderivedPrevote) => {
                self.held(propose.body.ledger_hash, &BTreeSet::from([propose.from]))
            }
            Basis::Novels(novels, cert) => self.derive_proposed(propose.from, novels, &cert.result),
        };
        match candidate {
            None if mutated!(ProposeOnce) => {
                self.round.refused = Some(attempt);
                true
            }
            None => false,
            Some(candidate) if candidate.header.hash() == propose.body.ledger_hash => {
                self.cast_prevote(attempt, candidate)
            }
            Some(_) => {
                // The coordinator's value is not what its novels lead to: no vote for it, however often it comes.
                self.round.refused = Some(attempt);
                true
            }
        }
    }

    fn derive_proposed(
        &mut self,
        coordinator: NodeKey,
        novels: &[(NodeKey, Hash)],
        result: &ExecResult,
    ) -> Option<Candidate> {
        let mut found: Vec<Novel> = Vec::new();
        let mut complete = true;
        for (signer, id) in novels {
            let held = self.round.novels.get(signer).filter(|novel| novel.id() == *id);
            match held.or_else(|| self.round.other_novels.get(id).filter(|novel| novel.from == *signer)) {
                Some(novel) => found.push(novel.body.clone()),
                None => {
                    self.round.want(Want::Novel(*id), [coordinator]);
                    complete = false;
                }
            }
        }
        if !complete {
            return None;
        }
        if let Some((attempt, mut ids)) = self.round.proposed_need.take()
            && attempt == self.round.attempt
        {
            // To derive is much work, and every message asks for it.
            forget_held(&self.pool, &mut ids);
            if !ids.is_empty() {
                self.want_proposed_inputs(coordinator, ids);
                return None;
            }
        }
        let found: Vec<&Novel> = found.iter().collect();
        match self.derive(&found, result) {
            Derived::Ready(candidate) => Some(*candidate),
            Derived::Need(ids) => {
                self.want_proposed_inputs(coordinator, ids);
                None
            }
        }
    }

    fn want_proposed_inputs(&mut self, coordinator: NodeKey, ids: Vec<Hash>) {
        let missing = first_missing(&self.pool, &ids);
        self.want_inputs_listed_by_novels(&missing);
        for id in missing {
            self.round.want(Want::Input(id), [coordinator]);
        }
        self.round.proposed_need = Some((self.round.attempt, ids));
    }
}
