//! What lies beside the ledgers: connected users, what this node said about the next ledger, inputs that wait, proofs.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Head, Place, StoredRow, Wrong,
    alone::{self, Key, check_signers},
    chain::{Chain, Users},
    hash, is_ascending,
    read::{
        Advance, AdvanceVote, Candidate, Certificate, Evidence, ExecResult, Novel, Overtime, Propose, Signed,
        UnlChange, Value, Vote,
    },
    user_key,
};
use crate::types::{Attempt, Hash, NodeKey, UserKey};

const PLACE: Place = Place::Journal;
const LOST: &str = "the stored bytes were damaged";

/// Checks everything but the ledgers, all of which were followed.
pub(super) fn check(chain: &mut Chain, head: &Head) -> Result<(), Wrong> {
    users(chain, head)?;
    let waiting = waiting(chain, head)?;
    let mut said =
        Said { chain, head, waiting: &waiting, signer: None, bodies: candidates(head)?, used: BTreeSet::new() };
    said.check()?;
    if let Some(vote) = head.meta.get("unl_vote") {
        // Only its form: it is what the operator wishes, and signed in NOVELs.
        PLACE.read::<UnlChange>("unl_vote", vote)?;
    }
    evidence(chain, head)?;
    chain.report.journal = (head.round.len() + head.waiting.len() + head.evidence.len()) as u64;
    Ok(())
}

fn users(chain: &Chain, head: &Head) -> Result<(), Wrong> {
    let set = |stored: &[Vec<u8>]| stored.iter().map(|user| user_key(PLACE, user)).collect::<Result<BTreeSet<_>, _>>();
    let compare = |field, stored: BTreeSet<UserKey>, chain: &BTreeSet<UserKey>| {
        let Some(user) = stored.symmetric_difference(chain).next() else { return Ok(()) };
        let (found, expected) = if stored.contains(user) { ("with", "without") } else { ("without", "with") };
        let means = "the node takes others to be connected than the chain says";
        PLACE.wrong(field, format!("{found} user {user}"), expected, means)
    };
    let (tip, executed) = (set(&head.users_tip)?, set(&head.users_executed)?);
    match chain.users() {
        Users::Known(users) => compare("user_tip", tip, users)?,
        Users::From(..) | Users::Unknown => {}
    }
    if let Some(users) = &chain.users_base {
        compare("user_base", set(&head.users_base)?, users)?;
    }
    match &chain.users_executed {
        Some(users) => compare("user_executed", executed, users),
        None => Ok(()),
    }
}

/// Inputs that wait, by id.
fn waiting(chain: &mut Chain, head: &Head) -> Result<BTreeSet<Hash>, Wrong> {
    let mut waiting = BTreeSet::new();
    let mut opened = BTreeSet::new();
    let chain_id = chain.rules.chain_id;
    for stored in &head.waiting {
        let (Some(id), Some(bytes)) = (&stored.id, &stored.bytes) else {
            return PLACE.wrong("input", "missing", "stored", "an input that waits was lost");
        };
        let id: Hash = PLACE.read("input", id)?;
        let input = alone::input_of(PLACE, &id, bytes, &chain_id)?;
        alone::origin(PLACE, &input, &id, &chain_id, &mut opened, &mut chain.report.signatures)?;
        let key: Key = PLACE.read("pooled", &stored.key)?;
        let same = key == (input.user, input.origin_tag(), input.nonce);
        PLACE.holds(same, "pooled", format!("another key than that of input {id}"), "its own", LOST)?;
        waiting.insert(id);
    }
    if chain.complete {
        let known = chain.inputs_seen + head.waiting.len() as u64;
        let means = "inputs were lost, or belong to nothing";
        PLACE.same("input", head.inputs, known, means)?;
    }
    Ok(waiting)
}

/// Bodies that were voted for, by their name.
fn candidates(head: &Head) -> Result<BTreeMap<Hash, (Hash, Candidate)>, Wrong> {
    let mut bodies = BTreeMap::new();
    for (name, bytes) in &head.candidates {
        let named: Hash = PLACE.read("candidate", name)?;
        let hash = hash::tagged("hp/stored-body/1", &[bytes]);
        PLACE.same("candidate", named, hash, "a body that was voted for is another")?;
        let body: Candidate = PLACE.read("candidate", bytes)?;
        bodies.insert(named, (header_hash(bytes)?, body));
    }
    Ok(bodies)
}

/// A header stands before its lists.
fn header_hash(candidate: &[u8]) -> Result<Hash, Wrong> {
    let (_, bytes) = super::read::prefix::<super::read::Header>(candidate)
        .or_else(|error| PLACE.wrong("candidate", format!("no value ({error})"), "a header", LOST))?;
    Ok(hash::tagged("hp/ledger/1", &[bytes]))
}

/// What this node said about the next ledger.
struct Said<'a> {
    chain: &'a mut Chain,
    head: &'a Head,
    waiting: &'a BTreeSet<Hash>,
    /// Who this node is, by the first thing it said.
    signer: Option<NodeKey>,
    bodies: BTreeMap<Hash, (Hash, Candidate)>,
    /// Bodies that a vote names.
    used: BTreeSet<Hash>,
}

impl Said<'_> {
    fn check(&mut self) -> Result<(), Wrong> {
        let mut precommits = Vec::new();
        let mut advance = None;
        let head = self.head;
        for row in &head.round {
            match row.kind {
                0 => self.novel(row)?,
                1 => self.prevote(row)?,
                2 => precommits.push(self.precommit(row)?),
                3 => advance = Some(self.advance(row)?),
                4 => self.entered(row)?,
                5 => self.overtime(row)?,
                kind => return PLACE.wrong("round.kind", kind, "0 to 5", LOST),
            }
        }
        if let Some(AdvanceVote { attempt, high, .. }) = advance {
            let high = high.map(|(attempt, _)| attempt);
            for precommitted in precommits {
                // The promise on which safety rests: whoever asks for an attempt tells of what it precommitted before.
                let kept = precommitted >= attempt || high >= Some(precommitted);
                let found = format!("for attempt {attempt} without the precommit in {precommitted}");
                PLACE.holds(kept, "ADVANCE", found, "with it", "this node's votes contradict each other")?;
            }
        }
        let unused = self.bodies.keys().find(|name| !self.used.contains(name));
        let found = unused.map_or(String::new(), |name| format!("body {name}"));
        PLACE.holds(unused.is_none(), "candidate", found, "bodies that were voted for", "it belongs to no vote")
    }

    /// Reads a vote of this node and checks its signature.
    fn signed<T: Value>(&mut self, field: &'static str, tag: &str, vote: &Signed<T>) -> Result<(), Wrong> {
        let first = *self.signer.get_or_insert(vote.from);
        PLACE.same(field, vote.from, first, "the votes are of different nodes")?;
        self.signature(field, tag, vote)
    }

    fn signature<T>(&mut self, field: &'static str, tag: &str, vote: &Signed<T>) -> Result<(), Wrong> {
        self.chain.report.signatures += 1;
        let digest = hash::vote(tag, &self.chain.rules.chain_id, &self.chain.unl_hash, &vote.body_bytes);
        let valid = hash::signed(&vote.from, &digest, &vote.sig);
        PLACE.holds(valid, field, format!("signed invalidly by {}", vote.from), "a valid signature", "it never said so")
    }

    fn next(&self, field: &'static str, seq: u64) -> Result<(), Wrong> {
        PLACE.same(field, seq, self.chain.seq + 1, "votes are kept for the next ledger alone")
    }

    fn attempt(&self, row: &StoredRow, field: &'static str, attempt: Attempt) -> Result<(), Wrong> {
        PLACE.same(field, i64::from(attempt), row.attempt, "it is stored in another attempt's place")
    }

    fn novel(&mut self, row: &StoredRow) -> Result<(), Wrong> {
        let novel: Signed<Novel> = PLACE.read("NOVEL", &row.bytes)?;
        self.attempt(row, "NOVEL", 0)?;
        self.signed("NOVEL", "hp/novel/1", &novel)?;
        self.next("NOVEL.seq", novel.body.seq)?;
        PLACE.same("NOVEL.parent", novel.body.parent, self.chain.hash, "it does not follow the last ledger")?;
        let Novel { inputs, users_add, users_del, .. } = &novel.body;
        let sorted = is_ascending(inputs) && is_ascending(users_add) && is_ascending(users_del);
        PLACE.holds(sorted, "NOVEL", "with a list in disorder", "ascending lists", "nobody would take it")?;
        self.held("NOVEL.inputs", inputs)
    }

    fn held(&self, field: &'static str, inputs: &[Hash]) -> Result<(), Wrong> {
        let lost = inputs.iter().find(|id| !self.waiting.contains(id));
        let found = lost.map_or(String::new(), |id| format!("input {id}, which is not stored"));
        PLACE.holds(lost.is_none(), field, found, "inputs that are", "what was voted for is held until it is closed")
    }

    /// The body behind a vote: it follows the last ledger, and all of it is here.
    fn body(&mut self, field: &'static str, name: Hash, vote: Vote) -> Result<(), Wrong> {
        self.next(field, vote.seq)?;
        let Some((hash, body)) = self.bodies.get(&name) else {
            return PLACE.wrong(
                field,
                format!("for body {name}"),
                "a body that is stored",
                "what was voted for is lost",
            );
        };
        PLACE.same(field, vote.ledger_hash, *hash, "the stored body is not what was voted for")?;
        self.used.insert(name);
        let header = &body.header;
        let chain = &*self.chain;
        PLACE.same("candidate.header.chain_id", header.chain_id, chain.rules.chain_id, "it is of another chain")?;
        PLACE.same("candidate.header.seq", header.seq, chain.seq + 1, "it does not follow the last ledger")?;
        PLACE.same("candidate.header.parent", header.parent, chain.hash, "it does not follow the last ledger")?;
        PLACE.same("candidate.header.unl_hash", header.unl_hash, chain.unl_hash, "the wrong nodes would close it")?;
        let root = hash::tagged("hp/inputs/1", &[&hash::list(&body.inputs)]);
        PLACE.same("candidate.header.inputs_root", header.inputs_root, root, "it lists other inputs")?;
        self.held("candidate.inputs", &body.inputs)?;
        chain.next_unl(PLACE, header, body.unl_change)?;
        if let Users::Known(users) = self.chain.users() {
            let mut users = users.clone();
            body.users_del.iter().for_each(|user| {
                users.remove(user);
            });
            users.extend(&body.users_add);
            let root = hash::users_root(users.iter());
            PLACE.same("candidate.header.users_root", header.users_root, root, "it names other users")?;
        }
        Ok(())
    }

    fn prevote(&mut self, row: &StoredRow) -> Result<(), Wrong> {
        let (vote, body): (Signed<Vote>, Hash) = PLACE.read("PREVOTE", &row.bytes)?;
        self.attempt(row, "PREVOTE", vote.body.attempt)?;
        self.signed("PREVOTE", "hp/prevote/1", &vote)?;
        self.body("PREVOTE", body, vote.body)
    }

    fn precommit(&mut self, row: &StoredRow) -> Result<Attempt, Wrong> {
        let (vote, body, polc): (Signed<Vote>, Hash, Certificate) = PLACE.read("PRECOMMIT", &row.bytes)?;
        self.attempt(row, "PRECOMMIT", vote.body.attempt)?;
        self.signed("PRECOMMIT", "hp/precommit/1", &vote)?;
        self.body("PRECOMMIT", body, vote.body)?;
        let same = polc.vote == vote.body;
        PLACE.holds(
            same,
            "PRECOMMIT",
            "with prevotes for something else",
            "with prevotes for it",
            "it had no reason",
        )?;
        self.polc(&polc)?;
        Ok(vote.body.attempt)
    }

    /// A quorum of prevotes.
    fn polc(&mut self, polc: &Certificate) -> Result<(), Wrong> {
        let (chain_id, unl_hash) = (self.chain.rules.chain_id, self.chain.unl_hash);
        let count = &mut self.chain.report.signatures;
        let signers = check_signers(PLACE, "POLC", "hp/prevote/1", &chain_id, &unl_hash, polc, count)?;
        self.chain.certified(PLACE, &signers)
    }

    fn advance(&mut self, row: &StoredRow) -> Result<AdvanceVote, Wrong> {
        let advance: Advance = PLACE.read("ADVANCE", &row.bytes)?;
        self.attempt(row, "ADVANCE", 0)?;
        self.signed("ADVANCE", "hp/advance/1", &advance.vote)?;
        self.next("ADVANCE.seq", advance.vote.body.seq)?;
        self.highest("ADVANCE", advance.vote.body.high, advance.polc.as_ref())?;
        Ok(advance.vote.body)
    }

    /// The POLC that is named is there.
    fn highest(
        &mut self,
        field: &'static str,
        high: Option<(Attempt, Hash)>,
        polc: Option<&Certificate>,
    ) -> Result<(), Wrong> {
        let held = polc.map(|polc| (polc.vote.attempt, polc.vote.ledger_hash));
        let show = |high: Option<(Attempt, Hash)>| high.map_or("none".to_owned(), |(a, hash)| format!("{hash} in {a}"));
        PLACE.holds(high == held, field, show(held), show(high), "the prevotes it names are not with it")?;
        match polc {
            Some(polc) => {
                self.next(field, polc.vote.seq)?;
                self.polc(polc)
            }
            None => Ok(()),
        }
    }

    /// The run of the last ledger took too long.
    fn overtime(&mut self, row: &StoredRow) -> Result<(), Wrong> {
        let overtime: Signed<Overtime> = PLACE.read("OVERTIME", &row.bytes)?;
        self.attempt(row, "OVERTIME", 0)?;
        self.signed("OVERTIME", "hp/overtime/1", &overtime)?;
        PLACE.same("OVERTIME.of_seq", overtime.body.of_seq, self.chain.seq, "it is kept for the last ledger alone")?;
        PLACE.same("OVERTIME.of_hash", overtime.body.of_hash, self.chain.hash, "it is of another ledger")
    }

    /// Why this node entered its attempt.
    fn entered(&mut self, row: &StoredRow) -> Result<(), Wrong> {
        let (votes, polc): (Vec<Signed<AdvanceVote>>, Option<Certificate>) = PLACE.read("Tc", &row.bytes)?;
        let signers: Vec<NodeKey> = votes.iter().map(|vote| vote.from).collect();
        PLACE.holds(
            is_ascending(&signers),
            "Tc",
            "in disorder",
            "ascending by signer",
            "a signer may be counted twice",
        )?;
        for vote in &votes {
            self.signature("Tc", "hp/advance/1", vote)?;
            self.next("Tc", vote.body.seq)?;
            self.attempt(row, "Tc", vote.body.attempt)?;
        }
        self.chain.certified(PLACE, &signers)?;
        let high = votes.iter().filter_map(|vote| vote.body.high).max();
        self.highest("Tc", high, polc.as_ref())
    }
}

/// Each proof convicts its signer: two messages that it signed, of which it may have signed one.
fn evidence(chain: &mut Chain, head: &Head) -> Result<(), Wrong> {
    for stored in &head.evidence {
        let signer: NodeKey = PLACE.read("evidence.signer", &stored.signer)?;
        let evidence: Evidence = PLACE.read("evidence", &stored.bytes)?;
        PLACE.same("evidence.signer", signer, evidence.signer, "it is stored under another's name")?;
        let (first, second) = (slot(chain, &evidence.first.0)?, slot(chain, &evidence.second.0)?);
        let proves = first.0 == signer && second.0 == signer && first.1 == second.1 && first.2 != second.2;
        let means = "it proves nothing";
        PLACE.holds(proves, "evidence", "of two messages that may both be", "of two that exclude each other", means)?;
        let (kind, seq, attempt) = first.1;
        let named = "it is told as something else than it proves";
        PLACE.same("evidence.kind", stored.kind.as_str(), name_of(kind), named)?;
        // The round after the ledger is the one that a result belongs to.
        let round = seq.saturating_add(u64::from(kind == 3));
        PLACE.same("evidence.seq", u64::try_from(stored.seq).unwrap_or(0), round, named)?;
        PLACE.same("evidence.attempt", stored.attempt, i64::from(attempt), named)?;
    }
    Ok(())
}

/// The name of a kind of message that is signed once.
fn name_of(kind: u8) -> &'static str {
    match kind {
        2 => "NOVEL",
        3 => "RESULT",
        5 => "PREVOTE",
        6 => "PRECOMMIT",
        7 => "ADVANCE",
        9 => "PROPOSE",
        _ => "none",
    }
}

/// Kind of message, ledger, attempt: of what is signed once.
type Slot = (u8, u64, Attempt);

/// Signer, slot and digest of a message that is signed validly.
fn slot(chain: &mut Chain, message: &[u8]) -> Result<(NodeKey, Slot, Hash), Wrong> {
    let Some((&kind, body)) = message.split_first() else {
        return PLACE.wrong("evidence", "without a message", "two messages", LOST);
    };
    let mut told = |tag: &str, from: NodeKey, body: &[u8], sig, seq: u64, attempt: Attempt| {
        chain.report.signatures += 1;
        let chain_id = chain.rules.chain_id;
        // It may be of any time, and so of any UNL.
        let digests = chain.unl_hashes.iter().map(|unl_hash| hash::vote(tag, &chain_id, unl_hash, body));
        let valid = digests.into_iter().find(|digest| hash::signed(&from, digest, &sig));
        match valid {
            Some(_) => Ok((from, (kind, seq, attempt), hash::tagged(tag, &[body]))),
            None => {
                PLACE.wrong("evidence", format!("signed invalidly by {from}"), "valid signatures", "it proves nothing")
            }
        }
    };
    match kind {
        2 => {
            let m: Signed<Novel> = PLACE.read("evidence", body)?;
            told("hp/novel/1", m.from, &m.body_bytes, m.sig, m.body.seq, 0)
        }
        3 => {
            let m: Signed<ExecResult> = PLACE.read("evidence", body)?;
            told("hp/result/1", m.from, &m.body_bytes, m.sig, m.body.of_seq, 0)
        }
        5 | 6 => {
            let m: Signed<Vote> = PLACE.read("evidence", body)?;
            let tag = if kind == 5 { "hp/prevote/1" } else { "hp/precommit/1" };
            told(tag, m.from, &m.body_bytes, m.sig, m.body.seq, m.body.attempt)
        }
        7 => {
            let Advance { vote: m, .. } = PLACE.read("evidence", body)?;
            told("hp/advance/1", m.from, &m.body_bytes, m.sig, m.body.seq, m.body.attempt)
        }
        9 => {
            let m: Signed<Propose> = PLACE.read("evidence", body)?;
            told("hp/propose/1", m.from, &m.body_bytes, m.sig, m.body.seq, m.body.attempt)
        }
        kind => {
            PLACE.wrong("evidence", format!("a message of kind {kind}"), "one that is signed once", "it proves nothing")
        }
    }
}
