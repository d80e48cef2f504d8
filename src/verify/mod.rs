//! Checks a whole chain offline, as it lies in a database: `hp ledger verify`.
//!
//! A second implementation of `docs/protocol.md`. It reads bytes, hashes and counts with code of its own, and shares
//! with the rest of the program the primitives of [`crypto`](crate::crypto) and plain values of
//! [`types`](crate::types) alone (`tests/it/tidy.rs` sees to it). What the nodes compute and what is checked here can
//! only agree when both do what is written down. Never fold the two together.
//!
//! Pure over what a [`Source`] reads, but for threads: what can be said of a ledger by itself, all signatures among it,
//! is checked on all cores. Reading order: this file, `chain` (what a ledger must be to follow the one before), `alone`
//! (what it must be by itself), `journal` (users, votes and inputs that wait), `hash` and `read` (bytes).

mod alone;
mod chain;
mod hash;
mod journal;
mod read;
#[cfg(test)]
pub(crate) mod tests;

use std::{collections::BTreeMap, fmt, num::NonZero, thread};

use self::{alone::Alone, chain::Chain, read::Malformed};
use crate::types::{Hash, Seq, UserKey};

/// Inputs in one ledger.
const INPUTS_MAX: usize = 16_384;
/// Payload bytes in one ledger.
const INPUTS_BYTES_MAX: u64 = 16 << 20;
/// Payload bytes of one input.
const INPUT_BYTES_MAX: usize = 4 << 20;
/// Members of a UNL.
const UNL_MAX: usize = 128;
/// Ledgers asked for at once.
const PAGE: u64 = 512;

// ---- What is stored -------------------------------------------------------------------------------------------------

/// Everything in the database but the ledgers, at one moment. Bytes as they are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// Values by name: `genesis`, `settings`; `unl_vote` while the operator votes for a change of the UNL; `adopted`, the
    /// agreed result, where the last one of this node was another; `node`, whose votes these are, and `silence`, while that
    /// node may have forgotten some, `heard`, of which members it heard: nothing in the chain rests on either. `join`: that it has
    /// passed over ledgers without their contents.
    pub meta: BTreeMap<String, Vec<u8>>,
    /// Users of the chain that this one goes on from, by what its genesis says.
    pub ancestor_users: Vec<Vec<u8>>,
    /// Lists of keys of that chain's inputs, in order.
    pub ancestor_keys: Vec<Vec<u8>>,
    /// Last closed ledger; 0 before the first.
    pub tip: Seq,
    /// Oldest ledger with its contents.
    pub kept_from: Option<Seq>,
    /// Last ledger with a result of this node, or after which it fetched the state; 0 for none.
    pub executed: Seq,
    /// Users of the last closed ledger.
    pub users_tip: Vec<Vec<u8>>,
    /// Users of the last ledger with a result.
    pub users_executed: Vec<Vec<u8>>,
    /// Users of the ledger before the oldest one with its contents.
    pub users_base: Vec<Vec<u8>>,
    /// What this node said about the ledger after the last.
    pub round: Vec<StoredRow>,
    /// Bodies it voted for, by their name.
    pub candidates: Vec<(Vec<u8>, Vec<u8>)>,
    /// Inputs that no ledger has.
    pub waiting: Vec<StoredWaiting>,
    /// How many inputs are stored in all.
    pub inputs: u64,
    /// Changes of the UNL, by ledger.
    pub unl_changes: Vec<(Seq, Vec<u8>)>,
    /// Proofs of misbehaviour.
    pub evidence: Vec<StoredEvidence>,
    /// Ledgers that were not run here, because the state after them was fetched; ascending.
    pub synced: Vec<StoredSynced>,
    /// Rows of ledgers that do not exist: table and number.
    pub stray: Vec<(&'static str, i64)>,
}

/// Ledgers whose runs others did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredSynced {
    /// The first of them.
    pub first: Seq,
    /// The last of them.
    pub last: Seq,
    /// The agreed result of the last one.
    pub result: Vec<u8>,
}

/// Something this node signed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredRow {
    /// 0 NOVEL, 1 PREVOTE, 2 PRECOMMIT, 3 ADVANCE, 4 the Tc of the attempt, 5 OVERTIME.
    pub kind: i64,
    /// In which attempt.
    pub attempt: i64,
    /// The message, with what it rests on.
    pub bytes: Vec<u8>,
}

/// A proof of misbehaviour.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredEvidence {
    /// Against whom.
    pub signer: Vec<u8>,
    /// Kind of message.
    pub kind: String,
    /// About which ledger; a RESULT is about the one after the ledger it is of.
    pub seq: i64,
    /// In which attempt.
    pub attempt: i64,
    /// Both messages.
    pub bytes: Vec<u8>,
}

/// An input that waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredWaiting {
    /// User, origin tag, nonce.
    pub key: Vec<u8>,
    /// Its id; `None` when the input itself is missing.
    pub id: Option<Vec<u8>>,
    /// The input.
    pub bytes: Option<Vec<u8>>,
}

/// Some ledgers in a row, and how the database stood when they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Ascending, without a gap; those that are not stored are there without parts.
    pub ledgers: Vec<Stored>,
    /// Last closed ledger at that moment.
    pub tip: Seq,
    /// Oldest ledger with its contents at that moment.
    pub kept_from: Option<Seq>,
    /// The last ledger that was passed over without its contents; 0 for none.
    pub base: Seq,
}

/// One ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub seq: Seq,
    /// Header and certificate.
    pub closed: Option<StoredClosed>,
    /// The change of the UNL that it makes.
    pub unl_change: Option<Vec<u8>>,
    /// What the roots stand for.
    pub body: Option<StoredBody>,
    /// The inputs that the body lists, in its order.
    pub inputs: Vec<Option<Vec<u8>>>,
    /// Keys of its inputs.
    pub keys: Option<Vec<u8>>,
    /// This node's signed result.
    pub result: Option<Vec<u8>>,
    /// How many outputs the run had; `None` when it was not run or is forgotten.
    pub run: Option<i64>,
    /// By user.
    pub outputs: Vec<StoredOutput>,
}

impl Stored {
    /// About as many as it takes in memory.
    pub fn bytes(&self) -> usize {
        let body = self.body.as_ref().map_or(0, |body| body.inputs.len() + body.users_add.len() + body.users_del.len());
        let inputs: usize = self.inputs.iter().flatten().map(Vec::len).sum();
        let outputs: usize = self.outputs.iter().map(|output| output.user.len() + output.bytes.len()).sum();
        self.closed.as_ref().map_or(0, |closed| closed.header.len() + closed.qc.len()) + body + inputs + outputs
    }
}

/// Output to one user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredOutput {
    /// To whom.
    pub user: Vec<u8>,
    /// Its leaf in the tree of outputs.
    pub leaf: Vec<u8>,
    /// What.
    pub bytes: Vec<u8>,
}

/// Header and certificate of a ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredClosed {
    /// The header's hash.
    pub hash: Vec<u8>,
    /// The header.
    pub header: Vec<u8>,
    /// The certificate.
    pub qc: Vec<u8>,
}

/// What the roots of a header stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredBody {
    /// Input ids.
    pub inputs: Vec<u8>,
    /// Users that came.
    pub users_add: Vec<u8>,
    /// Users that went.
    pub users_del: Vec<u8>,
}

/// Where ledgers are read from.
pub trait Source {
    /// Why reading failed.
    type Error;
    /// Everything but the ledgers.
    fn head(&mut self) -> Result<Head, Self::Error>;
    /// Ledgers from `first` on, at most to `last`; at least one.
    fn page(&mut self, first: Seq, last: Seq) -> Result<Page, Self::Error>;
    /// The same with header, users and keys alone.
    fn changes(&mut self, first: Seq, last: Seq) -> Result<Page, Self::Error>;
}

// ---- What comes of it -----------------------------------------------------------------------------------------------

/// What to check.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask {
    /// First ledger; the ones before are taken as they are. 0 and 1: the whole chain.
    pub from: Seq,
    /// The chain id it must be.
    pub genesis: Option<Hash>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Where.
    pub place: Place,
    /// Which field, as the protocol calls it.
    pub field: &'static str,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub expected: String,
    /// What that means.
    pub means: &'static str,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wrong { place, field, found, expected, means } = self;
        write!(f, "{place}: {field} is {found}, expected {expected}: {means}")
    }
}

impl std::error::Error for Wrong {}

/// Part of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Ledger 0 and the settings behind it.
    Genesis,
    /// A ledger, with its contents.
    Ledger(Seq),
    /// What this node has said about the next ledger, and what waits for it.
    Journal,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Genesis => f.write_str("genesis"),
            Place::Ledger(seq) => write!(f, "ledger {seq}"),
            Place::Journal => f.write_str("journal"),
        }
    }
}

impl Place {
    fn wrong<T>(
        self,
        field: &'static str,
        found: impl fmt::Display,
        expected: impl fmt::Display,
        means: &'static str,
    ) -> Result<T, Wrong> {
        Err(Wrong { place: self, field, found: found.to_string(), expected: expected.to_string(), means })
    }

    /// Checks one value.
    fn same<T: PartialEq + fmt::Display>(
        self,
        field: &'static str,
        found: T,
        expected: T,
        means: &'static str,
    ) -> Result<(), Wrong> {
        if found == expected { Ok(()) } else { self.wrong(field, found, expected, means) }
    }

    /// Checks a fact that has no two values to show.
    fn holds(
        self,
        holds: bool,
        field: &'static str,
        found: impl fmt::Display,
        expected: impl fmt::Display,
        means: &'static str,
    ) -> Result<(), Wrong> {
        if holds { Ok(()) } else { self.wrong(field, found, expected, means) }
    }

    fn read<T: read::Value>(self, field: &'static str, bytes: &[u8]) -> Result<T, Wrong> {
        const MEANS: &str = "the stored bytes were damaged";
        let what = |error: Malformed| format!("no value ({error})");
        T::whole(bytes).or_else(|error| self.wrong(field, what(error), "a value in its one encoding", MEANS))
    }
}

/// A chain that is right, as far as it could be checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Hash of the genesis.
    pub chain_id: Option<Hash>,
    /// First ledger checked.
    pub from: Seq,
    /// Last ledger checked; below `from` if there is none.
    pub to: Seq,
    /// Hash of the last.
    pub tip: Option<Hash>,
    /// Members at the last.
    pub members: usize,
    /// Changes of the UNL within the ledgers checked.
    pub unl_changes: u64,
    /// Signatures checked.
    pub signatures: u64,
    /// Inputs checked.
    pub inputs: u64,
    /// Outputs checked.
    pub outputs: u64,
    /// Votes and inputs of the next ledger checked.
    pub journal: u64,
    /// Ledgers on which this node's own result was another than the agreed one; the first few.
    pub diverged: Vec<Seq>,
    /// What could not be checked, and why.
    pub unchecked: Vec<String>,
}

/// Why there is no report.
#[derive(Debug)]
pub enum Stopped<E> {
    /// The database does not read.
    Source(E),
    /// The first thing that is wrong.
    Wrong(Wrong),
}

impl<E> From<Wrong> for Stopped<E> {
    fn from(wrong: Wrong) -> Stopped<E> {
        Stopped::Wrong(wrong)
    }
}

// ---- The way through ------------------------------------------------------------------------------------------------

/// Checks everything that `source` has. `progress` hears of the last ledger checked and of the last there is.
pub fn verify<S: Source + Send>(
    source: &mut S,
    ask: Ask,
    progress: &mut dyn FnMut(Seq, Seq),
) -> Result<Report, Stopped<S::Error>>
where
    S::Error: Send,
{
    let head = source.head().map_err(Stopped::Source)?;
    let mut chain = Chain::begin(&head, ask)?;
    let to = head.tip;
    let from = ask.from.max(1);
    if from > 1 {
        chain.trust(source, from)?;
    }
    // Contents begin somewhere; who was connected before that is found from the end.
    let contents = from.max(head.kept_from.unwrap_or(u64::MAX));
    if contents > 1 && contents <= to {
        chain.users_before(source, contents, &head)?;
    }

    let rules = chain.rules();
    let mut next = if from <= to { Some(source.page(from, to.min(from + PAGE - 1))) } else { None };
    while let Some(page) = next.take() {
        let page = page.map_err(Stopped::Source)?;
        let last = page.ledgers.last().map_or(to, |stored| stored.seq);
        let (checked, following) = thread::scope(|scope| {
            let workers = thread::available_parallelism().map_or(1, NonZero::get);
            let slice = page.ledgers.len().div_ceil(workers).max(1);
            let work = |part: &[Stored]| part.iter().map(|stored| alone::check(stored, &page, &rules)).collect();
            let running: Vec<_> = page.ledgers.chunks(slice).map(|part| scope.spawn(move || work(part))).collect();
            // Meanwhile the next ones are read.
            let following = (last < to).then(|| source.page(last + 1, to.min(last + PAGE)));
            let parts: Vec<Vec<Result<Alone, Wrong>>> =
                running.into_iter().map(|part| part.join().expect("checking does not panic")).collect();
            (parts, following)
        });
        for alone in checked.into_iter().flatten() {
            chain.next(alone?)?;
        }
        progress(last, to);
        next = following;
    }
    chain.own_outputs_of_the_last()?;
    journal::check(&mut chain, &head)?;
    Ok(chain.end())
}

/// Whether a list is sorted and holds nothing twice.
fn is_ascending<T: Ord>(items: &[T]) -> bool {
    items.is_sorted_by(|a, b| a < b)
}

/// A user's key as it is stored.
fn user_key(place: Place, bytes: &[u8]) -> Result<UserKey, Wrong> {
    place.read("user", bytes)
}
