//! The contract's files: Merkle root, snapshot, roll back.
//!
//! Blocking: the caller gives a [`StateStore`] a thread of its own. All of it assumes that no contract runs meanwhile.
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
//! # How it is kept
//!
//! Behind one trait, [`StateStore`], are two ways to get back to the state before a run: [`Backend::Shadow`] (a copy)
//! and [`Backend::Overlay`] (the run writes into a folder of its own). The root is the same with both.

mod aside;
mod cache;
mod clock;
#[cfg(all(test, target_os = "linux"))]
mod conformance;
mod diagnosis;
mod disk;
pub mod folder;
mod intent;
mod merkle;
mod mirror;
#[cfg(target_os = "linux")]
mod overlay;
mod pin;
#[cfg(target_os = "linux")]
mod plan;
mod replica;
mod scan;
mod shadow;
pub mod sync;
#[cfg(test)]
mod tests;
#[cfg(target_os = "linux")]
mod upper;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::libc;
use tracing::info;

use self::{
    aside::put_aside,
    disk::{Disk, at},
    mirror::remove_tree,
    shadow::Shadow,
    sync::{Local, Stage, Target},
};
pub use self::{
    aside::{DAMAGED, drop_fetched},
    diagnosis::{BEFORE_BYTES_MAX, BEFORE_FILE_BYTES_MAX, Before, DIAGNOSIS_ENTRIES_MAX, Extent},
    merkle::{BLOCK_BYTES, block_hash, is_in_tree, root_of},
    pin::{PIN_KEPT_BYTES_MAX, PINS_MAX, PathFound, Pin},
    replica::Replica,
    scan::{BYTES_MAX, ENTRIES_MAX, PATH_BYTES_MAX},
};
use crate::{
    consensus::details::{Known, PathState},
    types::{Hash, Seq},
};

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
    /// [`PINS_MAX`] states are pinned already.
    #[error("{} states are pinned already; one has to be let go first", PINS_MAX)]
    TooManyPins,
    /// What was pinned cannot be read any more: too much has changed since, or the disk is full.
    #[error("the pinned state {root} is lost; take another")]
    PinLost {
        /// Its root.
        root: Hash,
    },
    /// What a quorum's root stands for cannot be a state: more than the bound of faulty nodes agreed on it.
    #[error("the state {root} that the network agreed on cannot be: {:?}", String::from_utf8_lossy(.path))]
    NoState {
        /// Its root.
        root: Hash,
        /// The first path that cannot be.
        path: Vec<u8>,
    },
    /// The backend asked for is none of this system's.
    #[error("state_backend \"{0}\" does not exist on this system")]
    NoBackend(Backend),
}

impl StateError {
    /// Whether what is on the disk is not what was left there, while the machine reads and writes it well: then another
    /// node's state heals it.
    pub fn is_damage(&self) -> bool {
        use io::ErrorKind::{
            AlreadyExists, DirectoryNotEmpty, InvalidData, IsADirectory, NotADirectory, NotFound, UnexpectedEof,
        };
        match self {
            StateError::Io { source, .. } => match source.kind() {
                AlreadyExists | DirectoryNotEmpty | InvalidData | IsADirectory | NotADirectory | NotFound
                | UnexpectedEof => true,
                // A symlink, or a socket, in the place of a file.
                _ => matches!(source.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)),
            },
            StateError::Forbidden { .. }
            | StateError::Changed { .. }
            | StateError::Root { .. }
            | StateError::NotScanned
            | StateError::NoSnapshot
            | StateError::Unfinished { .. }
            | StateError::Intent { .. } => true,
            StateError::TooManyPins
            | StateError::PinLost { .. }
            | StateError::NoState { .. }
            | StateError::NoBackend(_) => false,
        }
    }

    /// Whether the disk, or the share of it that this user has, is full.
    pub fn is_full(&self) -> bool {
        let full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, StateError::Io { source, .. } if full(source.kind()))
    }
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

/// What a state may have after a run, alike on all nodes. 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// Bytes of all files, holes counted.
    pub bytes: u64,
    /// Files, folders and symlinks.
    pub files: u64,
}

impl Quota {
    /// Whether a state of this size is within it.
    pub fn allows(&self, found: &Scan) -> bool {
        let within = |has: u64, most: u64| most == 0 || has <= most;
        within(found.bytes, self.bytes) && within(found.files, self.files)
    }
}

/// A way to keep `state/` and to get back to what it was before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The contract works in `state/` itself; a copy holds the state before. Everywhere.
    Shadow,
    /// The run's changes go to a folder of their own, which Linux lays over `state/` for the run alone.
    Overlay,
}

impl Backend {
    /// Its folder in `hist/`, and its name in the configuration.
    fn name(self) -> &'static str {
        match self {
            Backend::Shadow => "shadow",
            Backend::Overlay => "overlay",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a run must see at `target` instead of what is there: `lower` with all changes going to `upper`. Paths are
/// relative to the contract folder and free of characters that a mount option gives a meaning to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunMount {
    /// Where the contract finds its state.
    pub target: &'static str,
    /// What stays as it is.
    pub lower: &'static str,
    /// Where changes go.
    pub upper: &'static str,
    /// A scratch folder of the kernel's, on the same file system as `upper`.
    pub work: &'static str,
}

/// The contract's folder `state/`, and the way back to its pre-state: the state before the last run.
///
/// A run is: `snapshot`, `begin_run`, the contract, then `scan` or `rollback`. Whatever cuts it, and however often,
/// the next `open` finds exactly the pre-state, or exactly the post-state with the pre-state to roll back to.
pub trait StateStore: fmt::Debug + Send {
    /// Which this is.
    fn backend(&self) -> Backend;

    /// The root of `state/` as it is now, reading only what may have changed since the last scan.
    ///
    /// With `durable`, everything hashed is on the disk when this returns. [`StateError::Forbidden`] when the contract
    /// left something that cannot be agreed on. Gives the owner back the right to read (0400) where a file lacks it,
    /// and all rights (0700) to folders.
    fn scan(&mut self, durable: bool) -> Result<Scan, StateError>;

    /// Makes the next scan of all of `state/` read every byte again, whatever the stamps of the files say.
    fn distrust(&mut self);

    /// Makes `state/` as of the last scan, which gave `root`, the pre-state of the run of `seq`.
    ///
    /// Durable, `state/` included. Writes only what changed since the last snapshot. After an error there may be no
    /// snapshot until a later call succeeds: the contract must not run, and `state/` must not change.
    fn snapshot(&mut self, seq: Seq, root: Hash) -> Result<(), StateError>;

    /// The run whose pre-state can be rolled back to, and its root; `None` when there is none.
    fn snapshot_info(&self) -> Option<(Seq, Hash)>;

    /// Makes ready for the contract, which may start when this returns; what it must see mounted, if anything.
    ///
    /// Needs a snapshot of what `state/` now is: [`StateError::NotScanned`] otherwise.
    fn begin_run(&mut self) -> Result<Option<RunMount>, StateError>;

    /// Pins the pre-state, so that it can be read while this and later runs go on: see [`Pin`]. Takes a moment in
    /// proportion to the number of files and blocks, whatever they hold; no file is read.
    ///
    /// [`StateError::NoSnapshot`] when there is no pre-state, [`StateError::TooManyPins`] when too many are pinned.
    fn pin(&mut self) -> Result<Pin, StateError>;

    /// The same of `state/` as of the last scan. No run may be under way; later ones may be.
    ///
    /// A roll back may lose it: then it is the state of a run that has no effect.
    fn pin_now(&mut self) -> Result<Pin, StateError>;

    /// What is here of a state that is to be fetched. Reads every byte again, whatever the stamps say, and passes over
    /// what cannot be read. The state may be anything.
    fn survey(&mut self) -> Result<Local, StateError>;

    /// Makes `target` the state and the pre-state of the run of `seq`. Everything of it that was not in its place when
    /// [`StateStore::survey`] looked must be in `stage`.
    ///
    /// Durable. After an error, or a crash, `state/` is the old one, or the next `open` makes it the new one.
    fn adopt(&mut self, seq: Seq, target: &Target, stage: &Stage) -> Result<(), StateError>;

    /// Makes `state/` the pre-state again, whatever the contract left, and returns its root. Durable.
    ///
    /// [`StateError::NoSnapshot`] when there is no pre-state. After any other error `state/` is between the two: call
    /// again, or open again.
    fn rollback(&mut self) -> Result<Hash, StateError>;

    /// The first `max` leaves of the last scan as (path, leaf hash), by path: what tells two states apart.
    fn leaves(&self, max: usize) -> Vec<(Vec<u8>, Hash)>;

    /// What the last scan found at `path`; `None` for nothing.
    fn leaf(&self, path: &[u8]) -> Option<PathState>;

    /// The same of each of `paths`, with its blocks and the way from there to the root. Goes through all of the state.
    fn found(&self, paths: &BTreeSet<Vec<u8>>) -> BTreeMap<Vec<u8>, Known>;

    /// Paths at which `state/` is not the pre-state, by the last scan; `None` when there is no pre-state.
    fn changed(&self) -> Option<BTreeSet<Vec<u8>>>;

    /// What was at a path of [`StateStore::changed`] in the pre-state.
    fn before(&self, path: &[u8]) -> Before;

    /// Copies the files of `changed` to `into/state/`, as they are now, and with [`Extent::whole`] all others behind them;
    /// and to `into/before/` the small ones of `changed` as they were before the run. `into/omitted.txt` lists what was
    /// left out: what is no file or folder, and what is too much.
    ///
    /// Bounded by [`DIAGNOSIS_ENTRIES_MAX`] and `extent`. Not durable.
    fn keep_diagnosis(&self, into: &Path, changed: &BTreeSet<Vec<u8>>, extent: Extent) -> Result<(), StateError>;

    /// Keeps what is known of the files for the next `open`, which then reads only what changed. For an orderly stop;
    /// without it the next `open` is slower, and no different. Linux only: elsewhere it does nothing.
    fn save_cache(&self) -> Result<(), StateError>;
}

/// Opens the contract folder `dir`: the state in `dir/state`, what the backend needs in `dir/hist/`, both created when
/// missing. Finishes what a crash cut.
///
/// `expected` is the root by the chain, if there is a chain: when the folder was kept by the other backend until now,
/// and that one can roll back to `expected`, it does so before it is retired.
pub fn open(dir: &Path, backend: Backend, expected: Option<Hash>) -> Result<Box<dyn StateStore>, StateError> {
    let other = match backend {
        Backend::Shadow => Backend::Overlay,
        Backend::Overlay => Backend::Shadow,
    };
    let disk = Disk::default();
    let left = dir.join("hist").join(other.name());
    if std::fs::symlink_metadata(&left).is_ok() {
        let mut old = open_backend(dir, other)?;
        if let (Some((_, root)), Some(expected)) = (old.snapshot_info(), expected)
            && root == expected
        {
            old.rollback()?;
        }
        drop(old);
        info!(from = %other, to = %backend, "the state is kept in another way from now on");
        // Under a name of no meaning first: a folder that is half gone must not be opened again.
        let retired = dir.join("hist/.retired");
        if std::fs::symlink_metadata(&retired).is_ok() {
            remove_tree(&disk, &dir.join("hist"), retired.clone())?;
        }
        disk.rename(&left, &retired)?;
        disk.sync_path(&dir.join("hist"))?;
        remove_tree(&disk, &dir.join("hist"), retired)?;
    }
    open_backend(dir, backend)
}

/// The same for a node that can fetch a state: what is damaged of the records is put aside in [`DAMAGED`], and told. What
/// `state/` is then, and whether anything is to be fetched, a scan says.
pub fn open_or_put_aside(
    dir: &Path,
    backend: Backend,
    expected: Option<Hash>,
) -> Result<(Box<dyn StateStore>, Option<StateError>), StateError> {
    match open(dir, backend, expected) {
        Err(damage) if damage.is_damage() => {
            put_aside(&Disk::default(), dir)?;
            open(dir, backend, expected).map(|store| (store, Some(damage)))
        }
        opened => opened.map(|store| (store, None)),
    }
}

#[cfg(target_os = "linux")]
fn open_backend(dir: &Path, backend: Backend) -> Result<Box<dyn StateStore>, StateError> {
    Ok(match backend {
        Backend::Shadow => Box::new(Shadow::open(dir)?),
        Backend::Overlay => Box::new(overlay::Overlay::open(dir)?),
    })
}

#[cfg(not(target_os = "linux"))]
fn open_backend(dir: &Path, backend: Backend) -> Result<Box<dyn StateStore>, StateError> {
    match backend {
        Backend::Shadow => Ok(Box::new(Shadow::open(dir)?)),
        Backend::Overlay => Err(StateError::NoBackend(backend)),
    }
}

/// What [`make_probe`] makes.
const PROBE: RunMount = RunMount {
    target: "hist/probe/lower",
    lower: "hist/probe/lower",
    upper: "hist/probe/upper",
    work: "hist/probe/work",
};

/// Folders to try a mount with, as a run of [`Backend::Overlay`] has them; `None` where none can work.
pub fn make_probe(dir: &Path) -> Result<Option<RunMount>, StateError> {
    let disk = Disk::default();
    drop_probe(dir)?;
    for folder in ["state", "hist", "hist/probe", PROBE.lower, PROBE.upper, PROBE.work] {
        ensure_dir(&disk, &dir.join(folder))?;
    }
    let device = |folder: &str| {
        let path = dir.join(folder);
        std::fs::symlink_metadata(&path).map(|meta| meta.dev()).map_err(at("look at", &path))
    };
    let one = device("state")? == device(PROBE.upper)?;
    if !(one && cfg!(target_os = "linux")) {
        drop_probe(dir)?;
        return Ok(None);
    }
    Ok(Some(PROBE))
}

/// Removes what [`make_probe`] made.
pub fn drop_probe(dir: &Path) -> Result<(), StateError> {
    let probe = dir.join("hist/probe");
    if std::fs::symlink_metadata(&probe).is_err() {
        return Ok(());
    }
    remove_tree(&Disk::default(), &dir.join("hist"), probe)
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

fn expect_root(path: &Path, expected: Hash, found: Hash) -> Result<(), StateError> {
    if expected == found { Ok(()) } else { Err(StateError::Root { path: path.to_path_buf(), expected, found }) }
}
