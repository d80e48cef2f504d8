//! The protocol's messages as data. `wire` frames them; `docs/protocol.md` writes every byte down.

use borsh::{BorshDeserialize, BorshSerialize};

pub use super::details::Details;
use super::{
    Crypto,
    details::{Piece, PieceRef},
    header::{BareLedger, Candidate, ClosedLedger, ExecResult, Header, Input, Settlement, UnlChange},
    mutation::mutated,
};
use crate::types::{Attempt, Hash, NodeKey, Seq, Sig, UserKey};

/// What a signature of a node covers besides the fields: which chain, and for votes which UNL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Hash of the genesis.
    pub chain_id: Hash,
    /// Hash of the UNL in force.
    pub unl_hash: Hash,
}

/// A message body that nodes sign.
pub trait Signable: BorshSerialize {
    /// Tag of the hash that is signed, one a kind.
    const TAG: &'static str;
    /// Whether the signature covers the UNL's hash too. It does for everything that is counted towards a quorum.
    const PER_UNL: bool;

    /// The 32 bytes that are signed.
    fn digest(&self, scope: &Scope) -> Hash {
        if mutated!(UnsignedField) && ["hp/prevote/1", "hp/precommit/1"].contains(&Self::TAG) {
            let (seq, _, ledger_hash): (Seq, Attempt, Hash) =
                borsh::from_slice(&borsh::to_vec(self).expect("writing to memory does not fail")).expect("a vote");
            return Hash::tagged(Self::TAG, &(scope.chain_id, scope.unl_hash, seq, ledger_hash));
        }
        match Self::PER_UNL {
            true => Hash::tagged(Self::TAG, &(scope.chain_id, scope.unl_hash, self)),
            false => Hash::tagged(Self::TAG, &(scope.chain_id, self)),
        }
    }
}

macro_rules! signable {
    ($name:ty, $tag:literal, $per_unl:literal) => {
        impl Signable for $name {
            const TAG: &'static str = $tag;
            const PER_UNL: bool = $per_unl;
        }
    };
}

/// A body with its signer and signature. Whoever holds one has checked it, at the edge or in the core.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Signed<T> {
    /// Who signed.
    pub from: NodeKey,
    /// What.
    pub body: T,
    /// Over `T::digest`.
    pub sig: Sig,
}

/// Stage 0: what one node has to propose for the next ledger. At most one a sequence number.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Novel {
    /// Ledger to be closed.
    pub seq: Seq,
    /// Hash of the ledger before it.
    pub parent: Hash,
    /// The signer's wall clock, divided by `time_res_ms`.
    pub time_slot: u64,
    /// Users connected somewhere that are not in the ledger before; ascending.
    pub users_add: Vec<UserKey>,
    /// Users in the ledger before that are connected nowhere; ascending.
    pub users_del: Vec<UserKey>,
    /// Ids of inputs held and not ledgered; ascending.
    pub inputs: Vec<Hash>,
    /// The operator's vote for a change of the UNL.
    pub unl_vote: Option<UnlChange>,
    /// The settlement this node saw confirmed.
    pub settlement: Option<Settlement>,
}
signable!(Novel, "hp/novel/1", true);

impl Signed<Novel> {
    /// Names the novel in a PROPOSE and a GET. The signer is inside: two nodes often say the same.
    pub fn id(&self) -> Hash {
        Hash::tagged("hp/novel-id/1", &(self.from, &self.body))
    }
}

signable!(ExecResult, "hp/result/1", true);

/// Instead of a result when the wall-time limit struck on this node's clock.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Overtime {
    /// Ledger whose run was cut.
    pub of_seq: Seq,
    /// Its hash.
    pub of_hash: Hash,
}
signable!(Overtime, "hp/overtime/1", true);

/// What stages 2 and 3 vote for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Vote {
    /// Ledger to be closed.
    pub seq: Seq,
    /// Which try.
    pub attempt: Attempt,
    /// The one header voted for.
    pub ledger_hash: Hash,
}

/// Stage 2: "I derived this header (or it is bound by a POLC) and hold its bytes".
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Prevote(pub Vote);
signable!(Prevote, "hp/prevote/1", true);

/// Stage 3: "I hold a quorum of prevotes for it".
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Precommit(pub Vote);
signable!(Precommit, "hp/precommit/1", true);

/// A vote of stage 2 or 3, which differ in their tag alone.
pub trait VoteKind: Signable + Copy {
    /// Wraps a vote.
    fn of(vote: Vote) -> Self;
    /// Unwraps it.
    fn vote(&self) -> Vote;
}

impl VoteKind for Prevote {
    fn of(vote: Vote) -> Self {
        Prevote(vote)
    }
    fn vote(&self) -> Vote {
        self.0
    }
}

impl VoteKind for Precommit {
    fn of(vote: Vote) -> Self {
        Precommit(vote)
    }
    fn vote(&self) -> Vote {
        self.0
    }
}

/// A quorum of votes of one kind for one value: a POLC of prevotes, a QC of precommits.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Certificate {
    /// What was voted for.
    pub vote: Vote,
    /// Signers and signatures, ascending by signer.
    pub sigs: Vec<(NodeKey, Sig)>,
}

/// "I want to enter this attempt; my best POLC is that": the signed part of ADVANCE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct AdvanceVote {
    /// Ledger to be closed.
    pub seq: Seq,
    /// The attempt to enter, at least 1.
    pub attempt: Attempt,
    /// Attempt and value of the signer's best POLC, below `attempt`.
    pub high: Option<(Attempt, Hash)>,
}
signable!(AdvanceVote, "hp/advance/1", true);

/// The signed vote and the POLC that proves its `high`.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Advance {
    /// The signed part.
    pub vote: Signed<AdvanceVote>,
    /// Present exactly when `high` is.
    pub polc: Option<Certificate>,
}

/// At least a quorum of ADVANCEs for one attempt, ascending by signer.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Tc {
    /// The votes.
    pub votes: Vec<Signed<AdvanceVote>>,
}

impl Tc {
    /// The attempt entered by it; 0 when it is empty (and so invalid).
    pub fn attempt(&self) -> Attempt {
        self.votes.first().map_or(0, |vote| vote.body.attempt)
    }

    /// The highest POLC named: it binds the value of this attempt.
    pub fn high(&self) -> Option<(Attempt, Hash)> {
        self.votes.iter().filter_map(|vote| vote.body.high).max()
    }
}

/// The Tc by which the sender entered its attempt, and the POLC it names.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct TcFwd {
    /// Ledger to be closed.
    pub seq: Seq,
    /// The certificate.
    pub tc: Tc,
    /// Present exactly when `tc.high()` is.
    pub polc: Option<Certificate>,
}

/// What justifies the value of a PROPOSE.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Basis {
    /// The Tc names a POLC: its value is bound.
    Polc(Certificate),
    /// It names none: the value is derived from these novels (signer, [`Signed::<Novel>::id`]; ascending) and this result.
    Novels(Vec<(NodeKey, Hash)>, ResultCert),
}

/// A quorum of equal results: the outputs are final.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ResultCert {
    /// The agreed result.
    pub result: ExecResult,
    /// Signers and signatures, ascending by signer; empty for the constant result of ledger 0.
    pub sigs: Vec<(NodeKey, Sig)>,
}

/// The coordinator's proposal for an attempt from 1 on.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Propose {
    /// Ledger to be closed.
    pub seq: Seq,
    /// Which try.
    pub attempt: Attempt,
    /// The proposed header's hash; its body is fetched by it.
    pub ledger_hash: Hash,
    /// Why this attempt may be entered.
    pub tc: Tc,
    /// Why this value may be voted for.
    pub basis: Basis,
}
signable!(Propose, "hp/propose/1", true);

/// A closed ledger's proof.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Closed {
    /// The header.
    pub header: Header,
    /// A quorum of precommits for it.
    pub qc: Certificate,
}

/// Which users are connected at a host. Counted per link: a gap in `counter` asks for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Presence {
    /// Drawn at each start of the host.
    pub boot: Hash,
    /// One more with each message of this boot.
    pub counter: u64,
    /// Whether `up` is everybody, instead of a change.
    pub full: bool,
    /// Users that came.
    pub up: Vec<UserKey>,
    /// Users that went.
    pub down: Vec<UserKey>,
}
signable!(Presence, "hp/presence/1", false);

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StatusMsg {
    /// Its last closed ledger.
    pub seq: Seq,
    /// That ledger's hash.
    pub lcl: Hash,
    /// Its attempt at the next.
    pub attempt: Attempt,
    /// Whether its state is the agreed one.
    pub synced: bool,
    /// Whether it signs nothing that counts, because it may have forgotten what it signed.
    pub silent: bool,
    /// Members of whom it never heard anything that counts, since they are members; ascending. None, but at a beginning.
    pub unheard: Vec<NodeKey>,
}
signable!(StatusMsg, "hp/status/1", false);

/// Bytes on the party line of one ledger's run.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Npl {
    /// The ledger being executed.
    pub ledger_hash: Hash,
    /// Position among the sender's frames of this ledger, from 0.
    pub counter: u64,
    /// At most 64 KiB.
    pub data: Vec<u8>,
}
signable!(Npl, "hp/npl/1", false);

/// The sender's contract has closed its end of the party line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct NplEnd {
    /// The ledger being executed.
    pub ledger_hash: Hash,
    /// How many frames it sent.
    pub frames: u64,
}
signable!(NplEnd, "hp/npl-end/1", false);

/// A request for data. What the receiver lacks it leaves unanswered; the asker asks another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum Get {
    /// The body of a header, by ledger hash.
    Candidate(Hash),
    /// A novel of the current ledger, by [`Signed::<Novel>::id`].
    Novel(Hash),
    /// Inputs, by id; at most [`super::GET_INPUTS_MAX`].
    Inputs(Vec<Hash>),
    /// The sender's users, as a full [`Presence`].
    Presence,
    /// What the run of this ledger changed, for finding out why results differ.
    Details(Seq),
    /// Closed ledgers from the first number to the second, both among them, as many as fit into one [`Range`].
    Range(Seq, Seq),
    /// NPL_GET: what the receiver's contract said on the party line in its run of this ledger.
    Npl(Hash),
    /// A part of what the receiver's run of a ledger left, where results differ.
    Piece(PieceRef),
    /// Closed ledgers from the first number to the second, without their contents, as many as fit into one [`Headers`].
    Headers(Seq, Seq),
    /// Users of a ledger, from the first one after a user on, as many as fit into one [`UsersPage`].
    Users(Seq, Option<UserKey>),
}

/// Closed ledgers in a row: the answer to [`Get::Range`]. Empty when the sender has none of them, or not their contents.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Range {
    /// The first ledger that was asked for.
    pub first: Seq,
    /// The oldest ledger whose contents the sender keeps.
    pub oldest: Seq,
    /// From `first` on without a gap; at most [`super::RANGE_LEDGERS_MAX`].
    pub ledgers: Vec<ClosedLedger>,
    /// Inputs of these ledgers, in their order; those that did not fit are asked for by [`Get::Inputs`].
    pub inputs: Vec<Input>,
}

/// Closed ledgers in a row without their contents: the answer to [`Get::Headers`]. Every node that has closed them has them.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Headers {
    /// The first ledger that was asked for.
    pub first: Seq,
    /// The oldest ledger whose contents the sender keeps.
    pub oldest: Seq,
    /// From `first` on without a gap; at most [`super::HEADERS_MAX`].
    pub ledgers: Vec<BareLedger>,
}

/// Users of a ledger: the answer to [`Get::Users`]. Empty when the sender can not tell who they were.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct UsersPage {
    /// The ledger.
    pub seq: Seq,
    /// The oldest ledger whose contents the sender keeps.
    pub oldest: Seq,
    /// As in the request.
    pub after: Option<UserKey>,
    /// Those behind `after`, ascending; at most [`super::USERS_PAGE_MAX`].
    pub users: Vec<UserKey>,
}

/// A request for a part of the contract's state, to a node that offered it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StateGet {
    /// The answer has the same.
    pub id: u64,
    /// The root that the receiver offered; anything when an offer is asked for.
    pub root: Hash,
    /// What.
    pub want: StateWant,
}

/// What of a state.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum StateWant {
    /// Which state the receiver has, and keeps readable for a while: the one before the run of this ledger, or of a later
    /// one.
    Offer(Seq),
    /// The nodes 12 levels below a node of the tree over the leaves.
    Nodes {
        /// Levels of that node above the leaves: 18 or 30.
        height: u32,
        /// Its place in its level.
        index: u64,
    },
    /// The leaves below a node 6 levels above them.
    Leaves {
        /// Its place in its level.
        index: u64,
    },
    /// The nodes 12 levels below a node of the tree over a file's blocks, or the hashes of the blocks.
    Hashes {
        /// The root of that tree.
        file: Hash,
        /// Levels of that node above the blocks: 12 or 24.
        height: u32,
        /// Its place in its level.
        index: u64,
    },
    /// Blocks, and targets of symlinks, by their hash; at most [`super::STATE_BLOCKS_MAX`].
    Blocks(Vec<Hash>),
}

/// The answer to a [`StateGet`].
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct StatePart {
    /// As in the request.
    pub id: u64,
    /// What was asked for.
    pub body: StateBody,
}

/// A part of a state.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum StateBody {
    /// The sender has nothing of the kind, or not any more, or answers others now.
    Nothing,
    /// The state that the sender keeps readable.
    Offer {
        /// It is the one before the run of this ledger.
        next: Seq,
        /// Its root.
        root: Hash,
        /// Files, folders and symlinks.
        entries: u64,
        /// Bytes of all files.
        bytes: u64,
    },
    /// Nodes of a tree, in their order.
    Hashes(Vec<Hash>),
    /// What is hashed to make each leaf, in their order: borsh (path, kind, executable, size, root).
    Leaves(Vec<Vec<u8>>),
    /// Blocks in the order asked for; one that the sender lacks, or that had no room, is empty. At most
    /// [`super::STATE_PART_BYTES_MAX`] in all.
    Blocks(Vec<Vec<u8>>),
}

/// Two different messages of one signer in one slot. Encoded, so that evidence cannot nest evidence.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Evidence {
    /// Who signed both.
    pub signer: NodeKey,
    /// The message that counts.
    pub first: Vec<u8>,
    /// The one that came later.
    pub second: Vec<u8>,
}

/// Two processes run with the receiver's key: the older one made a connection after the newer one had. By what their hellos
/// said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Twins {
    /// The one that connected to the sender first.
    pub older: Hash,
    /// The other one.
    pub newer: Hash,
}

/// Who signed, which kind, ledger and attempt: what may be said once.
pub type Slot = (NodeKey, &'static str, Seq, Attempt);

impl Evidence {
    /// The slot that was used twice; `None` when this is no evidence.
    pub fn slot(&self) -> Option<Slot> {
        Message::try_from_slice(&self.first).ok()?.slot()
    }
}

/// Everything that travels between nodes after the hello.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Message {
    /// A user's input, whole.
    Input(Input),
    /// Users of a host.
    Presence(Signed<Presence>),
    /// Stage 0.
    Novel(Signed<Novel>),
    /// Result of executing the last ledger.
    Result(Signed<ExecResult>),
    /// Its run was cut by the wall-time limit.
    Overtime(Signed<Overtime>),
    /// Stage 2.
    Prevote(Signed<Prevote>),
    /// Stage 3.
    Precommit(Signed<Precommit>),
    /// Retry.
    Advance(Advance),
    /// Why an attempt was entered.
    TcFwd(TcFwd),
    /// Coordinator's value.
    Propose(Signed<Propose>),
    /// Proof of a closed ledger.
    Closed(Closed),
    /// Request.
    Get(Get),
    /// Body of a header.
    Candidate(Candidate),
    /// Where the sender stands.
    Status(Signed<StatusMsg>),
    /// Party line.
    Npl(Signed<Npl>),
    /// Its end.
    NplEnd(Signed<NplEnd>),
    /// Answer to [`Get::Details`], and sent to all when results split.
    Details(Box<Details>),
    /// Proof of misbehaviour.
    Evidence(Evidence),
    /// Answer to [`Get::Range`].
    Range(Box<Range>),
    /// Answer to [`Get::Piece`]: what was asked for, and what there is of it.
    Piece(Box<(PieceRef, Piece)>),
    /// Request for a part of the contract's state.
    StateGet(StateGet),
    /// Its answer.
    StatePart(StatePart),
    /// Another process has the receiver's key.
    Twins(Twins),
    /// Answer to [`Get::Headers`].
    Headers(Box<Headers>),
    /// Answer to [`Get::Users`].
    Users(Box<UsersPage>),
}

impl Message {
    /// Name for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Message::Input(_) => "INPUT",
            Message::Presence(_) => "PRESENCE",
            Message::Novel(_) => "NOVEL",
            Message::Result(_) => "RESULT",
            Message::Overtime(_) => "OVERTIME",
            Message::Prevote(_) => "PREVOTE",
            Message::Precommit(_) => "PRECOMMIT",
            Message::Advance(_) => "ADVANCE",
            Message::TcFwd(_) => "TCFWD",
            Message::Propose(_) => "PROPOSE",
            Message::Closed(_) => "CLOSED",
            Message::Get(_) => "GET",
            Message::Candidate(_) => "BODY",
            Message::Status(_) => "STATUS",
            Message::Npl(_) => "NPL",
            Message::NplEnd(_) => "NPL_END",
            Message::Details(_) => "DETAILS",
            Message::Evidence(_) => "EVIDENCE",
            Message::Range(_) => "RANGE",
            Message::Piece(_) => "PIECE",
            Message::StateGet(_) => "STATE_GET",
            Message::StatePart(_) => "STATE_PART",
            Message::Twins(_) => "TWINS",
            Message::Headers(_) => "HEADERS",
            Message::Users(_) => "USERS",
        }
    }

    /// Who signed, which kind, ledger and attempt: two different messages in one slot are evidence. `None` for
    /// messages that may be repeated with other content.
    pub fn slot(&self) -> Option<Slot> {
        let signer = match self {
            Message::Novel(m) => m.from,
            Message::Result(m) => m.from,
            Message::Prevote(m) => m.from,
            Message::Precommit(m) => m.from,
            Message::Advance(m) => m.vote.from,
            Message::Propose(m) => m.from,
            _ => return None,
        };
        Some((signer, self.kind(), self.round_seq()?, self.round_attempt()))
    }

    /// Whether a message of a round is signed by whom it names; what is inside its certificates is not looked at.
    pub fn is_signed(&self, scope: &Scope, crypto: &dyn Crypto) -> bool {
        fn check<T: Signable>(signed: &Signed<T>, scope: &Scope, crypto: &dyn Crypto) -> bool {
            crypto.verify(&signed.from, &signed.body.digest(scope), &signed.sig)
        }
        match self {
            Message::Novel(m) => check(m, scope, crypto),
            Message::Result(m) => check(m, scope, crypto),
            Message::Overtime(m) => check(m, scope, crypto),
            Message::Prevote(m) => check(m, scope, crypto),
            Message::Precommit(m) => check(m, scope, crypto),
            Message::Advance(m) => check(&m.vote, scope, crypto),
            Message::Propose(m) => check(m, scope, crypto),
            _ => true,
        }
    }

    /// The ledger a message of the round is about; `None` for what belongs to no round.
    /// A RESULT belongs to the round after the ledger it is of.
    pub fn round_seq(&self) -> Option<Seq> {
        match self {
            Message::Novel(m) => Some(m.body.seq),
            Message::Result(m) => m.body.of_seq.checked_add(1),
            Message::Overtime(m) => m.body.of_seq.checked_add(1),
            Message::Prevote(m) => Some(m.body.0.seq),
            Message::Precommit(m) => Some(m.body.0.seq),
            Message::Advance(m) => Some(m.vote.body.seq),
            Message::TcFwd(m) => Some(m.seq),
            Message::Propose(m) => Some(m.body.seq),
            _ => None,
        }
    }

    /// The attempt a message of the round is about; 0 where it has none.
    pub fn round_attempt(&self) -> Attempt {
        match self {
            Message::Prevote(m) => m.body.0.attempt,
            Message::Precommit(m) => m.body.0.attempt,
            Message::Advance(m) => m.vote.body.attempt,
            Message::TcFwd(m) => m.tc.attempt(),
            Message::Propose(m) => m.body.attempt,
            _ => 0,
        }
    }
}
