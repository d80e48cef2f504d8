//! A state that stays readable while runs go on changing the files.
//!
//! A [`Pin`] holds what the state is (paths, leaves, hashes of all blocks), and not the content: that stays where it is,
//! in a folder of the backend that changes only at known moments. Whoever is about to change or remove a file there
//! first keeps the blocks that a pin needs and that go ([`Pins::loses`]): small losses are copied to a file that has no
//! name, a removed big file stays open. Every block is checked against its hash when it is read, so that neither an
//! unnoticed change nor a race between reader and writer can give a wrong one; it is then looked for among the kept.
//!
//! The state after the last run is pinned before the backend's folder has it ([`Pins::pin_ahead`]): until the next run
//! begins its blocks are in `state/`, and from then on in that folder, where they are then looked for first.
//!
//! So a pin costs a copy of what is known of the files in memory (for each some hundred bytes, and 32 for each 64 KiB),
//! one list to find blocks by, and on the disk what changes while it lives.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fmt,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tracing::warn;

use super::{
    StateError,
    disk::open_read,
    merkle::{BLOCK_BYTES, Kind, Leaf, Tree, block_hash},
    scan::{Entry, Index},
};
use crate::types::Hash;

/// Pins of one contract folder at a time: two for nodes that fetch the state, the others for read-only runs. Past it
/// none is given; who holds one drops it in time.
pub const PINS_MAX: usize = 4;

/// Bytes kept for one pin of what changed since. Past it the pin is lost: its reader takes a new one.
pub const PIN_KEPT_BYTES_MAX: u64 = 1 << 30;

/// A removed file of more bytes is kept open instead of copied.
const COPIED_BYTES_MAX: u64 = 1 << 20;

/// Removed files that one pin keeps open. Past it they are copied too.
const OPEN_MAX: usize = 64;

/// A state that stays as it is. Clones are the same one; when the last is gone, so is what was kept for it.
///
/// Reading needs neither the store nor its lock, from any thread. A block that cannot be had is [`StateError::PinLost`]:
/// too much has changed, the disk is full or somebody damaged the files; take another pin.
///
/// For a run of the contract that only reads, make a folder of it: [`Replica`](super::Replica).
#[derive(Clone)]
pub struct Pin {
    held: Arc<Held>,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({})", self.held.root.short())
    }
}

struct Held {
    root: Hash,
    /// Where the files are.
    top: PathBuf,
    /// Where they are until they are there.
    ahead: Option<PathBuf>,
    entries: Vec<(Vec<u8>, Leaf, Vec<Hash>)>,
    bytes: u64,
    tree: Tree,
    /// Entry of a file, by the root of its blocks.
    files: HashMap<Hash, u32>,
    /// One place of each block, as entry and number; a symlink is one block.
    places: HashMap<Hash, (u32, u32)>,
    kept: Mutex<Kept>,
    lost: AtomicBool,
}

/// What a state has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathFound {
    /// Nothing.
    Nothing,
    /// No file.
    Other(Kind),
    /// A file of so many bytes, more than were wanted.
    Long(u64),
    /// A file.
    File {
        /// Its content.
        bytes: Vec<u8>,
        /// The root over its blocks.
        root: Hash,
    },
}

/// Blocks that are no longer where they were.
#[derive(Default)]
struct Kept {
    copies: Option<Arc<File>>,
    copied: u64,
    open: usize,
    blocks: HashMap<Hash, (Arc<File>, u64)>,
}

impl Pin {
    /// The root of the state.
    pub fn root(&self) -> Hash {
        self.held.root
    }

    /// Files, folders and symlinks.
    pub fn entries(&self) -> usize {
        self.held.entries.len()
    }

    /// Bytes of all files, holes counted.
    pub fn bytes(&self) -> u64 {
        self.held.bytes
    }

    /// Whether it is of no more use.
    pub fn is_lost(&self) -> bool {
        self.held.lost.load(Ordering::Relaxed)
    }

    /// Bytes that were copied for it.
    #[cfg(test)]
    pub(super) fn copied(&self) -> u64 {
        self.held.kept().copied
    }

    /// The tree above the leaves.
    pub(super) fn tree(&self) -> &Tree {
        &self.held.tree
    }

    /// Path and leaf, in the order of the tree.
    pub(super) fn leaf(&self, number: usize) -> Option<(&[u8], Leaf)> {
        self.held.entries.get(number).map(|(path, leaf, _)| (&path[..], *leaf))
    }

    /// Hashes of the blocks of a file, by their root.
    pub(super) fn blocks(&self, file: &Hash) -> Option<&[Hash]> {
        self.held.files.get(file).map(|at| &self.held.entries[*at as usize].2[..])
    }

    /// A block of some file, or the target of a symlink; `None` when the state has no such block.
    pub fn block(&self, hash: &Hash) -> Result<Option<Vec<u8>>, StateError> {
        let Some(&(entry, number)) = self.held.places.get(hash) else { return Ok(None) };
        let (path, leaf, _) = &self.held.entries[entry as usize];
        // What has left `state/` after the first look there is in its place by now, and what has left that is kept.
        let looks = [Some(&self.held.top), self.held.ahead.as_ref(), self.held.ahead.as_ref().map(|_| &self.held.top)];
        for top in looks.into_iter().flatten() {
            if let Some(bytes) = self.find(&top.join(OsStr::from_bytes(path)), *leaf, number, hash) {
                return Ok(Some(bytes));
            }
        }
        Err(StateError::PinLost { root: self.held.root })
    }

    /// A block of the file at `full`, or of what was kept.
    fn find(&self, full: &Path, leaf: Leaf, number: u32, hash: &Hash) -> Option<Vec<u8>> {
        let is_right = |bytes: &Vec<u8>| block_hash(bytes) == *hash;
        if leaf.kind == Kind::Symlink {
            let target = std::fs::read_link(full).ok().map(|target| target.into_os_string().into_encoded_bytes());
            if let Some(target) = target.filter(is_right) {
                return Some(target);
            }
        }
        let offset = u64::from(number) * BLOCK_BYTES as u64;
        let len = usize::try_from(leaf.size - offset).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let read = |file: &File, offset: u64| {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
        };
        let there = open_read(full).ok().and_then(|file| read(&file, offset));
        if let Some(bytes) = there.filter(is_right) {
            return Some(bytes);
        }
        // What went was kept before it went.
        let kept = self.held.kept().blocks.get(hash).cloned();
        kept.and_then(|(file, offset)| read(&file, offset)).filter(is_right)
    }

    /// What is at a path, with the content of a file of at most so many bytes.
    pub fn path(&self, path: &[u8], bytes_max: u64) -> Result<PathFound, StateError> {
        let found = self.held.entries.binary_search_by(|(other, _, _)| other.as_slice().cmp(path));
        let Ok(at) = found else { return Ok(PathFound::Nothing) };
        let (_, leaf, blocks) = &self.held.entries[at];
        if leaf.kind != Kind::File {
            return Ok(PathFound::Other(leaf.kind));
        }
        if leaf.size > bytes_max {
            return Ok(PathFound::Long(leaf.size));
        }
        let mut bytes = Vec::new();
        for hash in blocks {
            bytes.extend(self.block(hash)?.ok_or(StateError::PinLost { root: self.held.root })?);
        }
        Ok(PathFound::File { bytes, root: leaf.root })
    }

    /// What the state is, as an index of the folder `top`.
    pub(super) fn index(&self, top: PathBuf) -> Index {
        let entry = |(path, leaf, blocks): &(Vec<u8>, Leaf, Vec<Hash>)| {
            let (hash, stat) = (leaf.hash(path), Default::default());
            let entry = Entry { leaf: *leaf, hash, blocks: blocks.clone(), stat, settled: false, seen: 0 };
            (path.clone(), entry)
        };
        Index::of(top, self.held.entries.iter().map(entry).collect())
    }
}

impl Held {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Takes over the blocks of `old` that `new` has not, of those that `needs` says. `spare` is where a nameless file is
    /// made.
    fn take(
        &mut self,
        full: &Path,
        old: &Entry,
        new: Option<&Entry>,
        spare: &Path,
        needs: impl Fn(&Hash) -> bool,
    ) -> io::Result<()> {
        let stays = |number: usize| new.and_then(|new| new.blocks.get(number));
        let goes: Vec<(usize, Hash)> = old
            .blocks
            .iter()
            .copied()
            .enumerate()
            .filter(|(number, hash)| stays(*number) != Some(hash) && needs(hash) && !self.blocks.contains_key(hash))
            .collect();
        if goes.is_empty() {
            return Ok(());
        }
        let file = Arc::new(open_read(full)?);
        if new.is_none() && old.leaf.size > COPIED_BYTES_MAX && self.open < OPEN_MAX {
            self.open += 1;
            let places = goes.into_iter().map(|(number, hash)| (hash, (file.clone(), (number * BLOCK_BYTES) as u64)));
            self.blocks.extend(places);
            return Ok(());
        }
        let mut block = vec![0; BLOCK_BYTES];
        for (number, hash) in goes {
            let offset = number as u64 * BLOCK_BYTES as u64;
            let len = usize::try_from(old.leaf.size - offset).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            file.read_exact_at(&mut block[..len], offset)?;
            if self.copied + len as u64 > PIN_KEPT_BYTES_MAX {
                return Err(io::Error::other("too much has changed"));
            }
            let copies = match &self.copies {
                Some(copies) => copies,
                None => self.copies.insert(Arc::new(tempfile::tempfile_in(spare)?)),
            };
            copies.write_all_at(&block[..len], self.copied)?;
            self.blocks.insert(hash, (copies.clone(), self.copied));
            self.copied += len as u64;
        }
        Ok(())
    }
}

/// The pins of a folder, as its backend sees them: what to keep before it changes a file.
#[derive(Default)]
pub(super) struct Pins {
    pins: Vec<Weak<Held>>,
    spare: PathBuf,
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pins", self.pins.len())
    }
}

impl Pins {
    /// None yet. What is kept goes to nameless files in `spare`.
    pub fn new(spare: PathBuf) -> Pins {
        Pins { pins: Vec::new(), spare }
    }

    /// Whether nobody needs anything.
    pub fn is_empty(&self) -> bool {
        self.pins.iter().all(|pin| pin.strong_count() == 0)
    }

    /// Pins what `index` says, which must be what is in its folder.
    pub fn pin(&mut self, index: &Index) -> Result<Pin, StateError> {
        self.hold(index, index.top().to_path_buf(), None)
    }

    /// Pins what `index` says, which must be what is in its folder. Before anything in there changes, `top` must have all
    /// of it.
    pub fn pin_ahead(&mut self, index: &Index, top: PathBuf) -> Result<Pin, StateError> {
        self.hold(index, top, Some(index.top().to_path_buf()))
    }

    fn hold(&mut self, index: &Index, top: PathBuf, ahead: Option<PathBuf>) -> Result<Pin, StateError> {
        self.pins.retain(|pin| pin.strong_count() > 0);
        if self.pins.len() >= PINS_MAX {
            return Err(StateError::TooManyPins);
        }
        let (mut files, mut places, mut bytes) = (HashMap::new(), HashMap::new(), 0);
        let mut entries = Vec::with_capacity(index.entries.len());
        for (number, (path, Entry { leaf, blocks, .. })) in (0_u32..).zip(&index.entries) {
            match leaf.kind {
                Kind::Folder => {}
                Kind::Symlink => drop(places.insert(leaf.root, (number, 0))),
                Kind::File => {
                    bytes += leaf.size;
                    files.insert(leaf.root, number);
                    places.extend(blocks.iter().zip(0_u32..).map(|(hash, block)| (*hash, (number, block))));
                }
            }
            entries.push((path.clone(), *leaf, blocks.clone()));
        }
        let held = Held {
            root: index.root(),
            top,
            ahead,
            entries,
            bytes,
            tree: index.tree().clone(),
            files,
            places,
            kept: Mutex::default(),
            lost: AtomicBool::new(false),
        };
        let pin = Pin { held: Arc::new(held) };
        self.pins.push(Arc::downgrade(&pin.held));
        Ok(pin)
    }

    /// The file, or symlink, at `full` is about to become `new`, or to go. A pin for which what goes cannot be kept is
    /// lost; the run is not.
    pub fn loses(&mut self, full: &Path, old: &Entry, new: Option<&Entry>) {
        if self.pins.is_empty() {
            return;
        }
        self.pins.retain(|pin| {
            let Some(held) = pin.upgrade() else { return false };
            let done = match old.leaf.kind {
                Kind::Folder => Ok(()),
                Kind::Symlink => held.keep_target(full, old, &self.spare),
                Kind::File => {
                    let needs = |hash: &Hash| held.places.contains_key(hash);
                    held.kept().take(full, old, new, &self.spare, needs)
                }
            };
            if let Err(error) = &done {
                warn!(root = %held.root.short(), %error, "a pinned state is lost");
                held.lost.store(true, Ordering::Relaxed);
            }
            done.is_ok()
        });
    }

    /// All are lost: the folder is made anew from elsewhere.
    pub fn lose_all(&mut self) {
        for pin in self.pins.drain(..) {
            if let Some(held) = pin.upgrade() {
                held.lost.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Held {
    fn keep_target(&self, full: &Path, old: &Entry, spare: &Path) -> io::Result<()> {
        let mut kept = self.kept();
        if !self.places.contains_key(&old.leaf.root) || kept.blocks.contains_key(&old.leaf.root) {
            return Ok(());
        }
        let target = std::fs::read_link(full)?.into_os_string().into_encoded_bytes();
        let copies = match &kept.copies {
            Some(copies) => copies.clone(),
            None => kept.copies.insert(Arc::new(tempfile::tempfile_in(spare)?)).clone(),
        };
        let offset = kept.copied;
        copies.write_all_at(&target, offset)?;
        kept.copied += target.len() as u64;
        kept.blocks.insert(old.leaf.root, (copies, offset));
        Ok(())
    }
}
