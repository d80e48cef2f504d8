//! A bounded copy of `state/` for an operator to look at. Nothing else depends on it.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt::Write as _,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use super::{
    StateError,
    disk::{at, open_read},
    scan::{PATH_BYTES_MAX, join},
};

/// Paths in one diagnosis. Further ones are neither copied nor listed.
pub const DIAGNOSIS_ENTRIES_MAX: usize = 10_000;

/// Bytes of one file as it was before the run. A longer one is not kept.
pub const BEFORE_FILE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of all files as they were before the run. Past it no further one is kept.
pub const BEFORE_BYTES_MAX: u64 = 16 << 20;

/// How much of the state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Also what the run did not change, as far as there is room.
    pub whole: bool,
    /// Bytes of files. One that would go past it is left out, and listed.
    pub bytes_max: u64,
}

/// What was at a path before the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// There is no pre-state to ask.
    Unknown,
    /// Nothing.
    Nothing,
    /// A folder.
    Folder,
    /// A symlink.
    Symlink,
    /// The file that is kept here.
    File(PathBuf),
}

/// What is copied, and from where.
pub(super) struct Source<'a> {
    /// The state's folder.
    pub top: &'a Path,
    /// What the run changed in it.
    pub changed: &'a BTreeSet<Vec<u8>>,
    /// What was at a path before the run.
    pub before: &'a dyn Fn(&[u8]) -> Before,
}

/// See `StateStore::keep_diagnosis`.
pub(super) fn keep(source: &Source<'_>, into: &Path, extent: Extent) -> Result<(), StateError> {
    let Source { top, changed, before } = source;
    let target = into.join("state");
    fs::create_dir_all(&target).map_err(at("create folder", &target))?;

    let mut omitted = String::new();
    let mut paths: Vec<Vec<u8>> = changed.iter().take(DIAGNOSIS_ENTRIES_MAX).cloned().collect();
    let mut all = paths.len() == changed.len();
    if extent.whole {
        let (mut rest, listed) = list(top, &mut omitted);
        rest.retain(|path| !changed.contains(path));
        rest.sort();
        all &= listed && paths.len() + rest.len() <= DIAGNOSIS_ENTRIES_MAX;
        paths.extend(rest);
        paths.truncate(DIAGNOSIS_ENTRIES_MAX);
    }
    if !all {
        omitted.push_str("more than is listed here\n");
    }
    let copy =
        |path: &[u8], from: &Path, to: &Path, bytes_max: u64, omitted: &mut String| match keep_one(from, to, bytes_max)
        {
            Ok(bytes) => Ok(bytes),
            Err(full) if full.kind() == io::ErrorKind::StorageFull => Err(at("write", to)(full)),
            // The run removed it.
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(reason) => {
                omit(omitted, path, &reason.to_string());
                Ok(0)
            }
        };
    let mut bytes_left = extent.bytes_max;
    for path in &paths {
        let (from, to) = (top.join(OsStr::from_bytes(path)), target.join(OsStr::from_bytes(path)));
        bytes_left -= copy(path, &from, &to, bytes_left, &mut omitted)?.min(bytes_left);
    }
    // What another node's run may have left as it was.
    let mut bytes_left = BEFORE_BYTES_MAX;
    for path in changed.iter().take(DIAGNOSIS_ENTRIES_MAX) {
        if let Before::File(from) = before(path) {
            let to = into.join("before").join(OsStr::from_bytes(path));
            let bytes_max = bytes_left.min(BEFORE_FILE_BYTES_MAX);
            bytes_left -= copy(path, &from, &to, bytes_max, &mut String::new())?.min(bytes_left);
        }
    }
    if !omitted.is_empty() {
        let list = into.join("omitted.txt");
        fs::write(&list, omitted).map_err(at("write", &list))?;
    }
    Ok(())
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
    let mut target = fs::File::create(to)?;
    let bytes = io::copy(&mut source, &mut target)?;
    // The one mode bit that is part of the state.
    if meta.mode() & 0o100 != 0 {
        target.set_permissions(fs::Permissions::from_mode(0o700))?;
    }
    Ok(bytes)
}

fn omit(omitted: &mut String, path: &[u8], reason: &str) {
    writeln!(omitted, "{}: {reason}", path.escape_ascii()).expect("writing into memory does not fail");
}
