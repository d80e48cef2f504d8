//! States that are no running node's: the root of a folder, where a node's folder may hold which state, and a copy.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    StateError,
    disk::{Disk, at},
    ensure_dir, expect_root,
    mirror::{Modes, mirror, remove_tree},
    pin::Pins,
    scan::{Index, Totals},
};
use crate::types::Hash;

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The state root.
    pub root: Hash,
    /// Files, folders and symlinks.
    pub files: u64,
    /// Bytes of all files, holes counted.
    pub bytes: u64,
}

/// Reads all of a folder. Gives the owner back the right to read where a file lacks it, as a scan does.
pub fn look(top: &Path) -> Result<Held, StateError> {
    let (index, Totals { entries, bytes, .. }) = read(top)?;
    Ok(Held { root: index.root(), files: entries, bytes })
}

/// Copies a folder that has this root to `to`, which must not exist. Durable but for its name.
pub fn copy(from: &Path, to: &Path, root: Hash) -> Result<(), StateError> {
    let disk = Disk::default();
    let (from, _) = read(from)?;
    expect_root(from.top(), root, from.root())?;
    disk.create_dir(to)?;
    let (mut copied, _) = read(to)?;
    let paths = from.entries.keys().cloned().collect();
    mirror(&disk, &from, &mut copied, &paths, Modes::State, &mut Pins::default())?;
    expect_root(to, root, copied.root())
}

/// Removes a folder with all that is in it, whatever that is and however deep; nothing where nothing is. Not durable.
pub fn remove(top: &Path) -> Result<(), StateError> {
    match (fs::symlink_metadata(top), top.parent()) {
        (Ok(_), Some(above)) => remove_tree(&Disk::volatile(), above, top.to_path_buf()),
        _ => Ok(()),
    }
}

/// The folders below a contract's folder that may hold a whole state, the most likely first: `state/`, the copy of the
/// pre-state, and diagnoses in which nothing was left out, the last ledger's first.
pub fn places(dir: &Path) -> Vec<PathBuf> {
    let mut diagnoses: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir.join("diag")).into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|_| !entry.path().join("omitted.txt").exists()) {
            diagnoses.push((number, entry.path().join("state")));
        }
    }
    diagnoses.sort_unstable();
    let own = [dir.join("state"), dir.join("hist/shadow/copy")];
    let all = own.into_iter().chain(diagnoses.into_iter().rev().map(|(_, path)| path));
    all.filter(|path| path.is_dir()).collect()
}

/// Whether the folder of a contract whose state is kept by overlays can go back to this root.
#[cfg(target_os = "linux")]
pub fn has_before(dir: &Path, root: Hash) -> Result<bool, StateError> {
    Ok(super::overlay::before(dir)? == Some(root))
}

/// Makes `to` the state to which such a folder can go back, without a change of the folder itself. `scratch` is removed.
#[cfg(target_os = "linux")]
pub fn copy_before(dir: &Path, root: Hash, scratch: &Path, to: &Path) -> Result<(), StateError> {
    let disk = Disk::default();
    for folder in ["", "hist", "hist/overlay"] {
        ensure_dir(&disk, &scratch.join(folder))?;
    }
    for part in ["state", "hist/overlay/intent", "hist/overlay/plan", "hist/overlay/undo", "hist/overlay/upper"] {
        clone_tree(&dir.join(part), &scratch.join(part)).map_err(at("copy", &dir.join(part)))?;
    }
    let found = super::open(scratch, super::Backend::Overlay, None)?.rollback()?;
    expect_root(&scratch.join("state"), root, found)?;
    disk.rename(&scratch.join("state"), to)?;
    fs::remove_dir_all(scratch).map_err(at("remove", scratch))
}

/// Elsewhere nothing is kept by overlays.
#[cfg(not(target_os = "linux"))]
pub fn has_before(_: &Path, _: Hash) -> Result<bool, StateError> {
    Ok(false)
}

/// Elsewhere nothing is kept by overlays.
#[cfg(not(target_os = "linux"))]
pub fn copy_before(_: &Path, _: Hash, _: &Path, _: &Path) -> Result<(), StateError> {
    Err(StateError::NoBackend(super::Backend::Overlay))
}

fn read(top: &Path) -> Result<(Index, Totals), StateError> {
    let mut index = Index::new(top.to_path_buf());
    // Looked at once: no stamp needs to be trusted.
    let totals = index.scan(&Disk::default(), i128::MIN)?;
    Ok((index, totals))
}

/// Copies files, folders and symlinks as they are; devices and the like are left out.
#[cfg(target_os = "linux")]
fn clone_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut waiting = vec![(from.to_path_buf(), to.to_path_buf())];
    while let Some((from, to)) = waiting.pop() {
        let meta = match fs::symlink_metadata(&from) {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
            meta => meta?,
        };
        if meta.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
        } else if meta.is_file() {
            fs::copy(&from, &to)?;
        } else if meta.is_dir() {
            fs::create_dir(&to)?;
            for entry in fs::read_dir(&from)? {
                let entry = entry?;
                waiting.push((entry.path(), to.join(entry.file_name())));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::state::{Backend, open};

    #[test]
    fn a_copy_has_the_root_of_what_was_copied_and_another_root_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("deep/empty")).unwrap();
        fs::write(from.join("deep/file"), vec![7; 100_000]).unwrap();
        fs::write(from.join("tool"), "x").unwrap();
        fs::set_permissions(from.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("deep/file", from.join("link")).unwrap();
        let held = look(&from).unwrap();
        assert_eq!((held.files, held.bytes), (5, 100_001));
        let to = dir.path().join("to");
        copy(&from, &to, held.root).unwrap();
        assert_eq!(look(&to).unwrap(), held);
        assert!(copy(&from, &to, held.root).is_err(), "it is there");
        let wrong = copy(&from, &dir.path().join("other"), Hash([1; 32]));
        assert!(matches!(wrong, Err(StateError::Root { .. })), "{wrong:?}");
        assert!(!dir.path().join("other").exists());
    }

    #[test]
    fn a_diagnosis_counts_when_nothing_was_left_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["state", "diag/9/state", "diag/10/state", "diag/11/state", "diag/notes"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("diag/10/omitted.txt"), "fifo").unwrap();
        let found: Vec<PathBuf> = ["state", "diag/11/state", "diag/9/state"].map(|at| dir.path().join(at)).into();
        assert_eq!(places(dir.path()), found);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_state_before_a_run_in_an_overlay_is_copied_and_the_folder_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let contract = dir.path().join("contract");
        fs::create_dir_all(contract.join("state")).unwrap();
        fs::write(contract.join("state/a"), "before").unwrap();
        let mut store = open(&contract, Backend::Overlay, None).unwrap();
        let before = store.scan(true).unwrap().root;
        store.snapshot(1, before).unwrap();
        store.begin_run().unwrap();
        fs::write(contract.join("hist/overlay/upper/a"), "after").unwrap();
        fs::write(contract.join("hist/overlay/upper/b"), "new").unwrap();
        let after = store.scan(true).unwrap().root;
        drop(store);
        assert!(before != after && has_before(&contract, before).unwrap() && !has_before(&contract, after).unwrap());
        let to = dir.path().join("to");
        copy_before(&contract, before, &dir.path().join("scratch"), &to).unwrap();
        assert_eq!(look(&to).unwrap().root, before);
        assert_eq!(look(&contract.join("state")).unwrap().root, after);
        assert!(!dir.path().join("scratch").exists());
    }
}
