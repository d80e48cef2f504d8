//! Making a folder equal to what it should be, and emptying folders of whatever a contract left there.

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

use super::{
    StateError,
    disk::{Disk, at, open_read, open_write},
    merkle::{BLOCK_BYTES, Kind, block_hash},
    pin::Pins,
    scan::{Entry, Index, join, open_up, symlink_leaf},
};
use crate::types::Hash;

/// How a folder's files are made: the copy is the supervisor's alone, `state/` is the contract's.
#[derive(Debug, Clone, Copy)]
pub(super) enum Modes {
    Copy,
    State,
}

impl Modes {
    pub(super) fn of(self, executable: bool) -> u32 {
        match (self, executable) {
            (Modes::Copy, false) => 0o600,
            (Modes::Copy, true) => 0o700,
            (Modes::State, false) => 0o644,
            (Modes::State, true) => 0o755,
        }
    }
}

/// Where the content of what is made comes from. Whatever it gives is checked before it is written.
pub(super) trait Source {
    /// Reads one block of a file into `block`, which has its length.
    fn read(&mut self, path: &[u8], number: usize, hash: &Hash, block: &mut [u8]) -> Result<(), StateError>;

    /// The target of a symlink.
    fn target(&mut self, path: &[u8], entry: &Entry) -> Result<Vec<u8>, StateError>;

    /// What is at fault when a block is not what it should be.
    fn place(&self, path: &[u8]) -> PathBuf;
}

/// Another folder, which nobody changes meanwhile.
pub(super) struct Folder<'a> {
    index: &'a Index,
    /// The file that was read last.
    open: Option<(PathBuf, File)>,
}

impl<'a> Folder<'a> {
    pub fn of(index: &'a Index) -> Folder<'a> {
        Folder { index, open: None }
    }
}

impl Source for Folder<'_> {
    fn read(&mut self, path: &[u8], number: usize, _: &Hash, block: &mut [u8]) -> Result<(), StateError> {
        let full = self.index.full(path);
        if self.open.as_ref().is_none_or(|(open, _)| *open != full) {
            let file = open_read(&full).map_err(at("open", &full))?;
            self.open = Some((full.clone(), file));
        }
        let (_, file) = self.open.as_ref().expect("just opened");
        match file.read_exact_at(block, number as u64 * BLOCK_BYTES as u64) {
            Ok(()) => Ok(()),
            Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => Err(StateError::Changed { path: full }),
            Err(other) => Err(at("read", &full)(other)),
        }
    }

    fn target(&mut self, path: &[u8], _: &Entry) -> Result<Vec<u8>, StateError> {
        let full = self.index.full(path);
        let target = std::fs::read_link(&full).map_err(at("read symlink", &full))?;
        Ok(target.into_os_string().into_encoded_bytes())
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.index.full(path)
    }
}

/// Makes `to` equal to `from` at `paths` and durable. Both must be as their folders are. What pins need of `to` is kept
/// for them first.
///
/// After an error `to` is somewhere between, on the disk and in memory.
pub(super) fn mirror(
    disk: &Disk,
    from: &Index,
    to: &mut Index,
    paths: &BTreeSet<Vec<u8>>,
    modes: Modes,
    pins: &mut Pins,
) -> Result<(), StateError> {
    mirror_from(disk, from, &mut Folder::of(from), to, paths, modes, pins)
}

/// The same with the content from elsewhere.
pub(super) fn mirror_from(
    disk: &Disk,
    from: &Index,
    source: &mut dyn Source,
    to: &mut Index,
    paths: &BTreeSet<Vec<u8>>,
    modes: Modes,
    pins: &mut Pins,
) -> Result<(), StateError> {
    // Backwards, so that a folder is empty when its turn comes.
    for path in paths.iter().rev() {
        let Some(old) = to.entries.get(path) else { continue };
        if from.entries.get(path).is_some_and(|new| can_become(old, new, pins)) {
            continue;
        }
        let full = to.full(path);
        pins.loses(&full, old, None);
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
        let full = to.full(path);
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
                let target = source.target(path, new)?;
                if symlink_leaf(path, &target)? != new.leaf {
                    return Err(StateError::Changed { path: source.place(path) });
                }
                disk.symlink(Path::new(OsStr::from_bytes(&target)), &full)?;
            }
            (Kind::File, old) => {
                if let Some(old) = old {
                    pins.loses(&full, old, Some(new));
                }
                patch(disk, source, path, &full, new, old, modes, &mut block)?;
            }
        }
        to.put(path.clone(), new.leaf, new.blocks.clone())?;
    }
    to.sync(disk)?;
    to.retree();
    Ok(())
}

/// Bytes that a file may lose at its end where it is, while there are pins: what it loses is copied for them. A file that
/// loses more is made anew, since the old one costs nothing to keep.
const CUT_BYTES_MAX: u64 = 16 << 20;

/// Whether `old` can be changed into `new` where it is.
fn can_become(old: &Entry, new: &Entry, pins: &Pins) -> bool {
    let is_cut = old.leaf.size.saturating_sub(new.leaf.size) > CUT_BYTES_MAX && !pins.is_empty();
    old.leaf.kind == new.leaf.kind && (old.leaf.kind != Kind::Symlink || old.leaf == new.leaf) && !is_cut
}

/// Writes the blocks that differ, and no others. What it reads must hash to what was agreed on.
#[expect(clippy::too_many_arguments, reason = "one caller; it is a part of `mirror_from`")]
fn patch(
    disk: &Disk,
    source: &mut dyn Source,
    path: &[u8],
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
    for (number, hash) in new.blocks.iter().enumerate().filter(|(number, hash)| old_blocks.get(*number) != Some(*hash))
    {
        let offset = number as u64 * BLOCK_BYTES as u64;
        let len = usize::try_from(size - offset).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let bytes = &mut block[..len];
        source.read(path, number, hash, bytes)?;
        if block_hash(bytes) != *hash {
            return Err(StateError::Changed { path: source.place(path) });
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

/// How the names of folders begin that are moved aside to be removed.
pub(super) const REMOVING: &str = ".removing-";

/// Removes a folder of any depth: its folders are moved up to `top` first, so that no path grows too long, no
/// descriptor stays open and nothing recurses.
pub(super) fn remove_tree(disk: &Disk, top: &Path, folder: PathBuf) -> Result<(), StateError> {
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
                    let aside = top.join(format!("{REMOVING}{moved}"));
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
