//! What a run changed, read off the upper folder that Linux's overlay file system left.
//!
//! In there, a file is the whole new file, a folder holds what changed below it, a character device of number 0 stands
//! for what was removed, and a folder marked opaque hides everything that was below its path before. Everything else
//! that a contract can make looks as anywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Metadata,
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use super::{
    Forbidden, StateError,
    disk::{Disk, at},
    merkle::{BLOCK_BYTES, Kind, Leaf},
    plan::Step,
    scan::{BYTES_MAX, ENTRIES_MAX, Index, PATH_BYTES_MAX, join, open_up, read_entry},
};
use crate::types::Hash;

/// The mark of an opaque folder, of a mount with the option `userxattr`.
const OPAQUE: &str = "user.overlay.opaque";

/// What is to become of paths of `state/`.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Paths that go, or become another kind.
    pub gone: BTreeSet<Vec<u8>>,
    /// Paths whose leaf comes or changes, with the blocks of files.
    pub now: BTreeMap<Vec<u8>, (Leaf, Vec<Hash>)>,
    /// Paths afterwards, and bytes of their files.
    pub entries: u64,
    pub bytes: u64,
    /// Bytes that were read for this.
    pub read: u64,
}

impl Changes {
    /// Steps in an order in which they can be taken: what goes first and from the inside out, then what comes.
    pub fn steps(&self, state: &Index) -> Vec<Step> {
        let mut number = 0_u32..;
        let mut undo = || number.next().expect("fewer paths than numbers");
        let mut steps = Vec::with_capacity(self.gone.len() + self.now.len());
        for path in self.gone.iter().rev() {
            let path = path.clone();
            steps.push(match state.entries[&path].leaf.kind {
                Kind::Folder => Step::RemoveFolder { path },
                Kind::File | Kind::Symlink => Step::RemoveFile { path, undo: undo() },
            });
        }
        for (path, (leaf, _)) in &self.now {
            let replaced = state.entries.contains_key(path) && !self.gone.contains(path);
            let path = path.clone();
            steps.push(match leaf.kind {
                Kind::Folder => Step::MakeFolder { path },
                Kind::File | Kind::Symlink => Step::Place { path, undo: replaced.then(&mut undo) },
            });
        }
        steps
    }
}

/// Reads the upper folder `top` over `state`, whose files have `bytes` bytes. Errors as a scan of the whole does.
pub(super) fn read(disk: &Disk, top: &Path, state: &Index, bytes: u64) -> Result<Changes, StateError> {
    let mut changes = Changes { bytes, ..Changes::default() };
    let listed = list(disk, top, state, &mut changes.gone)?;
    let come = |path: &Vec<u8>| listed.get(path);
    // What is there again as it was, or as another of its kind, does not go.
    changes.gone.retain(|path| {
        let was_folder = state.entries[path].leaf.kind == Kind::Folder;
        come(path).is_none_or(|(_, meta)| meta.is_dir() != was_folder)
    });

    changes.entries = (state.entries.len() - changes.gone.len()) as u64;
    for path in &changes.gone {
        changes.bytes -= file_bytes(&state.entries[path].leaf);
    }
    for (path, (_, meta)) in &listed {
        match state.entries.get(path).filter(|_| !changes.gone.contains(path)) {
            Some(old) => changes.bytes -= file_bytes(&old.leaf),
            None => changes.entries += 1,
        }
        changes.bytes = changes.bytes.saturating_add(if meta.is_file() { meta.len() } else { 0 });
        if changes.entries > ENTRIES_MAX as u64 {
            return Err(Forbidden::TooMany.at(path));
        }
        if changes.bytes > BYTES_MAX {
            return Err(Forbidden::TooBig.at(path));
        }
    }

    let mut block = vec![0; BLOCK_BYTES];
    for (path, (full, meta)) in listed {
        let (leaf, blocks, _) = read_entry(disk, &path, &full, meta, &mut block)?;
        changes.read += file_bytes(&leaf);
        let same = state.entries.get(&path).is_some_and(|old| old.leaf == leaf);
        if !same || changes.gone.contains(&path) {
            changes.now.insert(path, (leaf, blocks));
        }
    }
    Ok(changes)
}

fn file_bytes(leaf: &Leaf) -> u64 {
    if leaf.kind == Kind::File { leaf.size } else { 0 }
}

type Listed = BTreeMap<Vec<u8>, (PathBuf, Metadata)>;

/// Every path that the upper folder has, and into `gone` what of `state` it hides.
fn list(disk: &Disk, top: &Path, state: &Index, gone: &mut BTreeSet<Vec<u8>>) -> Result<Listed, StateError> {
    let mut listed = Listed::new();
    let meta = std::fs::symlink_metadata(top).map_err(at("look at", top))?;
    open_up(disk, top, meta)?;
    let mut folders = vec![(Vec::new(), top.to_path_buf())];
    while let Some((folder, full)) = folders.pop() {
        for entry in std::fs::read_dir(&full).map_err(at("list", &full))? {
            let entry = entry.map_err(at("list", &full))?;
            let path = join(&folder, entry.file_name().as_bytes());
            if path.len() > PATH_BYTES_MAX {
                return Err(Forbidden::LongPath.at(&folder));
            }
            let here = entry.path();
            let meta = entry.metadata().map_err(at("look at", &here))?;
            if meta.file_type().is_char_device() && meta.rdev() == 0 {
                hide(state, &path, true, gone);
                continue;
            }
            // What is there counts one by one; what is hidden is no more than there was.
            if listed.len() == ENTRIES_MAX {
                return Err(Forbidden::TooMany.at(&path));
            }
            let meta = if meta.is_dir() {
                let meta = open_up(disk, &here, meta)?;
                let was_other = state.entries.get(&path).is_some_and(|old| old.leaf.kind != Kind::Folder);
                if was_other || is_opaque(&here)? {
                    hide(state, &path, was_other, gone);
                }
                folders.push((path.clone(), here.clone()));
                meta
            } else {
                if state.entries.get(&path).is_some_and(|old| old.leaf.kind == Kind::Folder) {
                    hide(state, &path, true, gone);
                }
                meta
            };
            listed.insert(path, (here, meta));
        }
    }
    Ok(listed)
}

/// Everything that `state` has below `path`, and with `itself` the path too.
fn hide(state: &Index, path: &[u8], itself: bool, gone: &mut BTreeSet<Vec<u8>>) {
    if itself && state.entries.contains_key(path) {
        gone.insert(path.to_vec());
    }
    let below = [path, b"/"].concat();
    let found = state.entries.range(below.clone()..).map(|(path, _)| path);
    gone.extend(found.take_while(|path| path.starts_with(&below)).cloned());
}

fn is_opaque(folder: &Path) -> Result<bool, StateError> {
    let mut value = [0; 8];
    match rustix::fs::lgetxattr(folder, OPAQUE, &mut value) {
        Ok(len) => Ok(value[..len] == *b"y"),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(at("read the attributes of", folder)(io::Error::from(error))),
    }
}
