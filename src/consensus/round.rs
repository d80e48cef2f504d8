//! What is known of the ledger being closed. All of it but `mine` is forgotten at a restart.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    header::{Candidate, Derived},
    messages::{
        Advance, AdvanceVote, Certificate, Get, Message, Novel, Precommit, Prevote, Propose, Signed, Tc, TcFwd,
    },
    mutation::mutated,
    rules,
    votes::Tally,
};
use crate::types::{Attempt, Hash, MonoMs, NodeKey, Seq};

/// What this node has signed for the ledger: the very signed messages, as journaled.
#[derive(Debug, Default)]
pub(super) struct Mine {
    pub novel: Option<Signed<Novel>>,
    pub prevotes: BTreeMap<Attempt, Signed<Prevote>>,
    pub precommits: BTreeMap<Attempt, Signed<Precommit>>,
    pub advance: Option<Advance>,
    /// Not journaled: after a restart the PREVOTE journaled before it keeps a second one from being made.
    pub propose: Option<Signed<Propose>>,
}

/// One request for data.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    /// When it was first missed.
    pub since: MonoMs,
    /// When it was last asked for, and of whom.
    pub asked: Option<(MonoMs, NodeKey)>,
    /// Whom it was asked of before.
    pub tried: BTreeSet<NodeKey>,
}

/// Something that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    Candidate(Hash),
    Novel(Hash),
    Input(Hash),
}

#[derive(Debug)]
pub(super) struct Round {
    pub seq: Seq,
    pub attempt: Attempt,
    pub mine: Mine,

    pub novels: BTreeMap<NodeKey, Signed<Novel>>,
    /// Other novels of equivocating nodes that a PROPOSE rests on, by id.
    pub other_novels: BTreeMap<Hash, Signed<Novel>>,
    pub prevotes: BTreeMap<Attempt, Tally<Prevote>>,
    pub precommits: BTreeMap<Attempt, Tally<Precommit>>,
    pub advances: BTreeMap<Attempt, BTreeMap<NodeKey, Signed<AdvanceVote>>>,
    pub polcs: BTreeMap<Attempt, Certificate>,
    pub tcs: BTreeMap<Attempt, Tc>,
    pub proposals: BTreeMap<Attempt, Signed<Propose>>,
    /// A ledger closed by others.
    pub closed: Option<(Certificate, NodeKey)>,
    /// Bodies of headers, by ledger hash.
    pub candidates: BTreeMap<Hash, Candidate>,

    /// What so many novels lead to, and whether another one can change it: both take long to find out.
    pub derived: Option<(usize, Derived)>,
    pub determined: Option<(usize, bool)>,
    /// What the proposal of an attempt still needs.
    pub proposed_need: Option<(Attempt, Vec<Hash>)>,
    /// The attempt whose proposal is not what its novels lead to.
    pub refused: Option<Attempt>,
    /// Whose contradiction was shown already, and in what kind of message.
    pub shown: BTreeSet<(NodeKey, &'static str)>,
    pub first_timer_started: bool,
    pub grace_over: bool,
    /// When the attempt, and the grace, are over; `None` while their timers are not started.
    pub attempt_due: Option<MonoMs>,
    pub grace_due: Option<MonoMs>,
    /// Inputs listed in novels that are not held, with who lists them.
    pub unknown: BTreeMap<Hash, BTreeSet<NodeKey>>,
    /// Those of the round before that are still not held: a round may be over before they are asked for.
    pub unknown_before: BTreeMap<Hash, BTreeSet<NodeKey>>,
    pub fetching: BTreeMap<Want, Fetching>,
    pub wanted: BTreeMap<Want, BTreeSet<NodeKey>>,
    pub retry_ms: u64,
    pub retry_from: MonoMs,
}

impl Round {
    pub fn new(seq: Seq) -> Round {
        Round {
            seq,
            attempt: 0,
            mine: Mine::default(),
            novels: BTreeMap::new(),
            other_novels: BTreeMap::new(),
            prevotes: BTreeMap::new(),
            precommits: BTreeMap::new(),
            advances: BTreeMap::new(),
            polcs: BTreeMap::new(),
            tcs: BTreeMap::new(),
            proposals: BTreeMap::new(),
            closed: None,
            candidates: BTreeMap::new(),
            derived: None,
            determined: None,
            proposed_need: None,
            refused: None,
            shown: BTreeSet::new(),
            first_timer_started: false,
            grace_over: false,
            attempt_due: None,
            grace_due: None,
            unknown: BTreeMap::new(),
            unknown_before: BTreeMap::new(),
            fetching: BTreeMap::new(),
            wanted: BTreeMap::new(),
            retry_ms: super::RETRANSMIT_MS,
            retry_from: 0,
        }
    }

    /// The round as the journal knows it.
    pub fn restored(
        seq: Seq,
        novel: Option<Signed<Novel>>,
        prevotes: BTreeMap<Attempt, (Signed<Prevote>, Candidate)>,
        precommits: BTreeMap<Attempt, (Signed<Precommit>, Candidate, Certificate)>,
        advance: Option<Advance>,
        tc: Option<(Tc, Option<Certificate>)>,
    ) -> Round {
        let mut round = Round::new(seq);
        let prevotes = if mutated!(ForgetPrevote) { BTreeMap::new() } else { prevotes };
        let advance = if mutated!(ForgetAdvance) { None } else { advance };
        let tc = if mutated!(ForgetTc) { None } else { tc };
        if let Some(novel) = &novel {
            round.novels.insert(novel.from, novel.clone());
        }
        round.mine.novel = novel;
        for (attempt, (vote, candidate)) in prevotes {
            round.candidates.insert(vote.body.0.ledger_hash, candidate);
            round.prevotes.entry(attempt).or_default().add(vote.clone());
            round.mine.prevotes.insert(attempt, vote);
        }
        for (attempt, (vote, candidate, polc)) in precommits {
            round.candidates.insert(vote.body.0.ledger_hash, candidate);
            round.add_polc(&polc);
            round.precommits.entry(attempt).or_default().add(vote.clone());
            round.mine.precommits.insert(attempt, vote);
        }
        if let Some(advance) = &advance {
            if let Some(polc) = &advance.polc {
                round.add_polc(polc);
            }
            round.add_advance(advance.vote.clone());
        }
        round.mine.advance = advance;
        if let Some((tc, polc)) = tc {
            if let Some(polc) = &polc {
                round.add_polc(polc);
            }
            round.tcs.insert(tc.attempt(), tc);
        }
        if mutated!(ForgetPolc) {
            round.polcs.clear();
            round.prevotes.clear();
            for (attempt, vote) in &round.mine.prevotes {
                round.prevotes.entry(*attempt).or_default().add(vote.clone());
            }
        }
        round.attempt = rules::attempt_after_restart(&round.signed(), round.tcs.keys().max().copied());
        round
    }

    /// Keeps a checked POLC, and counts the votes in it.
    pub fn add_polc(&mut self, polc: &Certificate) {
        let tally = self.prevotes.entry(polc.vote.attempt).or_default();
        for (from, sig) in &polc.sigs {
            tally.add(Signed { from: *from, body: Prevote(polc.vote), sig: *sig });
        }
        self.polcs.entry(polc.vote.attempt).or_insert_with(|| polc.clone());
    }

    /// Counts a checked ADVANCE.
    pub fn add_advance(&mut self, vote: Signed<AdvanceVote>) {
        self.advances.entry(vote.body.attempt).or_default().entry(vote.from).or_insert(vote);
    }

    /// What this node has signed, for the vote rule.
    pub fn signed(&self) -> rules::Signed {
        rules::Signed {
            prevote: self.mine.prevotes.keys().max().copied(),
            precommit: self.mine.precommits.keys().max().copied(),
            advance: self.mine.advance.as_ref().map(|advance| advance.vote.body.attempt),
        }
    }

    /// Whether anything beyond a NOVEL was signed or entered.
    pub fn is_bound(&self) -> bool {
        self.signed() != rules::Signed::default() || !self.tcs.is_empty()
    }

    /// The POLC of the highest attempt.
    pub fn best_polc(&self) -> Option<&Certificate> {
        self.polcs.values().next_back()
    }

    /// TCFWD for the attempt this node is in, if it came here by a Tc.
    pub fn tc_forward(&self) -> Option<Message> {
        let tc = self.tcs.get(&self.attempt)?;
        let polc = match tc.high() {
            None => None,
            Some((attempt, hash)) => {
                Some(self.polcs.get(&attempt).filter(|polc| polc.vote.ledger_hash == hash)?.clone())
            }
        };
        Some(Message::TcFwd(TcFwd { seq: self.seq, tc: tc.clone(), polc }))
    }

    /// The round after this one. What others list and I lack goes on being missed, and asked for.
    pub fn next(self) -> Round {
        let mut next = Round::new(self.seq + 1);
        let missed = |want: &Want| matches!(want, Want::Input(id) if self.unknown.contains_key(id));
        next.fetching = self.fetching.into_iter().filter(|(want, _)| missed(want)).collect();
        next.unknown_before = self.unknown;
        next
    }

    /// An input is held, or not wanted any more.
    pub fn forget_unknown(&mut self, id: &Hash) {
        self.unknown.remove(id);
        self.unknown_before.remove(id);
    }

    /// Notes that something is missed which `holders` have.
    pub fn want(&mut self, want: Want, holders: impl IntoIterator<Item = NodeKey>) {
        self.wanted.entry(want).or_default().extend(holders);
    }
}

impl Want {
    /// The request for one thing that is not an input.
    pub fn get(&self) -> Get {
        match self {
            Want::Candidate(hash) => Get::Candidate(*hash),
            Want::Novel(id) => Get::Novel(*id),
            Want::Input(id) => Get::Inputs(vec![*id]),
        }
    }
}
