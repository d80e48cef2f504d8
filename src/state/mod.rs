//! The contract's files: Merkle root, snapshot, roll back.
//!
//! Blocking: the caller gives a [`State`] a thread of its own. All of it assumes that no contract runs meanwhile.
//!
//! # The root, byte for byte
//!
//! BLAKE3 in its key derivation mode with the context strings below, written `B(context, bytes)`. Integers are
//! little-endian.
//!
//! - A *block* is 64 KiB of a file, the last one what is left: `B("hp/state/block/1", bytes)`. An empty file has none.
//! - A *leaf* stands for each path below `state/`, the folder `state/` itself excepted:
//!   `B("hp/state/leaf/1", u32 length of path || path || u8 kind || u8 executable || u64 size || 32 bytes root)`.
//!   The path is its bytes as the file system has them, relative to `state/`, parts joined by `/`, no `/` at either
//!   end. Kind is 0 for a file, 1 for a folder, 2 for a symlink.
//!   - file: executable is 1 when the owner's executable bit is set, else 0; size in bytes; root of the tree over its
//!     blocks.
//!   - folder: executable 0, size 0, root 32 zero bytes.
//!   - symlink: executable 0, size of the target in bytes, root = the target as one block.
//! - Leaves are sorted by path, as bytes: `a-b` stands before `a/b`, as `-` is less than `/`.
//! - A *tree* over a list of hashes: two neighbours become `B("hp/state/node/1", left || right)`, level by level; an
//!   odd last node moves up as it is. The root of a single hash is that hash, the root of none is 32 zero bytes.
//! - The *state root* is the tree over the leaves.
//!
//! Times, owners, link counts and all other mode bits do not count.
//!
//! # What is forbidden
//!
//! Alike on every node, so that it can be voted as `Limit(State)`: see [`Forbidden`].
//!
//! # The copy
//!
//! `hist/shadow/copy/` holds the pre-state of the last run, `hist/shadow/intent` says what it is worth. Copies only,
//! never hard links: a contract that writes in place must not reach them. Only blocks that differ are written.

mod cache;
mod diagnosis;
mod disk;
mod merkle;
mod scan;
mod shadow;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

use tracing::warn;

pub use self::{
    diagnosis::{DIAGNOSES_MAX, DIAGNOSIS_BYTES_MAX, DIAGNOSIS_ENTRIES_MAX},
    merkle::BLOCK_BYTES,
    scan::{BYTES_MAX, ENTRIES_MAX, PATH_BYTES_MAX},
};
use self::{
    disk::{Disk, at},
    scan::{Index, Stat, Totals},
    shadow::{Intent, IntentFile, Modes, mirror, prune},
};
use crate::types::{Hash, Seq};

/// What `state/` must not hold, because nodes could not agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Forbidden {
    /// A block or character device.
    #[error("a device")]
    Device,
    /// A unix socket.
    #[error("a socket")]
    Socket,
    /// A named pipe.
    #[error("a fifo")]
    Fifo,
    /// A file with a second name anywhere: writing to one would change the other.
    #[error("a hard link")]
    HardLink,
    /// A symlink that is absolute, has a `..` behind a name, or leads above `state/`.
    #[error("a symlink that may leave state/")]
    Escape,
    /// The path named holds one of over [`PATH_BYTES_MAX`] bytes.
    #[error("holding too long a path")]
    LongPath,
    /// The first of more than [`ENTRIES_MAX`] paths, in no order.
    #[error("one of too many files")]
    TooMany,
    /// With this path the files have over [`BYTES_MAX`] bytes.
    #[error("one of too big files")]
    TooBig,
    /// `state/` itself is missing, or no folder.
    #[error("not a folder")]
    NoFolder,
}

impl Forbidden {
    fn at(self, path: &[u8]) -> StateError {
        StateError::Forbidden { path: PathBuf::from(OsStr::from_bytes(path)), kind: self }
    }
}

/// Why the state could not be hashed, kept or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refused.
    #[error("cannot {op} {path:?}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The contract left something that nodes cannot agree on. The caller votes `Limit(State)` and rolls back.
    #[error("state/{} is {kind}, which nodes cannot agree on", .path.display())]
    Forbidden {
        /// Relative to `state/`.
        path: PathBuf,
        /// What it is.
        kind: Forbidden,
    },
    /// A file changed while it was read, or since the last scan: something runs that should not.
    #[error("{path:?} was changed by somebody meanwhile")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The files are not those they should be: the disk lies, or somebody changed them.
    #[error("the root of {path:?} is {found}, not {expected}")]
    Root {
        /// The folder.
        path: PathBuf,
        /// The root it should have.
        expected: Hash,
        /// The root it has.
        found: Hash,
    },
    /// A snapshot of something that was not hashed since it was changed.
    #[error("state/ was not scanned since it changed")]
    NotScanned,
    /// There is no finished copy to roll back to.
    #[error("no copy of the state to roll back to")]
    NoSnapshot,
    /// A roll back began and failed; until it succeeds `state/` is neither the one nor the other.
    #[error("a roll back of the state to ledger {seq} is unfinished")]
    Unfinished {
        /// The run whose pre-state is being restored.
        seq: Seq,
    },
    /// Neither of the two intent records is whole, so that nothing says which of the folders is right.
    #[error("{path:?} is damaged")]
    Intent {
        /// The record.
        path: PathBuf,
    },
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The state root.
    pub root: Hash,
    /// Paths (bytes, relative to `state/`, sorted) that changed, came or went since the last scan that succeeded or
    /// roll back. After `open`: since the cache was saved, or all.
    pub changed: Vec<Vec<u8>>,
    /// Files, folders and symlinks.
    pub files: u64,
    /// Bytes of all files, holes counted.
    pub bytes: u64,
    /// Bytes that had to be read for this.
    pub read: u64,
}

/// The contract's folder `state/` and the copy of its pre-state.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    disk: Disk,
    live: Index,
    /// The copy as it is on the disk; `None` when it has to be looked at first.
    copy: Option<Index>,
    intent: IntentFile,
    /// A file that is written to learn the file system's time.
    clock: File,
    clock_path: PathBuf,
    /// The root of the last scan; `None` when the last one failed.
    scanned: Option<Hash>,
    /// Paths at which `live` and `copy` may differ; `None` when all must be compared.
    dirty: Option<BTreeSet<Vec<u8>>>,
}

impl State {
    /// Opens the contract folder `dir`: the state in `dir/state`, the copy in `dir/hist/shadow/`, both created when
    /// missing. Finishes a snapshot or a roll back that a crash cut.
    ///
    /// Reads the copy whole, but for what [`State::save_cache`] kept of it. A finished copy that is damaged counts as none (and is logged); a cut snapshot or roll
    /// back that cannot be finished because the right one of the folders is damaged is [`StateError::Root`].
    pub fn open(dir: &Path) -> Result<State, StateError> {
        State::open_on(dir, Disk::default())
    }

    fn open_on(dir: &Path, disk: Disk) -> Result<State, StateError> {
        let shadow = dir.join("hist/shadow");
        ensure_dir(&disk, &dir.join("state"))?;
        ensure_dir(&disk, &dir.join("hist"))?;
        ensure_dir(&disk, &shadow)?;
        ensure_dir(&disk, &shadow.join("copy"))?;
        let intent = IntentFile::open(&disk, &shadow.join("intent"))?;
        let clock_path = shadow.join("clock");
        let clock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&clock_path)
            .map_err(at("open", &clock_path))?;
        let mut state = State {
            dir: dir.to_path_buf(),
            disk,
            live: Index::new(dir.join("state")),
            copy: None,
            intent,
            clock,
            clock_path,
            scanned: None,
            dirty: None,
        };
        let mut copy = Index::new(shadow.join("copy"));
        cache::load(&state.cache_path(), &mut state.live, &mut copy);
        match state.intent.intent {
            Intent::Empty => {}
            Intent::Clean { root, .. } => match state.read_copy(copy, root) {
                Ok(copy) => state.copy = Some(copy),
                Err(error) => warn!(%error, "the copy of the state is damaged; there is no pre-state to roll back to"),
            },
            Intent::Updating { seq, root } => {
                state.scan(true)?;
                state.snapshot(seq, root)?;
            }
            Intent::RollingBack { root, .. } => {
                state.copy = Some(state.read_copy(copy, root)?);
                state.rollback()?;
            }
        }
        Ok(state)
    }

    /// The root of `state/` as it is now, reading only what may have changed since the last scan.
    ///
    /// With `durable`, everything hashed is on the disk when this returns. [`StateError::Forbidden`] when the contract
    /// left something that cannot be agreed on. Gives the owner back the right to read (0400) where a file lacks it,
    /// and all rights (0700) to folders.
    pub fn scan(&mut self, durable: bool) -> Result<Scan, StateError> {
        if let Intent::RollingBack { seq, .. } = self.intent.intent {
            return Err(StateError::Unfinished { seq });
        }
        let Totals { entries, bytes, read } = self.scan_live()?;
        if durable {
            self.live.sync(&self.disk)?;
        }
        let changed = self.live.take_changed();
        let root = self.live.root();
        let scan = Scan { root, changed: changed.iter().cloned().collect(), files: entries, bytes, read };
        if let Some(dirty) = &mut self.dirty {
            dirty.extend(changed);
        }
        self.scanned = Some(scan.root);
        Ok(scan)
    }

    /// Makes the next scan read every byte again, whatever the stamps of the files say.
    pub fn distrust(&mut self) {
        self.live.distrust();
    }

    /// Makes the copy equal to `state/` as of the last scan, which gave `root`: the pre-state of the run of `seq`.
    ///
    /// Durable, `state/` included. Writes only what changed since the last snapshot. After an error there is no
    /// snapshot until a later call succeeds: the contract must not run, and `state/` must not change.
    pub fn snapshot(&mut self, seq: Seq, root: Hash) -> Result<(), StateError> {
        if let Intent::RollingBack { seq, .. } = self.intent.intent {
            return Err(StateError::Unfinished { seq });
        }
        let found = self.scanned.ok_or(StateError::NotScanned)?;
        expect_root(self.live.top(), root, found)?;
        self.live.sync(&self.disk)?;

        let unchanged = matches!(self.intent.intent, Intent::Clean { root: old, .. } if old == root);
        if !(unchanged && self.copy.is_some()) {
            self.intent.write(&self.disk, Intent::Updating { seq, root })?;
            // Taken out: should this fail, the copy is looked at again.
            let copy = match (self.copy.take(), self.dirty.take()) {
                (Some(mut copy), Some(dirty)) => {
                    mirror(&self.disk, &self.live, &mut copy, &dirty, Modes::Copy)?;
                    copy
                }
                (copy, _) => self.whole_copy(copy)?,
            };
            expect_root(copy.top(), root, copy.root())?;
            self.copy = Some(copy);
        }
        self.dirty = Some(BTreeSet::new());
        self.intent.write(&self.disk, Intent::Clean { seq, root })
    }

    /// The run whose pre-state the copy holds, and its root; `None` when there is no finished copy.
    pub fn snapshot_info(&self) -> Option<(Seq, Hash)> {
        match self.intent.intent {
            Intent::Clean { seq, root } if self.copy.is_some() => Some((seq, root)),
            _ => None,
        }
    }

    /// Makes `state/` equal to the copy again, whatever the contract left there, and returns its root. Durable.
    ///
    /// [`StateError::NoSnapshot`] when there is no finished copy. After any other error `state/` is between the two:
    /// call again, or open again.
    pub fn rollback(&mut self) -> Result<Hash, StateError> {
        let (seq, root) = match self.intent.intent {
            Intent::Clean { seq, root } | Intent::RollingBack { seq, root } => (seq, root),
            Intent::Empty | Intent::Updating { .. } => return Err(StateError::NoSnapshot),
        };
        let copy = self.copy.take().ok_or(StateError::NoSnapshot)?;
        let done = self.restore(&copy, seq, root);
        self.copy = Some(copy);
        done.map(|()| root)
    }

    fn restore(&mut self, copy: &Index, seq: Seq, root: Hash) -> Result<(), StateError> {
        self.scanned = None;
        self.dirty = None;
        if !matches!(self.intent.intent, Intent::RollingBack { .. }) {
            self.intent.write(&self.disk, Intent::RollingBack { seq, root })?;
        }
        prune(&self.disk, self.live.top(), copy)?;
        self.scan_live()?;
        let differing = differing(copy, &self.live);
        mirror(&self.disk, copy, &mut self.live, &differing, Modes::State)?;
        self.scan_live()?;
        self.live.sync(&self.disk)?;
        expect_root(self.live.top(), root, self.live.root())?;
        self.intent.write(&self.disk, Intent::Clean { seq, root })?;
        self.live.take_changed();
        self.scanned = Some(root);
        self.dirty = Some(BTreeSet::new());
        Ok(())
    }

    /// The first `max` leaves of the last scan as (path, leaf hash), by path: what tells two nodes where they differ.
    pub fn leaves(&self, max: usize) -> Vec<(Vec<u8>, Hash)> {
        self.live.entries.iter().take(max).map(|(path, entry)| (path.clone(), entry.hash)).collect()
    }

    /// Copies `state/` to `diag/<seq>/state/`, so that an operator can look at it after a roll back, and returns
    /// `diag/<seq>`. What differs from the pre-state comes first; `diag/<seq>/omitted.txt` lists what was left out.
    ///
    /// Bounded by [`DIAGNOSIS_ENTRIES_MAX`] and [`DIAGNOSIS_BYTES_MAX`]; of all diagnoses the last [`DIAGNOSES_MAX`]
    /// are kept. Not durable.
    pub fn keep_diagnosis(&self, seq: Seq) -> Result<PathBuf, StateError> {
        diagnosis::keep(&self.dir, &self.live, self.copy.as_ref(), seq)
    }

    /// Keeps what is known of the files for the next `open`, which then reads only what changed. For an orderly stop;
    /// without it the next `open` is slower, and no different. Linux only: elsewhere it does nothing.
    pub fn save_cache(&self) -> Result<(), StateError> {
        cache::save(&self.disk, &self.cache_path(), &self.live, self.copy.as_ref(), self.now_ns()?)
    }

    fn scan_live(&mut self) -> Result<Totals, StateError> {
        self.scanned = None;
        let now_ns = self.now_ns()?;
        self.live.scan(&self.disk, now_ns)
    }

    /// The file system's own time, in the ticks that it stamps files with.
    fn now_ns(&self) -> Result<i128, StateError> {
        self.clock.write_all_at(b".", 0).map_err(at("write", &self.clock_path))?;
        let meta = self.clock.metadata().map_err(at("look at", &self.clock_path))?;
        Ok(Stat::of(&meta).mtime_ns())
    }

    fn copy_top(&self) -> PathBuf {
        self.dir.join("hist/shadow/copy")
    }

    fn cache_path(&self) -> PathBuf {
        self.dir.join("hist/shadow/cache")
    }

    /// Reads the copy, which must have this root.
    fn read_copy(&self, mut copy: Index, root: Hash) -> Result<Index, StateError> {
        copy.scan(&self.disk, self.now_ns()?)?;
        expect_root(copy.top(), root, copy.root())?;
        Ok(copy)
    }

    /// Makes the copy equal to `state/` by comparing everything; without a known copy, with what is on the disk.
    fn whole_copy(&self, known: Option<Index>) -> Result<Index, StateError> {
        let mut copy = match known {
            Some(copy) => copy,
            None => {
                let mut copy = Index::new(self.copy_top());
                prune(&self.disk, copy.top(), &self.live)?;
                copy.scan(&self.disk, self.now_ns()?)?;
                copy
            }
        };
        let differing = differing(&self.live, &copy);
        mirror(&self.disk, &self.live, &mut copy, &differing, Modes::Copy)?;
        Ok(copy)
    }
}

/// Creates a folder where nothing is, durably.
fn ensure_dir(disk: &Disk, path: &Path) -> Result<(), StateError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => return Ok(()),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => disk.create_dir(path)?,
        Err(other) => return Err(at("look at", path)(other)),
    }
    path.parent().map_or(Ok(()), |above| disk.sync_path(above))
}

/// All paths whose leaf is not the same in both.
fn differing(one: &Index, other: &Index) -> BTreeSet<Vec<u8>> {
    let missing = |from: &Index, path: &Vec<u8>, leaf| from.entries.get(path).is_none_or(|found| found.leaf != leaf);
    let changed = one.entries.iter().filter(|(path, entry)| missing(other, path, entry.leaf));
    let gone = other.entries.iter().filter(|(path, _)| !one.entries.contains_key(*path));
    changed.chain(gone).map(|(path, _)| path.clone()).collect()
}

fn expect_root(path: &Path, expected: Hash, found: Hash) -> Result<(), StateError> {
    if expected == found { Ok(()) } else { Err(StateError::Root { path: path.to_path_buf(), expected, found }) }
}
