//! Records that are damaged are put aside, so that the folder opens as one of which nothing is known. Nothing of them is
//! followed: what the files are then shows by their root, and what is not right is fetched from other nodes.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{
    Backend, StateError,
    disk::{Disk, at},
    mirror::{REMOVING, remove_tree},
};

/// Where they are, below the contract folder: those of the last time. Those of the time before make room.
pub const DAMAGED: &str = "hist/damaged";

/// Folders of a backend, and of a fetch, that hold files of the contract and no records: whoever opens the folder next
/// makes them right, or empties them.
const CONTENT: [&str; 4] = ["copy", "undo", "upper", "work"];

/// Puts aside the records of both backends, and of a fetch that was cut. A cut leaves what a second call puts aside.
pub(super) fn put_aside(disk: &Disk, dir: &Path) -> Result<(), StateError> {
    let (hist, damaged) = (dir.join("hist"), dir.join(DAMAGED));
    remove(disk, &hist, &damaged)?;
    disk.create_dir(&damaged)?;
    for name in [Backend::Shadow.name(), Backend::Overlay.name(), "sync", ".retired", ".adopted"] {
        let folder = hist.join(name);
        let aside = damaged.join(name);
        match kind(&folder)? {
            None => {}
            Some(Is::Other) => disk.rename(&folder, &aside)?,
            Some(Is::Folder) => {
                let records = records(&folder)?;
                if !records.is_empty() {
                    disk.create_dir(&aside)?;
                }
                for record in records {
                    disk.rename(&folder.join(&record), &aside.join(&record))?;
                }
                disk.sync_path(&folder)?;
            }
        }
    }
    disk.sync_path(&damaged)?;
    disk.sync_path(&hist)
}

/// Drops what was fetched of a state, whatever is in its place.
pub fn drop_fetched(dir: &Path) -> Result<(), StateError> {
    remove(&Disk::default(), &dir.join("hist"), &dir.join("hist/sync"))
}

/// What in a backend's folder is no content. Fetched blocks are content too: each is checked by its hash.
fn records(folder: &Path) -> Result<Vec<PathBuf>, StateError> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder).map_err(at("list", folder))? {
        let entry = entry.map_err(at("list", folder))?;
        let name = entry.file_name();
        let is = kind(&entry.path())?;
        let is_content = match is {
            Some(Is::Folder) => is_content_folder(&name),
            _ => name == "blocks" && entry.file_type().is_ok_and(|kind| kind.is_file()),
        };
        if is.is_some() && !is_content {
            records.push(PathBuf::from(name));
        }
    }
    Ok(records)
}

fn is_content_folder(name: &OsStr) -> bool {
    CONTENT.iter().any(|content| name == *content) || name.as_bytes().starts_with(REMOVING.as_bytes())
}

enum Is {
    Folder,
    Other,
}

fn kind(path: &Path) -> Result<Option<Is>, StateError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(Some(Is::Folder)),
        Ok(_) => Ok(Some(Is::Other)),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(at("look at", path)(other)),
    }
}

fn remove(disk: &Disk, top: &Path, path: &Path) -> Result<(), StateError> {
    match kind(path)? {
        None => Ok(()),
        Some(Is::Folder) => remove_tree(disk, top, path.to_path_buf()),
        Some(Is::Other) => disk.remove_file(path),
    }
}
