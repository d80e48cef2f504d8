//! The copy of the pre-state: what it is worth (the intent record), and making one folder equal to another.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{
    StateError,
    disk::{Disk, at, open_read, open_write},
    merkle::{BLOCK_BYTES, Kind, block_hash},
    scan::{Entry, Index, join, open_up, symlink_leaf},
};
use crate::types::{Hash, Seq};

/// What the copy is worth. It is written, and durable, before the first change that it announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Intent {
    /// No pre-state was ever kept.
    Empty,
    /// The copy is the pre-state of the run of `seq`.
    Clean { seq: Seq, root: Hash },
    /// `state/` is right; the copy is being made equal to it.
    Updating { seq: Seq, root: Hash },
    /// The copy is right; `state/` is being made equal to it.
    RollingBack { seq: Seq, root: Hash },
}

/// Bytes between the two places of the intent record: a sector or a page, so that writing one never tears the other.
const SLOT_BYTES: u64 = 4096;

/// Bytes of one record at most; a longer one is damage.
const RECORD_BYTES_MAX: usize = 128;

/// Where the intent is kept: two slots written in turn, each with a counter and a hash, so that one durable write of
/// one sector replaces the record and a torn write leaves the one before.
#[derive(Debug)]
pub(super) struct IntentFile {
    file: File,
    path: PathBuf,
    counter: u64,
    pub intent: Intent,
}

impl IntentFile {
    /// Opens the record, or makes it with `Intent::Empty`. Errors when neither slot holds a whole record.
    pub fn open(disk: &Disk, path: &Path) -> Result<IntentFile, StateError> {
        match open_write(path) {
            Ok(file) => IntentFile::read(file, path),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => IntentFile::new(disk, path),
            Err(other) => Err(at("open", path)(other)),
        }
    }

    fn new(disk: &Disk, path: &Path) -> Result<IntentFile, StateError> {
        let fresh = path.with_extension("new");
        match std::fs::symlink_metadata(&fresh) {
            Ok(_) => disk.remove_file(&fresh)?,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            Err(other) => return Err(at("look at", &fresh)(other)),
        }
        let file = disk.create(&fresh, 0o600)?;
        // Both slots in full, so that writing one later allocates nothing and its sync is one write.
        let mut slots = record(0, Intent::Empty);
        slots.resize(2 * SLOT_BYTES as usize, 0);
        disk.write_at(&file, &fresh, &slots, 0)?;
        disk.sync(&file, &fresh)?;
        disk.rename(&fresh, path)?;
        if let Some(folder) = path.parent() {
            disk.sync_path(folder)?;
        }
        Ok(IntentFile { file, path: path.to_path_buf(), counter: 0, intent: Intent::Empty })
    }

    fn read(file: File, path: &Path) -> Result<IntentFile, StateError> {
        let slot = |number: u64| -> Result<Option<(u64, Intent)>, StateError> {
            let mut bytes = [0; RECORD_BYTES_MAX];
            match file.read_exact_at(&mut bytes, number * SLOT_BYTES) {
                Ok(()) => Ok(parse_record(&bytes)),
                Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                Err(other) => Err(at("read", path)(other)),
            }
        };
        let newest = [slot(0)?, slot(1)?].into_iter().flatten().max_by_key(|(counter, _)| *counter);
        let (counter, intent) = newest.ok_or_else(|| StateError::Intent { path: path.to_path_buf() })?;
        Ok(IntentFile { file, path: path.to_path_buf(), counter, intent })
    }

    /// Replaces the record, durably. After an error either of the two may be on the disk.
    pub fn write(&mut self, disk: &Disk, intent: Intent) -> Result<(), StateError> {
        let counter = self.counter + 1;
        disk.write_at(&self.file, &self.path, &record(counter, intent), counter % 2 * SLOT_BYTES)?;
        disk.sync_data(&self.file, &self.path)?;
        (self.counter, self.intent) = (counter, intent);
        Ok(())
    }
}

fn record(counter: u64, intent: Intent) -> Vec<u8> {
    let body = borsh::to_vec(&(counter, intent)).expect("writing into memory does not fail");
    let mut bytes = vec![u8::try_from(body.len()).expect("a record is a few dozen bytes")];
    bytes.extend(&body);
    bytes.extend(blake3::hash(&body).as_bytes());
    bytes
}

fn parse_record(bytes: &[u8]) -> Option<(u64, Intent)> {
    let (&len, rest) = bytes.split_first()?;
    let (body, rest) = rest.split_at_checked(usize::from(len))?;
    let hash: [u8; 32] = rest.get(..32)?.try_into().ok()?;
    if blake3::hash(body) != hash {
        return None;
    }
    borsh::from_slice(body).ok()
}

/// How a folder's files are made: the copy is the supervisor's alone, `state/` is the contract's.
#[derive(Debug, Clone, Copy)]
pub(super) enum Modes {
    Copy,
    State,
}

impl Modes {
    fn of(self, executable: bool) -> u32 {
        match (self, executable) {
            (Modes::Copy, false) => 0o600,
            (Modes::Copy, true) => 0o700,
            (Modes::State, false) => 0o644,
            (Modes::State, true) => 0o755,
        }
    }
}

/// Makes `to` equal to `from` at `paths` and durable. Both must be as their folders are.
///
/// After an error `to` is somewhere between, on the disk and in memory.
pub(super) fn mirror(
    disk: &Disk,
    from: &Index,
    to: &mut Index,
    paths: &BTreeSet<Vec<u8>>,
    modes: Modes,
) -> Result<(), StateError> {
    // Backwards, so that a folder is empty when its turn comes.
    for path in paths.iter().rev() {
        let Some(old) = to.entries.get(path) else { continue };
        if from.entries.get(path).is_some_and(|new| can_become(old, new)) {
            continue;
        }
        let full = to.full(path);
        match old.leaf.kind {
            Kind::Folder => disk.remove_dir(&full)?,
            Kind::File | Kind::Symlink => disk.remove_file(&full)?,
        }
        to.forget(path);
        to.listed(path);
    }
    let mut block = vec![0; BLOCK_BYTES];
    for path in paths {
        let Some(new) = from.entries.get(path) else { continue };
        let (source, full) = (from.full(path), to.full(path));
        let old = to.entries.get(path);
        if old.is_none() {
            to.listed(path);
        }
        let old = to.entries.get(path);
        match (new.leaf.kind, old) {
            (Kind::Folder | Kind::Symlink, Some(_)) => {}
            (Kind::Folder, None) => {
                disk.create_dir(&full)?;
                disk.chmod(&full, modes.of(true))?;
            }
            (Kind::Symlink, None) => {
                let target = std::fs::read_link(&source).map_err(at("read symlink", &source))?;
                if symlink_leaf(path, target.as_os_str().as_bytes())? != new.leaf {
                    return Err(StateError::Changed { path: source });
                }
                disk.symlink(&target, &full)?;
            }
            (Kind::File, old) => patch(disk, &source, &full, new, old, modes, &mut block)?,
        }
        to.put(path.clone(), new.leaf, new.blocks.clone())?;
    }
    to.sync(disk)?;
    to.retree();
    Ok(())
}

/// Whether `old` can be changed into `new` where it is.
fn can_become(old: &Entry, new: &Entry) -> bool {
    old.leaf.kind == new.leaf.kind && (old.leaf.kind != Kind::Symlink || old.leaf == new.leaf)
}

/// Writes the blocks that differ, and no others. What it reads must hash to what was agreed on.
fn patch(
    disk: &Disk,
    source: &Path,
    full: &Path,
    new: &Entry,
    old: Option<&Entry>,
    modes: Modes,
    block: &mut [u8],
) -> Result<(), StateError> {
    let mode = modes.of(new.leaf.executable);
    let file = match old {
        None => disk.create(full, mode)?,
        Some(old) => {
            if old.stat.mode & 0o600 != 0o600 {
                disk.chmod(full, (old.stat.mode | 0o600) & 0o7777)?;
            }
            open_write(full).map_err(at("open", full))?
        }
    };
    let (old_size, old_blocks) = old.map_or((0, &[][..]), |old| (old.leaf.size, &old.blocks));
    let size = new.leaf.size;
    if size != old_size {
        disk.set_len(&file, full, size)?;
    }
    // Opened for the first block that is needed: a file that only lost its tail, or a bit, is not.
    let mut reader = None;
    for (number, hash) in new.blocks.iter().enumerate().filter(|(number, hash)| old_blocks.get(*number) != Some(*hash))
    {
        let reader = match &reader {
            Some(reader) => reader,
            None => reader.insert(open_read(source).map_err(at("open", source))?),
        };
        let offset = number as u64 * BLOCK_BYTES as u64;
        let len = usize::try_from(size - offset).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let bytes = &mut block[..len];
        match reader.read_exact_at(bytes, offset) {
            Ok(()) => {}
            Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(StateError::Changed { path: source.to_path_buf() });
            }
            Err(other) => return Err(at("read", source)(other)),
        }
        if block_hash(bytes) != *hash {
            return Err(StateError::Changed { path: source.to_path_buf() });
        }
        // Behind the old end there are zeros already: what was a hole stays one.
        if offset < old_size || bytes.iter().any(|&byte| byte != 0) {
            disk.write_at(&file, full, bytes, offset)?;
        }
    }
    let meta = file.metadata().map_err(at("look at", full))?;
    let kept = old.is_some_and(|old| old.leaf.executable == new.leaf.executable) && meta.mode() & 0o600 == 0o600;
    if !kept && meta.mode() & 0o7777 != mode {
        disk.chmod(full, mode)?;
    }
    Ok(())
}

/// Removes from `top` whatever `wanted` has not, or has as another kind, or that must not be written through (a file
/// with a second name): whatever the contract left there, of any kind, size and depth.
pub(super) fn prune(disk: &Disk, top: &Path, wanted: &Index) -> Result<(), StateError> {
    match std::fs::symlink_metadata(top) {
        Ok(meta) if meta.is_dir() => {
            open_up(disk, top, meta)?;
        }
        Ok(_) => {
            disk.remove_file(top)?;
            disk.create_dir(top)?;
        }
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => disk.create_dir(top)?,
        Err(other) => return Err(at("look at", top)(other)),
    }
    if let Some(above) = top.parent() {
        disk.sync_path(above)?;
    }
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let full = if folder.is_empty() { top.to_path_buf() } else { top.join(OsStr::from_bytes(&folder)) };
        // Until a listing shows nothing to remove: a listing taken while entries go may miss some.
        loop {
            let (mut removed, mut kept) = (false, Vec::new());
            for entry in std::fs::read_dir(&full).map_err(at("list", &full))? {
                let entry = entry.map_err(at("list", &full))?;
                let path = join(&folder, entry.file_name().as_bytes());
                let here = entry.path();
                let meta = match entry.metadata() {
                    Ok(meta) => meta,
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
                    Err(other) => return Err(at("look at", &here)(other)),
                };
                let keep = match wanted.entries.get(&path).map(|wanted| wanted.leaf) {
                    Some(leaf) if leaf.kind == Kind::Folder => meta.is_dir(),
                    Some(leaf) if leaf.kind == Kind::File => meta.is_file() && meta.nlink() == 1,
                    Some(leaf) if meta.is_symlink() => {
                        let target = std::fs::read_link(&here).map_err(at("read symlink", &here))?;
                        symlink_leaf(&path, target.as_os_str().as_bytes()).is_ok_and(|found| found == leaf)
                    }
                    _ => false,
                };
                match keep {
                    true if meta.is_dir() => {
                        open_up(disk, &here, meta)?;
                        kept.push(path);
                    }
                    true => {}
                    false if meta.is_dir() => {
                        remove_tree(disk, top, here)?;
                        removed = true;
                    }
                    false => {
                        disk.remove_file(&here)?;
                        removed = true;
                    }
                }
            }
            if !removed {
                folders.extend(kept);
                break;
            }
        }
    }
    Ok(())
}

/// Removes a folder of any depth: its folders are moved up to `top` first, so that no path grows too long, no
/// descriptor stays open and nothing recurses.
fn remove_tree(disk: &Disk, top: &Path, folder: PathBuf) -> Result<(), StateError> {
    let mut moved = 0_u64;
    let mut pending = vec![folder];
    while let Some(folder) = pending.pop() {
        let meta = std::fs::symlink_metadata(&folder).map_err(at("look at", &folder))?;
        open_up(disk, &folder, meta)?;
        loop {
            let mut empty = true;
            for entry in std::fs::read_dir(&folder).map_err(at("list", &folder))? {
                let entry = entry.map_err(at("list", &folder))?;
                let here = entry.path();
                let meta = match entry.metadata() {
                    Ok(meta) => meta,
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
                    Err(other) => return Err(at("look at", &here)(other)),
                };
                empty = false;
                if !meta.is_dir() {
                    disk.remove_file(&here)?;
                    continue;
                }
                // Moving a folder changes its `..`: that takes the right to write into it.
                open_up(disk, &here, meta)?;
                let aside = loop {
                    let aside = top.join(format!(".removing-{moved}"));
                    moved += 1;
                    match std::fs::symlink_metadata(&aside) {
                        Err(gone) if gone.kind() == io::ErrorKind::NotFound => break aside,
                        Ok(_) => {}
                        Err(other) => return Err(at("look at", &aside)(other)),
                    }
                };
                disk.rename(&here, &aside)?;
                pending.push(aside);
            }
            if empty {
                break;
            }
        }
        disk.remove_dir(&folder)?;
    }
    Ok(())
}
