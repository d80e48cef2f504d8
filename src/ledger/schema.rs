//! The tables, and how the file is created, opened and checked.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::{LedgerError, Trouble};

/// Of the tables below. One more with each change of them.
const SCHEMA_VERSION: i64 = 1;
/// "HPLG": says to `file` and to us whose file this is.
const APPLICATION_ID: i64 = 0x4850_4c47;
/// A larger file is not read through at start: only [`CHECKED_ALWAYS`] and what is loaded are checked then.
const CHECK_BYTES_MAX: u64 = 1 << 30;
/// The small tables that voting rests on.
const CHECKED_ALWAYS: [&str; 13] = [
    "meta",
    "ancestor_user",
    "ancestor_key",
    "unl_change",
    "round",
    "candidate",
    "user_tip",
    "user_executed",
    "user_base",
    "pooled",
    "result",
    "synced",
    "input_key",
];
/// Pages in the write-ahead log past which a commit moves them into the file itself, however busy the node is.
const WAL_PAGES_MAX: i64 = 4_096;
/// Length the write-ahead log is brought to for a running node: room for that many pages of 4 KiB with their headers.
const WAL_BYTES: u64 = 32 + WAL_PAGES_MAX as u64 * (24 + 4_096);
/// Prepared statements kept; more than there are.
const STATEMENTS_MAX: usize = 64;
/// Kibibytes of pages kept in memory.
const CACHE_KIB: i64 = 8_192;
/// How long a statement waits for another process that looks at the file: only while that one rebuilds the index of the
/// write-ahead log. Past it the statement fails as `InUse`.
const BUSY_TIME: Duration = Duration::from_secs(10);

/// Values are borsh, keys raw bytes, `seq` a ledger's number.
///
/// Input bytes are written once: `input` holds them from the moment they arrive until the body of their ledger is
/// deleted; `pooled` marks those that no ledger lists yet. `output.leaf` is the output's leaf of its ledger's
/// `outputs_root`: a proof needs all leaves of a ledger, and must not read all outputs for them. `synced` names ledgers
/// that were not run, or whose own result counts for nothing, because the state after the last of them was fetched;
/// `result` is the agreed one of that last one.
///
/// `user_base` are the users of the ledger before the oldest one whose body is kept, for nodes that go on from there. Bodies
/// of ledgers up to `base` of the meta value `join` count for nothing: this node has passed over ledgers since.
///
/// `ancestor_user` and `ancestor_key` (lists of keys, ascending from the first to the last) are what the genesis of a
/// recovered chain names by `users_root` and `keys_root`; they are kept for ever, like the genesis.
const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE ancestor_user (user BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE ancestor_key (n INTEGER PRIMARY KEY, keys BLOB NOT NULL) STRICT;
CREATE TABLE ledger (seq INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, header BLOB NOT NULL, qc BLOB NOT NULL) STRICT;
CREATE INDEX ledger_after_failure ON ledger (seq) WHERE substr(header, 331, 1) <> x'00';
CREATE TABLE body (
    seq INTEGER PRIMARY KEY, inputs BLOB NOT NULL, users_add BLOB NOT NULL, users_del BLOB NOT NULL) STRICT;
CREATE TABLE unl_change (seq INTEGER PRIMARY KEY, change BLOB NOT NULL) STRICT;
CREATE TABLE input (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, bytes BLOB NOT NULL) STRICT;
CREATE TABLE pooled (n INTEGER PRIMARY KEY, key BLOB NOT NULL) STRICT;
CREATE TABLE input_key (seq INTEGER PRIMARY KEY, keys BLOB NOT NULL) STRICT;
CREATE TABLE user_tip (user BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE user_executed (user BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE user_base (user BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE round (
    kind INTEGER NOT NULL, attempt INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (kind, attempt)
    ) STRICT, WITHOUT ROWID;
CREATE TABLE candidate (hash BLOB PRIMARY KEY NOT NULL, bytes BLOB NOT NULL) STRICT;
CREATE TABLE result (seq INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
CREATE TABLE synced (last INTEGER PRIMARY KEY, first INTEGER NOT NULL, result BLOB NOT NULL) STRICT;
CREATE TABLE run (seq INTEGER PRIMARY KEY, outputs INTEGER NOT NULL) STRICT;
CREATE TABLE output (
    seq INTEGER NOT NULL, user BLOB NOT NULL, leaf BLOB NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (seq, user)
    ) STRICT, WITHOUT ROWID;
CREATE INDEX output_user ON output (user);
CREATE TABLE evidence (
    n INTEGER PRIMARY KEY, signer BLOB NOT NULL, kind TEXT NOT NULL, seq INTEGER NOT NULL, attempt INTEGER NOT NULL,
    bytes BLOB NOT NULL, UNIQUE (signer, kind, seq, attempt)) STRICT;
";

/// Holds off other writers for as long as it lives, or its process does. Readers need no lock.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Not by closing it alone: a process that another thread begins at this moment has it, too, until it executes its program.
        let _ = self.file.unlock();
    }
}

/// Opens `dir`/hist/ledger.db, which nobody else may write meanwhile; creates it when it is missing.
pub(super) fn open(dir: &Path) -> Result<(Connection, PathBuf, Lock), LedgerError> {
    let hist = dir.join("hist");
    fs::create_dir_all(&hist).map_err(io_error("create", &hist))?;
    let path = hist.join("ledger.db");
    let lock = lock(&hist, &path)?;
    match fs::metadata(&path) {
        Ok(meta) if meta.len() == 0 => return Err(Trouble::Damaged("the file is empty".into()).at(&path, "open")),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(dir, &hist, &path)?,
        Err(error) => return Err(io_error("look at", &path)(error)),
    }
    match open_existing(&path) {
        Ok(db) => Ok((db, path, lock)),
        Err(trouble) => Err(trouble.at(&path, "open tables")),
    }
}

/// A lock of our own: SQLite's exclusive one would keep `hp ledger` from looking at the folder of a running node.
fn lock(hist: &Path, path: &Path) -> Result<Lock, LedgerError> {
    let name = hist.join("ledger.lock");
    let opened = File::options().create(true).truncate(false).write(true).open(&name);
    let file = opened.map_err(io_error("open", &name))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { file }),
        Err(TryLockError::WouldBlock) => Err(LedgerError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io_error("lock", &name)(error)),
    }
}

/// Opens `dir`/hist/ledger.db to look at it, whether its node runs or not. Changes nothing in it.
pub(super) fn open_to_read(dir: &Path) -> Result<(Connection, PathBuf), LedgerError> {
    let path = dir.join("hist/ledger.db");
    match fs::metadata(&path) {
        Ok(meta) if meta.len() == 0 => return Err(Trouble::Damaged("the file is empty".into()).at(&path, "open")),
        Ok(_) => {}
        Err(error) => return Err(io_error("look at", &path)(error)),
    }
    let looked_at = || -> Result<Connection, Trouble> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags)?;
        db.busy_timeout(BUSY_TIME)?;
        // What the node has in its write-ahead log is the node's to move.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        expect_ours(&db)?;
        set(&db, "trusted_schema", "OFF")?;
        set(&db, "cell_size_check", "ON")?;
        set(&db, "cache_size", &format!("-{CACHE_KIB}"))?;
        expect_tables(&db)?;
        Ok(db)
    };
    let db = looked_at().map_err(|trouble| trouble.at(&path, "open tables"))?;
    Ok((db, path))
}

/// Under another name first, so that a file of the right name is always whole: an empty one is then surely damage.
fn create(dir: &Path, hist: &Path, path: &Path) -> Result<(), LedgerError> {
    let wal = hist.join("ledger.db-wal");
    if wal.exists() {
        // SQLite would replay the old file's log into the new file.
        return Err(Trouble::Damaged("ledger.db-wal is there without it".into()).at(path, "create"));
    }
    let new = hist.join("ledger.db.new");
    for stale in [new.clone(), hist.join("ledger.db.new-journal")] {
        match fs::remove_file(&stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &stale)(error)),
            _ => {}
        }
    }
    let made = Connection::open(&new).and_then(|db| {
        db.execute_batch(&format!(
            "BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        ))?;
        db.close().map_err(|(_, error)| error)
    });
    made.map_err(|error| Trouble::Sql(error).at(&new, "create tables"))?;
    sync(&new)?;
    fs::rename(&new, path).map_err(io_error("rename", &new))?;
    sync(hist)?;
    sync(dir)
}

/// Fills the write-ahead log of a database that is open here up to the length it will reach anyway.
///
/// A commit into a file that need not grow costs the disk one write instead of two or three. SQLite takes what it has
/// not written itself, by its checksums, for the rest of an older log.
pub(super) fn preallocate(path: &Path) -> Result<(), LedgerError> {
    let wal = path.with_file_name("ledger.db-wal");
    let fill = || {
        // The lock is on the other file, so that closing this one gives up nothing.
        let mut file = File::options().append(true).open(&wal)?;
        let missing = WAL_BYTES.saturating_sub(file.metadata()?.len());
        io::copy(&mut io::repeat(0).take(missing), &mut file)?;
        file.sync_all()
    };
    fill().map_err(io_error("make room in", &wal))
}

pub(super) fn sync(path: &Path) -> Result<(), LedgerError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("write to disk", path))
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |error| LedgerError::Io { what, path: path.clone(), source: Arc::new(error) }
}

fn open_existing(path: &Path) -> Result<Connection, Trouble> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY_TIME)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    expect_ours(&db)?;
    if db.is_readonly("main")? {
        return Err(Trouble::ReadOnly);
    }
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Trouble::damaged(format!("it cannot be written ahead (journal mode {mode})"));
    }
    set(&db, "synchronous", "FULL")?;
    // Elsewhere than on macOS without effect; there an ordinary fsync stops at the drive's cache.
    set(&db, "fullfsync", "ON")?;
    set(&db, "checkpoint_fullfsync", "ON")?;
    set(&db, "foreign_keys", "OFF")?;
    set(&db, "trusted_schema", "OFF")?;
    set(&db, "cell_size_check", "ON")?;
    set(&db, "temp_store", "MEMORY")?;
    set(&db, "cache_size", &format!("-{CACHE_KIB}"))?;
    set(&db, "wal_autocheckpoint", &WAL_PAGES_MAX.to_string())?;
    check_length(&db, path)?;
    check(&db, fs::metadata(path).is_ok_and(|meta| meta.len() <= CHECK_BYTES_MAX))?;
    Ok(db)
}

/// Whether this program wrote the file, or an older one.
fn expect_ours(db: &Connection) -> Result<(), Trouble> {
    match get(db, "application_id")? {
        APPLICATION_ID => {}
        other => return Trouble::damaged(format!("application id {other:#x} is not ours")),
    }
    match get(db, "user_version")? {
        SCHEMA_VERSION => Ok(()),
        found if found > SCHEMA_VERSION => Err(Trouble::Newer { found, known: SCHEMA_VERSION }),
        found => Trouble::damaged(format!("schema version {found} never was")),
    }
}

fn expect_tables(db: &Connection) -> Result<(), Trouble> {
    if tables(db)? == tables(&fresh()?)? {
        return Ok(());
    }
    Trouble::damaged("its tables are not those of this schema version")
}

/// Whether the file has whole pages. SQLite finds out when any of them is missing, but reads zeros for what is missing
/// of the last one. A crash may cut that one too; then the write-ahead log still has it.
fn check_length(db: &Connection, path: &Path) -> Result<(), Trouble> {
    let page = u64::try_from(get(db, "page_size")?).unwrap_or(1).max(1);
    // A file that cannot be looked at cannot be read either, which is told where it is.
    let cut = || fs::metadata(path).map_or(0, |meta| meta.len() % page);
    if cut() == 0 {
        return Ok(());
    }
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    match cut() {
        0 => Ok(()),
        rest => Trouble::damaged(format!("its last page has {rest} of {page} bytes: the file was cut")),
    }
}

/// Whether the tables are the right ones, and the pages under them sound: under all (`whole`) or under the small ones.
fn check(db: &Connection, whole: bool) -> Result<(), Trouble> {
    expect_tables(db)?;
    let pragmas: Vec<String> = match whole {
        true => vec!["PRAGMA quick_check(1)".into()],
        false => CHECKED_ALWAYS.iter().map(|table| format!("PRAGMA quick_check({table})")).collect(),
    };
    for pragma in pragmas {
        let verdict: String = db.query_row(&pragma, [], |row| row.get(0))?;
        if verdict != "ok" {
            return Trouble::damaged(verdict);
        }
    }
    Ok(())
}

fn fresh() -> Result<Connection, rusqlite::Error> {
    let db = Connection::open_in_memory()?;
    db.execute_batch(SCHEMA)?;
    Ok(db)
}

fn tables(db: &Connection) -> Result<Vec<(String, Option<String>)>, rusqlite::Error> {
    db.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

fn get(db: &Connection, pragma: &str) -> Result<i64, rusqlite::Error> {
    db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))
}

/// Some pragmas answer with a row, some do not.
fn set(db: &Connection, pragma: &str, value: &str) -> Result<(), rusqlite::Error> {
    db.execute_batch(&format!("PRAGMA {pragma} = {value};"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_has_its_small_tables_checked_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (db, path, _lock) = open(dir.path()).unwrap();
        db.execute_batch(
            "INSERT INTO input (id, bytes) VALUES (X'01', zeroblob(3000)), (X'02', zeroblob(3000));
             INSERT INTO result (seq, bytes) VALUES (1, zeroblob(3000)), (2, zeroblob(3000));",
        )
        .unwrap();
        check(&db, false).unwrap();
        let page = |table: &str| -> u32 {
            db.query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [table], |row| row.get(0)).unwrap()
        };
        let (input, result) = (page("input") as usize, page("result") as usize);
        db.close().unwrap();
        let whole = fs::read(&path).unwrap();
        for (page, small_ok) in [(input, true), (result, false)] {
            let mut bytes = whole.clone();
            bytes[(page - 1) * 4096 + 8..page * 4096].fill(0xff);
            fs::write(&path, bytes).unwrap();
            let db = Connection::open(&path).unwrap();
            assert_eq!(check(&db, false).is_ok(), small_ok, "page {page}");
            assert!(check(&db, true).is_err(), "page {page}");
        }
    }
}
