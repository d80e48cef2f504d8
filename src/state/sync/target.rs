//! The state to get to, as a list, and what of it is here already.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read},
    ops::Add,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use borsh::BorshDeserialize;

use super::super::{
    StateError,
    disk::{Disk, at, open_read},
    merkle::{BLOCK_BYTES, Kind, Leaf, block_hash},
    mirror::remove_tree,
    scan::{Entry, Index, Stat},
};
use crate::types::Hash;

/// Blocks of which it is remembered where they are here, so that a file that only moved is not fetched: 256 GiB. Of more
/// only those that stay where they are are not fetched.
const REMEMBERED_MAX: usize = 1 << 22;

/// A whole state as a list, checked against its root.
#[derive(Debug)]
pub struct Target {
    index: Index,
}

impl Target {
    pub(super) fn new(entries: BTreeMap<Vec<u8>, (Leaf, Vec<Hash>)>) -> Target {
        let entry = |(path, (leaf, blocks)): (Vec<u8>, (Leaf, Vec<Hash>))| {
            let hash = leaf.hash(&path);
            (path, Entry { leaf, hash, blocks, stat: Stat::default(), settled: false, seen: 0 })
        };
        Target { index: Index::of(PathBuf::new(), entries.into_iter().map(entry).collect()) }
    }

    /// Its root.
    pub fn root(&self) -> Hash {
        self.index.root()
    }

    pub(in super::super) fn index(&self) -> &Index {
        &self.index
    }

    fn path(dir: &Path) -> PathBuf {
        dir.join("hist/sync/target")
    }

    /// Writes it for whoever has to finish, durably.
    pub(in super::super) fn save(&self, disk: &Disk, dir: &Path) -> Result<(), StateError> {
        let path = Target::path(dir);
        match disk.remove_file(&path) {
            Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
        let file = disk.create(&path, 0o600)?;
        let mut offset = 0;
        let mut bytes = Vec::new();
        let mut entries = self.index.entries.iter().peekable();
        while let Some((path_in, Entry { leaf, blocks, .. })) = entries.next() {
            borsh::to_writer(&mut bytes, &(path_in, leaf, blocks)).expect("writing into memory does not fail");
            if bytes.len() > 1 << 20 || entries.peek().is_none() {
                disk.write_at(&file, &path, &bytes, offset)?;
                offset += bytes.len() as u64;
                bytes.clear();
            }
        }
        disk.sync(&file, &path)?;
        disk.sync_path(&dir.join("hist/sync"))
    }

    /// Reads it again; an error when it is not the state of this root.
    pub(in super::super) fn load(dir: &Path, root: Hash) -> Result<Target, StateError> {
        let path = Target::path(dir);
        let mut bytes = Vec::new();
        let mut file = open_read(&path).map_err(at("open", &path))?;
        file.read_to_end(&mut bytes).map_err(at("read", &path))?;
        let (mut rest, mut entries) = (&bytes[..], BTreeMap::new());
        while !rest.is_empty() {
            let (name, leaf, blocks) =
                <(Vec<u8>, Leaf, Vec<Hash>)>::deserialize(&mut rest).map_err(at("read", &path))?;
            entries.insert(name, (leaf, blocks));
        }
        let target = Target::new(entries);
        let found = target.root();
        if found == root { Ok(target) } else { Err(StateError::Root { path, expected: root, found }) }
    }
}

/// Removes `hist/sync`, whose work is done: under another name first, so that a half of it is never found again.
pub(in super::super) fn clear(disk: &Disk, dir: &Path) -> Result<(), StateError> {
    let (folder, retired) = (dir.join("hist/sync"), dir.join("hist/.adopted"));
    for rename in [false, true] {
        if rename && std::fs::symlink_metadata(&folder).is_ok() {
            disk.rename(&folder, &retired)?;
        }
        if std::fs::symlink_metadata(&retired).is_ok() {
            remove_tree(disk, &dir.join("hist"), retired.clone())?;
        }
    }
    Ok(())
}

/// Removes what a cut left of an adoption that counts: `root` is what the folder has.
pub(in super::super) fn clear_adopted(disk: &Disk, dir: &Path, root: Hash) -> Result<(), StateError> {
    let is_done = Target::path(dir).exists() && Target::load(dir, root).is_ok();
    if is_done || dir.join("hist/.adopted").exists() { clear(disk, dir) } else { Ok(()) }
}

/// What is here of a state to be fetched.
#[derive(Debug)]
pub struct Local {
    /// The folder that is made equal to the target; what is in its place there need not be staged.
    pub(super) base: Index,
    /// Files by the root of their blocks.
    pub(super) files: HashMap<Hash, Vec<u8>>,
    /// Where a block is, in any folder: a file, and the number of the block in it.
    pub(super) blocks: HashMap<Hash, (u32, u32)>,
    pub(super) paths: Vec<PathBuf>,
    /// What the folders take that are made equal to the target: those in `hist/`, and `state/`.
    pub(super) hist: Option<Space>,
    pub(super) state: Space,
}

/// Bytes and files on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Bytes of files, but for whole blocks of zeros.
    pub bytes: u64,
    /// Files, folders and symlinks.
    pub files: u64,
}

impl Space {
    /// What a folder of these files takes.
    pub(super) fn of<'a>(leaves: impl IntoIterator<Item = (&'a Leaf, &'a [Hash])>) -> Space {
        let hole = block_hash(&[0; BLOCK_BYTES]);
        leaves.into_iter().fold(Space::default(), |all, (leaf, blocks)| {
            let holes = blocks.iter().filter(|hash| **hash == hole).count() as u64 * BLOCK_BYTES as u64;
            Space { bytes: all.bytes + leaf.size.saturating_sub(holes), files: all.files + 1 }
        })
    }

    fn of_index(index: &Index) -> Space {
        Space::of(index.entries.values().map(|entry| (&entry.leaf, &entry.blocks[..])))
    }

    /// What is to come where this much is wanted and `there` is.
    pub(super) fn beyond(self, there: Space) -> Space {
        Space { bytes: self.bytes.saturating_sub(there.bytes), files: self.files.saturating_sub(there.files) }
    }
}

impl Add for Space {
    type Output = Space;

    fn add(self, other: Space) -> Space {
        let (bytes, files) = (self.bytes.saturating_add(other.bytes), self.files.saturating_add(other.files));
        Space { bytes, files }
    }
}

/// Room on the disk that the rest of a fetch takes, and making it the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    /// Where `hist/` is.
    pub hist: Space,
    /// Where `state/` is.
    pub state: Space,
}

/// What is in `base`, and of single blocks also what is in `other`: the copy in `hist/` and `state/`, or `state/` alone. All
/// of it was just read.
pub(in super::super) fn local_of(base: &Index, other: Option<&Index>) -> Local {
    let (mut files, mut blocks, mut paths) = (HashMap::new(), HashMap::new(), Vec::new());
    for index in [Some(base), other].into_iter().flatten() {
        for (path, entry) in index.entries.iter().filter(|(_, entry)| entry.leaf.kind == Kind::File) {
            let number = u32::try_from(paths.len()).expect("two folders of a bounded number of files");
            paths.push(index.full(path));
            for (hash, at) in entry.blocks.iter().zip(0_u32..).take(REMEMBERED_MAX.saturating_sub(blocks.len())) {
                blocks.entry(*hash).or_insert((number, at));
            }
        }
    }
    for (path, entry) in base.entries.iter().filter(|(_, entry)| entry.leaf.kind == Kind::File) {
        files.insert(entry.leaf.root, path.clone());
    }
    let (hist, state) = match other {
        Some(live) => (Some(Space::of_index(base)), Space::of_index(live)),
        None => (None, Space::of_index(base)),
    };
    Local { base: Index::of(base.top().to_path_buf(), base.entries.clone()), files, blocks, paths, hist, state }
}

impl Local {
    /// A block that is somewhere here, if it still is.
    pub(super) fn block(&self, hash: &Hash, len: usize) -> Option<Vec<u8>> {
        let (number, at) = self.blocks.get(hash)?;
        let file: File = open_read(&self.paths[*number as usize]).ok()?;
        let mut block = vec![0; len];
        file.read_exact_at(&mut block, u64::from(*at) * BLOCK_BYTES as u64).ok()?;
        (block_hash(&block) == *hash).then_some(block)
    }
}
