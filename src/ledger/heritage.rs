//! What a chain hands on to the one that its operators make of it (`hp recover`). Reads, and decides nothing.
//!
//! All of it must come out alike on every node that has the ledger in question, however far each one has closed beyond it.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use super::{
    Archive, LedgerError, Trouble,
    store::{ancestor_keys, body, column, genesis, input, join, own_result, row_seq, seq_of, unl_changes},
};
use crate::{
    consensus::header::{self, ExecResult, Genesis, Header, Input, InputKey, Origin},
    types::{Hash, NodeKey, Seq, UserKey, WallMs},
};

/// Of so many parts of the input window the first is not handed on. A node that has closed ledgers beyond the one in
/// question has deleted keys of as many old ledgers, and all nodes must hand on the same.
const WINDOW_PARTS: u64 = 64;

/// A chain as it was after one of its ledgers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heritage {
    /// Ledger 0.
    pub genesis: Genesis,
    /// Hash of the ledger.
    pub hash: Hash,
    /// Its time.
    pub time_ms: WallMs,
    /// Its users.
    pub users: BTreeSet<UserKey>,
    /// The members that it fixed, ascending.
    pub unl: Vec<NodeKey>,
    /// Keys of inputs that were in the ledgers before it, and in it.
    pub keys: BTreeSet<InputKey>,
    /// The result of its run that is agreed on, if a later ledger says so.
    pub agreed: Option<ExecResult>,
    /// What this node's own run led to, if it is known.
    pub own: Option<ExecResult>,
}

/// An input that is not part of the new chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undone {
    /// The ledger it was in; `None` when it was in none yet.
    pub seq: Option<Seq>,
    /// Its name in the old chain.
    pub id: Hash,
    /// The input; `None` when its bytes are not kept any more.
    pub input: Option<Input>,
}

impl Undone {
    /// The node that vouched for it; `None` when its user signed it, or that is not known.
    pub fn host(&self) -> Option<NodeKey> {
        match self.input.as_ref()?.origin {
            Origin::User { .. } => None,
            Origin::Session { host, .. } => Some(host),
        }
    }
}

impl Archive {
    /// Ledger 0; `None` until it was set.
    pub fn genesis(&self) -> Result<Option<Genesis>, LedgerError> {
        self.at_once("read the genesis", genesis)
    }

    /// The settings behind the genesis' `cfg_hash`, as bytes.
    pub fn settings(&self) -> Result<Option<Vec<u8>>, LedgerError> {
        self.at_once("read the settings", |db| {
            let mut query = db.prepare("SELECT value FROM meta WHERE key = 'settings'")?;
            let mut rows = query.query([])?;
            Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
        })
    }

    /// The chain as it was after ledger `seq`; an error in words when what that takes is not kept any more.
    pub fn heritage(&self, seq: Seq, input_window: u64) -> Result<Result<Heritage, String>, LedgerError> {
        self.at_once("read what the chain hands on", |db| heritage(db, seq, input_window))
    }

    /// The inputs of the ledgers after `seq`, and those that wait, each given to `each`.
    pub fn undone(&self, seq: Seq, mut each: impl FnMut(Undone)) -> Result<(), LedgerError> {
        self.at_once("read the inputs that are lost", |db| {
            let mut ledgers = db.prepare("SELECT seq FROM ledger WHERE seq > ?1 ORDER BY seq")?;
            let mut rows = ledgers.query([row_seq(seq).unwrap_or(i64::MAX)])?;
            while let Some(row) = rows.next()? {
                let seq = seq_of(row.get(0)?)?;
                for id in body(db, seq)?.map(|body| body.inputs).unwrap_or_default() {
                    each(Undone { seq: Some(seq), id, input: input(db, &id)? });
                }
            }
            let mut waiting =
                db.prepare("SELECT input.id, input.bytes FROM pooled JOIN input ON input.n = pooled.n")?;
            let mut rows = waiting.query([])?;
            while let Some(row) = rows.next()? {
                let input = column(row, 1, "an input")?;
                each(Undone { seq: None, id: Hash(row.get(0)?), input: Some(input) });
            }
            Ok(())
        })
    }
}

fn heritage(db: &Connection, seq: Seq, input_window: u64) -> Result<Result<Heritage, String>, Trouble> {
    let Some(genesis) = genesis(db)? else { return Trouble::damaged("there is no genesis") };
    let tip: Option<i64> = db.query_row("SELECT max(seq) FROM ledger", [], |row| row.get(0))?;
    let tip = tip.map_or(Ok(0), seq_of)?;
    if seq > tip {
        return Ok(Err(format!("ledger {seq} is not closed here: the last one is {tip}")));
    }
    let (hash, time_ms, users_root) = match header_of(db, seq)? {
        None if seq == 0 => (genesis.chain_id(), genesis.time_ms, genesis.users_root()),
        None => return Trouble::damaged(format!("ledger {seq} is missing")),
        Some(header) => (header.hash(), header.time_ms, header.users_root),
    };

    // Keys of ledgers up to that far below the last one may be deleted.
    let kept_from = tip.saturating_sub(input_window) + 1;
    let handed_on = input_window - (input_window / WINDOW_PARTS).max(1);
    let keys_from = seq.saturating_sub(handed_on) + 1;
    if keys_from < kept_from {
        return Ok(Err(format!(
            "ledger {seq} is too long ago: of the ledgers before {kept_from} this node has no keys of inputs any more, and \
             those from {keys_from} on are needed; the oldest ledger that this node can go on from is {}",
            kept_from - 1 + handed_on
        )));
    }
    if let Some(unknown) = join(db)?.map(|join| join.unknown).filter(|unknown| *unknown >= keys_from) {
        return Ok(Err(format!(
            "this node has joined the chain late, and knows no keys of inputs of ledgers up to {unknown}; those from \
             {keys_from} on are needed: another node's hist/ has them"
        )));
    }
    let mut keys = BTreeSet::new();
    if keys_from == 1 {
        keys = ancestor_keys(db)?;
    }
    let mut query = db.prepare("SELECT keys FROM input_key WHERE seq BETWEEN ?1 AND ?2")?;
    let mut rows = query.query([keys_from as i64, seq as i64])?;
    while let Some(row) = rows.next()? {
        keys.extend(column::<Vec<InputKey>>(row, 0, "the input keys of a ledger")?);
    }

    let mut query = db.prepare("SELECT user FROM user_tip")?;
    let mut users: BTreeSet<UserKey> =
        query.query_map([], |row| Ok(UserKey(row.get(0)?)))?.collect::<Result<_, _>>()?;
    for later in (seq + 1..=tip).rev() {
        let Some(body) = body(db, later)? else {
            return Ok(Err(format!("ledger {seq} is too long ago: who was connected then is not kept any more")));
        };
        body.users_add.iter().for_each(|user| {
            users.remove(user);
        });
        users.extend(body.users_del);
    }
    if header::users_root(&users) != users_root {
        return Trouble::damaged(format!("the users of ledger {seq} are not those of its header"));
    }

    let mut unl = genesis.unl.clone();
    let mut changes = BTreeMap::new();
    changes.extend(unl_changes(db, seq)?);
    for (at, change) in changes {
        unl = match change.apply(&unl) {
            Some(unl) => unl,
            None => return Trouble::damaged(format!("the change of the UNL in ledger {at} does not apply")),
        };
    }
    let agreed = header_of(db, seq + 1)?.map(|next| next.result);
    let own = own_result(db, seq)?;
    Ok(Ok(Heritage { genesis, hash, time_ms, users, unl, keys, agreed, own }))
}

fn header_of(db: &Connection, seq: Seq) -> Result<Option<Header>, Trouble> {
    let mut query = db.prepare_cached("SELECT header FROM ledger WHERE seq = ?1")?;
    let mut rows = query.query([row_seq(seq).unwrap_or(-1)])?;
    rows.next()?.map(|row| column(row, 0, "a header")).transpose()
}
