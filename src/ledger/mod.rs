//! The database: one SQLite file a node, `hist/ledger.db`.
//!
//! It is the durable form of [`Journal`](crate::consensus::journal::Journal), plus what is served to others from the
//! past: closed ledgers, their inputs and their outputs. [`Store`] is the file, used by one thread at a time;
//! [`Ledger`] is the thread that the running node gives it. No votes are counted here, and nothing is decided.
//!
//! Reading order: this file, `schema` (the tables, opening), `store` (what a write does, what can be asked), `load`
//! (the journal back from the tables), `worker` (the thread).
//!
//! What is kept: headers and certificates for ever; keys of inputs for `input_window` ledgers; bodies (input bytes,
//! user changes, outputs) and own results for [`bodies_kept`](crate::consensus::bodies_kept) ledgers. What grows old is
//! deleted a few rows at a time by the commits that store new ledgers, and never before its ledger was executed.

mod archive;
mod heritage;
mod load;
mod schema;
mod store;
#[cfg(test)]
mod tests;
pub mod view;
mod worker;

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc};

use borsh::{BorshDeserialize, BorshSerialize};

pub use archive::{Archive, Depth, PAGE_LEDGERS_MAX, Stands};
pub use heritage::{Heritage, Undone};
pub use store::{Proven, Store};
pub use worker::Ledger;

use crate::{
    consensus::{
        header::{ExecResult, Settlement},
        journal::Record,
        messages::{Closed, Evidence},
    },
    types::{Hash, NodeKey, Seq, UserKey},
};

/// Old ledgers whose body one commit deletes at most; the rest waits for the next commits.
const PRUNE_LEDGERS_MAX: u64 = 4;
/// Old inputs one commit deletes at most, besides twice as many as it ledgers; the rest waits for the next commits.
const PRUNE_INPUTS_MIN: usize = 64;
/// Keys of inputs in one row of those that a recovered chain takes over.
const ANCESTOR_KEYS_A_ROW: usize = 65_536;
/// Proofs kept against one signer; further ones are not stored, the first prove as much.
pub const EVIDENCE_PER_SIGNER_MAX: u64 = 8;
/// Proofs kept in all; further ones are not stored.
pub const EVIDENCE_MAX: u64 = 256;
/// Headers in one answer of `header_range`; whoever wants more asks again.
pub const HEADERS_READ_MAX: usize = 256;
/// Bytes after which an answer of many values ends; whoever wants more asks again.
pub const READ_BYTES_MAX: usize = 16 << 20;

/// Outputs of the past in one answer of `outputs_since`; whoever wants more asks again.
pub const PAGE_OUTPUTS_MAX: usize = 64;
/// Bytes of outputs after which such an answer ends; one output may be longer.
pub const PAGE_BYTES_MAX: usize = 256 << 10;
/// Leaves of the trees of such an answer; one tree may have more.
pub const PAGE_LEAVES_MAX: usize = 65_536;
/// Inputs that are looked at, for whose they are, for the failed runs of such an answer; those of one ledger may be more.
pub const PAGE_LOOKED_MAX: usize = 16_384;
/// Failed runs of others that are looked at for such an answer.
pub const PAGE_FAILED_MAX: usize = 512;
/// Outputs that are looked at for one answer of `outputs_of`; whoever wants more asks again.
pub const LOOKED_OUTPUTS_MAX: usize = 4_096;
/// Ledgers that were not run here, named in such an answer.
pub const MISSING_MAX: usize = 64;

/// An answer of `outputs_since`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastOutputs {
    /// Ascending by ledger.
    pub outputs: Vec<PastOutput>,
    /// Ledgers with outputs that were not run here.
    pub missing: Vec<Seq>,
    /// Ledgers with inputs of the user whose runs failed by the next ledger, which is beside them. Not the last one.
    pub failed: Vec<(Seq, Closed)>,
    /// The answer covers the ledgers up to this one.
    pub to: Seq,
    /// Whether there is more behind it.
    pub more: bool,
    /// First ledger whose outputs are kept.
    pub kept_from: Seq,
}

/// One user's output of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastOutput {
    /// The ledger.
    pub seq: Seq,
    /// What the user got.
    pub output: Vec<u8>,
    /// Position of its leaf.
    pub index: u32,
    /// Leaves of `outputs_root`, as this node's run led to them.
    pub leaves: Vec<Hash>,
    /// The next ledger, which says what was agreed; `None` when there is none yet.
    pub next: Option<Closed>,
}

/// A settlement that the chain records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastSettlement {
    /// The first ledger that it covers.
    pub first: Seq,
    /// The ledger that recorded it first; its header says what.
    pub recorded: Closed,
    /// What that says.
    pub settlement: Settlement,
}

/// Which settlements are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettlementPage {
    /// Those that cover this ledger and later ones.
    From(Seq),
    /// The newest, or the newest that cover ledgers before this one.
    Newest {
        /// `None`: the newest of all.
        before: Option<Seq>,
    },
}

/// What the run of a ledger put out, without the outputs themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOut {
    /// The ledger.
    pub seq: Seq,
    /// Leaves of `outputs_root`, as this node's run led to them.
    pub leaves: Vec<Hash>,
    /// The agreed result.
    pub agreed: ExecResult,
}

/// Some outputs of one ledger, ascending by user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputsOf {
    /// Those of the users asked for.
    pub outputs: Outputs,
    /// The last user looked at, when there may be more behind it.
    pub more_after: Option<UserKey>,
}

/// What a node goes on from after a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The agreed result of the ledger.
    pub result: ExecResult,
    /// Users of the ledger.
    pub users: BTreeSet<UserKey>,
    /// The UNL that it fixed, ascending.
    pub unl: Vec<NodeKey>,
}

/// Outputs of one run, ascending by user.
pub type Outputs = Vec<(UserKey, Vec<u8>)>;

/// One change of the database. Those of one commit are applied in order, all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// What the core persists.
    Record(Record),
    /// What the run of a closed ledger put out; replaces an earlier run's. Belongs into the commit of its result.
    Outputs {
        /// The ledger that was run.
        seq: Seq,
        /// Output by user; a user occurs once.
        outputs: Outputs,
    },
    /// A node signed two different things. The first few against each signer are kept, one for each thing said twice.
    Evidence(Box<Evidence>),
}

impl From<Record> for Write {
    fn from(record: Record) -> Write {
        Write::Record(record)
    }
}

/// What can go wrong with the database. After any error of a commit the node cannot go on: what it remembers and what
/// is on disk are not the same any more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The file is not what this program wrote (exit code 4).
    #[error(
        "the database {path} is damaged: {what}; it holds what this node has promised to others, so do not just remove it: docs/operating.md, \"Too far behind\", says how to go on with a copy of another node's"
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A newer program wrote the file (exit code 4).
    #[error(
        "the database {path} has schema version {found}, this program knows {known}; use the program that wrote it"
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// Another process holds the file (exit code 5).
    #[error("the database {path} is in use by another process")]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// The file is of another chain.
    #[error("the database {path} is of chain {held}, not of {given}")]
    OtherChain {
        /// The database file.
        path: PathBuf,
        /// Chain in the file.
        held: Hash,
        /// Chain asked for.
        given: Hash,
    },
    /// A file operation around the database failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// SQLite refused, for example because the disk is full.
    #[error("cannot {what} in the database {path}")]
    Sqlite {
        /// What was tried.
        what: &'static str,
        /// The database file.
        path: PathBuf,
        /// Why not.
        source: Arc<rusqlite::Error>,
    },
    /// A write does not fit to what is stored; nothing of its commit was applied.
    #[error("a write contradicts the database {path}: {what}")]
    Contradiction {
        /// The database file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The disk does not keep up.
    #[error("{0} commits wait for the disk; it is too slow for this node")]
    Behind(usize),
    /// The operating system gave no thread.
    #[error("cannot start the database thread")]
    Thread(#[source] Arc<io::Error>),
    /// The database thread has ended.
    #[error("the database is closed")]
    Closed,
}

impl LedgerError {
    /// Whether the file cannot be used as it is, whoever tries (exit code 4).
    pub fn is_damage(&self) -> bool {
        matches!(self, LedgerError::Damaged { .. } | LedgerError::Newer { .. })
    }
}

/// A problem below the place where the file's path is known.
#[derive(Debug)]
enum Trouble {
    Sql(rusqlite::Error),
    /// Stored bytes are not what was written.
    Damaged(String),
    /// A write does not fit to what is stored.
    Contradiction(String),
    /// The operating system lets us only read the file.
    ReadOnly,
    /// The schema is one that this program does not know yet.
    Newer {
        found: i64,
        known: i64,
    },
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Trouble {
        Trouble::Sql(error)
    }
}

impl Trouble {
    fn damaged<T>(what: impl Into<String>) -> Result<T, Trouble> {
        Err(Trouble::Damaged(what.into()))
    }

    fn contradiction<T>(what: impl Into<String>) -> Result<T, Trouble> {
        Err(Trouble::Contradiction(what.into()))
    }

    /// Names the file and what was being done.
    fn at(self, path: &std::path::Path, what: &'static str) -> LedgerError {
        let path = path.to_owned();
        match self {
            Trouble::Damaged(what) => LedgerError::Damaged { path, what },
            Trouble::Contradiction(what) => LedgerError::Contradiction { path, what },
            Trouble::ReadOnly => {
                let source = Arc::new(io::Error::from(io::ErrorKind::PermissionDenied));
                LedgerError::Io { what: "write", path, source }
            }
            Trouble::Newer { found, known } => LedgerError::Newer { path, found, known },
            Trouble::Sql(source) => match (source.sqlite_error_code(), &source) {
                (Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase), _) => {
                    LedgerError::Damaged { path, what: source.to_string() }
                }
                (Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked), _) => {
                    LedgerError::InUse { path }
                }
                // A column holds another type or range than this program writes.
                (
                    None,
                    rusqlite::Error::InvalidColumnType(..)
                    | rusqlite::Error::FromSqlConversionFailure(..)
                    | rusqlite::Error::IntegralValueOutOfRange(..),
                ) => LedgerError::Damaged { path, what: source.to_string() },
                _ => LedgerError::Sqlite { what, path, source: Arc::new(source) },
            },
        }
    }
}

/// Bytes of a value, canonical.
fn encode<T: BorshSerialize + ?Sized>(value: &T) -> Vec<u8> {
    borsh::to_vec(value).expect("writing into memory does not fail")
}

/// The value of bytes that [`encode`] made; anything else is damage. `what` names it for people.
fn decode<T: BorshDeserialize + BorshSerialize>(bytes: &[u8], what: &str) -> Result<T, Trouble> {
    match T::try_from_slice(bytes) {
        Ok(value) if encode(&value) == bytes => Ok(value),
        Ok(_) => Trouble::damaged(format!("{what} is not in canonical form")),
        Err(error) => Trouble::damaged(format!("{what} does not read: {error}")),
    }
}
