//! What each message of a peer does. Signatures of messages were checked at the edge; those inside certificates are
//! checked here. What a peer sends wrong is dropped.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ANSWER_COST_BYTES, ANSWERS_BYTES_MAX, ATTEMPTS_AHEAD, Consensus, Effect, GET_INPUTS_MAX, HEADERS_MAX,
    HOST_MISSED_MAX, INPUTS_MAX, NOVEL_USERS_MAX, Query, RANGE_LEDGERS_MAX, REPLY_MS, UNKNOWN_MAX, UNL_MAX,
    header::{Candidate, ExecResult, Input, Origin},
    messages::{
        Advance, Basis, Certificate, Closed, Evidence, Get, Message, Novel, Precommit, Presence, Propose, Signed,
        StatusMsg, TcFwd, VoteKind,
    },
    mutation::mutated,
    pool::STRANGERS,
    presence::{HOST_USERS_MAX, Heard},
    range::Lie,
    round::{Round, Want},
    votes::{Counted, Tally, count_once, is_well_formed},
};
use crate::types::{Attempt, Hash, NodeKey, Seq, Sig};

/// Whether no list in a message of a round is longer than a right one can be. It may be kept before it is checked.
fn is_bounded(message: &Message) -> bool {
    let polc = |polc: &Option<Certificate>| polc.as_ref().is_none_or(|polc| polc.sigs.len() <= UNL_MAX);
    match message {
        Message::Novel(m) => {
            m.body.inputs.len() <= INPUTS_MAX
                && m.body.users_add.len() <= NOVEL_USERS_MAX
                && m.body.users_del.len() <= NOVEL_USERS_MAX
        }
        Message::Advance(m) => polc(&m.polc),
        Message::TcFwd(m) => m.tc.votes.len() <= UNL_MAX && polc(&m.polc),
        Message::Propose(m) => {
            let basis = match &m.body.basis {
                Basis::Polc(polc) => polc.sigs.len() <= UNL_MAX,
                Basis::Novels(novels, cert) => novels.len() <= UNL_MAX && cert.sigs.len() <= UNL_MAX,
            };
            m.body.tc.votes.len() <= UNL_MAX && basis
        }
        Message::Closed(m) => m.qc.sigs.len() <= UNL_MAX,
        _ => true,
    }
}

impl Consensus {
    pub(super) fn receive(&mut self, from: NodeKey, message: Message) {
        if from == self.params.me || !is_bounded(&message) {
            return;
        }
        match message.round_seq() {
            Some(seq) => self.receive_round(from, seq, message),
            None => match message {
                Message::Input(input) => self.on_input(from, input),
                Message::Presence(signed) => self.on_presence(from, &signed),
                Message::Closed(closed) => self.on_closed(from, closed),
                Message::Get(get) => self.on_get(from, get),
                Message::Candidate(candidate) => self.on_candidate(from, candidate),
                Message::Range(range) if self.expects_range(&from) => {
                    let verify = |key: &NodeKey, digest: &Hash, sig: &Sig| self.crypto.verify(key, digest, sig);
                    let checked = range.check(&self.scope.chain_id, verify);
                    self.on_range(from, checked);
                }
                Message::Headers(headers) if self.expects_range(&from) => {
                    let verify = |key: &NodeKey, digest: &Hash, sig: &Sig| self.crypto.verify(key, digest, sig);
                    let checked = headers.check(&self.scope.chain_id, verify);
                    self.on_headers(from, checked);
                }
                Message::Users(page) => self.on_users(from, *page),
                Message::Status(signed) => {
                    if signed.from == from && signed.body.unheard.len() <= UNL_MAX {
                        self.note_claim(from, &signed.body);
                    }
                    self.on_status(from, &signed.body);
                }
                Message::Evidence(evidence) => self.note_own_in_evidence(&evidence),
                // Of the contract's run and of diagnosis: the node's business.
                _ => {}
            },
        }
    }

    fn receive_round(&mut self, from: NodeKey, seq: Seq, message: Message) {
        if seq < self.round.seq {
            // Its sender lacks the ledger that closed that round.
            self.send_closed(from, seq);
            if seq < self.tip.seq {
                // And further ones: it asks for many at once when it knows.
                self.send_status(from);
            }
        } else if seq > self.round.seq {
            // Not checked yet: it may be signed for a UNL that is not known here before its parent is closed.
            self.heard_of_tip(from, seq - 1);
            let is_next = seq == self.round.seq + 1 && !self.is_bare();
            if self.is_member(&from) && is_next && message.round_attempt() <= ATTEMPTS_AHEAD {
                self.future.insert((from, message.kind(), message.round_attempt()), message);
            }
            self.ask_for_more();
        } else if !self.is_bare() {
            self.note_own(&message);
            self.note_heard(&message);
            match message {
                Message::Novel(novel) => self.on_novel(novel),
                Message::Result(result) => self.on_result(result),
                Message::Prevote(vote) => self.on_vote(vote, |round| &mut round.prevotes, Message::Prevote),
                Message::Precommit(vote) => self.on_vote(vote, |round| &mut round.precommits, Message::Precommit),
                Message::Advance(advance) => self.on_advance(advance),
                Message::TcFwd(forward) => self.on_tc_forward(forward),
                Message::Propose(propose) => self.on_propose(propose),
                Message::Overtime(overtime) => self.on_overtime(overtime),
                _ => unreachable!("only messages of a round have a sequence number"),
            }
        }
    }

    // ---- Stages -------------------------------------------------------------------------------------------------

    fn on_novel(&mut self, novel: Signed<Novel>) {
        let Novel { parent, users_add, users_del, inputs, .. } = &novel.body;
        let ascending = inputs.is_sorted_by(|a, b| a < b)
            && users_add.is_sorted_by(|a, b| a < b)
            && users_del.is_sorted_by(|a, b| a < b);
        let follows = *parent == self.tip.hash || mutated!(NoParentCheck);
        if !follows || !ascending || !self.is_other_member(&novel.from) {
            return;
        }
        let signer = novel.from;
        match count_once(&mut self.round.novels, novel.clone()) {
            Counted::New => {
                self.note_unl_vote(signer, novel.body.unl_vote);
                if self.missed.get(&signer).is_some_and(|missed| *missed >= HOST_MISSED_MAX)
                    && !self.presence.knows(&signer)
                    && self.links.contains(&signer)
                {
                    self.get(signer, Get::Presence);
                }
                self.note_unknown(&novel);
                self.fresh();
            }
            Counted::Known => {}
            Counted::Conflict(first) => {
                self.evidence(signer, Message::Novel(first), Message::Novel(novel.clone()));
                // A proposal may rest on the other one.
                let id = novel.id();
                let wanted = self.round.fetching.contains_key(&Want::Novel(id));
                if wanted && self.round.other_novels.len() < self.unl.len() {
                    self.round.other_novels.insert(id, novel);
                }
            }
        }
    }

    /// Remembers listed inputs that are not held. A few a sender, because the ids may be invented.
    fn note_unknown(&mut self, novel: &Signed<Novel>) {
        let unknown = novel.body.inputs.iter().filter(|id| !self.pool.contains(id)).take(UNKNOWN_MAX);
        for id in unknown {
            self.round.unknown.entry(*id).or_default().insert(novel.from);
        }
    }

    fn on_result(&mut self, result: Signed<ExecResult>) {
        if result.body.of_hash != self.tip.hash || !self.is_other_member(&result.from) {
            return;
        }
        let signer = result.from;
        match count_once(&mut self.results, result.clone()) {
            Counted::New => {
                self.fresh();
                self.compare_results();
            }
            Counted::Known => {}
            Counted::Conflict(first) => self.evidence(signer, Message::Result(first), Message::Result(result)),
        }
    }

    /// Counts a vote of stage 2 or 3 into the tally of its kind.
    fn on_vote<K: VoteKind + PartialEq>(
        &mut self,
        vote: Signed<K>,
        tallies: fn(&mut Round) -> &mut BTreeMap<Attempt, Tally<K>>,
        message: fn(Signed<K>) -> Message,
    ) {
        let attempt = vote.body.vote().attempt;
        if !self.is_other_member(&vote.from) || !self.is_near(attempt) {
            return;
        }
        let signer = vote.from;
        match tallies(&mut self.round).entry(attempt).or_default().add(vote.clone()) {
            Counted::New => self.fresh(),
            Counted::Known => {}
            Counted::Conflict(first) => self.evidence(signer, message(first), message(vote)),
        }
    }

    fn on_advance(&mut self, advance: Advance) {
        let vote = &advance.vote;
        let body = vote.body;
        if !self.is_other_member(&vote.from) || !is_well_formed(&body) {
            return;
        }
        if let Some(first) = self.round.advances.get(&body.attempt).and_then(|votes| votes.get(&vote.from)) {
            if first.body != body {
                let first = Message::Advance(Advance { vote: first.clone(), polc: None });
                let second = Message::Advance(Advance { vote: vote.clone(), polc: None });
                self.evidence(vote.from, first, second);
            }
            return;
        }
        if !self.checker().polc_of(body.high, body.seq, advance.polc.as_ref()) {
            return;
        }
        if let Some(polc) = &advance.polc {
            self.note_own_in_polc(polc);
            self.round.add_polc(polc);
        }
        if !self.is_near(body.attempt) {
            // So far ahead only the sender's latest is kept: what is beyond is forgotten with it.
            let far = self.round.attempt + ATTEMPTS_AHEAD;
            let older = |attempt: &Attempt| *attempt > far && *attempt != body.attempt;
            for (attempt, votes) in &mut self.round.advances {
                if older(attempt) {
                    votes.remove(&vote.from);
                }
            }
            self.round.advances.retain(|_, votes| !votes.is_empty());
        }
        self.round.add_advance(vote.clone());
        self.fresh();
    }

    fn on_tc_forward(&mut self, forward: TcFwd) {
        let attempt = forward.tc.attempt();
        if mutated!(RestartedTimer) && attempt == self.round.attempt {
            self.set_attempt_timer();
        }
        let known = self.round.tcs.contains_key(&attempt);
        if attempt < self.round.attempt || known {
            return;
        }
        let checker = self.checker();
        let valid = checker.tc(&forward.tc, forward.seq, attempt)
            && (mutated!(TcFwdWithoutPolc) || checker.polc_of(forward.tc.high(), forward.seq, forward.polc.as_ref()));
        if !valid {
            return;
        }
        if let Some(polc) = &forward.polc {
            self.note_own_in_polc(polc);
            self.round.add_polc(polc);
        }
        self.note_own_in_tc(&forward.tc);
        self.keep_tc(forward.tc);
        self.enter_attempt(attempt);
    }

    fn on_propose(&mut self, propose: Signed<Propose>) {
        let Propose { seq, attempt, ledger_hash, tc, basis } = &propose.body;
        let attempt = *attempt;
        if attempt == 0 || attempt < self.round.attempt || propose.from != self.coordinator(attempt) {
            return;
        }
        if let Some(first) = self.round.proposals.get(&attempt) {
            if first.body != propose.body {
                self.evidence(propose.from, Message::Propose(first.clone()), Message::Propose(propose));
            }
            return;
        }
        let checker = self.checker();
        let basis_valid = match basis {
            Basis::Polc(polc) => {
                polc.vote.ledger_hash == *ledger_hash
                    && tc.high().is_some()
                    && checker.polc_of(tc.high(), *seq, Some(polc))
            }
            Basis::Novels(novels, cert) => {
                tc.high().is_none()
                    && novels.len() >= self.quorum.q
                    && novels.len() <= self.unl.len()
                    && novels.is_sorted_by(|a, b| a.0 < b.0)
                    && novels.iter().all(|(signer, _)| self.is_member(signer))
                    && cert.result.of_hash == self.tip.hash
                    && checker.result_cert(cert, &self.genesis.result())
            }
        };
        if !basis_valid || !checker.tc(tc, *seq, attempt) {
            return;
        }
        match basis {
            Basis::Polc(polc) => {
                self.note_own_in_polc(polc);
                self.round.add_polc(polc);
            }
            Basis::Novels(_, cert) => {
                self.note_own_in_results(cert);
                for (from, sig) in &cert.sigs {
                    let signed = Signed { from: *from, body: cert.result.clone(), sig: *sig };
                    self.results.entry(*from).or_insert(signed);
                }
                self.compare_results();
            }
        }
        self.note_own_in_tc(tc);
        self.keep_tc(tc.clone());
        self.enter_attempt(attempt);
        self.round.proposals.insert(attempt, propose);
        self.fresh();
    }

    /// Whose votes are counted when they arrive. Mine were when they were signed; one that comes from elsewhere was
    /// signed by another process with my key, or by this one before its journal was lost.
    pub(super) fn is_other_member(&self, signer: &NodeKey) -> bool {
        *signer != self.params.me && self.is_member(signer)
    }

    fn is_near(&self, attempt: Attempt) -> bool {
        attempt <= self.round.attempt.saturating_add(ATTEMPTS_AHEAD)
    }

    // ---- Data ---------------------------------------------------------------------------------------------------

    fn on_input(&mut self, from: NodeKey, input: Input) {
        let id = input.id(&self.scope.chain_id);
        // What a header needs is taken whatever the pool holds.
        let needed = self.round.fetching.contains_key(&Want::Input(id)) && self.header_needs(&id);
        // No ledger takes what a host outside the UNL vouches for; kept, it would fill the pool until it expires.
        if let Origin::Session { host, .. } = &input.origin
            && !self.is_member(host)
            && !needed
        {
            return self.round.forget_unknown(&id);
        }
        // Whoever is not a member can take any number of keys: all of them share one part of the pool.
        let from = if self.is_member(&from) { from } else { STRANGERS };
        match self.take_input(id, input, from, needed) {
            Ok(true) => self.fresh(),
            Ok(false) => {}
            // Not to be asked for again in this round.
            Err(_) if !needed => {
                self.round.forget_unknown(&id);
            }
            Err(_) => {}
        }
    }

    fn header_needs(&self, id: &Hash) -> bool {
        let in_candidate = self.round.candidates.values().any(|candidate| candidate.inputs.binary_search(id).is_ok());
        let listed = self.round.novels.values().filter(|novel| novel.body.inputs.binary_search(id).is_ok()).count();
        in_candidate || listed >= self.quorum.include
    }

    fn on_candidate(&mut self, from: NodeKey, candidate: Candidate) {
        let hash = candidate.header.hash();
        let wanted = self.round.fetching.contains_key(&Want::Candidate(hash));
        if !(wanted && self.follows(&candidate.header)) || self.is_bare() {
            return;
        }
        let bounded = candidate.inputs.len() <= INPUTS_MAX;
        if bounded && candidate.is_consistent(&self.users, self.users_root, &self.unl) {
            self.round.candidates.insert(hash, candidate);
            self.fresh();
        } else if self.round.closed.as_ref().is_some_and(|(qc, _)| qc.vote.ledger_hash == hash) {
            // The header of a closed ledger has a true body: this is another one.
            self.lied(from, Lie::Body);
        }
    }

    fn on_closed(&mut self, from: NodeKey, closed: Closed) {
        let Closed { header, qc } = closed;
        if header.seq != self.round.seq || self.is_bare() {
            if header.seq >= self.round.seq {
                self.heard_of_tip(from, header.seq);
                self.ask_for_more();
            }
            return;
        }
        let follows = self.follows(&header) && qc.vote.seq == header.seq && qc.vote.ledger_hash == header.hash();
        if self.round.closed.is_some() {
            return;
        }
        if !follows || !self.checker().certificate::<Precommit>(&qc) {
            return self.lied(from, Lie::Certificate);
        }
        self.heard_of_tip(from, header.seq);
        let hash = qc.vote.ledger_hash;
        self.round.closed = Some((qc, from));
        // Of a ledger in which nobody said, came or went the header is all there is.
        let empty =
            Candidate { header, inputs: Vec::new(), users_add: Vec::new(), users_del: Vec::new(), unl_change: None };
        if empty.is_consistent(&self.users, self.users_root, &self.unl) {
            self.round.candidates.insert(hash, empty);
        }
        self.fresh();
    }

    fn on_get(&mut self, from: NodeKey, get: Get) {
        match get {
            Get::Candidate(hash) => match self.round.candidates.get(&hash) {
                Some(candidate) => {
                    let candidate = candidate.clone();
                    let users = candidate.users_add.len() + candidate.users_del.len();
                    if self.may_answer(from, 32 * (candidate.inputs.len() + users)) {
                        self.effects.push(Effect::Send(from, Message::Candidate(candidate)));
                    }
                }
                None => self.effects.push(Effect::Serve(from, Query::Candidate(hash))),
            },
            Get::Novel(id) => {
                let mut held = self.round.novels.values().chain(self.round.other_novels.values());
                if let Some(novel) = held.find(|novel| novel.id() == id).cloned()
                    && self.may_answer(from, 32 * novel.body.inputs.len())
                {
                    self.effects.push(Effect::Send(from, Message::Novel(novel)));
                }
            }
            Get::Inputs(ids) => {
                let mut elsewhere = Vec::new();
                // One id named a thousand times must not make a thousand copies.
                let ids: BTreeSet<Hash> = ids.into_iter().take(GET_INPUTS_MAX).collect();
                for id in ids {
                    match self.pool.get(&id).cloned() {
                        None => elsewhere.push(id),
                        Some(input) if self.may_answer(from, input.payload.len()) => {
                            self.effects.push(Effect::Send(from, Message::Input(input)));
                        }
                        Some(_) => break,
                    }
                }
                if !elsewhere.is_empty() {
                    self.effects.push(Effect::Serve(from, Query::Inputs(elsewhere)));
                }
            }
            Get::Presence => {
                // Whatever is asked meanwhile is answered by this one and the changes behind it.
                let asked = self.presence_sent.get(&from).is_some_and(|at| self.now < at + REPLY_MS);
                if asked {
                    return;
                }
                self.presence_sent.insert(from, self.now);
                let snapshot = self.sign(self.presence.snapshot());
                self.effects.push(Effect::Send(from, Message::Presence(snapshot)));
            }
            // A thousand changed paths of some tens of bytes, at the usual most.
            Get::Details(seq) if self.is_member(&from) && self.may_answer(from, 64 << 10) => {
                self.effects.push(Effect::Serve(from, Query::Details(seq)));
            }
            Get::Npl(hash) if self.is_member(&from) && hash == self.tip.hash => {
                self.effects.push(Effect::Serve(from, Query::Npl(hash)));
            }
            // A block, or the hashes of some thousands.
            Get::Piece(piece) if self.is_member(&from) && self.may_answer(from, 128 << 10) => {
                self.effects.push(Effect::Serve(from, Query::Piece(piece)));
            }
            Get::Details(_) | Get::Npl(_) | Get::Piece(_) => {}
            Get::Headers(first, last) => {
                let last = last.min(first.saturating_add(HEADERS_MAX as Seq - 1));
                if first > 0 && first <= last {
                    self.effects.push(Effect::Serve(from, Query::Headers(first, last)));
                }
            }
            Get::Users(seq, after) => self.effects.push(Effect::Serve(from, Query::Users(seq, after))),
            Get::Range(first, last) => {
                let last = last.min(first.saturating_add(RANGE_LEDGERS_MAX as Seq - 1));
                if first > 0 && first <= last {
                    self.effects.push(Effect::Serve(from, Query::Range(first, last)));
                }
            }
        }
    }

    /// Whether a peer may have so many more bytes of what is held in memory, for now.
    fn may_answer(&mut self, to: NodeKey, bytes: usize) -> bool {
        let (since, answered) = self.answered.entry(to).or_insert((self.now, 0));
        if self.now >= *since + REPLY_MS {
            (*since, *answered) = (self.now, 0);
        }
        *answered += bytes + ANSWER_COST_BYTES;
        *answered <= ANSWERS_BYTES_MAX
    }

    fn on_presence(&mut self, from: NodeKey, signed: &Signed<Presence>) {
        let Presence { up, down, .. } = &signed.body;
        let bounded = up.len() <= HOST_USERS_MAX && down.len() <= HOST_USERS_MAX;
        if signed.from != from || !self.is_member(&from) || !bounded || !self.links.contains(&from) {
            return;
        }
        if self.presence.heard(from, &signed.body) == Heard::Gap {
            self.get(from, Get::Presence);
        }
        self.presence.bound(&self.users);
    }

    fn on_status(&mut self, from: NodeKey, status: &StatusMsg) {
        // Two that are silent tell each other by and by; an answer to each answer would never end.
        let asks = status.silent && self.silence.is_none() && self.is_member(&from);
        if asks && self.send_status(from) {
            for message in self.held_of(&from) {
                self.effects.push(Effect::Send(from, message));
            }
        }
        if status.seq < self.tip.seq {
            self.send_closed(from, status.seq + 1);
            if status.seq + 1 < self.tip.seq {
                // Who is that far behind, an observer before all, may hear from nobody how far there is to go.
                self.send_status(from);
            }
        } else if status.seq > self.tip.seq {
            // What it says of itself counts more than what was taken from other messages.
            self.peer_tips.remove(&from);
            self.heard_of_tip(from, status.seq);
            self.ask_for_more();
        }
    }

    /// Shows a contradiction, once a round for each signer and kind: whoever contradicts itself a thousand times must
    /// not make everybody tell everybody a thousand times.
    fn evidence(&mut self, signer: NodeKey, first: Message, second: Message) {
        if !self.round.shown.insert((signer, first.kind())) {
            return;
        }
        let encode = |message: &Message| borsh::to_vec(message).expect("writing to memory does not fail");
        let evidence = Evidence { signer, first: encode(&first), second: encode(&second) };
        self.effects.push(Effect::Evidence(Box::new(evidence)));
    }
}
