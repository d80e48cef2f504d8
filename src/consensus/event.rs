//! What goes into the core and what comes out of it, as data.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    details::PieceRef,
    header::{BareLedger, ClosedLedger, ExecResult, Header, Input, Settlement, UnlChange},
    join::Lacks,
    journal::Record,
    messages::{Evidence, Message, ResultCert},
    pool::Refused,
    range::{CheckedHeaders, CheckedRange, Lie},
    silence::Silent,
};
use crate::types::{Attempt, Challenge, Hash, MonoMs, NodeKey, Seq, Sig, UserKey, WallMs};

/// What the core is told of the configuration.
#[derive(Debug, Clone)]
pub struct Params {
    /// This node.
    pub me: NodeKey,
    /// Drawn at each start.
    pub boot: Hash,
    /// A round starts this long after the one before, at the latest.
    pub roundtime_ms: u64,
    /// A round starts this long after the one before, at the earliest.
    pub min_round_ms: u64,
    /// Whether a round starts when there is work.
    pub eager: bool,
    /// How long novels beyond a quorum are waited for.
    pub grace_ms: u64,
    /// How long the first attempt may take once a quorum of novels is there.
    pub attempt_ms: u64,
    /// Length of a time slot; shared.
    pub time_res_ms: u64,
    /// W: how many ledgers an input key is remembered, and an input may wait; shared.
    pub input_window: u64,
    /// Longest input, at most [`INPUT_BYTES_MAX`](super::INPUT_BYTES_MAX); shared.
    pub input_bytes_max: usize,
    /// Whether inputs that a host vouches for are taken beside signed ones; shared.
    pub session_inputs: bool,
}

/// What happened.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "an event lives for one call; a box would cost each message more")]
pub enum Event {
    /// The process started. Comes once, and first but for `Paused`.
    Start,
    /// A peer's message. Its signatures were checked, those inside its certificates not.
    Message(NodeKey, Message),
    /// A timer went off.
    Timer(Timer),
    /// A user of this node sent an input in a session.
    LocalInput(LocalInput),
    /// A user of this node sent an input that it signed. The signature was checked.
    SignedInput(Input),
    /// A user came to this node.
    UserUp(UserKey),
    /// A user's last session at this node ended.
    UserDown(UserKey),
    /// This node's operator votes for a change of the UNL, or withdraws the vote. It must apply, and the node be a
    /// member: else nothing happens.
    UnlVote(Option<UnlChange>),
    /// What this node saw on the settlement bus: the next thing that ledgers may record of it. `None` when it sees the bus
    /// no more, or nothing new there.
    SettlementVote(Option<Settlement>),
    /// The ledger handed out by `Execute` has been run; its outputs and state are on disk.
    ExecDone(ExecResult),
    /// It has not: the wall-time limit struck, or the run was ended by `EndRun`. It is handed back, and the state is as
    /// it was before.
    Overtime(Arc<Execution>),
    /// Other members say that another process with this node's key was there before this one.
    OlderTwin,
    /// The driver has no room to go on: from here on nothing new is promised, closed, run or taken. Or it has again. May come
    /// before `Start`.
    Paused(bool),
    /// A peer's answer to `Get::Range`, checked beside the loop: see [`Consensus::expects_range`](super::Consensus).
    Range(NodeKey, Result<CheckedRange, Lie>),
    /// The same of `Get::Headers`.
    Headers(NodeKey, Result<CheckedHeaders, Lie>),
    /// Answers [`Effect::Load`]: the ledgers asked for with their inputs, ascending without a gap, as many as are loaded
    /// at once.
    Loaded(Vec<(ClosedLedger, Vec<Input>)>),
    /// `state/` is not what my last run left, and nothing here leads back to that: somebody changed it. What was to be run
    /// was not, and will not be before [`Event::Synced`].
    StateLost,
    /// Answers [`Effect::SyncState`]: the state after the ledger of this result, which the next header tells, is on disk.
    /// With the users and the UNL as that ledger left them. Of a node that was only behind it may be the state that it had,
    /// when nobody has another: then it runs what waits.
    Synced {
        /// The agreed result of the ledger after which the state is.
        result: Box<ExecResult>,
        /// Users of that ledger.
        users: BTreeSet<UserKey>,
        /// The UNL that it fixed, ascending.
        unl: Vec<NodeKey>,
    },
    /// A link to a node is usable.
    LinkUp(NodeKey),
    /// It is not any more.
    LinkDown(NodeKey),
}

/// An input as the gateway has it.
#[derive(Debug, Clone)]
pub struct LocalInput {
    /// Whose.
    pub user: UserKey,
    /// Of the session.
    pub challenge: Challenge,
    /// By which the user opened the session.
    pub helo_sig: Sig,
    /// Counter within the session.
    pub nonce: u64,
    /// What the contract reads.
    pub payload: Vec<u8>,
}

/// Timers, by what they are for; setting one again moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// The attempt has taken too long.
    Attempt(Attempt),
    /// Novels beyond a quorum are not waited for any longer.
    Grace,
    /// The next round may or must start.
    Pace,
    /// Nothing new arrived for a while.
    Retransmit,
    /// Data asked for did not come.
    Fetch,
    /// Time to say where this node stands.
    Status,
    /// Closed ledgers that are here wait to be adopted.
    Adopt,
    /// Closed ledgers asked for did not come.
    Range,
}

/// A closed ledger to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    /// The ledger.
    pub header: Header,
    /// Its hash.
    pub hash: Hash,
    /// Everybody connected, ascending.
    pub users: BTreeSet<UserKey>,
    /// The UNL that the ledger's header fixed, ascending: its members agree on what this run led to.
    pub unl: Vec<NodeKey>,
    /// Users with inputs, in execution order.
    pub inputs: Vec<(UserKey, Vec<Input>)>,
    /// Whether the wall-time limit ends the run. Not once it is known that the run ends: then it may take its time.
    pub is_limited: bool,
}

impl Execution {
    /// Users who sent something.
    pub fn senders(&self) -> Vec<UserKey> {
        self.inputs.iter().map(|(user, _)| *user).collect()
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write this with the next commit.
    Persist(Record),
    /// Go on only when everything to be persisted is on disk.
    Sync,
    /// Send to every linked member of the UNL.
    Broadcast(Message),
    /// Send to one node.
    Send(NodeKey, Message),
    /// Set or move a timer.
    SetTimer(Timer, MonoMs),
    /// Take a timer back.
    Cancel(Timer),
    /// A ledger is closed and stored: tell people, and its users "accepted". From here on a `Broadcast` goes to the UNL
    /// that it fixed.
    LedgerClosed {
        /// The ledger.
        ledger: Box<ClosedLedger>,
        /// Its hash.
        hash: Hash,
        /// In which attempt.
        attempt: Attempt,
        /// Its inputs that users signed themselves.
        signed: Vec<SignedRef>,
    },
    /// Make state/ what it was before this ledger's run.
    Rollback(Seq),
    /// The run of this ledger, if there was one, has no effect, because its time was up: make state/ what it was before
    /// it, if it is not, and drop its outputs.
    Undo {
        /// The ledger.
        seq: Seq,
        /// Root of the state before it, and so after it.
        state_root: Hash,
        /// Users who sent something, as far as they are known: they are told when the result is agreed.
        senders: Vec<UserKey>,
    },
    /// Run the contract. The next run is handed out when `ExecDone` answered this one and its result is on disk: until
    /// then the pre-state of this one may be needed again.
    Execute(Arc<Execution>),
    /// End the run of this ledger, if it is under way. `Overtime` follows, or `ExecDone` if it has just ended by itself.
    EndRun(Seq),
    /// Read closed ledgers from this one on out of the database, for their runs; [`Event::Loaded`] answers.
    Load(Seq),
    /// The run of this ledger is agreed on and mine is the same: hand its outputs to the users. Without signatures where
    /// the next ledger, which is stored, said what was agreed.
    Deliver(Box<ResultCert>),
    /// My run led to something else than the quorum's. `SyncState` follows.
    Diverged {
        /// Mine.
        mine: Box<ExecResult>,
        /// The quorum's.
        agreed: Box<ExecResult>,
    },
    /// My state is none to run ledgers on. Fetch the agreed one from before the run of this ledger, or of a later one that
    /// is closed here; [`Event::Synced`] answers. What was to be run is not any more. Until then no run is handed out.
    SyncState {
        /// The first ledger of which that state will do.
        from: Seq,
        /// Why.
        why: Lost,
    },
    /// Not all members say the same about the run of the last ledger: what each of them says so far. A quorum may agree
    /// on one of these all the same.
    Differ(Vec<(NodeKey, ExecResult)>),
    /// No result can reach a quorum any more: what each node says.
    Split(Vec<(NodeKey, ExecResult)>),
    /// After a `Split`: a missing result completed a quorum.
    SplitHealed(Seq),
    /// A local input was not taken.
    Refuse(LocalRef, Refused),
    /// Inputs that can never be ledgered any more: of this host's sessions, and all that users signed.
    Expired(Vec<LocalRef>),
    /// A node asks for what only the database has.
    Serve(NodeKey, Query),
    /// This node is silent, and people must know. Once for each reason.
    Silent(Box<Silent>),
    /// It is so no more.
    Speaks,
    /// A node signed two different things.
    Evidence(Box<Evidence>),
    /// A peer sent something as a closed ledger that is none. It is not asked for ledgers again.
    Lied(NodeKey, Lie),
    /// Every node that is ahead and can be asked has deleted the contents of the ledger that comes next here: it is passed
    /// over. From here on nothing is run, and no state that is being fetched is of use, until `SyncState`.
    Join {
        /// What comes next here.
        next: Seq,
        /// The oldest ledger that any of them keeps.
        oldest: Seq,
    },
    /// A ledger was passed over, and its successor comes next. From here on a `Broadcast` goes to the UNL that it fixed.
    LedgerPassed(Box<BareLedger>),
}

/// Why a node has no state to run ledgers on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Its run led to something else than the quorum's.
    Diverged,
    /// `state/` was changed, or damaged.
    Damaged,
    /// So many ledgers wait for their run that fetching the state is quicker.
    Behind,
    /// It has passed over ledgers, whose runs it can not do.
    Joined,
}

/// Names an input that a user of this node sent, or may have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalRef {
    /// In a session that this node vouches for.
    Session {
        /// Whose.
        user: UserKey,
        /// Of the session.
        challenge: Challenge,
        /// Counter within it.
        nonce: u64,
    },
    /// Signed by the user.
    Signed(SignedRef),
}

/// Names an input that its user signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedRef {
    /// Whose.
    pub user: UserKey,
    /// Unique among the user's.
    pub nonce: u64,
    /// The input's id.
    pub id: Hash,
}

/// What this node knows of an input that its user signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedState {
    /// In this ledger.
    Ledgered(Seq),
    /// Held, and not in a ledger yet.
    Held,
    /// In none of the ledgers of the window, and not held.
    Unknown,
}

/// What a peer asks the database for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Header and certificate of a closed ledger.
    Closed(Seq),
    /// The body of a closed ledger's header, by hash.
    Candidate(Hash),
    /// Inputs of closed ledgers, by id.
    Inputs(Vec<Hash>),
    /// What a run did.
    Details(Seq),
    /// Closed ledgers from the first number to the second.
    Range(Seq, Seq),
    /// What a run said on the party line.
    Npl(Hash),
    /// Closed ledgers from the first number to the second, without their contents.
    Headers(Seq, Seq),
    /// Users of a ledger behind a user.
    Users(Seq, Option<UserKey>),
    /// A part of what a run left.
    Piece(PieceRef),
}

/// Where this node stands, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Last closed ledger.
    pub seq: Seq,
    /// Its hash.
    pub lcl: Hash,
    /// Its time.
    pub time_ms: WallMs,
    /// Attempt at the next.
    pub attempt: Attempt,
    /// What is being waited for.
    pub stage: Stage,
    /// Members whose NOVEL for the next ledger is here.
    pub novels: Vec<NodeKey>,
    /// Members not waited for.
    pub suspects: Vec<NodeKey>,
    /// Connected users.
    pub users: usize,
    /// Inputs held and not ledgered.
    pub pool: usize,
    /// Closed ledgers not run yet.
    pub unexecuted: Seq,
    /// Members on which the time limit struck in the last ledger, while its result is not agreed on.
    pub overtimes: usize,
    /// The last ledger that the network has closed, as far as this node knows; its own last one when it is in sync.
    pub network_seq: Seq,
    /// Whether this node has all ledgers that are closed, and a state to run them on.
    pub synced: bool,
    /// Whether it has such a state: false while it is being fetched.
    pub has_state: bool,
    /// What lacks after ledgers were passed over, if anything does.
    pub lacks: Option<Lacks>,
    /// The ledger with which this node may vote again, while it does not know what the ledgers had that it passed over.
    pub votes_after: Option<Seq>,
    /// Whether no result can reach a quorum.
    pub split: bool,
    /// State root after the last run.
    pub state_root: Hash,
    /// What this node's operator votes for.
    pub unl_vote: Option<UnlChange>,
    /// What each member's operator votes for, as its last NOVEL said.
    pub unl_votes: Vec<(NodeKey, UnlChange)>,
    /// What the last ledger records of the settlement bus.
    pub settlement: Option<Settlement>,
    /// Whether it signs nothing, and why.
    pub silent: Option<Silent>,
}

/// What a round waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The last ledger's run.
    Executing,
    /// Work, or the round time.
    Idle,
    /// A quorum of novels.
    Novel,
    /// A quorum of prevotes.
    Prevote,
    /// A quorum of precommits.
    Precommit,
    /// A quorum of results for the last ledger.
    Result,
}

impl Stage {
    /// In lower case, for people and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Executing => "executing",
            Stage::Idle => "idle",
            Stage::Novel => "novel",
            Stage::Prevote => "prevote",
            Stage::Precommit => "precommit",
            Stage::Result => "result",
        }
    }
}
