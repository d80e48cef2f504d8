//! The Linux backend: the run writes into a folder of its own, laid over `state/` for the run alone.
//!
//! The contract finds its files at the usual path; the kernel copies a file into `hist/overlay/upper/` at its first
//! change. So what changed is known from that folder, without a look at the rest, and a roll back drops it.
//!
//! After a run that counts, the changed files are moved into `state/`, and those that they replace to
//! `hist/overlay/undo/`, until the next snapshot. `hist/overlay/plan` lists the moves, `hist/overlay/intent` says
//! whether they are being made or taken back.
//!
//! What differs from a plain folder, for a contract: renaming a folder that was there before the run fails with EXDEV
//! (as between two disks), a hard link between `state/` and elsewhere as well; `state/` itself cannot be removed; a
//! file opened to read before its first change goes on showing what was there; `fsync` does nothing, as the whole run
//! is made durable at its end; and the first change of a file costs a copy of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{
    Backend, Forbidden, RunMount, Scan, StateError, StateStore, cache,
    clock::Clock,
    diagnosis::{self, Before, Extent},
    disk::{Disk, at},
    ensure_dir, expect_root,
    intent::{IntentFile, Record},
    merkle::{BLOCK_BYTES, Kind, Leaf},
    mirror::{Modes, REMOVING, mirror_from, prune, remove_tree},
    pin::{Pin, Pins},
    plan::{self, Folders, Step},
    scan::{Entry, Index, SYNC_EACH_MAX, Stat, Totals, parent, read_entry},
    shadow::differing,
    sync::{Local, Stage, Staged, Target, clear, clear_adopted, local_of},
    upper,
};
use crate::{
    consensus::details::{Known, PathState},
    types::{Hash, Seq},
};

/// Where a run finds its state, and where what it changes goes.
const MOUNT: RunMount =
    RunMount { target: "state", lower: "state", upper: "hist/overlay/upper", work: "hist/overlay/work" };

/// How far `state/` is. It is written, and durable, before the first change that it announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize)]
enum Intent {
    /// No pre-state was ever kept.
    #[default]
    Empty,
    /// `state/` is the pre-state of the run of `seq`.
    Base { seq: Seq, root: Hash },
    /// The steps of the plan with this hash were or are being taken; taken back, they lead to the pre-state.
    Applying { seq: Seq, root: Hash, plan: Hash },
    /// The steps are being taken back.
    Undoing { seq: Seq, root: Hash, plan: Hash },
    /// What was fetched into `hist/sync/` is right; `state/` is being made equal to it.
    Adopting { seq: Seq, root: Hash },
}
impl Record for Intent {}

/// The contract's folder `state/` and the folders of its runs.
#[derive(Debug)]
pub(super) struct Overlay {
    dir: PathBuf,
    disk: Disk,
    folders: Folders,
    /// `state/` as it is on the disk.
    live: Index,
    /// Bytes of the files in it.
    bytes: u64,
    intent: IntentFile<Intent>,
    clock: Clock,
    /// The root of `state/`; `None` while `live` may not be what is on the disk.
    root: Option<Hash>,
    /// A run may have written into the upper folder, and nobody has looked at it yet.
    running: bool,
    /// Steps taken since the last snapshot.
    steps: Vec<Step>,
    /// Taking them was cut by an error.
    unfinished: bool,
    /// They read `state/`, as far as it is what it was.
    pins: Pins,
    /// Of the steps taken, as far as it was asked for: what was at their paths before, and its number in the undo folder.
    before: BTreeMap<Vec<u8>, (Option<Entry>, Option<u32>)>,
}

impl Overlay {
    /// Opens the contract folder `dir`: the state in `dir/state`, runs in `dir/hist/overlay/`, both created when missing.
    /// Finishes what a crash cut, and drops what a run left that was not looked at.
    ///
    /// [`StateError::Intent`] when the plan of cut moves is damaged, [`StateError::Root`] when a roll back does not
    /// lead to the pre-state because somebody changed `state/`.
    pub fn open(dir: &Path) -> Result<Overlay, StateError> {
        Overlay::open_on(dir, Disk::default())
    }

    pub(super) fn open_on(dir: &Path, disk: Disk) -> Result<Overlay, StateError> {
        let overlay = dir.join("hist/overlay");
        let folders =
            Folders { state: dir.join(MOUNT.lower), upper: dir.join(MOUNT.upper), undo: overlay.join("undo") };
        for folder in [&folders.state, &dir.join("hist"), &overlay, &folders.undo] {
            ensure_dir(&disk, folder)?;
        }
        let intent = IntentFile::open(&disk, &overlay.join("intent"))?;
        let clock = Clock::open(&overlay.join("clock"))?;
        let live = Index::new(folders.state.clone());
        let (dir, dir_of_pins) = (dir.to_path_buf(), overlay.clone());
        let mut state = Overlay {
            dir,
            disk,
            folders,
            live,
            bytes: 0,
            intent,
            clock,
            root: None,
            running: false,
            steps: Vec::new(),
            unfinished: false,
            pins: Pins::new(dir_of_pins),
            before: BTreeMap::new(),
        };
        cache::load(&state.cache_path(), &mut state.live, &mut Index::new(overlay));
        match state.intent.intent {
            Intent::Empty => state.drop_run()?,
            Intent::Base { root, .. } => {
                clear_adopted(&state.disk, &state.dir, root)?;
                state.drop_run()?;
            }
            Intent::Applying { plan, .. } => {
                state.steps = plan::read(&state.plan_path(), plan)?;
                state.take_steps()?;
            }
            Intent::Undoing { plan, .. } => {
                state.steps = plan::read(&state.plan_path(), plan)?;
                state.rollback()?;
            }
            Intent::Adopting { seq, root } => {
                let target = Target::load(&state.dir, root)?;
                let stage = Stage::open_on(&state.dir, state.disk.clone())?;
                state.finish_adopting(seq, &target, &stage)?;
            }
        }
        Ok(state)
    }

    fn plan_path(&self) -> PathBuf {
        self.dir.join("hist/overlay/plan")
    }

    fn cache_path(&self) -> PathBuf {
        self.dir.join("hist/overlay/cache")
    }

    /// Looks at all of `state/`.
    fn walk(&mut self) -> Result<Totals, StateError> {
        self.root = None;
        let totals = self.live.scan(&self.disk, self.clock.trusted_before_ns()?)?;
        self.bytes = totals.bytes;
        self.root = Some(self.live.root());
        Ok(totals)
    }

    /// Removes what belongs to no run any more: the upper folder, the kernel's scratch folder, replaced files.
    fn drop_run(&mut self) -> Result<(), StateError> {
        let overlay = self.dir.join("hist/overlay");
        let entries: Vec<_> = std::fs::read_dir(&overlay).map_err(at("list", &overlay))?.collect();
        for entry in entries {
            let entry = entry.map_err(at("list", &overlay))?;
            // An empty undo folder stays; the last ones are what a cut removal left.
            let name = entry.file_name();
            let drop = match name.as_bytes() {
                b"upper" | b"work" => true,
                b"undo" => !self.steps.is_empty() || !is_empty(&entry.path())?,
                name => name.starts_with(REMOVING.as_bytes()),
            };
            if drop {
                remove_tree(&self.disk, &overlay, entry.path())?;
            }
        }
        ensure_dir(&self.disk, &self.folders.undo)?;
        self.steps.clear();
        self.before.clear();
        self.running = false;
        Ok(())
    }

    /// Makes the upper folder's files and names durable.
    fn sync_upper(&self, changes: &upper::Changes) -> Result<(), StateError> {
        let mut paths = BTreeSet::from([Vec::new()]);
        for (path, (leaf, _)) in &changes.now {
            match leaf.kind {
                Kind::Folder => {}
                Kind::Symlink => drop(paths.insert(parent(path).to_vec())),
                Kind::File => paths.extend([path.clone(), parent(path).to_vec()]),
            }
        }
        // A folder's own name is in the folder above it.
        let mut above: Vec<Vec<u8>> = paths.iter().map(|path| parent(path).to_vec()).collect();
        while let Some(path) = above.pop() {
            if paths.insert(path.clone()) {
                above.push(parent(&path).to_vec());
            }
        }
        if paths.len() > SYNC_EACH_MAX {
            return self.disk.sync_all_below(&self.folders.upper);
        }
        for path in &paths {
            self.disk.sync_path(&self.folders.upper.join(OsStr::from_bytes(path)))?;
        }
        self.disk.sync_path(&self.dir.join("hist/overlay"))
    }

    /// Takes the steps of the plan that are not taken yet.
    fn take_steps(&mut self) -> Result<(), StateError> {
        self.unfinished = true;
        for step in &self.steps {
            step.take(&self.disk, &self.folders)?;
        }
        self.unfinished = false;
        Ok(())
    }

    /// Makes durable what taking the steps, or taking them back, has made of the names in `state/`.
    fn sync_steps(&self) -> Result<(), StateError> {
        let mut changed: BTreeSet<&[u8]> = self.steps.iter().map(|step| parent(step.path())).collect();
        if changed.len() > SYNC_EACH_MAX {
            return self.disk.sync_all_below(&self.folders.state);
        }
        // That a folder is gone is in the one above.
        changed.retain(|folder| self.live.full(folder).is_dir());
        changed.into_iter().try_for_each(|folder| self.disk.sync_path(&self.live.full(folder)))
    }

    /// Finds out what the steps replaced that a process before this one took.
    fn know_before(&mut self) -> Result<(), StateError> {
        if !self.before.is_empty() {
            return Ok(());
        }
        let mut block = vec![0; BLOCK_BYTES];
        let mut before = BTreeMap::new();
        for step in &self.steps {
            let (path, undo) = (step.path(), step.undo());
            let old = match (step, undo) {
                (Step::RemoveFolder { .. }, _) => Some((Leaf::FOLDER, Vec::new(), Stat::default())),
                (_, Some(undo)) => {
                    let aside = self.folders.undo.join(undo.to_string());
                    let meta = std::fs::symlink_metadata(&aside).map_err(at("look at", &aside))?;
                    Some(read_entry(&self.disk, path, &aside, meta, &mut block)?)
                }
                (_, None) => None,
            };
            let entry = |(leaf, blocks, stat): (Leaf, Vec<Hash>, Stat)| Entry {
                leaf,
                hash: leaf.hash(path),
                blocks,
                stat,
                settled: false,
                seen: 0,
            };
            before.entry(path.to_vec()).or_insert((old.map(entry), undo));
        }
        self.before = before;
        Ok(())
    }

    /// Goes on, from wherever a cut left it, to make what was fetched the state.
    fn finish_adopting(&mut self, seq: Seq, target: &Target, stage: &Stage) -> Result<(), StateError> {
        self.pins.lose_all();
        self.root = None;
        self.unfinished = false;
        prune(&self.disk, self.live.top(), target.index())?;
        self.walk()?;
        self.root = None;
        let differing = differing(target.index(), &self.live);
        let (from, to) = (&mut Staged(stage), Modes::State);
        mirror_from(&self.disk, target.index(), from, &mut self.live, &differing, to, &mut self.pins)?;
        let totals = self.walk()?;
        expect_root(self.live.top(), target.root(), self.live.root())?;
        self.bytes = totals.bytes;
        self.live.sync(&self.disk)?;
        self.live.take_changed();
        self.intent.write(&self.disk, Intent::Base { seq, root: target.root() })?;
        self.drop_run()?;
        clear(&self.disk, &self.dir)
    }

    /// Makes what the run changed part of `state/`.
    fn absorb(&mut self, seq: Seq, root: Hash) -> Result<Scan, StateError> {
        let changes = upper::read(&self.disk, &self.folders.upper, &self.live, self.bytes)?;
        let steps = changes.steps(&self.live);
        let changed: BTreeSet<Vec<u8>> = steps.iter().map(|step| step.path().to_vec()).collect();
        let (files, bytes, read) = (changes.entries, changes.bytes, changes.read);
        if !steps.is_empty() {
            self.sync_upper(&changes)?;
            let plan = plan::write(&self.disk, &self.plan_path(), &steps)?;
            self.disk.sync_path(&self.dir.join("hist/overlay"))?;
            self.intent.write(&self.disk, Intent::Applying { seq, root, plan })?;
            self.root = None;
            self.steps = steps;
            self.running = false;
            self.before.clear();
            for step in &self.steps {
                let old = self.live.entries.get(step.path()).cloned();
                if let Some(old) = &old {
                    self.pins.loses(&self.live.full(step.path()), old, None);
                }
                // A path that goes and comes as another kind has two steps.
                self.before.entry(step.path().to_vec()).or_insert((old, step.undo()));
            }
            self.take_steps()?;
            for path in &changes.gone {
                self.live.forget(path);
            }
            for (path, (leaf, blocks)) in changes.now {
                self.live.put_synced(path, leaf, blocks)?;
            }
            self.live.retree();
            self.bytes = bytes;
        }
        self.running = false;
        self.root = Some(self.live.root());
        Ok(Scan { root: self.live.root(), changed: changed.into_iter().collect(), files, bytes, read })
    }
}

impl StateStore for Overlay {
    fn backend(&self) -> Backend {
        Backend::Overlay
    }

    fn scan(&mut self, durable: bool) -> Result<Scan, StateError> {
        match self.intent.intent {
            Intent::Undoing { seq, .. } | Intent::Adopting { seq, .. } => Err(StateError::Unfinished { seq }),
            // Always durable: what is moved into state/ must be whole.
            Intent::Base { seq, root } if self.running => self.absorb(seq, root),
            _ => {
                if self.unfinished {
                    self.take_steps()?;
                }
                let Totals { entries, bytes, read } = self.walk()?;
                if durable {
                    self.live.sync(&self.disk)?;
                }
                let changed = self.live.take_changed().into_iter().collect();
                Ok(Scan { root: self.live.root(), changed, files: entries, bytes, read })
            }
        }
    }

    fn distrust(&mut self) {
        self.live.distrust();
        self.root = None;
    }

    fn snapshot(&mut self, seq: Seq, root: Hash) -> Result<(), StateError> {
        if let Intent::Undoing { seq, .. } | Intent::Adopting { seq, .. } = self.intent.intent {
            return Err(StateError::Unfinished { seq });
        }
        let found = self.root.filter(|_| !self.running).ok_or(StateError::NotScanned)?;
        expect_root(self.live.top(), root, found)?;
        self.sync_steps()?;
        self.live.sync(&self.disk)?;
        self.intent.write(&self.disk, Intent::Base { seq, root })?;
        self.drop_run()
    }

    fn snapshot_info(&self) -> Option<(Seq, Hash)> {
        match self.intent.intent {
            Intent::Base { seq, root } | Intent::Applying { seq, root, .. } => Some((seq, root)),
            Intent::Empty | Intent::Undoing { .. } | Intent::Adopting { .. } => None,
        }
    }

    fn begin_run(&mut self) -> Result<Option<RunMount>, StateError> {
        match (self.intent.intent, self.root) {
            (Intent::Base { root, .. }, Some(found)) if root == found && !self.running => {}
            _ => return Err(StateError::NotScanned),
        }
        // Of a run that changed nothing.
        self.drop_run()?;
        let top = std::fs::symlink_metadata(&self.folders.state).map_err(at("look at", &self.folders.state))?;
        if !top.is_dir() {
            return Err(Forbidden::NoFolder.at(b""));
        }
        self.disk.create_dir(&self.folders.upper)?;
        // The contract sees this one's mode and owner as those of state/.
        self.disk.give(&self.folders.upper, &top)?;
        self.disk.chmod(&self.folders.upper, top.mode() & 0o7777)?;
        self.disk.create_dir(&self.dir.join(MOUNT.work))?;
        self.running = true;
        Ok(Some(MOUNT))
    }

    fn survey(&mut self) -> Result<Local, StateError> {
        self.root = None;
        let now_ns = self.clock.trusted_before_ns()?;
        self.live.distrust();
        self.live.scan_what_is_sound(&self.disk, now_ns)?;
        Ok(local_of(&self.live, None))
    }

    fn adopt(&mut self, seq: Seq, target: &Target, stage: &Stage) -> Result<(), StateError> {
        stage.sync()?;
        target.save(&self.disk, &self.dir)?;
        self.intent.write(&self.disk, Intent::Adopting { seq, root: target.root() })?;
        self.finish_adopting(seq, target, stage)
    }

    fn pin(&mut self) -> Result<Pin, StateError> {
        match (self.intent.intent, self.root) {
            (Intent::Base { root, .. }, Some(found)) if root == found => self.pins.pin(&self.live),
            // What the run replaced is in the undo folder.
            (Intent::Applying { root, .. }, Some(_)) if !self.unfinished => {
                self.know_before()?;
                let mut entries = self.live.entries.clone();
                for (path, (old, _)) in &self.before {
                    match old {
                        Some(old) => drop(entries.insert(path.clone(), old.clone())),
                        None => drop(entries.remove(path)),
                    }
                }
                let index = Index::of(self.live.top().to_path_buf(), entries);
                if index.root() != root {
                    return Err(StateError::NoSnapshot);
                }
                let pin = self.pins.pin(&index)?;
                for (old, undo) in self.before.values() {
                    if let (Some(old), Some(undo)) = (old, undo) {
                        self.pins.loses(&self.folders.undo.join(undo.to_string()), old, None);
                    }
                }
                Ok(pin)
            }
            _ => Err(StateError::NoSnapshot),
        }
    }

    fn pin_now(&mut self) -> Result<Pin, StateError> {
        match self.root {
            // A run writes elsewhere; what it changed replaces this only when it has ended.
            Some(_) if !self.unfinished && !self.running => self.pins.pin(&self.live),
            _ => Err(StateError::NotScanned),
        }
    }

    fn rollback(&mut self) -> Result<Hash, StateError> {
        let (seq, root) = match self.intent.intent {
            Intent::Empty | Intent::Adopting { .. } => return Err(StateError::NoSnapshot),
            Intent::Base { seq, root } => {
                // The disk may say that this run is being applied, which must not be taken for true once it is gone.
                if !self.intent.sure {
                    self.intent.write(&self.disk, Intent::Base { seq, root })?;
                }
                self.drop_run()?;
                if self.root.is_none() {
                    self.walk()?;
                }
                expect_root(self.live.top(), root, self.live.root())?;
                self.live.sync(&self.disk)?;
                (seq, root)
            }
            Intent::Applying { seq, root, plan } | Intent::Undoing { seq, root, plan } => {
                if !matches!(self.intent.intent, Intent::Undoing { .. }) {
                    self.intent.write(&self.disk, Intent::Undoing { seq, root, plan })?;
                }
                self.unfinished = false;
                self.root = None;
                for step in self.steps.iter().rev() {
                    step.take_back(&self.disk, &self.folders)?;
                }
                self.sync_steps()?;
                self.walk()?;
                expect_root(self.live.top(), root, self.live.root())?;
                self.live.sync(&self.disk)?;
                (seq, root)
            }
        };
        self.live.take_changed();
        if self.intent.intent != (Intent::Base { seq, root }) {
            self.intent.write(&self.disk, Intent::Base { seq, root })?;
            self.drop_run()?;
        }
        Ok(root)
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
        self.snapshot_info()?;
        Some(self.steps.iter().map(|step| step.path().to_vec()).collect())
    }

    fn before(&self, path: &[u8]) -> Before {
        // What goes is in the plan before what comes to its place.
        let Some(first) = self.steps.iter().find(|step| step.path() == path) else { return Before::Unknown };
        let aside = |undo: &u32| {
            let file = self.folders.undo.join(undo.to_string());
            match std::fs::symlink_metadata(&file) {
                Ok(meta) if meta.is_file() => Before::File(file),
                Ok(_) => Before::Symlink,
                Err(_) => Before::Unknown,
            }
        };
        match first {
            Step::RemoveFile { undo, .. } | Step::Place { undo: Some(undo), .. } => aside(undo),
            Step::RemoveFolder { .. } => Before::Folder,
            Step::MakeFolder { .. } | Step::Place { undo: None, .. } => Before::Nothing,
        }
    }

    fn keep_diagnosis(&self, into: &Path, changed: &BTreeSet<Vec<u8>>, extent: Extent) -> Result<(), StateError> {
        let source = diagnosis::Source { top: self.live.top(), changed, before: &|path| self.before(path) };
        diagnosis::keep(&source, into, extent)
    }

    fn save_cache(&self) -> Result<(), StateError> {
        cache::save(&self.disk, &self.cache_path(), &self.live, None, self.clock.trusted_before_ns()?)
    }
}

/// Root of the pre-state that the folder can go back to by taking steps back; `None` where it has none to take back.
pub(super) fn before(dir: &Path) -> Result<Option<Hash>, StateError> {
    let path = dir.join("hist/overlay/intent");
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    Ok(match IntentFile::<Intent>::open(&Disk::default(), &path)?.intent {
        Intent::Empty | Intent::Base { .. } | Intent::Adopting { .. } => None,
        Intent::Applying { root, .. } | Intent::Undoing { root, .. } => Some(root),
    })
}

fn is_empty(folder: &Path) -> Result<bool, StateError> {
    Ok(std::fs::read_dir(folder).map_err(at("list", folder))?.next().is_none())
}
