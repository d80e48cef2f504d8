//! What the last rounds took, and who was late: kept from what the loop sees anyway, for people and for metrics.
//!
//! A ledger goes through the stages of the protocol in this order, as this node sees them:
//!
//! | stage | begins with | ends with |
//! |---|---|---|
//! | `idle` | the ledger before is closed | this node's NOVEL |
//! | `novel` | that NOVEL | this node's first PREVOTE: the novels lead to a header |
//! | `prevote` | that PREVOTE | this node's last PRECOMMIT: a quorum prevoted the header |
//! | `precommit` | that PRECOMMIT | a quorum of precommits is here: the ledger is closed |
//! | `executing` | the ledger is closed | this node's RESULT: the contract ran, its state is hashed |
//! | `result` | that RESULT | a quorum of equal ones is known |
//!
//! Times are taken where the core decides; what must be on disk first is in the next stage. Of a ledger that others showed
//! closed, stages that this node took no part in are missing.

use std::{collections::VecDeque, time::Duration};

use serde_json::{Value, json};

use super::exec::Ran;
use crate::{
    consensus::{
        Effect,
        header::ClosedLedger,
        journal::Record,
        messages::{Message, ResultCert},
    },
    types::{Attempt, Hash, NodeKey, Seq, Status, WallMs},
};

/// Closed ledgers that are remembered; the oldest make room.
pub(super) const ROUNDS_MAX: usize = 100;
/// A vote that has not come so many ledgers later is missing.
const MISSING_AFTER: usize = 4;
/// Rounds shown in the status.
pub(super) const ROUNDS_SHOWN: usize = 10;

/// Microseconds since the process began.
pub(super) type Micros = u64;

/// Of something that has not happened.
const NEVER: Micros = Micros::MAX;

/// Votes that a round waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Vote {
    Novel,
    Prevote,
    Precommit,
    Result,
}

impl Vote {
    pub const ALL: [Vote; 4] = [Vote::Novel, Vote::Prevote, Vote::Precommit, Vote::Result];

    /// As the protocol writes it.
    pub fn name(self) -> &'static str {
        match self {
            Vote::Novel => "NOVEL",
            Vote::Prevote => "PREVOTE",
            Vote::Precommit => "PRECOMMIT",
            Vote::Result => "RESULT",
        }
    }
}

/// Parts of the way of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Idle,
    Novel,
    Prevote,
    Precommit,
    Executing,
    Result,
}

impl Part {
    pub const ALL: [Part; 6] = [Part::Idle, Part::Novel, Part::Prevote, Part::Precommit, Part::Executing, Part::Result];

    /// As [`crate::consensus::Stage`] names what is waited for.
    pub fn name(self) -> &'static str {
        match self {
            Part::Idle => "idle",
            Part::Novel => "novel",
            Part::Prevote => "prevote",
            Part::Precommit => "precommit",
            Part::Executing => "executing",
            Part::Result => "result",
        }
    }
}

/// What the contract's run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub status: Status,
    /// The contract alone.
    pub contract: Duration,
    /// Hashing what it left.
    pub hashing: Duration,
    /// All of it, with the pre-state kept.
    pub elapsed: Duration,
    pub outputs: usize,
    pub output_bytes: usize,
}

impl Run {
    pub fn of(ran: &Ran) -> Run {
        Run {
            status: ran.result.status,
            contract: ran.contract,
            hashing: ran.hashing,
            elapsed: ran.elapsed,
            outputs: ran.outputs.len(),
            output_bytes: ran.outputs.iter().map(|(_, output)| output.len()).sum(),
        }
    }
}

/// Bytes and frames that went over the links since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub received_bytes: u64,
    pub received_frames: u64,
    pub sent_bytes: u64,
    pub sent_frames: u64,
}

impl Traffic {
    pub fn received(&mut self, bytes: usize) {
        self.received_bytes += bytes as u64;
        self.received_frames += 1;
    }
}

/// One ledger on its way.
#[derive(Debug, Clone)]
pub(super) struct Round {
    pub seq: Seq,
    hash: Hash,
    /// The attempt in which it was closed.
    pub attempt: Attempt,
    closed_ms: WallMs,
    entered: Micros,
    novel: Micros,
    prevote: Micros,
    precommit: Micros,
    pub closed: Micros,
    ran: Micros,
    agreed: Micros,
    /// When the first vote of each kind came from each of the other members, as `others` has them.
    arrived: Vec<(NodeKey, [Micros; Vote::ALL.len()])>,
    pub inputs: u32,
    pub input_bytes: u64,
    pub users: u32,
    pub run: Option<Run>,
    /// What had gone over the links when the round began, then what went during it.
    traffic: Traffic,
}

impl Round {
    fn new() -> Round {
        Round {
            seq: 0,
            hash: Hash::ZERO,
            attempt: 0,
            closed_ms: 0,
            entered: NEVER,
            novel: NEVER,
            prevote: NEVER,
            precommit: NEVER,
            closed: NEVER,
            ran: NEVER,
            agreed: NEVER,
            arrived: Vec::new(),
            inputs: 0,
            input_bytes: 0,
            users: 0,
            run: None,
            traffic: Traffic::default(),
        }
    }

    /// Begins anew for a ledger; what was allocated is used again.
    fn reset(&mut self, seq: Seq, others: &[NodeKey]) {
        let mut arrived = std::mem::take(&mut self.arrived);
        arrived.clear();
        arrived.extend(others.iter().map(|node| (*node, [NEVER; Vote::ALL.len()])));
        *self = Round { seq, arrived, ..Round::new() };
    }

    /// How long a part of the way took; `None` where this node took no part in it, or it is not over.
    pub fn took(&self, part: Part) -> Option<Duration> {
        let (from, to) = match part {
            Part::Idle => (self.entered, self.novel),
            Part::Novel => (self.novel, self.prevote),
            Part::Prevote => (self.prevote, self.precommit),
            Part::Precommit => (self.precommit, self.closed),
            Part::Executing => (self.closed, self.ran),
            Part::Result => (self.ran, self.agreed),
        };
        between(from, to)
    }

    /// From the ledger before to this one.
    pub fn whole(&self) -> Option<Duration> {
        between(self.entered, self.closed)
    }

    /// From which moment on a vote of this kind was not needed here any more.
    fn decided(&self, vote: Vote) -> Micros {
        match vote {
            Vote::Novel => self.prevote.min(self.closed),
            Vote::Prevote => self.precommit.min(self.closed),
            Vote::Precommit => self.closed,
            Vote::Result => self.agreed,
        }
    }

    /// Votes that came after what they are for was decided here, or have not come: how much later, if they came.
    pub fn late(&self) -> impl Iterator<Item = (NodeKey, Vote, Option<Duration>)> {
        self.arrived.iter().flat_map(|(node, arrived)| {
            Vote::ALL.into_iter().zip(arrived).filter_map(|(vote, at)| {
                let decided = self.decided(vote);
                (decided != NEVER && *at > decided).then(|| (*node, vote, between(decided, *at)))
            })
        })
    }

    /// When each member's first vote of each kind was here, counted from the round's first NOVEL; null where none has come.
    fn votes(&self, me: NodeKey) -> Value {
        let mine = [self.novel, self.prevote, self.precommit, self.ran];
        let all = || self.arrived.iter().map(|(node, arrived)| (*node, *arrived)).chain([(me, mine)]);
        let first = all().map(|(_, [novel, ..])| novel).min().unwrap_or(NEVER);
        let told = |(node, arrived): (NodeKey, [Micros; Vote::ALL.len()])| {
            let [novel, prevote, precommit, result] = arrived.map(|at| between(first, at).map(millis));
            json!({
                "node": node.to_string(), "novel_ms": novel, "prevote_ms": prevote, "precommit_ms": precommit,
                "result_ms": result,
            })
        };
        all().map(told).collect()
    }

    fn json(&self) -> Value {
        let ms = |took: Option<Duration>| json!(took.map(millis));
        let stages: serde_json::Map<String, Value> =
            Part::ALL.into_iter().map(|part| (part.name().to_owned(), ms(self.took(part)))).collect();
        let late: Vec<Value> = self
            .late()
            .map(|(node, vote, by)| json!({ "node": node.to_string(), "vote": vote.name(), "by_ms": ms(by) }))
            .collect();
        let run = self.run.map(|run| {
            json!({
                "status": run.status.to_string(), "contract_ms": millis(run.contract), "state_hash_ms": millis(run.hashing),
                "elapsed_ms": millis(run.elapsed), "outputs": run.outputs, "output_bytes": run.output_bytes,
            })
        });
        json!({
            "seq": self.seq, "hash": self.hash.to_string(), "attempt": self.attempt, "attempts": self.attempt + 1,
            "closed_at_ms": self.closed_ms, "round_ms": ms(self.whole()), "stages_ms": stages,
            "inputs": self.inputs, "input_bytes": self.input_bytes, "users": self.users, "run": run, "late": late,
            "received_bytes": self.traffic.received_bytes, "received_frames": self.traffic.received_frames,
            "sent_bytes": self.traffic.sent_bytes, "sent_frames": self.traffic.sent_frames,
        })
    }
}

/// The rounds of this process: the one that is under way, the one after it, and the last closed ones.
#[derive(Debug)]
pub(super) struct Rounds {
    me: NodeKey,
    /// Members but this node, ascending.
    others: Vec<NodeKey>,
    /// The last ledger that each of them has closed, by what it said.
    tips: Vec<Seq>,
    now: Round,
    /// Of the ledger after it: votes of nodes that are ahead.
    next: Round,
    /// Oldest first.
    done: VecDeque<Round>,
}

/// What a look at the core's effects found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Ledgers that were closed.
    pub closed: usize,
    /// Whether the round went on in any way.
    pub moved: bool,
    /// The ledger whose run this node has a result of now, and the one whose result is agreed on now.
    pub ran: Option<Seq>,
    pub agreed: Option<Seq>,
}

impl Rounds {
    /// Before the first event: the round after this ledger begins.
    pub fn new(me: NodeKey, unl: &[NodeKey], tip: Seq) -> Rounds {
        let others: Vec<NodeKey> = unl.iter().copied().filter(|node| *node != me).collect();
        let (mut now, mut next) = (Round::new(), Round::new());
        now.reset(tip + 1, &others);
        next.reset(tip + 2, &others);
        Rounds { me, tips: vec![0; others.len()], others, now, next, done: VecDeque::with_capacity(ROUNDS_MAX + 1) }
    }

    /// The UNL in force is another.
    pub fn set_unl(&mut self, unl: &[NodeKey]) {
        let others: Vec<NodeKey> = unl.iter().copied().filter(|node| *node != self.me).collect();
        self.tips = others.iter().map(|node| self.tip_of(node).unwrap_or(0)).collect();
        self.others = others;
        for round in [&mut self.now, &mut self.next] {
            let known = std::mem::take(&mut round.arrived);
            let of = |node: &NodeKey| known.iter().find(|(other, _)| other == node).map(|(_, arrived)| *arrived);
            round.arrived = self.others.iter().map(|node| (*node, of(node).unwrap_or([NEVER; 4]))).collect();
        }
    }

    /// A peer's message came over its own link. Whoever says more than once counts with the first. Tells of a vote that is
    /// late.
    pub fn heard(&mut self, peer: NodeKey, message: &Message, at: Micros) -> Option<Vote> {
        let (from, vote, seq) = match message {
            Message::Novel(novel) => (novel.from, Vote::Novel, novel.body.seq),
            Message::Prevote(vote) => (vote.from, Vote::Prevote, vote.body.0.seq),
            Message::Precommit(vote) => (vote.from, Vote::Precommit, vote.body.0.seq),
            Message::Result(result) => (result.from, Vote::Result, result.body.of_seq),
            _ => return None,
        };
        if from != peer {
            return None;
        }
        if let Ok(member) = self.others.binary_search(&from) {
            // A vote for a ledger says that the one before is closed.
            let closed = if vote == Vote::Result { seq } else { seq.saturating_sub(1) };
            self.tips[member] = closed.max(self.tips[member]);
        }
        let round = self.round(seq)?;
        // The list is short, and in order.
        let member = round.arrived.binary_search_by_key(&from, |(node, _)| *node).ok()?;
        let is_late = at > round.decided(vote);
        let arrived = &mut round.arrived[member].1[vote as usize];
        (std::mem::replace(arrived, at.min(*arrived)) == NEVER && is_late).then_some(vote)
    }

    fn round(&mut self, seq: Seq) -> Option<&mut Round> {
        match seq {
            seq if seq == self.now.seq => Some(&mut self.now),
            seq if seq == self.next.seq => Some(&mut self.next),
            // Most often the last one.
            seq => self.done.iter_mut().rev().take(ROUNDS_MAX).find(|round| round.seq == seq),
        }
    }

    /// Takes out of the core's effects what they say about the round, at the time they were decided.
    pub fn see<'a>(
        &mut self,
        effects: impl IntoIterator<Item = &'a Effect>,
        at: Micros,
        wall: WallMs,
        traffic: Traffic,
    ) -> Seen {
        let mut seen = Seen::default();
        for effect in effects {
            match effect {
                Effect::Persist(record) => match record {
                    Record::Novel(_) => self.now.novel = at,
                    Record::Prevote(..) => self.now.prevote = at.min(self.now.prevote),
                    Record::Precommit(..) => self.now.precommit = at,
                    Record::Ledger(ledger) => {
                        self.close(ledger, at, wall, traffic);
                        seen.closed += 1;
                    }
                    Record::Bare(ledger) => self.pass(ledger.header.seq, at, traffic),
                    Record::Result(result) => {
                        if let Some(round) = self.round(result.body.of_seq).filter(|round| round.ran == NEVER) {
                            round.ran = at;
                            seen.ran = Some(round.seq);
                        }
                    }
                    Record::Input(_) | Record::Forget(_) => continue,
                    _ => {}
                },
                Effect::Deliver(agreed) => {
                    if self.agreed(agreed, at) {
                        seen.agreed = Some(agreed.result.of_seq);
                    }
                }
                Effect::Diverged { .. } | Effect::Split(_) | Effect::SplitHealed(_) | Effect::SyncState { .. } => {}
                _ => continue,
            }
            seen.moved = true;
        }
        seen
    }

    /// The first round begins.
    pub fn begin(&mut self, at: Micros) {
        self.now.entered = at;
    }

    fn close(&mut self, ledger: &ClosedLedger, at: Micros, wall: WallMs, traffic: Traffic) {
        let header = &ledger.candidate.header;
        if self.now.seq != header.seq {
            self.now.reset(header.seq, &self.others);
        }
        let round = &mut self.now;
        round.hash = ledger.qc.vote.ledger_hash;
        round.attempt = ledger.qc.vote.attempt;
        (round.closed, round.closed_ms) = (at, wall);
        (round.inputs, round.input_bytes, round.users) = (header.n_inputs, header.inputs_bytes, header.n_users);
        let before = round.traffic;
        round.traffic = Traffic {
            received_bytes: traffic.received_bytes - before.received_bytes,
            received_frames: traffic.received_frames - before.received_frames,
            sent_bytes: traffic.sent_bytes - before.sent_bytes,
            sent_frames: traffic.sent_frames - before.sent_frames,
        };
        self.turn(header.seq + 1, at, traffic, true);
    }

    /// A ledger was passed over without its contents: no round of this node's.
    fn pass(&mut self, seq: Seq, at: Micros, traffic: Traffic) {
        self.turn(seq + 1, at, traffic, false);
    }

    /// From here on it is this ledger's round.
    fn turn(&mut self, seq: Seq, at: Micros, traffic: Traffic, keep: bool) {
        let mut fresh =
            if self.done.len() >= ROUNDS_MAX { self.done.pop_front().expect("there are some") } else { Round::new() };
        if self.next.seq != seq {
            self.next.reset(seq, &self.others);
        }
        fresh.reset(seq + 1, &self.others);
        let begun = std::mem::replace(&mut self.next, fresh);
        let ended = std::mem::replace(&mut self.now, begun);
        (self.now.entered, self.now.traffic) = (at, traffic);
        if keep {
            self.done.push_back(ended);
        }
    }

    /// The run of a ledger ended.
    pub fn ran(&mut self, ran: &Ran) -> Run {
        let run = Run::of(ran);
        if let Some(round) = self.round(ran.result.of_seq) {
            round.run = Some(run);
        }
        run
    }

    /// Whether that is new.
    fn agreed(&mut self, agreed: &ResultCert, at: Micros) -> bool {
        let Some(round) = self.round(agreed.result.of_seq).filter(|round| round.agreed == NEVER) else { return false };
        round.agreed = at;
        true
    }

    /// The last ledgers, newest last.
    pub fn last(&self, count: usize) -> impl DoubleEndedIterator<Item = &Round> {
        self.done.range(self.done.len().saturating_sub(count)..)
    }

    /// The round of this ledger, if it is one of the last.
    pub fn of(&self, seq: Seq) -> Option<&Round> {
        self.done.iter().rev().find(|round| round.seq == seq)
    }

    /// The one whose votes that have not come are missing, now that another is closed.
    pub fn overdue(&self) -> Option<&Round> {
        self.done.len().checked_sub(MISSING_AFTER).map(|at| &self.done[at])
    }

    /// Closed ledgers a second, over the last ones; `None` before there are two.
    pub fn per_s(&self, now: Micros) -> Option<f64> {
        // A network that stands still gets slower with each look.
        let (first, last) = (self.done.front()?.closed, self.done.back()?.closed);
        let rounds = self.done.len() as u64 - 1;
        let seconds = Duration::from_micros(last.max(now.saturating_sub(mean(last - first, rounds))) - first);
        (rounds > 0 && !seconds.is_zero()).then(|| rounds as f64 / seconds.as_secs_f64())
    }

    /// The last ledger that a member has closed, by what it said; `None` before it said anything, and of others.
    pub fn tip_of(&self, node: &NodeKey) -> Option<Seq> {
        let member = self.others.binary_search(node).ok()?;
        Some(self.tips[member]).filter(|tip| *tip > 0)
    }

    /// From each closed ledger to the next, newest last.
    pub fn times_ms(&self) -> Value {
        self.done.iter().filter_map(Round::whole).map(millis).collect()
    }

    /// The last of them for people and programs, newest last. The newest has everybody's votes with it.
    pub fn json(&self, count: usize) -> Value {
        let mut rounds: Vec<Value> = self.last(count).map(Round::json).collect();
        if let (Some(shown), Some(newest)) = (rounds.last_mut(), self.done.back()) {
            shown["votes"] = newest.votes(self.me);
        }
        rounds.into()
    }
}

/// The mean length of so many rounds.
fn mean(all: Micros, rounds: u64) -> Micros {
    all.checked_div(rounds).unwrap_or(0)
}

fn between(from: Micros, to: Micros) -> Option<Duration> {
    (from != NEVER && to != NEVER).then(|| Duration::from_micros(to.saturating_sub(from)))
}

fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        consensus::{
            header::{Candidate, ExecResult, Header, VERSION},
            messages::{Certificate, Novel, Precommit, Prevote, Signed, Vote as Ballot},
        },
        types::Sig,
    };

    const ME: NodeKey = NodeKey([1; 32]);
    const QUICK: NodeKey = NodeKey([2; 32]);
    const SLOW: NodeKey = NodeKey([3; 32]);
    const DEAD: NodeKey = NodeKey([4; 32]);

    fn rounds() -> Rounds {
        let mut rounds = Rounds::new(ME, &[ME, QUICK, SLOW, DEAD], 6);
        rounds.begin(1_000);
        rounds
    }

    fn signed<T>(from: NodeKey, body: T) -> Signed<T> {
        Signed { from, body, sig: Sig([0; 64]) }
    }

    fn ballot(seq: Seq, attempt: Attempt) -> Ballot {
        Ballot { seq, attempt, ledger_hash: Hash([7; 32]) }
    }

    fn novel(from: NodeKey, seq: Seq) -> Signed<Novel> {
        let body = Novel {
            seq,
            parent: Hash::ZERO,
            time_slot: 0,
            users_add: Vec::new(),
            users_del: Vec::new(),
            inputs: Vec::new(),
            unl_vote: None,
            settlement: None,
        };
        signed(from, body)
    }

    fn result(seq: Seq) -> ExecResult {
        ExecResult {
            of_seq: seq,
            of_hash: Hash([7; 32]),
            state_root: Hash::ZERO,
            outputs_root: Hash::ZERO,
            status: Status::Ok,
            unl_req: None,
        }
    }

    fn candidate(seq: Seq) -> Box<Candidate> {
        let header = Header {
            ver: VERSION,
            chain_id: Hash::ZERO,
            seq,
            parent: Hash::ZERO,
            time_ms: 0,
            unl_hash: Hash::ZERO,
            next_unl_hash: Hash::ZERO,
            users_root: Hash::ZERO,
            n_users: 3,
            inputs_root: Hash::ZERO,
            n_inputs: 2,
            inputs_bytes: 500,
            result: result(seq - 1),
            settlement: None,
        };
        Box::new(Candidate {
            header,
            inputs: Vec::new(),
            users_add: Vec::new(),
            users_del: Vec::new(),
            unl_change: None,
        })
    }

    fn precommit(seq: Seq, attempt: Attempt) -> Effect {
        let polc = Certificate { vote: ballot(seq, attempt), sigs: Vec::new() };
        Effect::Persist(Record::Precommit(signed(ME, Precommit(ballot(seq, attempt))), candidate(seq), polc))
    }

    fn closed(seq: Seq, attempt: Attempt) -> Effect {
        let qc = Certificate { vote: ballot(seq, attempt), sigs: Vec::new() };
        Effect::Persist(Record::Ledger(Box::new(ClosedLedger { candidate: *candidate(seq), qc })))
    }

    fn see(rounds: &mut Rounds, effect: Effect, at: Micros) -> Seen {
        let traffic = Traffic { received_bytes: 10 * at, received_frames: at, sent_bytes: at, sent_frames: 1 };
        rounds.see([&effect], at, 5, traffic)
    }

    #[test]
    fn a_ledger_has_a_time_for_each_stage_and_all_that_its_round_had() {
        let mut rounds = rounds();
        see(&mut rounds, Effect::Persist(Record::Novel(Box::new(novel(ME, 7)))), 3_000);
        for (attempt, at) in [(0, 4_000), (1, 9_000)] {
            let vote = signed(ME, Prevote(ballot(7, attempt)));
            see(&mut rounds, Effect::Persist(Record::Prevote(vote, candidate(7))), at);
        }
        let moved = Seen { moved: true, ..Seen::default() };
        assert_eq!(see(&mut rounds, precommit(7, 1), 10_000), moved);
        assert_eq!(see(&mut rounds, closed(7, 1), 10_500), Seen { closed: 1, ..moved });
        see(&mut rounds, Effect::Persist(Record::Result(Box::new(signed(ME, result(7))))), 20_500);
        let agreed = Box::new(ResultCert { result: result(7), sigs: Vec::new() });
        assert_eq!(see(&mut rounds, Effect::Deliver(agreed.clone()), 21_000), Seen { agreed: Some(7), ..moved });
        // The next header says it once more.
        assert_eq!(see(&mut rounds, Effect::Deliver(agreed), 30_000), moved);
        let took = |part| rounds.last(1).next().unwrap().took(part).map(|took| took.as_micros());
        assert_eq!(
            Part::ALL.map(took),
            [Some(2_000), Some(1_000), Some(6_000), Some(500), Some(10_000), Some(500)],
            "idle, novel, prevote with the attempt that failed, precommit, executing, result"
        );
        let json = &rounds.json(5)[0];
        assert_eq!((&json["seq"], &json["attempts"], &json["round_ms"]), (&json!(7), &json!(2), &json!(9.5)));
        assert_eq!((&json["inputs"], &json["input_bytes"], &json["users"]), (&json!(2), &json!(500), &json!(3)));
        assert_eq!((&json["received_bytes"], &json["sent_frames"]), (&json!(105_000), &json!(1)), "during the round");
    }

    #[test]
    fn the_newest_round_tells_when_each_members_votes_came_and_no_other_does() {
        let mut rounds = rounds();
        rounds.heard(QUICK, &Message::Novel(novel(QUICK, 7)), 2_000);
        see(&mut rounds, Effect::Persist(Record::Novel(Box::new(novel(ME, 7)))), 3_000);
        see(&mut rounds, precommit(7, 0), 4_500);
        rounds.heard(SLOW, &Message::Precommit(signed(SLOW, Precommit(ballot(7, 0)))), 6_000);
        see(&mut rounds, closed(7, 0), 5_000);
        rounds.heard(QUICK, &Message::Result(signed(QUICK, result(7))), 9_000);
        let votes = |node: NodeKey, [novel, precommit, result]: [Option<f64>; 3]| {
            json!({
                "node": node.to_string(), "novel_ms": novel, "prevote_ms": null, "precommit_ms": precommit, "result_ms": result,
            })
        };
        let expected = json!([
            votes(QUICK, [Some(0.0), None, Some(7.0)]),
            votes(SLOW, [None, Some(4.0), None]),
            votes(DEAD, [None; 3]),
            votes(ME, [Some(1.0), Some(2.5), None]),
        ]);
        assert_eq!(rounds.json(5)[0]["votes"], expected);
        see(&mut rounds, closed(8, 0), 20_000);
        let shown = rounds.json(5);
        assert!(shown[0]["votes"].is_null() && shown[1]["votes"].is_array());
    }

    #[test]
    fn a_vote_is_late_when_its_step_was_decided_before_it_came() {
        let mut rounds = rounds();
        // This one is ahead: it closed ledger 7, and shows its NOVEL of the next one.
        rounds.heard(QUICK, &Message::Novel(novel(QUICK, 8)), 1_500);
        for (seq, at) in [(7, 1_000), (8, 50_000)] {
            rounds.heard(QUICK, &Message::Novel(novel(QUICK, seq)), at + 100);
            let vote = signed(ME, Prevote(ballot(seq, 0)));
            see(&mut rounds, Effect::Persist(Record::Prevote(vote, candidate(seq))), at + 1_000);
            rounds.heard(SLOW, &Message::Novel(novel(SLOW, seq)), at + 3_500);
            rounds.heard(SLOW, &Message::Novel(novel(SLOW, seq)), at + 9_999);
            // Somebody else's words, passed on.
            rounds.heard(SLOW, &Message::Novel(novel(DEAD, seq)), at + 10);
            see(&mut rounds, closed(seq, 0), at + 5_000);
        }
        // A vote may come when the ledger is closed for long.
        let late = Message::Precommit(signed(SLOW, Precommit(ballot(7, 0))));
        assert_eq!(rounds.heard(SLOW, &late, 106_000), Some(Vote::Precommit));
        assert_eq!(rounds.heard(SLOW, &late, 107_000), None, "told once");
        assert_eq!(rounds.overdue().map(|round| round.seq), None);
        assert_eq!([QUICK, SLOW, DEAD, ME].map(|node| rounds.tip_of(&node)), [Some(7), Some(7), None, None]);
        let late = |seq| {
            let round = rounds.done.iter().find(|round| round.seq == seq).unwrap();
            let of = |kind: Vote| round.late().filter(move |(_, vote, _)| *vote == kind);
            (
                of(Vote::Novel).map(|(node, _, by)| (node, by.map(|by| by.as_micros()))).collect::<Vec<_>>(),
                of(Vote::Precommit).filter_map(|(node, _, by)| Some((node, by?.as_micros()))).collect::<Vec<_>>(),
            )
        };
        assert_eq!(late(7), (vec![(SLOW, Some(2_500)), (DEAD, None)], vec![(SLOW, 100_000)]));
        assert_eq!(late(8), (vec![(SLOW, Some(2_500)), (DEAD, None)], vec![]), "the one that was ahead is not late");
    }

    #[test]
    fn the_last_hundred_ledgers_are_kept_and_what_went_before_is_used_again() {
        let mut rounds = rounds();
        assert_eq!(rounds.per_s(9), None);
        for seq in 7..307 {
            see(&mut rounds, closed(seq, 0), (seq - 6) * 10_000);
        }
        let seqs: Vec<Seq> = rounds.last(1_000).map(|round| round.seq).collect();
        assert_eq!(seqs, (207..307).collect::<Vec<Seq>>());
        assert_eq!(rounds.last(2).map(|round| round.seq).collect::<Vec<_>>(), [305, 306]);
        assert_eq!(rounds.per_s(3_000_000), Some(100.0));
        assert_eq!(rounds.overdue().map(|round| round.seq), Some(303));
        assert!(rounds.per_s(60_000_000).unwrap() < 2.0, "a network that stands still");
        let shown = rounds.json(1);
        assert!(shown[0]["stages_ms"]["novel"].is_null(), "others closed it");
        assert_eq!(shown[0]["round_ms"], json!(10.0));
        // Jumps, as when ledgers are passed over.
        see(&mut rounds, closed(900, 0), 99_000_000);
        assert_eq!((rounds.last(1).next().unwrap().seq, rounds.now.seq, rounds.next.seq), (900, 901, 902));
    }

    #[test]
    fn another_unl_has_its_members_from_the_round_that_is_under_way_on() {
        let mut rounds = rounds();
        rounds.heard(QUICK, &Message::Novel(novel(QUICK, 7)), 1_100);
        rounds.set_unl(&[ME, QUICK, SLOW]);
        rounds.heard(DEAD, &Message::Novel(novel(DEAD, 7)), 1_200);
        see(&mut rounds, closed(7, 0), 2_000);
        let late: Vec<NodeKey> =
            rounds.done[0].late().filter(|(_, vote, _)| *vote == Vote::Novel).map(|(node, ..)| node).collect();
        assert_eq!(late, [SLOW], "who came in time is not forgotten, who left is not waited for");
    }
}
