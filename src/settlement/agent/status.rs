//! What people are told of settling.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::About;
use crate::types::{Seq, WallMs};

/// Where settling stands, as `hp status --json` shows it. The hashes are hexadecimal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Where the bus is, without a password.
    pub url: String,
    /// Its network.
    pub network: String,
    /// Who pays for what this node posts.
    pub address: String,
    /// The subnet under which it settles.
    pub subnet: String,
    /// Whether the bus answered when it was asked last; none before.
    pub reachable: Option<bool>,
    /// The last ledger that is settled, as the chain records it; none while nothing was agreed on.
    pub settled_seq: Option<Seq>,
    /// In which transaction.
    pub settled_tx: Option<String>,
    /// Ledgers behind that.
    pub unsettled_ledgers: u64,
    /// How old the oldest of them with outputs is, by the chain's time.
    pub oldest_unsettled_ms: Option<WallMs>,
    /// What is being settled.
    pub pending: Option<Pending>,
    /// What the address has, in TNK.
    pub balance: Option<String>,
    /// How many settlements that pays.
    pub settlements_left: Option<u64>,
    /// What its operator must do something about.
    pub alerts: Vec<String>,
    /// What each of them is about.
    #[serde(skip)]
    pub about: Vec<About>,
}

/// One settlement under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// Its first ledger.
    pub first: Seq,
    /// Its last one.
    pub last: Seq,
    /// Its content hash.
    pub ch: String,
    /// Its transaction, as it is signed now.
    pub tx: String,
    /// `due`, `signed`, `posted` or `confirmed`.
    pub state: &'static str,
    /// How often this node posted it.
    pub posts: u64,
    /// In whose turn this node is; none for an observer.
    pub rank: Option<usize>,
    /// Its place on the bus.
    pub confirmed_length: Option<u64>,
}

/// The status, where the agent writes it and others read it.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Status>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Status> {
        // Nothing panics with it in hand; if it did, what is there is still the last that was known.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
