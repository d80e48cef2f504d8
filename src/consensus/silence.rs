//! Silence: a node that cannot know what its key has signed before signs nothing until that cannot matter any more.
//!
//! What binds a node is in its journal. Where the journal was lost, is an older copy, or lacks something that the node's
//! key did sign, a vote could contradict one that was given. So the node follows, closes ledgers by the others' votes and
//! runs them, and signs nothing that is counted: `Consensus::may_vote` stands before every such signature.
//!
//! It ends when it is certain that everything unknown is about ledgers that are closed. A node signs about ledger s when
//! it has closed s - 1, which q members signed for; of any q - 1 others at least one of these is sound, as long as no more
//! members are faulty (this one among them) than agreement bears, and that one has closed s - 2 at least. So two ledgers
//! above what q - 1 others first said they have closed nothing of it is left. Where the UNL needs everybody, no ledger is
//! closed without this node, and it never ends by itself.
//!
//! An empty journal is no loss at the beginning of a chain, or of a membership: members remember of whom they ever heard
//! something that counts. Where q - 1 others had not heard anything of this key since it joined, no quorum ever had its
//! vote, and the node begins. Source: `docs/protocol.md`, "Silent nodes".

use std::collections::{BTreeMap, btree_map::Entry};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{
    Consensus, Effect,
    header::Genesis,
    journal::Record,
    messages::{AdvanceVote, Certificate, Evidence, Message, ResultCert, Signable, Signed, StatusMsg, Tc},
    mutation::mutated,
};
use crate::types::{Attempt, NodeKey, Seq, WallMs};

/// Ledgers above what the others first said before an unknown signature of mine is of no use to anybody.
const LEDGERS_WITHOUT_ME: Seq = 2;

/// That a node is silent: why, and what ends it. Durable.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Silence {
    /// Why it began.
    pub why: Why,
    /// When it began, by this node's wall clock; 0 before the first start.
    pub since_ms: WallMs,
    /// This node's last closed ledger then.
    pub since: Seq,
    /// What each member first said since then. Those that are no members any more are forgotten.
    pub first: BTreeMap<NodeKey, Claim>,
    /// The last ledger about which something was signed with this node's key that is not in its journal, as far as known.
    pub signed: Option<Seq>,
    /// The ledger with which this node's key became a member that was none before, where the journal began before that.
    pub joined: Option<Seq>,
}

/// Why a node is silent.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Why {
    /// The journal is empty: this is the node's beginning, or what it has signed is lost.
    Empty,
    /// The journal is another node's.
    Copied(NodeKey),
    /// Whoever put it there says that it may be old.
    Marked(String),
    /// The node's key signed what the journal does not have.
    Signed {
        /// Kind of message.
        kind: String,
        /// Ledger it is about.
        seq: Seq,
        /// In which attempt.
        attempt: Attempt,
    },
    /// Another process with this node's key was there before.
    Twin,
}

/// Where a member stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Claim {
    /// Its last closed ledger.
    pub seq: Seq,
    /// Whether it had never heard anything that counts of this node.
    pub is_unheard: bool,
}

/// A silence as people are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// The silence.
    pub silence: Silence,
    /// Whether people must know: not while the node merely waits to hear that its chain is at its beginning.
    pub is_alarm: bool,
    /// Whether ledgers can be closed without this node.
    pub ends_by_itself: bool,
    /// How many more members must say where they stand.
    pub lacking: usize,
    /// The ledger with which it ends, once enough have said so.
    pub ends_with: Option<Seq>,
}

impl Silence {
    /// Before anything happened.
    pub fn begin() -> Silence {
        Silence::new(Why::Empty, 0, 0)
    }

    /// Begins at this ledger.
    pub fn new(why: Why, since_ms: WallMs, since: Seq) -> Silence {
        Silence { why, since_ms, since, first: BTreeMap::new(), signed: None, joined: None }
    }

    /// The ledger with which this node's key became a member, if the journal can tell.
    fn joined(&self, genesis: &Genesis, me: &NodeKey) -> Option<Seq> {
        if self.why != Why::Empty || self.signed.is_some() {
            None
        } else if genesis.unl.contains(me) {
            Some(0)
        } else {
            self.joined
        }
    }
}

impl Consensus {
    /// Whether this node may sign what counts in a round: the only place that decides it.
    pub(super) fn may_vote(&self) -> bool {
        let speaks = self.silence.is_none() || mutated!(VoteThoughSilent);
        self.is_member(&self.params.me) && speaks && self.knows_window() && !self.is_paused()
    }

    /// Signs what counts in a round: the only place that does, but for a RESULT, which is signed when it is journaled and
    /// said when the node may.
    pub(super) fn sign_vote<T: Signable>(&self, body: T) -> Signed<T> {
        assert!(self.may_vote(), "a silent or paused node signs nothing");
        self.sign_in(body, &self.scope)
    }

    /// Members of whom nothing that counts was ever heard.
    pub(super) fn unheard(&self) -> Vec<NodeKey> {
        let unheard = |node: &&NodeKey| **node != self.params.me && !self.heard.contains(node);
        self.unl.iter().filter(unheard).copied().collect()
    }

    /// Remembers who signed a message of the round. Its signature was checked.
    pub(super) fn note_heard(&mut self, message: &Message) {
        let signer = match message {
            Message::Overtime(overtime) => Some(overtime.from),
            message => message.slot().map(|(signer, ..)| signer),
        };
        self.heard_from(signer.into_iter().collect());
    }

    /// Remembers that these signed something that counts: on disk before anything that may follow from it is said.
    pub(super) fn heard_from(&mut self, signers: Vec<NodeKey>) {
        let new = |node: &NodeKey| self.is_member(node) && *node != self.params.me && !self.heard.contains(node);
        let new: Vec<NodeKey> = signers.into_iter().filter(new).collect();
        if !new.is_empty() {
            self.heard.extend(new);
            self.effects.push(Effect::Persist(Record::Heard(self.heard.clone())));
        }
    }

    /// What is held of a member's own messages of the round: whoever lost its journal learns from it what it signed.
    pub(super) fn held_of(&self, node: &NodeKey) -> Vec<Message> {
        let round = &self.round;
        let mut held = Vec::new();
        held.extend(self.results.get(node).cloned().map(Message::Result));
        held.extend(self.overtimes.get(node).cloned().map(Message::Overtime));
        held.extend(round.novels.get(node).cloned().map(Message::Novel));
        let proposals = round.proposals.values().filter(|propose| propose.from == *node);
        held.extend(proposals.cloned().map(Message::Propose));
        held.extend(round.prevotes.values().filter_map(|tally| tally.of(node)).cloned().map(Message::Prevote));
        held.extend(round.precommits.values().filter_map(|tally| tally.of(node)).cloned().map(Message::Precommit));
        for vote in round.advances.values().filter_map(|votes| votes.get(node)) {
            // Taken with its POLC only, as every ADVANCE.
            let polc = match vote.body.high {
                None => None,
                Some((high, hash)) => match round.polcs.get(&high).filter(|polc| polc.vote.ledger_hash == hash) {
                    Some(polc) => Some(polc.clone()),
                    None => continue,
                },
            };
            held.push(Message::Advance(super::messages::Advance { vote: vote.clone(), polc }));
        }
        held
    }

    // ---- Signatures of mine -------------------------------------------------------------------------------------

    /// Looks whether a message of the round that my key signed is in my journal. Its signature was checked.
    pub(super) fn note_own(&mut self, message: &Message) {
        let (me, mine) = (&self.params.me, &self.round.mine);
        let known = match message {
            Message::Novel(m) if m.from == *me => mine.novel.as_ref().is_some_and(|mine| mine.body == m.body),
            Message::Result(m) if m.from == *me => self.own_result.as_ref().is_some_and(|mine| mine.body == m.body),
            Message::Overtime(m) if m.from == *me => self.overtimes.get(me).is_some_and(|mine| mine.body == m.body),
            Message::Prevote(m) if m.from == *me => {
                mine.prevotes.get(&m.body.0.attempt).is_some_and(|mine| mine.body == m.body)
            }
            Message::Precommit(m) if m.from == *me => {
                mine.precommits.get(&m.body.0.attempt).is_some_and(|mine| mine.body == m.body)
            }
            Message::Advance(m) if m.vote.from == *me => self.is_own_advance(&m.vote.body),
            // Not journaled itself: the PREVOTE before it is.
            Message::Propose(m) if m.from == *me => {
                let voted = mine.prevotes.get(&m.body.attempt);
                voted.is_some_and(|mine| mine.body.0.ledger_hash == m.body.ledger_hash)
            }
            _ => return,
        };
        if !known {
            self.signed_elsewhere(message.kind(), self.round.seq, message.round_attempt());
        }
    }

    /// Of several ADVANCEs the last is journaled.
    fn is_own_advance(&self, body: &AdvanceVote) -> bool {
        let mine = self.round.mine.advance.as_ref().map(|advance| advance.vote.body);
        mine.is_some_and(|mine| body.attempt < mine.attempt || *body == mine)
    }

    /// The same of the PREVOTEs in a valid POLC of the round.
    pub(super) fn note_own_in_polc(&mut self, polc: &Certificate) {
        let mine = self.round.mine.prevotes.get(&polc.vote.attempt).map(|mine| mine.body.0);
        if self.signed_by_me(&polc.sigs) && mine != Some(polc.vote) {
            self.signed_elsewhere("PREVOTE", polc.vote.seq, polc.vote.attempt);
        }
    }

    /// The same of the PRECOMMITs in the certificate of the ledger that the round ends with.
    pub(super) fn note_own_in_qc(&mut self, qc: &Certificate) {
        let mine = self.round.mine.precommits.get(&qc.vote.attempt).map(|mine| mine.body.0);
        if self.signed_by_me(&qc.sigs) && mine != Some(qc.vote) {
            self.signed_elsewhere("PRECOMMIT", qc.vote.seq, qc.vote.attempt);
        }
    }

    /// The same of the ADVANCEs in a valid Tc of the round.
    pub(super) fn note_own_in_tc(&mut self, tc: &Tc) {
        let mine = tc.votes.iter().find(|vote| vote.from == self.params.me).map(|vote| vote.body);
        if let Some(body) = mine.filter(|body| !self.is_own_advance(body)) {
            self.signed_elsewhere("ADVANCE", body.seq, body.attempt);
        }
    }

    /// The same of the RESULTs in a valid certificate of the last ledger's.
    pub(super) fn note_own_in_results(&mut self, cert: &ResultCert) {
        let is_mine = self.own_result.as_ref().is_some_and(|mine| mine.body == cert.result);
        if self.signed_by_me(&cert.sigs) && !is_mine {
            self.signed_elsewhere("RESULT", self.round.seq, 0);
        }
    }

    /// The same of a proof that I contradict myself. Its signatures were checked, for this UNL or the one before.
    pub(super) fn note_own_in_evidence(&mut self, evidence: &Evidence) {
        for bytes in [&evidence.first, &evidence.second] {
            let Ok(message) = borsh::from_slice::<Message>(bytes) else { continue };
            if !message.is_signed(&self.scope, &*self.crypto) {
                continue;
            }
            match message.round_seq() {
                Some(seq) if seq == self.round.seq => self.note_own(&message),
                Some(seq) if seq > self.round.seq && message.slot().is_some_and(|slot| slot.0 == self.params.me) => {
                    self.signed_elsewhere(message.kind(), seq, message.round_attempt());
                }
                _ => {}
            }
        }
    }

    fn signed_by_me(&self, sigs: &[(NodeKey, crate::types::Sig)]) -> bool {
        sigs.iter().any(|(signer, _)| *signer == self.params.me)
    }

    /// My key signed this, and my journal does not have it.
    fn signed_elsewhere(&mut self, kind: &str, seq: Seq, attempt: Attempt) {
        if !self.is_member(&self.params.me) {
            // It counts for nothing.
            return;
        }
        self.fall_silent(Why::Signed { kind: kind.to_owned(), seq, attempt }, Some(seq));
    }

    /// Another process with my key was there before this one, as n - q + 1 members say.
    pub(super) fn found_older_twin(&mut self) {
        if self.is_member(&self.params.me) {
            self.fall_silent(Why::Twin, Some(self.round.seq));
        }
    }

    // ---- Beginning and end --------------------------------------------------------------------------------------

    fn fall_silent(&mut self, why: Why, signed: Option<Seq>) {
        #[cfg(test)]
        if self.is_never_silent {
            return;
        }
        // While it catches up, a node finds itself in every certificate: of use is what goes beyond what it knows.
        let lasts = self.silent().and_then(|silent| silent.ends_with.filter(|_| silent.silence.signed.is_some()));
        match &mut self.silence {
            Some(silence) if signed <= silence.signed || signed.is_some_and(|seq| lasts > Some(seq)) => return,
            Some(silence) => silence.signed = signed,
            None => {
                self.silence = Some(Silence { signed, ..Silence::new(why, self.wall, self.tip.seq) });
                // Where the others stand from now on is what counts.
                let status = self.status();
                self.effects.push(Effect::Broadcast(status));
            }
        }
        self.keep_silence();
        self.effects.push(Effect::Sync);
    }

    fn keep_silence(&mut self) {
        self.effects.push(Effect::Persist(Record::Silence(self.silence.clone().map(Box::new))));
    }

    /// A process begins. What is restored was journaled.
    pub(super) fn start_silence(&mut self) {
        let wall = self.wall;
        if let Some(silence) = self.silence.as_mut().filter(|silence| silence.since_ms == 0) {
            silence.since_ms = wall;
            self.keep_silence();
        }
    }

    /// A member said over its own link where it stands.
    pub(super) fn note_claim(&mut self, from: NodeKey, status: &StatusMsg) {
        if self.silence.is_none() || !self.is_member(&from) {
            return;
        }
        let claim = Claim { seq: status.seq, is_unheard: status.unheard.contains(&self.params.me) };
        let silence = self.silence.as_mut().expect("looked at");
        if let Entry::Vacant(first) = silence.first.entry(from) {
            first.insert(claim);
            self.keep_silence();
        }
    }

    /// The UNL is another one since ledger `seq`.
    pub(super) fn silence_for_unl(&mut self, seq: Seq, i_came: bool) {
        let known = self.heard.len();
        // Who comes back later begins anew.
        self.heard.retain(|node| self.unl.binary_search(node).is_ok());
        if self.heard.len() < known {
            self.effects.push(Effect::Persist(Record::Heard(self.heard.clone())));
        }
        let Some(silence) = &mut self.silence else { return };
        let before = silence.clone();
        silence.first.retain(|node, _| self.unl.binary_search(node).is_ok());
        if i_came && silence.joined.is_none() {
            silence.joined = Some(seq);
        }
        if *silence != before {
            self.keep_silence();
        }
    }

    /// Ends the silence when it is time, and tells of one that people must know of. Whether it ended.
    pub(super) fn look_at_silence(&mut self) -> bool {
        let Some(silent) = self.silent() else { return false };
        if self.is_silence_over(&silent) {
            self.silence = None;
            self.keep_silence();
            self.effects.push(Effect::Sync);
            if std::mem::take(&mut self.told_silence) {
                self.effects.push(Effect::Speaks);
            }
            self.say_result();
            self.say_overtime();
            self.compare_results();
            self.fresh();
            return true;
        }
        if silent.is_alarm && !std::mem::replace(&mut self.told_silence, true) {
            self.effects.push(Effect::Silent(Box::new(silent)));
        }
        false
    }

    /// The silence as it stands.
    pub(super) fn silent(&self) -> Option<Silent> {
        let silence = self.silence.clone()?;
        let claims = self.claims(&silence);
        let needed = self.claims_needed();
        let is_member = self.is_member(&self.params.me);
        let joined = silence.joined(&self.genesis, &self.params.me);
        let beyond = |joined: Seq| claims.iter().filter(|claim| !Consensus::is_before(claim, joined)).count();
        let lost = joined.is_none_or(|joined| beyond(joined) >= self.quorum.blocking());
        let above = needed.checked_sub(1).and_then(|last| claims.get(last)).map(|claim| claim.seq);
        let ends_with = above.map(|above| {
            let signed = silence.signed.map_or(0, |signed| signed.saturating_add(1));
            above.saturating_add(LEDGERS_WITHOUT_ME).max(signed)
        });
        Some(Silent {
            is_alarm: is_member && lost,
            ends_by_itself: !is_member || self.quorum.q < self.quorum.n,
            lacking: needed.saturating_sub(claims.len()),
            ends_with,
            silence,
        })
    }

    fn is_silence_over(&self, silent: &Silent) -> bool {
        let is_member = self.is_member(&self.params.me);
        let is_beginning = |joined: Seq| {
            let before =
                self.claims(&silent.silence).into_iter().filter(|claim| Consensus::is_before(claim, joined)).count();
            is_member && before >= self.claims_needed()
        };
        let joined = silent.silence.joined(&self.genesis, &self.params.me);
        joined.is_some_and(is_beginning) || silent.ends_with.is_some_and(|last| self.tip.seq >= last)
    }

    /// What the members first said, ascending.
    fn claims(&self, silence: &Silence) -> Vec<Claim> {
        let counts = |node: &&NodeKey| **node != self.params.me && self.is_member(node);
        let mut claims: Vec<Claim> = silence.first.keys().filter(counts).map(|node| silence.first[node]).collect();
        claims.sort_unstable();
        claims
    }

    /// So many others that a sound one among them has signed for any ledger that this node may have closed.
    fn claims_needed(&self) -> usize {
        self.quorum.q - usize::from(self.is_member(&self.params.me))
    }

    /// Whether a member knew of nothing that this node's key could have signed since it joined with that ledger.
    fn is_before(claim: &Claim, joined: Seq) -> bool {
        claim.seq < joined || claim.is_unheard
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Event,
            hostile::{Bench, key, result_of},
            messages::{
                Advance, Basis, Novel, Overtime, Precommit, Prevote, Propose, ResultCert, TcFwd, Vote, VoteKind,
            },
        },
        *,
    };
    use crate::types::{Hash, Sig};

    const ELSEWHERE: Hash = Hash([9; 32]);

    fn bench() -> Bench {
        Bench::new(&[1, 2, 3, 4], 75)
    }

    fn vote(attempt: Attempt) -> Vote {
        Vote { seq: 1, attempt, ledger_hash: ELSEWHERE }
    }

    fn certificate<K: VoteKind>(bench: &Bench, vote: Vote) -> Certificate {
        Certificate {
            vote,
            sigs: [1, 3, 4].map(|number| (key(number), bench.signed(number, K::of(vote)).sig)).to_vec(),
        }
    }

    fn polc(bench: &Bench) -> Certificate {
        certificate::<Prevote>(bench, vote(0))
    }

    fn advance(bench: &Bench, from: u8, high: Option<(Attempt, Hash)>) -> Signed<AdvanceVote> {
        bench.signed(from, AdvanceVote { seq: 1, attempt: 1, high })
    }

    fn tc(bench: &Bench, signers: [u8; 3], high: Option<(Attempt, Hash)>) -> Tc {
        Tc { votes: signers.map(|number| advance(bench, number, high)).to_vec() }
    }

    fn proposal(bench: &Bench, from: u8, tc: Tc, basis: Basis) -> Message {
        Message::Propose(bench.signed(from, Propose { seq: 1, attempt: 1, ledger_hash: ELSEWHERE, tc, basis }))
    }

    fn is_silent(bench: &Bench) -> bool {
        bench.core.silence.is_some()
    }

    /// Everything by which a node can learn that its key signed something in round 1.
    fn carriers(bench: &Bench) -> Vec<(&'static str, Message)> {
        let high = Some((0, ELSEWHERE));
        let chain_id = bench.core.chain_id();
        let evidence = |messages: [Message; 2]| {
            let [first, second] = messages.map(|message| borsh::to_vec(&message).unwrap());
            Message::Evidence(Evidence { signer: key(1), first, second })
        };
        let later = |time_slot| Novel { seq: 5, ..bench.novel(1, time_slot).body };
        vec![
            ("NOVEL", Message::Novel(bench.novel(1, 7))),
            ("RESULT", Message::Result(bench.signed(1, result_of(0, chain_id)))),
            ("OVERTIME", Message::Overtime(bench.signed(1, Overtime { of_seq: 0, of_hash: chain_id }))),
            ("PREVOTE", Message::Prevote(bench.signed(1, Prevote(vote(0))))),
            ("PRECOMMIT", Message::Precommit(bench.signed(1, Precommit(vote(0))))),
            ("ADVANCE", Message::Advance(Advance { vote: advance(bench, 1, None), polc: None })),
            ("PROPOSE", proposal(bench, 1, tc(bench, [2, 3, 4], high), Basis::Polc(polc(bench)))),
            (
                "the POLC of an ADVANCE",
                Message::Advance(Advance { vote: advance(bench, 2, high), polc: Some(polc(bench)) }),
            ),
            ("a Tc", Message::TcFwd(TcFwd { seq: 1, tc: tc(bench, [1, 3, 4], None), polc: None })),
            (
                "the POLC of a TCFWD",
                Message::TcFwd(TcFwd { seq: 1, tc: tc(bench, [2, 3, 4], high), polc: Some(polc(bench)) }),
            ),
            ("a QC", {
                let ledger = bench.next_ledger(0, &[1, 2, 3]);
                Message::Closed(super::super::messages::Closed { header: ledger.candidate.header, qc: ledger.qc })
            }),
            ("evidence", evidence([7, 8].map(|slot| Message::Novel(bench.novel(1, slot))))),
            ("evidence of later", evidence([7, 8].map(|slot| Message::Novel(bench.signed(1, later(slot)))))),
        ]
    }

    #[test]
    fn whatever_carries_a_signature_of_its_key_that_it_did_not_make_silences_a_node() {
        for at in 0..carriers(&bench()).len() {
            let mut bench = bench();
            assert!(!is_silent(&bench));
            let (what, message) = carriers(&bench).swap_remove(at);
            let effects = bench.hear(2, message);
            assert!(is_silent(&bench), "{what}");
            let told = |effect: &Effect| matches!(effect, Effect::Silent(_));
            assert_eq!(effects.iter().filter(|effect| told(effect)).count(), 1, "{what}");
            let kept = effects.iter().position(|it| matches!(it, Effect::Persist(Record::Silence(Some(_)))));
            let synced = effects.iter().rposition(|it| *it == Effect::Sync);
            assert!(kept.is_some() && kept < synced, "{what}: it is on disk");
            // It signs nothing, whatever it is asked for.
            let novels = [2, 3, 4].map(|number| bench.novel(number, 0));
            let mut effects: Vec<Effect> = novels.into_iter().flat_map(|m| bench.hear(2, Message::Novel(m))).collect();
            for number in [2, 3, 4] {
                let vote = advance(&bench, number, None);
                effects.extend(bench.hear(number, Message::Advance(Advance { vote, polc: None })));
            }
            let votes = |it: &&Effect| matches!(it, Effect::Broadcast(message) if message.round_seq().is_some());
            let votes: Vec<&Effect> = effects.iter().filter(votes).collect();
            assert!(votes.iter().all(|it| matches!(it, Effect::Broadcast(Message::TcFwd(_)))), "{what}: {votes:?}");
        }
    }

    #[test]
    fn results_signed_in_a_certificate_that_a_proposal_rests_on_silence_it_too() {
        let mut bench = bench();
        let ledger = bench.next_ledger(0, &[2, 3, 4]);
        bench.hear(2, Consensus::closed_message(&ledger));
        bench.hear(2, Message::Candidate(ledger.candidate));
        assert_eq!(bench.core.round.seq, 2);
        let result = result_of(1, bench.core.tip.hash);
        let sigs = [1, 3, 4].map(|number| (key(number), bench.signed(number, result.clone()).sig)).to_vec();
        let novels = [2, 3, 4].map(|number| (key(number), bench.novel(number, 0).id())).to_vec();
        let votes = [2, 3, 4].map(|number| bench.signed(number, AdvanceVote { seq: 2, attempt: 1, high: None }));
        for attempt in 1..5 {
            let votes =
                votes.clone().map(|vote| bench.signed(vote.from.0[0], AdvanceVote { seq: 2, attempt, high: None }));
            let body = Propose {
                seq: 2,
                attempt,
                ledger_hash: ELSEWHERE,
                tc: Tc { votes: votes.to_vec() },
                basis: Basis::Novels(novels.clone(), ResultCert { result: result.clone(), sigs: sigs.clone() }),
            };
            let coordinator = bench.core.coordinator(attempt);
            if coordinator != key(1) {
                let from = coordinator.0[0];
                let message = Message::Propose(bench.signed(from, body));
                bench.hear(from, message);
            }
        }
        assert!(is_silent(&bench));
    }

    #[test]
    fn what_it_signed_itself_and_what_nobody_signed_silences_nobody() {
        let mut bench = bench();
        let novels = [2, 3, 4].map(|number| bench.novel(number, 0));
        let mut effects: Vec<Effect> = novels.into_iter().flat_map(|m| bench.hear(2, Message::Novel(m))).collect();
        bench.now += 1_000;
        effects.extend(bench.on(Event::Timer(super::super::Timer::Attempt(0))));
        let mine: Vec<Message> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Broadcast(message) => Some(message.clone()),
                _ => None,
            })
            .collect();
        let kinds: Vec<&str> = mine.iter().map(Message::kind).collect();
        assert_eq!(kinds, ["NOVEL", "PREVOTE", "ADVANCE"]);
        mine.into_iter().for_each(|message| drop(bench.hear(3, message)));
        assert!(!is_silent(&bench), "it comes back to it");
        let mut forged = polc(&bench);
        forged.sigs[0].1 = Sig([1; 64]);
        let tc = tc(&bench, [2, 3, 4], Some((0, ELSEWHERE)));
        bench.hear(2, Message::TcFwd(TcFwd { seq: 1, tc, polc: Some(forged) }));
        assert!(!is_silent(&bench), "nobody signed it");
    }

    #[test]
    fn peers_show_a_member_what_they_hold_of_it_when_a_link_comes_up_and_when_it_says_that_it_is_silent() {
        let mut bench = bench();
        let shown = |effects: &[Effect]| -> Vec<&'static str> {
            let of = |effect: &Effect| match effect {
                Effect::Send(to, message) if *to == key(2) && message.round_seq().is_some() => Some(message.kind()),
                _ => None,
            };
            effects.iter().filter_map(of).collect()
        };
        let novel = bench.novel(2, 0);
        bench.hear(2, Message::Novel(novel));
        for message in [
            Message::Prevote(bench.signed(2, Prevote(vote(0)))),
            Message::Precommit(bench.signed(2, Precommit(vote(0)))),
            Message::Advance(Advance { vote: advance(&bench, 2, Some((0, ELSEWHERE))), polc: Some(polc(&bench)) }),
        ] {
            bench.core.is_never_silent = true;
            bench.hear(2, message);
        }
        let all = ["NOVEL", "PREVOTE", "PRECOMMIT", "ADVANCE"];
        bench.on(Event::LinkDown(key(2)));
        let effects = bench.on(Event::LinkUp(key(2)));
        assert_eq!(shown(&effects)[..4], all);
        let status = |silent| StatusMsg { seq: 0, lcl: Hash::ZERO, attempt: 0, synced: true, silent, unheard: vec![] };
        bench.now += 1_000;
        let said = Message::Status(bench.signed(2, status(false)));
        assert_eq!(shown(&bench.hear(2, said)), [""; 0]);
        let said = Message::Status(bench.signed(2, status(true)));
        assert_eq!(shown(&bench.hear(2, said.clone())), all);
        assert_eq!(shown(&bench.hear(2, said)), [""; 0], "not all the time");
    }
}
