//! The folder `tmp/` of a run: empty when it begins, and emptied when it is over, whatever the contract left in it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Makes an empty folder at `path`, of what there is or anew.
pub(super) fn prepare(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => return empty(path),
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// Removes everything in the folder at `path`.
///
/// Folders below it are taken apart from the top, each after its own folders were moved up: so neither the depth of a
/// tree nor the length of its paths matters.
fn empty(path: &Path) -> io::Result<()> {
    open_to_owner(path)?;
    let mut moved = 0_u64;
    loop {
        let mut folders = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => fs::remove_file(entry.path())?,
            }
        }
        if folders.is_empty() {
            return Ok(());
        }
        for folder in folders {
            open_to_owner(&folder)?;
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    // To move a folder is to write in it.
                    open_to_owner(&entry.path())?;
                    fs::rename(entry.path(), free_name(path, &mut moved))?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            fs::remove_dir(&folder)?;
        }
    }
}

/// A name in `path` that nothing has.
fn free_name(path: &Path, moved: &mut u64) -> PathBuf {
    loop {
        *moved += 1;
        let name = path.join(format!("moved-{moved}"));
        if fs::symlink_metadata(&name).is_err() {
            return name;
        }
    }
}

fn open_to_owner(folder: &Path) -> io::Result<()> {
    // To set what is set is to write to the disk.
    if fs::symlink_metadata(folder)?.permissions().mode() & 0o7777 == 0o700 {
        return Ok(());
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_is_made_and_emptied_of_anything_however_deep() {
        let dir = tempfile::tempdir().unwrap();
        let tmp = dir.path().join("tmp");
        let kept = dir.path().join("kept");
        fs::write(&kept, "kept").unwrap();
        prepare(&tmp).unwrap();
        assert_eq!(fs::metadata(&tmp).unwrap().permissions().mode() & 0o7777, 0o700);
        // Deeper than any path is long.
        let mut top = tmp.join("moved-1");
        fs::create_dir(&top).unwrap();
        for _ in 0..3_000 {
            let above = tmp.join("above");
            fs::create_dir(&above).unwrap();
            fs::rename(&top, above.join("below")).unwrap();
            top = tmp.join("top");
            fs::rename(&above, &top).unwrap();
        }
        symlink(dir.path(), tmp.join("link")).unwrap();
        fs::create_dir_all(tmp.join("closed/inner")).unwrap();
        fs::write(tmp.join("closed/inner/file"), "x").unwrap();
        fs::set_permissions(tmp.join("closed/inner"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(tmp.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        prepare(&tmp).unwrap();
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
    }

    #[test]
    fn what_stands_in_its_place_goes_and_what_it_points_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::write(dir.path().join("other/file"), "x").unwrap();
        symlink("other", dir.path().join("tmp")).unwrap();
        prepare(&dir.path().join("tmp")).unwrap();
        assert!(
            fs::symlink_metadata(dir.path().join("tmp")).unwrap().is_dir() && dir.path().join("other/file").exists()
        );
    }
}
