//! What a node must remember across a restart, and how each record changes it.
//!
//! The database keeps the same facts in tables; this is their meaning, and the simulator's disk.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    LOADED_BYTES_MAX, LOADED_LEDGERS_MAX,
    header::{BareLedger, Candidate, ClosedLedger, ExecResult, Genesis, Input, UnlChange},
    join::{Join, Lacks},
    messages::{Advance, Certificate, Novel, Overtime, Precommit, Prevote, Signed, Tc},
    silence::Silence,
    window::Window,
};
use crate::types::{Attempt, Hash, LimitKind, NodeKey, Seq, Status, UserKey};

/// One durable fact. Records of one transaction are applied in order, all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Bytes of an input held; before any vote that lists it.
    Input(Box<Input>),
    /// Inputs that can never be ledgered any more.
    Forget(Vec<Hash>),
    /// My NOVEL of the current ledger.
    Novel(Box<Signed<Novel>>),
    /// My PREVOTE, with the body of its header.
    Prevote(Signed<Prevote>, Box<Candidate>),
    /// My PRECOMMIT, with the body of its header and the POLC it rests on.
    Precommit(Signed<Precommit>, Box<Candidate>, Certificate),
    /// My ADVANCE, with its POLC.
    Advance(Box<Advance>),
    /// The Tc by which I entered an attempt, and the POLC it names. It needs no sync of its own: every later vote is behind
    /// it in the order.
    Entered(Tc, Option<Certificate>),
    /// A closed ledger. Ends the records of its sequence number.
    Ledger(Box<ClosedLedger>),
    /// My result of executing a ledger. Never replaced.
    Result(Box<Signed<ExecResult>>),
    /// The wall-time limit struck on my clock in the run of the last closed ledger.
    Overtime(Box<Signed<Overtime>>),
    /// The agreed result of the ledger of my last result, where mine was another: whether a run was over its time is
    /// decided by a quorum's clocks. From here on the state is what this result says.
    Adopted(Box<ExecResult>),
    /// What my operator votes for, `None` when the vote is withdrawn or has done its work.
    UnlVote(Option<UnlChange>),
    /// The agreed result of a ledger that is not the last one, and not older than that of my last result: the state after
    /// it was fetched from others and is on disk. The ledgers up to it are not run here any more.
    Synced(Box<ExecResult>),
    /// That this node is silent, with what has been learnt meanwhile, or that it is so no more.
    Silence(Option<Box<Silence>>),
    /// All members of whom I ever heard something that counts.
    Heard(BTreeSet<NodeKey>),
    /// A closed ledger that is passed over, without its contents. Ends the records of its sequence number, and what there
    /// was to be run before it.
    Bare(Box<BareLedger>),
    /// The users of the last ledger, which was passed over: from here on ledgers have contents again.
    Base(BTreeSet<UserKey>),
}

/// Everything durable, as one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// Ledger 0.
    pub genesis: Genesis,
    /// The last closed ledger; `None` before the first. The lists of one that was passed over are empty.
    pub tip: Option<ClosedLedger>,
    /// That ledgers were passed over, and what lacks since.
    pub join: Option<Join>,
    /// Users of the last closed ledger; nobody while that is not known.
    pub users: BTreeSet<UserKey>,
    /// The UNL that closes the ledger after the tip, ascending.
    pub unl: Vec<NodeKey>,
    /// What my operator votes for.
    pub unl_vote: Option<UnlChange>,
    /// Input keys of the last `input_window` ledgers, with their ledger.
    pub window: Window,
    /// Inputs held and not ledgered.
    pub pool: BTreeMap<Hash, Input>,
    /// My NOVEL of the ledger after the tip.
    pub novel: Option<Signed<Novel>>,
    /// My PREVOTEs of it.
    pub prevotes: BTreeMap<Attempt, (Signed<Prevote>, Candidate)>,
    /// My PRECOMMITs of it.
    pub precommits: BTreeMap<Attempt, (Signed<Precommit>, Candidate, Certificate)>,
    /// My last ADVANCE of it.
    pub advance: Option<Advance>,
    /// The highest Tc of it, with the POLC it names.
    pub tc: Option<(Tc, Option<Certificate>)>,
    /// Closed ledgers that I have no result for, oldest first, with their inputs. A process begins with the first of
    /// them ([`Journal::opened`]), and has the others loaded when there is room.
    pub unexecuted: Vec<(ClosedLedger, Vec<Input>)>,
    /// Users of the ledger before the oldest of `unexecuted`.
    pub executed_users: BTreeSet<UserKey>,
    /// The UNL that closes the oldest of `unexecuted`, or the ledger after the tip; ascending.
    pub executed_unl: Vec<NodeKey>,
    /// My last result.
    pub result: Option<Signed<ExecResult>>,
    /// The agreed result of the same ledger, where mine was another and the state is the agreed one's.
    pub adopted: Option<ExecResult>,
    /// The agreed result of the ledger after which the state was fetched, while I have none of a later one.
    pub synced: Option<ExecResult>,
    /// The ledger of my last result and its inputs, where the result is that its time was up: it is run after all when
    /// a quorum says otherwise.
    pub limited: Option<(ClosedLedger, Vec<Input>)>,
    /// My OVERTIME of the tip.
    pub overtime: Option<Signed<Overtime>>,
    /// Whether this journal may lack what my key has signed. An empty one may, until the others were asked.
    pub silence: Option<Silence>,
    /// Members of whom I ever heard something that counts: they know that they are not at their beginning.
    pub heard: BTreeSet<NodeKey>,
}

/// Whether a result says that the run was over its time.
pub fn is_time_up(result: &ExecResult) -> bool {
    result.status == Status::Limit(LimitKind::Time)
}

impl Journal {
    /// Before anything happened.
    pub fn new(genesis: Genesis) -> Journal {
        let unl = genesis.unl.clone();
        Journal {
            genesis,
            tip: None,
            join: None,
            users: BTreeSet::new(),
            unl: unl.clone(),
            unl_vote: None,
            window: Window::default(),
            pool: BTreeMap::new(),
            novel: None,
            prevotes: BTreeMap::new(),
            precommits: BTreeMap::new(),
            advance: None,
            tc: None,
            unexecuted: Vec::new(),
            executed_users: BTreeSet::new(),
            executed_unl: unl,
            result: None,
            adopted: None,
            synced: None,
            limited: None,
            overtime: None,
            silence: Some(Silence::begin()),
            heard: BTreeSet::new(),
        }
    }

    /// What my last run led to: my result of it, unless a quorum decided otherwise. Or what the run led to after which I
    /// fetched the state.
    pub fn outcome(&self) -> Option<&ExecResult> {
        self.synced.as_ref().or(self.adopted.as_ref()).or(self.result.as_ref().map(|result| &result.body))
    }

    /// Root of the state after my last run; what a run that was cut left is not in it.
    pub fn state_root(&self) -> Hash {
        self.outcome().map_or(self.genesis.state_root, |outcome| outcome.state_root)
    }

    /// The last ledger that was run, or after which the state was fetched, or that was passed over.
    pub fn executed(&self) -> Seq {
        self.outcome().map_or(0, |outcome| outcome.of_seq).max(self.join.map_or(0, |join| join.base))
    }

    /// Whether there is a state that belongs to this: not after ledgers were passed over, until it was fetched.
    pub fn has_state(&self) -> bool {
        self.join.is_none_or(|join| join.lacks == Lacks::Nothing)
    }

    /// Whether state/ may be what a run left that does not count, and is to be put back before anything else.
    pub fn may_need_rollback(&self) -> bool {
        let cut = !self.unexecuted.is_empty() || self.synced.is_none() && self.outcome().is_some_and(is_time_up);
        cut && self.has_state()
    }

    /// Sequence number of the last closed ledger.
    pub fn seq(&self) -> Seq {
        self.tip.as_ref().map_or(0, |tip| tip.candidate.header.seq)
    }

    /// What a process begins with: all of it, but of the ledgers to be run as many as are loaded at once.
    pub fn opened(mut self) -> Journal {
        self.unexecuted.truncate(loaded(&self.unexecuted).len());
        self
    }

    /// The ledgers to be run from `first` on, as many as are loaded at once.
    pub fn load(&self, first: Seq) -> &[(ClosedLedger, Vec<Input>)] {
        let at = self.unexecuted.partition_point(|(closed, _)| closed.candidate.header.seq < first);
        loaded(&self.unexecuted[at..])
    }

    /// Adds one record.
    ///
    /// # Panics
    /// When a record contradicts what is there: a second vote in one slot, a ledger that does not follow the tip.
    pub fn apply(&mut self, record: Record, input_window: u64) {
        match record {
            Record::Input(input) => {
                self.pool.insert(input.id(&self.genesis.chain_id()), *input);
            }
            Record::Forget(ids) => ids.iter().for_each(|id| {
                self.pool.remove(id);
            }),
            Record::Novel(novel) => {
                assert!(self.novel.is_none(), "one NOVEL a ledger");
                self.novel = Some(*novel);
            }
            Record::Prevote(vote, candidate) => {
                let attempt = vote.body.0.attempt;
                let before = self.prevotes.insert(attempt, (vote, *candidate));
                assert!(before.is_none(), "one PREVOTE an attempt");
            }
            Record::Precommit(vote, candidate, polc) => {
                let attempt = vote.body.0.attempt;
                let before = self.precommits.insert(attempt, (vote, *candidate, polc));
                assert!(before.is_none(), "one PRECOMMIT an attempt");
            }
            Record::Advance(advance) => self.advance = Some(*advance),
            Record::Entered(tc, polc) => {
                if self.tc.as_ref().is_none_or(|(held, _)| held.attempt() < tc.attempt()) {
                    self.tc = Some((tc, polc));
                }
            }
            Record::Ledger(closed) => self.close(*closed, input_window),
            Record::Result(result) => {
                assert!(
                    self.unexecuted
                        .first()
                        .is_some_and(|(closed, _)| closed.candidate.header.seq == result.body.of_seq),
                    "results are journaled in order"
                );
                let (closed, inputs) = self.unexecuted.remove(0);
                self.executed_users = closed.candidate.users_after(&self.executed_users);
                self.executed_unl = closed.candidate.unl_after(&self.executed_unl);
                self.limited = is_time_up(&result.body).then_some((closed, inputs));
                (self.adopted, self.synced) = (None, None);
                self.result = Some(*result);
            }
            Record::Overtime(overtime) => {
                assert!(self.overtime.is_none(), "one OVERTIME a ledger");
                assert_eq!(overtime.body.of_seq, self.seq(), "OVERTIME is of the tip");
                self.overtime = Some(*overtime);
            }
            Record::Adopted(result) => {
                let mine = self.result.as_ref().map(|mine| mine.body.of_seq);
                assert_eq!(mine, Some(result.of_seq), "a result is adopted for the last run");
                self.limited = None;
                self.adopted = Some(*result);
            }
            Record::UnlVote(vote) => self.unl_vote = vote,
            Record::Synced(result) => self.sync(*result),
            Record::Heard(members) => self.heard = members,
            Record::Bare(ledger) => self.pass(*ledger, input_window),
            Record::Base(users) => self.base(users),
            Record::Silence(silence) => self.silence = silence.map(|silence| *silence),
        }
    }

    fn sync(&mut self, result: ExecResult) {
        assert!(
            (self.executed()..self.seq()).contains(&result.of_seq),
            "a state is fetched of a ledger not yet run, and not the last"
        );
        let is_before = |(closed, _): &(ClosedLedger, _)| closed.candidate.header.seq <= result.of_seq;
        let run = self.unexecuted.iter().take_while(|ledger| is_before(ledger)).count();
        for (closed, _) in self.unexecuted.drain(..run) {
            self.executed_users = closed.candidate.users_after(&self.executed_users);
            self.executed_unl = closed.candidate.unl_after(&self.executed_unl);
        }
        (self.adopted, self.limited) = (None, None);
        self.synced = Some(result);
        self.join = self.join.map(|join| Join { lacks: Lacks::Nothing, ..join });
    }

    /// A ledger is passed over.
    fn pass(&mut self, ledger: BareLedger, input_window: u64) {
        let BareLedger { header, unl_change, qc } = ledger;
        assert_eq!(header.seq, self.seq() + 1, "ledgers are stored in order");
        self.join = Some(Join::pass(self.join, &header));
        self.window.close(header.seq, input_window);
        if let Some(change) = &unl_change {
            self.unl = change.apply(&self.unl).expect("checked before the ledger was passed over");
        }
        self.end_round();
        self.unexecuted.clear();
        (self.users, self.executed_users) = (BTreeSet::new(), BTreeSet::new());
        self.executed_unl = self.unl.clone();
        (self.result, self.adopted, self.synced, self.limited) = (None, None, None, None);
        let (inputs, users_add, users_del) = (Vec::new(), Vec::new(), Vec::new());
        self.tip = Some(ClosedLedger { candidate: Candidate { header, inputs, users_add, users_del, unl_change }, qc });
    }

    fn base(&mut self, users: BTreeSet<UserKey>) {
        let join = self.join.as_mut().expect("ledgers were passed over");
        assert_eq!(join.lacks, Lacks::Users, "the users are fetched once");
        join.lacks = Lacks::State;
        self.executed_users = users.clone();
        self.users = users;
    }

    /// What was said about the ledger that is closed now is of no use any more.
    fn end_round(&mut self) {
        self.novel = None;
        self.prevotes.clear();
        self.precommits.clear();
        self.advance = None;
        self.tc = None;
        self.overtime = None;
    }

    fn close(&mut self, closed: ClosedLedger, input_window: u64) {
        let header = &closed.candidate.header;
        assert_eq!(header.seq, self.seq() + 1, "ledgers are stored in order");
        let inputs: Vec<Input> = closed
            .candidate
            .inputs
            .iter()
            .map(|id| self.pool.remove(id).expect("bytes are held before a vote"))
            .collect();
        for input in &inputs {
            self.window.insert(input.key(), header.seq);
        }
        self.window.close(header.seq, input_window);
        self.users = closed.candidate.users_after(&self.users);
        self.unl = closed.candidate.unl_after(&self.unl);
        self.end_round();
        self.tip = Some(closed.clone());
        self.unexecuted.push((closed, inputs));
    }
}

/// The first of these ledgers, as many as are loaded at once.
fn loaded(ledgers: &[(ClosedLedger, Vec<Input>)]) -> &[(ClosedLedger, Vec<Input>)] {
    let mut bytes = 0;
    let fits = ledgers.iter().take(LOADED_LEDGERS_MAX).take_while(|(_, inputs)| {
        let before = bytes;
        bytes += inputs.iter().map(|input| input.payload.len()).sum::<usize>();
        before <= LOADED_BYTES_MAX
    });
    &ledgers[..fits.count()]
}
