//! What makes the changes of a run part of `state/`, as steps that can each be taken, and taken back, more than once.
//!
//! A file that is replaced or removed is moved to the undo folder, under its number. Whether a step was taken is read
//! off the folders, so that a plan is finished, or undone, from wherever a cut left it, and in either direction.

use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{
    StateError,
    disk::{Disk, at, open_read},
    scan::{ENTRIES_MAX, PATH_BYTES_MAX},
};
use crate::types::Hash;

/// Bytes of a plan at most: two steps for each path. A longer file is damage.
const PLAN_BYTES_MAX: u64 = 2 * ENTRIES_MAX as u64 * (PATH_BYTES_MAX as u64 + 16);

/// One change. Paths are relative to `state/`.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Step {
    /// A file or symlink goes, to the undo folder.
    RemoveFile { path: Vec<u8>, undo: u32 },
    /// An empty folder goes.
    RemoveFolder { path: Vec<u8> },
    /// A folder comes.
    MakeFolder { path: Vec<u8> },
    /// A file or symlink comes from the upper folder, instead of the one that goes to the undo folder, if any.
    Place { path: Vec<u8>, undo: Option<u32> },
}

/// Where the steps are taken.
#[derive(Debug)]
pub(super) struct Folders {
    pub state: PathBuf,
    pub upper: PathBuf,
    pub undo: PathBuf,
}

/// Mode of a folder that comes; modes of folders do not count.
const FOLDER_MODE: u32 = 0o755;

impl Step {
    pub fn path(&self) -> &[u8] {
        match self {
            Step::RemoveFile { path, .. }
            | Step::RemoveFolder { path }
            | Step::MakeFolder { path }
            | Step::Place { path, .. } => path,
        }
    }

    /// The number in the undo folder of what goes.
    pub fn undo(&self) -> Option<u32> {
        match self {
            Step::RemoveFile { undo, .. } => Some(*undo),
            Step::Place { undo, .. } => *undo,
            Step::RemoveFolder { .. } | Step::MakeFolder { .. } => None,
        }
    }

    /// Takes the step, unless it is taken.
    pub fn take(&self, disk: &Disk, folders: &Folders) -> Result<(), StateError> {
        let here = folders.state.join(OsStr::from_bytes(self.path()));
        let put_aside = |undo: u32| {
            let aside = folders.undo.join(undo.to_string());
            if look(&aside)?.is_none() && look(&here)?.is_some_and(|meta| !meta.is_dir()) {
                disk.rename(&here, &aside)?;
            }
            Ok(())
        };
        match self {
            Step::RemoveFile { undo, .. } => put_aside(*undo),
            Step::RemoveFolder { .. } => remove_folder(disk, &here),
            Step::MakeFolder { .. } => make_folder(disk, &here),
            Step::Place { path, undo } => {
                let from = folders.upper.join(OsStr::from_bytes(path));
                if look(&from)?.is_none() {
                    return Ok(());
                }
                undo.map_or(Ok(()), put_aside)?;
                disk.rename(&from, &here)
            }
        }
    }

    /// Takes the step back, unless it is not taken. What came is gone then.
    pub fn take_back(&self, disk: &Disk, folders: &Folders) -> Result<(), StateError> {
        let here = folders.state.join(OsStr::from_bytes(self.path()));
        let bring_back = |undo: u32| {
            let aside = folders.undo.join(undo.to_string());
            if look(&aside)?.is_some() { disk.rename(&aside, &here) } else { Ok(()) }
        };
        match self {
            Step::RemoveFile { undo, .. } | Step::Place { undo: Some(undo), .. } => bring_back(*undo),
            Step::RemoveFolder { .. } => make_folder(disk, &here),
            Step::MakeFolder { .. } => remove_folder(disk, &here),
            Step::Place { undo: None, .. } => {
                if look(&here)?.is_some_and(|meta| !meta.is_dir()) {
                    disk.remove_file(&here)
                } else {
                    Ok(())
                }
            }
        }
    }
}

fn make_folder(disk: &Disk, path: &Path) -> Result<(), StateError> {
    match look(path)? {
        Some(_) => Ok(()),
        None => {
            disk.create_dir(path)?;
            disk.chmod(path, FOLDER_MODE)
        }
    }
}

fn remove_folder(disk: &Disk, path: &Path) -> Result<(), StateError> {
    if look(path)?.is_some_and(|meta| meta.is_dir()) { disk.remove_dir(path) } else { Ok(()) }
}

/// What is there, if anything. A path through what is no folder leads nowhere.
fn look(path: &Path) -> Result<Option<Metadata>, StateError> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(gone) if matches!(gone.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(other) => Err(at("look at", path)(other)),
    }
}

/// Writes the plan, durably but for its name, over whatever is there; returns the hash it is read back by.
pub(super) fn write(disk: &Disk, path: &Path, steps: &[Step]) -> Result<Hash, StateError> {
    let bytes = borsh::to_vec(steps).map_err(at("encode", path))?;
    if look(path)?.is_some() {
        disk.remove_file(path)?;
    }
    let file: File = disk.create(path, 0o600)?;
    disk.write_at(&file, path, &bytes, 0)?;
    disk.sync(&file, path)?;
    Ok(Hash(*blake3::hash(&bytes).as_bytes()))
}

/// Reads the plan that was written with this hash.
pub(super) fn read(path: &Path, hash: Hash) -> Result<Vec<Step>, StateError> {
    let mut bytes = Vec::new();
    let file = open_read(path).map_err(at("open", path))?;
    file.take(PLAN_BYTES_MAX).read_to_end(&mut bytes).map_err(at("read", path))?;
    let whole = blake3::hash(&bytes) == blake3::Hash::from(hash.0);
    let steps = whole.then(|| borsh::from_slice(&bytes).ok()).flatten();
    steps.ok_or_else(|| StateError::Intent { path: path.to_path_buf() })
}
