//! The portable backend: the contract works in `state/` itself, and a copy holds the state before.
//!
//! `hist/shadow/copy/` holds the pre-state of the last run, `hist/shadow/intent` says what it is worth. Copies only,
//! never hard links: a contract that writes in place must not reach them. Only blocks that differ are written.
//!
//! # What is read
//!
//! After a run every path is looked at (`stat`), and a file is read when its stamps say that it may have changed; that
//! is known exactly. *Which* of its blocks changed is known only by reading all of it: no system tells what a program
//! wrote, least of all through a mapping. So a change of 4 KB costs reading and hashing its file, and writing one
//! block of 64 KiB to the copy, as the hashes of all blocks are remembered. A file of a few gigabytes that changes
//! each round makes the rounds slow; the same in files of a megabyte does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};
use tracing::warn;

use super::{
    Backend, RunMount, Scan, StateError, StateStore, cache,
    clock::Clock,
    diagnosis::{self, Before, Extent},
    disk::Disk,
    ensure_dir, expect_root,
    intent::{IntentFile, Record},
    merkle::Kind,
    mirror::{Modes, mirror, mirror_from, prune},
    pin::{Pin, Pins},
    scan::{Index, Totals},
    sync::{Local, Stage, Staged, Target, clear, clear_adopted, local_of},
};
use crate::{
    consensus::details::{Known, PathState},
    types::{Hash, Seq},
};

/// What the copy is worth. It is written, and durable, before the first change that it announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize)]
pub(super) enum Intent {
    /// No pre-state was ever kept.
    #[default]
    Empty,
    /// The copy is the pre-state of the run of `seq`.
    Clean { seq: Seq, root: Hash },
    /// `state/` is right; the copy is being made equal to it.
    Updating { seq: Seq, root: Hash },
    /// The copy is right; `state/` is being made equal to it.
    RollingBack { seq: Seq, root: Hash },
    /// What was fetched into `hist/sync/` is right; the copy is being made equal to it.
    Adopting { seq: Seq, root: Hash },
}

impl Record for Intent {}

/// The contract's folder `state/` and the copy of its pre-state.
#[derive(Debug)]
pub(super) struct Shadow {
    dir: PathBuf,
    pub(super) disk: Disk,
    live: Index,
    /// The copy as it is on the disk; `None` when it has to be looked at first.
    pub(super) copy: Option<Index>,
    pub(super) intent: IntentFile<Intent>,
    pub(super) clock: Clock,
    /// The root of the last scan; `None` when the last one failed.
    scanned: Option<Hash>,
    /// Paths at which `live` and `copy` may differ; `None` when all must be compared.
    dirty: Option<BTreeSet<Vec<u8>>>,
    /// They read the copy.
    pins: Pins,
}

impl Shadow {
    /// Opens the contract folder `dir`: the state in `dir/state`, the copy in `dir/hist/shadow/`, both created when
    /// missing. Finishes a snapshot or a roll back that a crash cut.
    ///
    /// Reads the copy whole, but for what [`StateStore::save_cache`] kept of it. A finished copy that is damaged counts
    /// as none (and is logged); a cut snapshot or roll back that cannot be finished because the right one of the
    /// folders is damaged is [`StateError::Root`].
    pub fn open(dir: &Path) -> Result<Shadow, StateError> {
        Shadow::open_on(dir, Disk::default())
    }

    pub(super) fn open_on(dir: &Path, disk: Disk) -> Result<Shadow, StateError> {
        let shadow = dir.join("hist/shadow");
        ensure_dir(&disk, &dir.join("state"))?;
        ensure_dir(&disk, &dir.join("hist"))?;
        ensure_dir(&disk, &shadow)?;
        ensure_dir(&disk, &shadow.join("copy"))?;
        let intent = IntentFile::open(&disk, &shadow.join("intent"))?;
        let clock = Clock::open(&shadow.join("clock"))?;
        let mut state = Shadow {
            dir: dir.to_path_buf(),
            disk,
            live: Index::new(dir.join("state")),
            copy: None,
            intent,
            clock,
            scanned: None,
            dirty: None,
            pins: Pins::new(shadow.clone()),
        };
        let mut copy = Index::new(shadow.join("copy"));
        cache::load(&state.cache_path(), &mut state.live, &mut copy);
        match state.intent.intent {
            Intent::Empty => {}
            Intent::Clean { root, .. } => {
                clear_adopted(&state.disk, dir, root)?;
                match state.read_copy(copy, root) {
                    Ok(copy) => state.copy = Some(copy),
                    Err(error) => {
                        warn!(%error, "the copy of the state is damaged; there is no pre-state to roll back to");
                    }
                }
            }
            Intent::Updating { seq, root } => {
                state.scan(true)?;
                state.snapshot(seq, root)?;
            }
            Intent::Adopting { seq, root } => {
                state.copy = Some(copy);
                let target = Target::load(dir, root)?;
                state.finish_adopting(seq, &target, &Stage::open_on(dir, state.disk.clone())?)?;
            }
            Intent::RollingBack { root, .. } => {
                state.copy = Some(state.read_copy(copy, root)?);
                state.rollback()?;
            }
        }
        Ok(state)
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
        mirror(&self.disk, copy, &mut self.live, &differing, Modes::State, &mut Pins::default())?;
        self.scan_live()?;
        self.live.sync(&self.disk)?;
        expect_root(self.live.top(), root, self.live.root())?;
        self.intent.write(&self.disk, Intent::Clean { seq, root })?;
        self.live.take_changed();
        self.scanned = Some(root);
        self.dirty = Some(BTreeSet::new());
        Ok(())
    }

    /// Goes on, from wherever a cut left it, to make what was fetched the state. The copy is as it may be.
    fn finish_adopting(&mut self, seq: Seq, target: &Target, stage: &Stage) -> Result<(), StateError> {
        self.pins.lose_all();
        let mut copy = self.copy.take().unwrap_or_else(|| Index::new(self.copy_top()));
        self.dirty = None;
        prune(&self.disk, copy.top(), target.index())?;
        copy.scan(&self.disk, self.clock.trusted_before_ns()?)?;
        let differing = differing(target.index(), &copy);
        let (from, to) = (&mut Staged(stage), Modes::Copy);
        mirror_from(&self.disk, target.index(), from, &mut copy, &differing, to, &mut self.pins)?;
        expect_root(copy.top(), target.root(), copy.root())?;
        self.copy = Some(copy);
        self.intent.write(&self.disk, Intent::RollingBack { seq, root: target.root() })?;
        self.rollback()?;
        clear(&self.disk, &self.dir)
    }

    fn scan_live(&mut self) -> Result<Totals, StateError> {
        self.scanned = None;
        let now_ns = self.clock.trusted_before_ns()?;
        self.live.scan(&self.disk, now_ns)
    }

    fn copy_top(&self) -> PathBuf {
        self.dir.join("hist/shadow/copy")
    }

    pub(super) fn cache_path(&self) -> PathBuf {
        self.dir.join("hist/shadow/cache")
    }

    /// Reads the copy, which must have this root.
    fn read_copy(&self, mut copy: Index, root: Hash) -> Result<Index, StateError> {
        copy.scan(&self.disk, self.clock.trusted_before_ns()?)?;
        expect_root(copy.top(), root, copy.root())?;
        Ok(copy)
    }

    /// Makes the copy equal to `state/` by comparing everything; without a known copy, with what is on the disk.
    fn whole_copy(&mut self, known: Option<Index>) -> Result<Index, StateError> {
        let mut copy = match known {
            Some(copy) => copy,
            None => {
                // Nobody knows what is in it.
                self.pins.lose_all();
                let mut copy = Index::new(self.copy_top());
                prune(&self.disk, copy.top(), &self.live)?;
                copy.scan(&self.disk, self.clock.trusted_before_ns()?)?;
                copy
            }
        };
        let differing = differing(&self.live, &copy);
        mirror(&self.disk, &self.live, &mut copy, &differing, Modes::Copy, &mut self.pins)?;
        Ok(copy)
    }
}

impl StateStore for Shadow {
    fn backend(&self) -> Backend {
        Backend::Shadow
    }

    fn scan(&mut self, durable: bool) -> Result<Scan, StateError> {
        if let Intent::RollingBack { seq, .. } | Intent::Adopting { seq, .. } = self.intent.intent {
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

    fn distrust(&mut self) {
        self.live.distrust();
    }

    fn snapshot(&mut self, seq: Seq, root: Hash) -> Result<(), StateError> {
        if let Intent::RollingBack { seq, .. } | Intent::Adopting { seq, .. } = self.intent.intent {
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
                    mirror(&self.disk, &self.live, &mut copy, &dirty, Modes::Copy, &mut self.pins)?;
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

    fn snapshot_info(&self) -> Option<(Seq, Hash)> {
        match self.intent.intent {
            Intent::Clean { seq, root } if self.copy.is_some() => Some((seq, root)),
            _ => None,
        }
    }

    fn begin_run(&mut self) -> Result<Option<RunMount>, StateError> {
        match (self.snapshot_info(), self.scanned) {
            (Some((_, kept)), Some(found)) if kept == found => Ok(None),
            _ => Err(StateError::NotScanned),
        }
    }

    fn survey(&mut self) -> Result<Local, StateError> {
        let now_ns = self.clock.trusted_before_ns()?;
        let mut copy = self.copy.take().unwrap_or_else(|| Index::new(self.copy_top()));
        copy.distrust();
        copy.scan_what_is_sound(&self.disk, now_ns)?;
        self.dirty = None;
        self.scanned = None;
        self.live.distrust();
        self.live.scan_what_is_sound(&self.disk, now_ns)?;
        let local = local_of(&copy, Some(&self.live));
        // It may still be what the record says.
        if matches!(self.intent.intent, Intent::Clean { root, .. } if root == copy.root()) {
            self.copy = Some(copy);
        }
        Ok(local)
    }

    fn adopt(&mut self, seq: Seq, target: &Target, stage: &Stage) -> Result<(), StateError> {
        stage.sync()?;
        target.save(&self.disk, &self.dir)?;
        self.intent.write(&self.disk, Intent::Adopting { seq, root: target.root() })?;
        self.finish_adopting(seq, target, stage)
    }

    fn pin(&mut self) -> Result<Pin, StateError> {
        match (&self.copy, self.intent.intent) {
            (Some(copy), Intent::Clean { .. }) => self.pins.pin(copy),
            _ => Err(StateError::NoSnapshot),
        }
    }

    fn pin_now(&mut self) -> Result<Pin, StateError> {
        match self.scanned {
            // The next snapshot makes the copy equal to it, before the next run may change it.
            Some(root) if root == self.live.root() => self.pins.pin_ahead(&self.live, self.copy_top()),
            _ => Err(StateError::NotScanned),
        }
    }

    fn rollback(&mut self) -> Result<Hash, StateError> {
        let (seq, root) = match self.intent.intent {
            Intent::Clean { seq, root } | Intent::RollingBack { seq, root } => (seq, root),
            Intent::Empty | Intent::Updating { .. } | Intent::Adopting { .. } => {
                return Err(StateError::NoSnapshot);
            }
        };
        let copy = self.copy.take().ok_or(StateError::NoSnapshot)?;
        let done = self.restore(&copy, seq, root);
        self.copy = Some(copy);
        done.map(|()| root)
    }

    fn leaves(&self, max: usize) -> Vec<(Vec<u8>, Hash)> {
        self.live.leaves(max)
    }

    fn leaf(&self, path: &[u8]) -> Option<PathState> {
        self.live.leaf(path)
    }

    fn found(&self, paths: &BTreeSet<Vec<u8>>) -> BTreeMap<Vec<u8>, Known> {
        self.live.found(paths)
    }

    fn changed(&self) -> Option<BTreeSet<Vec<u8>>> {
        Some(differing(&self.live, self.copy.as_ref()?))
    }

    fn before(&self, path: &[u8]) -> Before {
        let Some(copy) = &self.copy else { return Before::Unknown };
        match copy.entries.get(path).map(|entry| entry.leaf.kind) {
            None => Before::Nothing,
            Some(Kind::Folder) => Before::Folder,
            Some(Kind::Symlink) => Before::Symlink,
            Some(Kind::File) => Before::File(copy.full(path)),
        }
    }

    fn keep_diagnosis(&self, into: &Path, changed: &BTreeSet<Vec<u8>>, extent: Extent) -> Result<(), StateError> {
        let source = diagnosis::Source { top: self.live.top(), changed, before: &|path| self.before(path) };
        diagnosis::keep(&source, into, extent)
    }

    fn save_cache(&self) -> Result<(), StateError> {
        cache::save(&self.disk, &self.cache_path(), &self.live, self.copy.as_ref(), self.clock.trusted_before_ns()?)
    }
}

/// All paths whose leaf is not the same in both.
pub(super) fn differing(one: &Index, other: &Index) -> BTreeSet<Vec<u8>> {
    let missing = |from: &Index, path: &Vec<u8>, leaf| from.entries.get(path).is_none_or(|found| found.leaf != leaf);
    let changed = one.entries.iter().filter(|(path, entry)| missing(other, path, entry.leaf));
    let gone = other.entries.iter().filter(|(path, _)| !one.entries.contains_key(*path));
    changed.chain(gone).map(|(path, _)| path.clone()).collect()
}
