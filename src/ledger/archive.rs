//! A look at the database from outside its node: `hp ledger`. Reads, and decides nothing.
//!
//! Whether the node runs does not matter. Each call is one short transaction, so that it sees one moment and keeps the
//! node from nothing; what several calls show may belong to different moments, and the tip may be higher in a later one.
//! Values come as the bytes that are stored: what they mean, and whether they are right, is for `verify` to say.

use std::path::{Path, PathBuf};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _,
    backup::{Backup, Progress, StepResult},
    params,
};

use super::{
    LedgerError, PastSettlement, READ_BYTES_MAX, SettlementPage, Trouble, decode, schema,
    store::{self, seq_of},
};
use crate::{
    consensus::{
        header::{Genesis, Input, UnlChange},
        join::Lacks,
    },
    types::{Hash, Seq},
    verify::{
        Head, Page, Stored, StoredBody, StoredClosed, StoredEvidence, StoredOutput, StoredRow, StoredSynced,
        StoredWaiting,
    },
};

/// Ledgers in one page; whoever wants more asks again.
pub const PAGE_LEDGERS_MAX: u64 = 512;

/// Pages that are copied at once, between two words about how far it is.
const COPY_PAGES: i32 = 1_024;
/// How the copy of a database is opened: made by this.
const COPY_FLAGS: OpenFlags =
    OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_CREATE).union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// How much of each ledger a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Header, certificate, change of the UNL and this node's result.
    Closed,
    /// Those, who comes and goes, and the keys of inputs.
    Users,
    /// Everything there is.
    All,
}

/// `hist/ledger.db`, open for reading.
#[derive(Debug)]
pub struct Archive {
    db: Connection,
    pub(super) path: PathBuf,
}

/// What a chain begins with, and what became of its members.
pub(super) struct Beginning {
    pub(super) genesis: Genesis,
    pub(super) settings: Option<Vec<u8>>,
    pub(super) tip: Seq,
    pub(super) unl_changes: Vec<(Seq, UnlChange)>,
}

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stands {
    /// Hash of the genesis.
    pub chain_id: Hash,
    /// The last ledger closed; 0 before the first.
    pub tip: Seq,
    /// The last ledger run; 0 before the first.
    pub executed: Seq,
    /// Root of the state after that run.
    pub state_root: Hash,
    /// Whether it has that state: not after it passed over ledgers, until it has fetched one.
    pub has_state: bool,
}

impl Archive {
    /// Opens `dir`/hist/ledger.db, where `dir` is the contract's folder.
    ///
    /// Errors with `Damaged` when the file is not what this program wrote, with `Io` when there is none.
    pub fn open(dir: &Path) -> Result<Archive, LedgerError> {
        let (db, path) = schema::open_to_read(dir)?;
        Ok(Archive { db, path })
    }

    /// Number of the last closed ledger; 0 before the first.
    pub fn tip(&self) -> Result<Seq, LedgerError> {
        tip(&self.db).map_err(|trouble| trouble.at(&self.path, "read the tip"))
    }

    /// The number of the ledger with this hash.
    pub fn seq_of(&self, ledger: Hash) -> Result<Option<Seq>, LedgerError> {
        self.at_once("look a ledger up", |db| {
            let mut query = db.prepare_cached("SELECT seq FROM ledger WHERE hash = ?1")?;
            let found: Option<i64> = query.query_row([ledger.0], |row| row.get(0)).optional()?;
            found.map(seq_of).transpose()
        })
    }

    /// At most `limit` of the settlements that the chain records, ascending, and the last ledger that is settled.
    pub fn settlements(&self, page: SettlementPage, limit: u64) -> Result<(Vec<PastSettlement>, Seq), LedgerError> {
        self.at_once("read what is settled", |db| store::settlement_page(db, tip(db)?, page, limit))
    }

    /// An input that is still kept, in a ledger or before it is in one.
    pub fn input(&self, id: Hash) -> Result<Option<Input>, LedgerError> {
        self.at_once("look an input up", |db| {
            let mut query = db.prepare_cached("SELECT bytes FROM input WHERE id = ?1")?;
            let found: Option<Vec<u8>> = query.query_row([id.0], |row| row.get(0)).optional()?;
            found.map(|bytes| decode(&bytes, "an input")).transpose()
        })
    }

    /// How far the node is, as its database says.
    ///
    /// Errors with `Damaged` when there is no genesis.
    pub fn stands(&self) -> Result<Stands, LedgerError> {
        self.at_once("read the tip", |db| {
            let Some(genesis) = store::genesis(db)? else { return Trouble::damaged("there is no genesis") };
            let executed = store::executed(db)?;
            let own = store::own_result(db, executed)?;
            let state_root = match store::adopted(db)?.or(own).or(store::synced_result(db, executed)?) {
                Some(outcome) => outcome.state_root,
                None => genesis.state_root,
            };
            let has_state = store::join(db)?.is_none_or(|join| join.lacks == Lacks::Nothing);
            Ok(Stands { chain_id: genesis.chain_id(), tip: tip(db)?, executed, state_root, has_state })
        })
    }

    /// Copies the database as it is at one moment to a file that must not exist, whoever writes meanwhile. `progress` hears of
    /// pages copied, and of all. Durable but for the file's name.
    pub fn copy_to(&self, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), LedgerError> {
        let mut copy = || -> Result<(), Trouble> {
            // The moment: without it the copy would begin anew with each commit of the node.
            let moment = self.db.unchecked_transaction()?;
            tip(&moment)?;
            let mut copied = Connection::open_with_flags(to, COPY_FLAGS)?;
            let backup = Backup::new(&moment, &mut copied)?;
            while backup.step(COPY_PAGES)? == StepResult::More {
                let Progress { remaining, pagecount } = backup.progress();
                let count = |pages: i32| u64::try_from(pages).unwrap_or(0);
                progress(count(pagecount - remaining), count(pagecount));
            }
            drop(backup);
            Ok(copied.close().map_err(|(_, error)| error)?)
        };
        copy().map_err(|trouble| trouble.at(&self.path, "copy the database"))?;
        schema::sync(to)
    }

    /// The genesis, and every change of the UNL since.
    pub(super) fn beginning(&self) -> Result<Beginning, LedgerError> {
        self.at_once("read the genesis", |db| {
            let Some(genesis) = store::genesis(db)? else { return Trouble::damaged("there is no genesis") };
            let settings = db
                .prepare_cached("SELECT value FROM meta WHERE key = 'settings'")?
                .query_row([], |row| row.get(0))
                .optional()?;
            let tip = tip(db)?;
            let mut unl_changes = Vec::new();
            for (seq, change) in read_unl_changes(db, tip)? {
                unl_changes.push((seq, decode(&change, "a change of the UNL")?));
            }
            Ok(Beginning { genesis, settings, tip, unl_changes })
        })
    }

    /// Everything but the ledgers themselves: genesis, users, votes, what waits.
    pub fn head(&self) -> Result<Head, LedgerError> {
        self.at_once("read the journal", read_head)
    }

    /// The ledgers from `first` to `last`, ascending; the first of them, if they are too many or too long. One that is
    /// not stored is there without its parts.
    pub fn page(&self, first: Seq, last: Seq, depth: Depth) -> Result<Page, LedgerError> {
        self.at_once("read ledgers", |db| {
            let (mut ledgers, mut bytes) = (Vec::new(), 0);
            for seq in (first..=last).take(PAGE_LEDGERS_MAX as usize) {
                let stored = read_ledger(db, seq, depth)?;
                bytes += stored.bytes();
                ledgers.push(stored);
                if bytes > READ_BYTES_MAX {
                    break;
                }
            }
            Ok(Page { ledgers, tip: tip(db)?, kept_from: kept_from(db)?, base: base(db)? })
        })
    }

    pub(super) fn at_once<T>(
        &self,
        what: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, Trouble>,
    ) -> Result<T, LedgerError> {
        let reading = || -> Result<T, Trouble> {
            let transaction = self.db.unchecked_transaction()?;
            read(&transaction)
        };
        reading().map_err(|trouble| trouble.at(&self.path, what))
    }
}

/// Two values of one row.
type Pair = (Vec<u8>, Vec<u8>);

fn tip(db: &Connection) -> Result<Seq, Trouble> {
    let tip: Option<i64> = db.prepare_cached("SELECT max(seq) FROM ledger")?.query_row([], |row| row.get(0))?;
    tip.map_or(Ok(0), seq_of)
}

fn kept_from(db: &Connection) -> Result<Option<Seq>, Trouble> {
    store::oldest_row(db, base(db)?)
}

/// The last ledger that was passed over; 0 for none.
fn base(db: &Connection) -> Result<Seq, Trouble> {
    Ok(store::join(db)?.map_or(0, |join| join.base))
}

fn read_head(db: &Connection) -> Result<Head, Trouble> {
    let tip = tip(db)?;
    let blobs = |sql: &str| -> Result<Vec<Vec<u8>>, Trouble> {
        Ok(db.prepare_cached(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
    };
    let meta: Vec<(String, Vec<u8>)> = db
        .prepare_cached("SELECT key, value FROM meta")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let rows: Vec<(i64, i64, Vec<u8>)> = db
        .prepare_cached("SELECT first, last, result FROM synced ORDER BY last")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let synced = rows
        .into_iter()
        .map(|(first, last, result)| Ok(StoredSynced { first: seq_of(first)?, last: seq_of(last)?, result }))
        .collect::<Result<_, Trouble>>()?;
    let round = db
        .prepare_cached("SELECT kind, attempt, bytes FROM round ORDER BY kind, attempt")?
        .query_map([], |row| Ok(StoredRow { kind: row.get(0)?, attempt: row.get(1)?, bytes: row.get(2)? }))?
        .collect::<Result<_, _>>()?;
    let pairs = |sql: &str| -> Result<Vec<Pair>, Trouble> {
        Ok(db.prepare_cached(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?)
    };
    let waiting = db
        .prepare_cached("SELECT pooled.key, input.id, input.bytes FROM pooled LEFT JOIN input ON input.n = pooled.n")?
        .query_map([], |row| Ok(StoredWaiting { key: row.get(0)?, id: row.get(1)?, bytes: row.get(2)? }))?
        .collect::<Result<_, _>>()?;
    let mut stray = Vec::new();
    for table in ["ledger", "unl_change", "body", "input_key", "result", "run", "output"] {
        let sql = format!("SELECT seq FROM {table} WHERE seq < 1 OR seq > ?1 LIMIT 1");
        let found: Option<i64> = db.query_row(&sql, [tip as i64], |row| row.get(0)).optional()?;
        stray.extend(found.map(|seq| (table, seq)));
    }
    let unl_changes = read_unl_changes(db, tip)?;
    let evidence = db
        .prepare_cached("SELECT signer, kind, seq, attempt, bytes FROM evidence ORDER BY n")?
        .query_map([], |row| {
            Ok(StoredEvidence {
                signer: row.get(0)?,
                kind: row.get(1)?,
                seq: row.get(2)?,
                attempt: row.get(3)?,
                bytes: row.get(4)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(Head {
        unl_changes,
        meta: meta.into_iter().collect(),
        tip,
        kept_from: kept_from(db)?,
        executed: store::executed(db)?,
        ancestor_users: blobs("SELECT user FROM ancestor_user ORDER BY user")?,
        ancestor_keys: blobs("SELECT keys FROM ancestor_key ORDER BY n")?,
        users_tip: blobs("SELECT user FROM user_tip")?,
        users_executed: blobs("SELECT user FROM user_executed")?,
        users_base: blobs("SELECT user FROM user_base")?,
        round,
        candidates: pairs("SELECT hash, bytes FROM candidate")?,
        waiting,
        inputs: db.query_row("SELECT count(*) FROM input", [], |row| row.get::<_, u32>(0))?.into(),
        evidence,
        synced,
        stray,
    })
}

fn read_unl_changes(db: &Connection, tip: Seq) -> Result<Vec<(Seq, Vec<u8>)>, Trouble> {
    let changes: Vec<(i64, Vec<u8>)> = db
        .prepare_cached("SELECT seq, change FROM unl_change WHERE seq BETWEEN 1 AND ?1 ORDER BY seq")?
        .query_map([tip as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    changes.into_iter().map(|(seq, change)| Ok((seq_of(seq)?, change))).collect()
}

fn read_ledger(db: &Connection, seq: Seq, depth: Depth) -> Result<Stored, Trouble> {
    let mut stored = Stored { seq, ..Stored::default() };
    let Ok(row) = i64::try_from(seq) else { return Ok(stored) };
    stored.closed = db
        .prepare_cached("SELECT hash, header, qc FROM ledger WHERE seq = ?1")?
        .query_row([row], |row| Ok(StoredClosed { hash: row.get(0)?, header: row.get(1)?, qc: row.get(2)? }))
        .optional()?;
    stored.result =
        db.prepare_cached("SELECT bytes FROM result WHERE seq = ?1")?.query_row([row], |row| row.get(0)).optional()?;
    stored.unl_change = db
        .prepare_cached("SELECT change FROM unl_change WHERE seq = ?1")?
        .query_row([row], |row| row.get(0))
        .optional()?;
    if depth == Depth::Closed {
        return Ok(stored);
    }
    stored.body = db
        .prepare_cached("SELECT inputs, users_add, users_del FROM body WHERE seq = ?1")?
        .query_row([row], |row| Ok(StoredBody { inputs: row.get(0)?, users_add: row.get(1)?, users_del: row.get(2)? }))
        .optional()?;
    stored.keys = db
        .prepare_cached("SELECT keys FROM input_key WHERE seq = ?1")?
        .query_row([row], |row| row.get(0))
        .optional()?;
    if depth == Depth::Users {
        return Ok(stored);
    }
    if let Some(body) = &stored.body {
        // A list that does not read has no inputs to look for; that is told where it is checked.
        let ids: Vec<Hash> = decode(&body.inputs, "the inputs of a ledger").unwrap_or_default();
        let mut query = db.prepare_cached("SELECT bytes FROM input WHERE id = ?1")?;
        for id in ids {
            stored.inputs.push(query.query_row([id.0], |row| row.get(0)).optional()?);
        }
    }
    stored.run =
        db.prepare_cached("SELECT outputs FROM run WHERE seq = ?1")?.query_row([row], |row| row.get(0)).optional()?;
    stored.outputs = db
        .prepare_cached("SELECT user, leaf, bytes FROM output WHERE seq = ?1 ORDER BY user")?
        .query_map(params![row], |row| Ok(StoredOutput { user: row.get(0)?, leaf: row.get(1)?, bytes: row.get(2)? }))?
        .collect::<Result<_, _>>()?;
    Ok(stored)
}
