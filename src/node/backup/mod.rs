//! `hp backup` and `hp restore`: a node's folder as one file, and back.
//!
//! A backup is a tar file: the database, the state that one of its ledgers left, the configuration, what is in bin/, and
//! last `manifest.json`, which has the hashes of all but the state; the state has its root, which is in the chain. Whoever
//! restores checks all of that and the chain before anything is put in place, and starts silent: what the node has said
//! since the backup was made is not in it.
//!
//! Reading order: this file (what is in a backup), `make`, `restore`.

mod make;
mod restore;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{
    make::{Making, Prepared},
    restore::{Restored, restore},
};
use super::NodeError;
use crate::{
    config::ConfigError,
    ledger::LedgerError,
    state::{PATH_BYTES_MAX, StateError},
    types::{Hash, NodeKey, Seq, WallMs},
    verify::Wrong,
};

/// Why a node that passed over ledgers is not copied before it has fetched a state.
pub(super) const NO_STATE: &str =
    "this node has joined the chain and has no state yet: make a backup when `hp status` says that it is in sync";

/// What a manifest says it is.
const FORMAT: &str = "hotpocket-backup/1";
/// Name of the manifest, the last entry.
const MANIFEST: &str = "manifest.json";
/// Bytes of a manifest. A longer one is refused.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// History and key of the bus that the node runs in itself: both are in a backup with the key, or none of them.
const BUS: [&str; 2] = ["msb/bus.log", "msb/validator.key"];
/// Files and folders that are taken of bin/ and private/, each. With more there is no backup.
const OTHERS_MAX: usize = 16_384;
/// Bytes of a path in a backup. A longer one is refused.
const NAME_BYTES_MAX: usize = PATH_BYTES_MAX + 32;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: WallMs,
    /// Whose it is.
    node: String,
    /// Of which contract.
    contract_id: String,
    /// Of which chain.
    chain_id: String,
    /// The last ledger in it.
    pub tip: Seq,
    /// The ledger after whose run the state is.
    pub executed: Seq,
    state_root: String,
    /// Whether the secret key is in it.
    pub with_key: bool,
    /// Bytes and hash of each file outside of the state.
    files: BTreeMap<String, (u64, String)>,
}

impl Manifest {
    /// Whose backup it is.
    pub fn node(&self) -> Option<NodeKey> {
        self.node.parse().ok()
    }

    /// Whether the bus that the node runs in itself is in it.
    pub fn with_bus(&self) -> bool {
        BUS.iter().all(|name| self.files.contains_key(*name))
    }

    /// Of which chain.
    pub fn chain_id(&self) -> Option<Hash> {
        self.chain_id.parse().ok()
    }

    /// Root of the state.
    pub fn state_root(&self) -> Option<Hash> {
        self.state_root.parse().ok()
    }
}

/// Why there is no backup, or none is restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The folder is in use, or cannot be worked in.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The chain in the backup.
    #[error("the chain in the backup is wrong: {0}")]
    Chain(Wrong),
    /// A file operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What was asked for cannot be done.
    #[error("{0}")]
    Refused(String),
    /// The file is no backup, or was changed.
    #[error("{path} is no sound backup: {what}")]
    Unsound {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { what, path, source }
}

fn refused<T>(what: impl Into<String>) -> Result<T, BackupError> {
    Err(BackupError::Refused(what.into()))
}

fn sync(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))
}

/// How far it is: what is being done, how much of it is done, of how much (0: not known).
pub type Tell<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

/// Counts and hashes what is read through it.
struct Hashing<'a, R> {
    inner: R,
    hasher: blake3::Hasher,
    bytes: u64,
    tell: &'a mut dyn FnMut(u64),
}

impl<'a, R: Read> Hashing<'a, R> {
    fn new(inner: R, tell: &'a mut dyn FnMut(u64)) -> Hashing<'a, R> {
        Hashing { inner, hasher: blake3::Hasher::new_derive_key("hp/backup-file/1"), bytes: 0, tell }
    }

    fn end(self) -> (u64, String) {
        (self.bytes, self.hasher.finalize().to_hex().to_string())
    }
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.hasher.update(&into[..count]);
        self.bytes += count as u64;
        (self.tell)(count as u64);
        Ok(count)
    }
}
