//! What a ledger is made of, and how a header is derived from the novels of a quorum.
//!
//! Source: `docs/protocol.md`, "Ledgers".

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{
    INPUTS_BYTES_MAX, INPUTS_MAX, merkle,
    messages::{Certificate, Novel, Signable},
    mutation::mutated,
    seats, settlement, unl,
    votes::Quorum,
};
use crate::types::{Challenge, Hash, NodeKey, Seq, Sig, Status, UserKey, WallMs};

/// Version of the header and of everything hashed into it.
pub const VERSION: u16 = 1;

/// Ledger 0's content: what all nodes of a chain must have in common before the first round.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Genesis {
    /// [`VERSION`].
    pub ver: u16,
    /// Drawn by `hp new`.
    pub contract_id: Hash,
    /// The first UNL, ascending.
    pub unl: Vec<NodeKey>,
    /// Percent of the UNL that makes a quorum.
    pub threshold: u8,
    /// Hash of the shared configuration.
    pub cfg_hash: Hash,
    /// Root of state/ before the first run.
    pub state_root: Hash,
    /// When `hp new` made it; of a chain that goes on from another, the time of the last ledger that it took over.
    pub time_ms: WallMs,
    /// The chain that this one goes on from; `None` where all begins.
    pub ancestor: Option<Ancestor>,
}

/// A chain that could not go on, as far as it lives on in the one that its operators made of it (`hp recover`).
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Ancestor {
    /// Its contract id.
    pub contract_id: Hash,
    /// Hash of its genesis.
    pub chain_id: Hash,
    /// Its last ledger that counts; the state root of the new genesis is that after the run of this one.
    pub seq: Seq,
    /// Hash of that ledger.
    pub ledger_hash: Hash,
    /// Root over the users of that ledger, with whom the new chain begins.
    pub users_root: Hash,
    /// How many they are.
    pub n_users: u32,
    /// [`keys_root`] of the inputs that must not take effect again.
    pub keys_root: Hash,
    /// How many they are.
    pub n_keys: u64,
    /// The executable that all operators agreed on, where they did: `H("hp/binary/1", bytes)`.
    pub binary: Option<Hash>,
}

impl Genesis {
    /// Hash of ledger 0, the chain's name.
    pub fn chain_id(&self) -> Hash {
        Hash::tagged("hp/genesis/1", self)
    }

    /// The same with the contract id that follows from all the rest: who agrees on where and how to go on needs to agree
    /// on nothing else.
    pub fn with_derived_id(self) -> Genesis {
        let unnamed = Genesis { contract_id: Hash::ZERO, ..self };
        Genesis { contract_id: Hash::tagged("hp/recover/1", &unnamed), ..unnamed }
    }

    /// Root over the users of ledger 0.
    pub fn users_root(&self) -> Hash {
        self.ancestor.as_ref().map_or_else(|| users_root(&BTreeSet::new()), |ancestor| ancestor.users_root)
    }

    /// The constant result of ledger 0. It needs no certificate.
    pub fn result(&self) -> ExecResult {
        ExecResult {
            of_seq: 0,
            of_hash: self.chain_id(),
            state_root: self.state_root,
            outputs_root: Hash::ZERO,
            status: Status::Ok,
            unl_req: None,
        }
    }
}

/// Hash of a UNL (ascending keys).
pub fn unl_hash(unl: &[NodeKey]) -> Hash {
    Hash::tagged("hp/unl/1", unl)
}

/// What the UNL agrees on for one sequence number.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Header {
    /// [`VERSION`].
    pub ver: u16,
    /// Hash of the genesis.
    pub chain_id: Hash,
    /// One more than the parent's.
    pub seq: Seq,
    /// Hash of the ledger before.
    pub parent: Hash,
    /// Agreed time, never less than the parent's.
    pub time_ms: WallMs,
    /// The UNL that closes this ledger.
    pub unl_hash: Hash,
    /// The UNL that closes the next.
    pub next_unl_hash: Hash,
    /// Merkle root over the connected users.
    pub users_root: Hash,
    /// How many they are.
    pub n_users: u32,
    /// Hash of the ascending list of input ids.
    pub inputs_root: Hash,
    /// How many they are.
    pub n_inputs: u32,
    /// Sum of their payloads' bytes.
    pub inputs_bytes: u64,
    /// Result of executing the ledger before.
    pub result: ExecResult,
    /// Last settlement confirmed; none in a network that settles nothing.
    pub settlement: Option<Settlement>,
}

impl Header {
    /// The ledger's hash. No attempt is inside: same header, same hash in every attempt.
    pub fn hash(&self) -> Hash {
        Hash::tagged("hp/ledger/1", self)
    }
}

/// What executing one ledger led to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct ExecResult {
    /// Ledger executed.
    pub of_seq: Seq,
    /// Its hash.
    pub of_hash: Hash,
    /// Root of state/ after it.
    pub state_root: Hash,
    /// Merkle root over (user, output).
    pub outputs_root: Hash,
    /// How the run ended.
    pub status: Status,
    /// A change of the UNL that the contract asks for.
    pub unl_req: Option<UnlChange>,
}

/// A change of the UNL by one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum UnlChange {
    /// A node comes.
    Add(NodeKey),
    /// A node goes.
    Remove(NodeKey),
}

/// What ledgers record of the settlement bus: the last settlement that was confirmed, and what the next one is signed with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Settlement {
    /// Last ledger it covers; 0 before the first one, of which only `txv` is known.
    pub seq: Seq,
    /// Content hash.
    pub ch: Hash,
    /// Transaction hash.
    pub tx: Hash,
    /// Its place in the bus's order.
    pub confirmed_length: u64,
    /// The bus's validity that the next settlement is signed with.
    pub txv: Hash,
}

/// Who answers for an input.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Origin {
    /// The user signed it (over the input's id).
    User {
        /// By the user.
        sig: Sig,
    },
    /// The host saw it arrive in a session that the user opened.
    Session {
        /// The node the user is connected to.
        host: NodeKey,
        /// What the user signed to open the session (as 32 hexadecimal characters).
        challenge: Challenge,
        /// By the user, over the challenge's text.
        helo_sig: Sig,
        /// By the host, over [`Input::host_digest`].
        host_sig: Sig,
    },
}

impl Origin {
    /// Where the nonce counts: zero for signed inputs, else one tag a session.
    pub fn tag(&self) -> Hash {
        match self {
            Origin::User { .. } => Hash::ZERO,
            Origin::Session { host, challenge, .. } => Hash::tagged("hp/session/1", &(host, challenge)),
        }
    }
}

/// One input of one user.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Input {
    /// Whose.
    pub user: UserKey,
    /// Who answers for it.
    pub origin: Origin,
    /// Unique within (user, origin tag).
    pub nonce: u64,
    /// Last ledger it may be in.
    pub max_ledger: Seq,
    /// What the contract reads.
    pub payload: Vec<u8>,
}

/// What may occur once in any window of ledgers: (user, origin tag, nonce).
pub type InputKey = (UserKey, Hash, u64);

/// Ledgers for which an input of a session waits for the one that it follows, and at most a quarter of the window. Then it
/// may be taken without: the other one is probably lost with its host.
pub const FOLLOW_LEDGERS_MAX: u64 = 64;

impl Input {
    /// The nonce of an input of a session: its number there, and whether it must not be taken before the number below.
    pub fn session_nonce(number: u64, follows: bool) -> u64 {
        (number << 1) | u64::from(follows)
    }

    /// The number of an input of a session.
    pub fn session_number(nonce: u64) -> u64 {
        nonce >> 1
    }

    /// The keys of which the input before this one in its session has one, if this one must not be taken in ledger `seq`
    /// before that is.
    pub fn waits_for(&self, seq: Seq, input_window: u64) -> Option<[InputKey; 2]> {
        let (user, tag, nonce) = self.key();
        let follows = matches!(self.origin, Origin::Session { .. }) && nonce % 2 == 1 && nonce > 2;
        // Its last ledger is the last of the window that began when it came.
        let age = (seq + input_window).saturating_sub(self.max_ledger.saturating_add(1));
        let waits = follows && age < FOLLOW_LEDGERS_MAX.min(input_window / 4) && !mutated!(Overtake);
        waits.then(|| [(user, tag, nonce - 3), (user, tag, nonce - 2)])
    }

    /// See [`InputKey`].
    pub fn key(&self) -> InputKey {
        let tag = if mutated!(KeyWithoutOrigin) { Hash::ZERO } else { self.origin.tag() };
        (self.user, tag, self.nonce)
    }

    /// Names the input. Signatures are outside: any valid one serves.
    pub fn id(&self, chain_id: &Hash) -> Hash {
        let tag = self.origin.tag();
        Hash::tagged("hp/input/1", &(chain_id, self.user, tag, self.nonce, self.max_ledger, &self.payload))
    }

    /// What the host of a session signs.
    pub fn host_digest(chain_id: &Hash, id: &Hash) -> Hash {
        SessionInput(*id).digest(&super::messages::Scope { chain_id: *chain_id, unl_hash: Hash::ZERO })
    }
}

/// The signed body behind `host_sig`.
#[derive(BorshSerialize)]
struct SessionInput(Hash);

impl Signable for SessionInput {
    const TAG: &'static str = "hp/session-input/1";
    const PER_UNL: bool = false;
}

/// Hash of a list of input ids.
pub fn inputs_root(ids: &[Hash]) -> Hash {
    Hash::tagged("hp/inputs/1", ids)
}

/// Hash of the input keys that a chain takes over from the one before it.
pub fn keys_root(keys: &BTreeSet<InputKey>) -> Hash {
    Hash::tagged("hp/keys/1", keys)
}

/// Root over the connected users.
pub fn users_root(users: &BTreeSet<UserKey>) -> Hash {
    merkle::root(users.iter().map(merkle::user_leaf).collect())
}

/// A header with what its roots stand for: input ids, the users that come and go, and the change of the UNL.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Candidate {
    /// The header.
    pub header: Header,
    /// Input ids, ascending.
    pub inputs: Vec<Hash>,
    /// Users of this ledger that were not in the one before, ascending.
    pub users_add: Vec<UserKey>,
    /// Users of the one before that are gone, ascending.
    pub users_del: Vec<UserKey>,
    /// What makes the next UNL out of this ledger's; `None` when they are the same.
    pub unl_change: Option<UnlChange>,
}

impl Candidate {
    /// The users of this ledger, given those of the one before.
    pub fn users_after(&self, before: &BTreeSet<UserKey>) -> BTreeSet<UserKey> {
        let mut users = before.clone();
        self.users_del.iter().for_each(|user| {
            users.remove(user);
        });
        users.extend(&self.users_add);
        users
    }

    /// The UNL that closes the next ledger, given the one that closes this.
    ///
    /// # Panics
    /// When the change does not apply: [`Candidate::is_consistent`] was not asked.
    pub fn unl_after(&self, before: &[NodeKey]) -> Vec<NodeKey> {
        match &self.unl_change {
            None => before.to_vec(),
            Some(change) => change.apply(before).expect("checked before the ledger was closed"),
        }
    }

    /// Whether the lists are what the header's roots stand for, in the one form that they have: each user once, only
    /// who really comes or goes, and the change between the header's two UNLs. The header itself is vouched for by its
    /// hash, and its `unl_hash` is that of `unl`.
    pub fn is_consistent(&self, users_before: &BTreeSet<UserKey>, users_root_before: Hash, unl: &[NodeKey]) -> bool {
        let next_unl_hash = match &self.unl_change {
            None => Some(self.header.unl_hash),
            Some(change) => change.apply(unl).map(|after| unl_hash(&after)),
        };
        if next_unl_hash != Some(self.header.next_unl_hash) {
            return false;
        }
        let canonical = self.users_add.is_sorted_by(|a, b| a < b)
            && self.users_del.is_sorted_by(|a, b| a < b)
            && !self.users_add.iter().any(|user| users_before.contains(user))
            && self.users_del.iter().all(|user| users_before.contains(user));
        if !canonical {
            return false;
        }
        let users_fit = if self.users_add.is_empty() && self.users_del.is_empty() {
            self.header.users_root == users_root_before && self.header.n_users as usize == users_before.len()
        } else {
            let users = self.users_after(users_before);
            users.len() == self.header.n_users as usize && users_root(&users) == self.header.users_root
        };
        users_fit
            && self.inputs.len() == self.header.n_inputs as usize
            && self.inputs.is_sorted_by(|a, b| a < b)
            && inputs_root(&self.inputs) == self.header.inputs_root
    }
}

/// A ledger with the proof that it is closed.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ClosedLedger {
    /// Header and lists.
    pub candidate: Candidate,
    /// A quorum of precommits.
    pub qc: Certificate,
}

/// A closed ledger without its contents: what is kept of it for ever, and proves itself on top of the ledger before.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct BareLedger {
    /// The header.
    pub header: Header,
    /// What makes the next UNL out of this ledger's; `None` when they are the same.
    pub unl_change: Option<UnlChange>,
    /// A quorum of precommits for it.
    pub qc: Certificate,
}

impl BareLedger {
    /// The UNL that closes the next ledger, given the one that closes this; `None` when the change does not lead to the one
    /// that the header names.
    pub fn unl_after(&self, before: &[NodeKey]) -> Option<Vec<NodeKey>> {
        match &self.unl_change {
            None => (self.header.next_unl_hash == self.header.unl_hash).then(|| before.to_vec()),
            Some(change) => change.apply(before).filter(|after| unl_hash(after) == self.header.next_unl_hash),
        }
    }
}

/// Everything `derive` needs to know of the chain before the ledger to be derived.
pub struct Before<'a> {
    /// Hash of the genesis.
    pub chain_id: Hash,
    /// Ledger to be derived.
    pub seq: Seq,
    /// Hash of the one before.
    pub parent: Hash,
    /// Its time.
    pub parent_time_ms: WallMs,
    /// Its users.
    pub users: &'a BTreeSet<UserKey>,
    /// Their root.
    pub users_root: Hash,
    /// Its settlement.
    pub settlement: &'a Option<Settlement>,
    /// The UNL in force, ascending.
    pub unl: &'a [NodeKey],
    /// Its hash.
    pub unl_hash: Hash,
    /// Votes needed.
    pub quorum: Quorum,
    /// Length of a time slot.
    pub time_res_ms: u64,
    /// W: how many ledgers an input key is remembered.
    pub input_window: u64,
    /// For how many users a ledger has room.
    pub users_max: usize,
    /// Whether a key is in one of the last W ledgers.
    pub is_ledgered: &'a dyn Fn(&InputKey) -> bool,
    /// An input held whose origin was verified.
    pub input: &'a dyn Fn(&Hash) -> Option<&'a Input>,
}

/// What came of [`derive()`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Derived {
    /// The header that these novels and this result lead to, on every machine.
    Ready(Box<Candidate>),
    /// Inputs with enough votes whose bytes are not held. It never works on a part of them.
    Need(Vec<Hash>),
}

/// Derives the next header from the novels of at least a quorum and the agreed result. Deterministic.
pub fn derive(before: &Before, novels: &[&Novel], result: &ExecResult) -> Derived {
    assert!(novels.len() >= before.quorum.q, "derived from a quorum of novels");
    let include = before.quorum.include;
    let voted = |count: &BTreeMap<Hash, usize>| -> Vec<Hash> {
        count.iter().filter(|(_, votes)| **votes >= include).map(|(id, _)| *id).collect()
    };
    let wanted = voted(&count(novels.iter().flat_map(|novel| &novel.inputs)));
    let missing: Vec<Hash> = wanted.iter().filter(|id| (before.input)(id).is_none()).copied().collect();
    if !missing.is_empty() {
        return Derived::Need(missing);
    }
    let mut users = before.users.clone();
    for (user, votes) in count(novels.iter().flat_map(|novel| &novel.users_add)) {
        if votes >= include {
            users.insert(user);
        }
    }
    for (user, votes) in count(novels.iter().flat_map(|novel| &novel.users_del)) {
        if votes >= include {
            users.remove(&user);
        }
    }
    let mut users = seats::seated(users, &before.parent, before.users_max);
    let inputs = choose_inputs(before, &wanted, &mut users);
    let users_add: Vec<UserKey> = users.difference(before.users).copied().collect();
    let users_del: Vec<UserKey> = before.users.difference(&users).copied().collect();
    let unchanged = users_add.is_empty() && users_del.is_empty();

    let unl_change = unl::decide(before.unl, before.quorum.q, novels, result);
    let next_unl = unl_change.and_then(|change| change.apply(before.unl));
    let slot = nth_largest_slot(novels, include);
    let ids: Vec<Hash> = inputs.iter().map(|(id, _)| *id).collect();
    let header = Header {
        ver: VERSION,
        chain_id: before.chain_id,
        seq: before.seq,
        parent: before.parent,
        time_ms: before.parent_time_ms.max(slot.saturating_mul(before.time_res_ms)),
        unl_hash: before.unl_hash,
        next_unl_hash: next_unl.map_or(before.unl_hash, |unl| unl_hash(&unl)),
        users_root: if unchanged { before.users_root } else { users_root(&users) },
        n_users: u32::try_from(users.len()).expect("capped"),
        inputs_root: inputs_root(&ids),
        n_inputs: u32::try_from(ids.len()).expect("capped"),
        inputs_bytes: inputs.iter().map(|(_, input)| input.payload.len() as u64).sum(),
        result: result.clone(),
        settlement: settlement::decide(before.settlement, before.seq, before.quorum.q, novels),
    };
    Derived::Ready(Box::new(Candidate { header, inputs: ids, users_add, users_del, unl_change }))
}

/// Whether no novel still outstanding can change what [`derive()`] yields.
pub fn determined(before: &Before, novels: &[&Novel], result: &ExecResult) -> bool {
    let include = before.quorum.include;
    let outstanding = before.quorum.n - novels.len();
    if outstanding == 0 {
        return true;
    }
    let settled = |votes: usize| votes >= include || votes + outstanding < include;
    // A novel still to come can list something that nobody listed yet.
    let unlisted = outstanding < include;
    unlisted
        && count(novels.iter().flat_map(|novel| &novel.inputs)).into_values().all(settled)
        && count(novels.iter().flat_map(|novel| &novel.users_add)).into_values().all(settled)
        && count(novels.iter().flat_map(|novel| &novel.users_del)).into_values().all(settled)
        && unl::is_decided(before.unl, before.quorum.q, novels, outstanding, result.unl_req.as_ref())
        && settlement::is_decided(before.settlement, before.seq, before.quorum.q, novels, outstanding)
        && time_is_determined(before, novels, include, outstanding)
}

fn time_is_determined(before: &Before, novels: &[&Novel], include: usize, outstanding: usize) -> bool {
    // `outstanding` larger slots would move the n-th largest up by that many places at most.
    let time = |n| before.parent_time_ms.max(nth_largest_slot(novels, n).saturating_mul(before.time_res_ms));
    include > outstanding && time(include) == time(include - outstanding)
}

fn nth_largest_slot(novels: &[&Novel], n: usize) -> u64 {
    let mut slots: Vec<u64> = novels.iter().map(|novel| novel.time_slot).collect();
    slots.sort_unstable_by(|a, b| b.cmp(a));
    slots[n - 1]
}

/// Votes by item. A novel's lists are ascending without repetition (checked where it enters), so a node votes once.
fn count<'a, K: Ord + Copy + 'a>(items: impl Iterator<Item = &'a K>) -> BTreeMap<K, usize> {
    let mut votes = BTreeMap::new();
    for item in items {
        *votes.entry(*item).or_insert(0) += 1;
    }
    votes
}

/// The order in which inputs claim the room of a ledger: by user (different in each ledger), then as they were sent.
pub fn priority(parent: &Hash, user: &UserKey) -> Hash {
    Hash::tagged("hp/prio/1", &(parent, user))
}

/// Ids and inputs that may be in this ledger, ascending by id. Whose they are is then among its `users`, who had a seat
/// before: whoever does not find room waits with all of its inputs.
fn choose_inputs<'a>(before: &Before<'a>, wanted: &[Hash], users: &mut BTreeSet<UserKey>) -> Vec<(Hash, &'a Input)> {
    let mut by_key: BTreeMap<InputKey, (Hash, &Input)> = BTreeMap::new();
    for id in wanted {
        let input = (before.input)(id).expect("held, checked by the caller");
        let key = input.key();
        let in_window = before.seq <= input.max_ledger && input.max_ledger - before.seq < before.input_window;
        let host_ok = match &input.origin {
            Origin::User { .. } => true,
            Origin::Session { host, .. } => before.unl.binary_search(host).is_ok(),
        };
        if in_window && host_ok && !(before.is_ledgered)(&key) {
            // `wanted` is ascending: the smallest id of a key stays.
            by_key.entry(key).or_insert((*id, input));
        }
    }
    let mut by_user: BTreeMap<UserKey, Vec<(Hash, &Input)>> = BTreeMap::new();
    let mut taken: BTreeSet<InputKey> = BTreeSet::new();
    for (key, entry) in by_key {
        // Of a session the lower numbers come first here, so that a whole row of them is taken at once.
        let waits_for = entry.1.waits_for(before.seq, before.input_window);
        if waits_for.is_none_or(|keys| keys.iter().any(|key| taken.contains(key) || (before.is_ledgered)(key))) {
            taken.insert(key);
            by_user.entry(key.0).or_default().push(entry);
        }
    }
    let mut in_order: Vec<_> =
        by_user.into_iter().map(|(user, inputs)| (priority(&before.parent, &user), user, inputs)).collect();
    in_order.sort_by_key(|(priority, ..)| *priority);

    let mut chosen: Vec<(Hash, &Input)> = Vec::new();
    let mut bytes = 0;
    for (_, user, inputs) in in_order {
        if users.len() >= before.users_max && !users.contains(&user) && !mutated!(UsersOverCap) {
            continue;
        }
        for (id, input) in inputs {
            // The first input over a cap drops the rest of that user, so that order within a user is kept.
            if chosen.len() == INPUTS_MAX || bytes + input.payload.len() > INPUTS_BYTES_MAX {
                break;
            }
            bytes += input.payload.len();
            chosen.push((id, input));
            users.insert(user);
        }
    }
    chosen.sort_unstable_by_key(|(id, _)| *id);
    chosen
}

/// The order in which a ledger's users and inputs are executed: users by a hash that nobody can steer,
/// a user's inputs by (origin tag, nonce).
pub fn execution_order(header: &Header, inputs: Vec<Input>) -> Vec<(UserKey, Vec<Input>)> {
    let mut by_user: BTreeMap<UserKey, Vec<Input>> = BTreeMap::new();
    for input in inputs {
        by_user.entry(input.user).or_default().push(input);
    }
    let mut users: Vec<(UserKey, Vec<Input>)> = by_user.into_iter().collect();
    users.sort_by_key(|(user, _)| Hash::tagged("hp/order/1", &(header.inputs_root, header.parent, user)));
    for (_, inputs) in &mut users {
        inputs.sort_by_cached_key(|input| (input.origin.tag(), input.nonce));
    }
    users
}
