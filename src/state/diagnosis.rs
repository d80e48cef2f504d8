//! A bounded copy of `state/` for an operator to look at. Nothing else depends on it.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{
    StateError,
    disk::{at, open_read},
    scan::{PATH_BYTES_MAX, join},
};
use crate::types::Seq;

/// Bytes of files in one diagnosis. A file that would go past it is left out, and listed.
pub const DIAGNOSIS_BYTES_MAX: u64 = 256 << 20;

/// Paths in one diagnosis. Further ones are neither copied nor listed.
pub const DIAGNOSIS_ENTRIES_MAX: usize = 10_000;

/// Diagnoses kept in `diag/`. Past it the one of the lowest ledger is removed.
pub const DIAGNOSES_MAX: usize = 8;

/// See `StateStore::keep_diagnosis`; `top` is the folder, `same` says which of its paths are as before the run.
pub(super) fn keep(dir: &Path, top: &Path, same: &dyn Fn(&[u8]) -> bool, seq: Seq) -> Result<PathBuf, StateError> {
    let diag = dir.join("diag");
    fs::create_dir_all(&diag).map_err(at("create folder", &diag))?;
    let kept = diag.join(seq.to_string());
    remove_oldest(&diag, seq)?;
    let target = kept.join("state");
    fs::create_dir_all(&target).map_err(at("create folder", &target))?;

    let mut omitted = String::new();
    let (mut paths, whole) = list(top, &mut omitted);
    if !whole {
        omitted.push_str("more than is listed here\n");
    }
    paths.sort_by_cached_key(|path| (same(path), path.clone()));
    let mut bytes_left = DIAGNOSIS_BYTES_MAX;
    for path in paths {
        let (from, to) = (top.join(OsStr::from_bytes(&path)), target.join(OsStr::from_bytes(&path)));
        match keep_one(&from, &to, bytes_left) {
            Ok(bytes) => bytes_left = bytes_left.saturating_sub(bytes),
            Err(reason) if reason.kind() == io::ErrorKind::StorageFull => return Err(at("write", &to)(reason)),
            Err(reason) => omit(&mut omitted, &path, &reason.to_string()),
        }
    }
    if !omitted.is_empty() {
        let list = kept.join("omitted.txt");
        fs::write(&list, omitted).map_err(at("write", &list))?;
    }
    Ok(kept)
}

/// Removes what is there of `seq`, and the oldest until there is room for one more.
fn remove_oldest(diag: &Path, seq: Seq) -> Result<(), StateError> {
    let mut seqs: Vec<Seq> = fs::read_dir(diag)
        .map_err(at("list", diag))?
        .filter_map(|entry| {
            let entry = entry.ok().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))?;
            let name = entry.file_name().into_string().ok()?;
            name.parse().ok().filter(|seq: &Seq| seq.to_string() == name)
        })
        .collect();
    seqs.sort_unstable();
    let remove = |old: Seq| {
        let path = diag.join(old.to_string());
        fs::remove_dir_all(&path).map_err(at("remove", &path))
    };
    if let Some(at) = seqs.iter().position(|&old| old == seq) {
        remove(seqs.remove(at))?;
    }
    let too_many = (seqs.len() + 1).saturating_sub(DIAGNOSES_MAX);
    seqs.into_iter().take(too_many).try_for_each(remove)
}

/// Up to [`DIAGNOSIS_ENTRIES_MAX`] paths below `top`, and whether these are all.
fn list(top: &Path, omitted: &mut String) -> (Vec<Vec<u8>>, bool) {
    let mut paths = Vec::new();
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(top.join(OsStr::from_bytes(&folder))) {
            Ok(entries) => entries,
            Err(reason) => {
                omit(omitted, &folder, &reason.to_string());
                continue;
            }
        };
        for entry in entries.flatten() {
            let path = join(&folder, entry.file_name().as_bytes());
            if paths.len() == DIAGNOSIS_ENTRIES_MAX {
                return (paths, false);
            }
            if path.len() <= PATH_BYTES_MAX && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.clone());
            }
            paths.push(path);
        }
    }
    (paths, true)
}

/// Copies a file of at most `bytes_max`, or makes a folder; the error says why it was left out.
fn keep_one(from: &Path, to: &Path, bytes_max: u64) -> io::Result<u64> {
    let meta = fs::symlink_metadata(from)?;
    if meta.is_dir() {
        return fs::create_dir_all(to).map(|()| 0);
    }
    if meta.is_symlink() {
        // Not made again: whoever looks in here should not be led elsewhere.
        return Err(io::Error::other(format!("symlink to {:?}", fs::read_link(from)?)));
    }
    if !meta.is_file() {
        return Err(io::Error::other(format!("{:?}", meta.file_type())));
    }
    if meta.len() > bytes_max {
        return Err(io::Error::other(format!("{} bytes are too many", meta.len())));
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut source = open_read(from)?;
    io::copy(&mut source, &mut fs::File::create(to)?)
}

fn omit(omitted: &mut String, path: &[u8], reason: &str) {
    writeln!(omitted, "{}: {reason}", path.escape_ascii()).expect("writing into memory does not fail");
}
