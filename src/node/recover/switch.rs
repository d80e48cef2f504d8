//! Puts a recovered chain into the place of the old one by renames, such that a cut leaves the one or the other.
//!
//! Everything new is made in `DIR/.recover.new/`. When it is whole and durable, that is renamed to `DIR/.recover/`: from
//! this moment on the folder is the new one, and whoever opens it (`hp run`, `hp recover`) first finishes the switch by
//! [`finish`], whose steps may be cut and repeated. Before it, the folder is the old one, and what was made is thrown away.
//!
//! The old chain stays in `hist/before/<first digits of its id>/`, a contract folder of its own for `hp ledger`.

use std::{
    fs::{self, File, Metadata, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use super::{Plan, RecoverError, io_error, sync};
use crate::{config::Config, node::start::Lock, types::Hash};

const NEW: &str = ".recover.new";
const READY: &str = ".recover";
/// In the prepared folder: the name under which the old chain is kept.
const KEPT_AS: &str = "kept-as";

/// Where an old chain is kept, relative to the contract folder.
pub fn before(chain_id: &Hash) -> PathBuf {
    Path::new("hist/before").join(chain_id.short())
}

/// An empty folder to prepare in.
pub(super) fn clear(dir: &Path) -> Result<PathBuf, RecoverError> {
    let aside = dir.join(NEW);
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &aside)(error)),
        _ => {}
    }
    fs::create_dir(&aside).map_err(io_error("create", &aside))?;
    Ok(aside)
}

/// Says that all is prepared: from here on the folder is the new one.
pub(super) fn seal(dir: &Path, old_chain: &Hash, old_text: &str, new_text: &str) -> Result<(), RecoverError> {
    let aside = dir.join(NEW);
    let kept = aside.join(before(old_chain));
    let cfg = kept.join("cfg");
    fs::create_dir_all(&cfg).map_err(io_error("create", &cfg))?;
    write(&cfg.join("hp.cfg"), old_text)?;
    write(&aside.join("hp.cfg"), new_text)?;
    write(&aside.join(KEPT_AS), &old_chain.short())?;
    for folder in [&cfg, &kept, &aside.join("hist/before"), &aside.join("hist"), &aside, &dir.to_path_buf()] {
        sync(folder)?;
    }
    let ready = dir.join(READY);
    fs::rename(&aside, &ready).map_err(io_error("rename", &aside))?;
    sync(dir)
}

/// Finishes a switch that was begun, if there is one; whether there was. Holds the folder's lock meanwhile.
pub fn finish(dir: &Path) -> Result<bool, RecoverError> {
    if !is_begun(dir) {
        return Ok(false);
    }
    let _lock = Lock::take(dir)?;
    finish_locked(dir, &mut |_| Ok(()))?;
    Ok(true)
}

/// Switches to what was prepared by this plan, which holds the lock.
pub fn finish_planned(plan: &Plan) -> Result<(), RecoverError> {
    finish_locked(&plan.config.dir, &mut |_| Ok(()))
}

/// Whether a switch was begun and not finished.
pub fn is_begun(dir: &Path) -> bool {
    fs::symlink_metadata(dir.join(READY)).is_ok()
}

/// The steps, for whoever has the lock. `step` is called before each of them, and may fail in its place.
pub(super) fn finish_locked(
    dir: &Path,
    step: &mut dyn FnMut(&'static str) -> io::Result<()>,
) -> Result<(), RecoverError> {
    let ready = dir.join(READY);
    let mut rename = |what: &'static str, from: &Path, to: &Path| -> Result<(), RecoverError> {
        step(what).and_then(|()| fs::rename(from, to)).map_err(io_error("rename", from))?;
        for folder in [from, to].into_iter().filter_map(Path::parent) {
            sync(folder)?;
        }
        Ok(())
    };
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    let (hist, state) = (dir.join("hist"), dir.join("state"));

    // The old database moves into the new hist/, and with that into its place.
    if is_there(&ready.join("hist")) {
        let name = fs::read_to_string(ready.join(KEPT_AS)).map_err(io_error("read", &ready.join(KEPT_AS)))?;
        let kept = ready.join("hist/before").join(name);
        if is_there(&ready.join("state")) {
            if is_there(&state) && !is_there(&kept.join("state")) {
                rename("the old state", &state, &kept.join("state"))?;
            }
            rename("the new state", &ready.join("state"), &state)?;
        }
        if is_there(&hist) && !is_there(&kept.join("hist")) {
            rename("the old history", &hist, &kept.join("hist"))?;
        }
        rename("the new history", &ready.join("hist"), &hist)?;
    }
    let text = ready.join("hp.cfg");
    if is_there(&text) {
        step("the configuration").map_err(io_error("write", &text))?;
        replace_config(dir, &text)?;
        step("the prepared configuration").map_err(io_error("remove", &text))?;
        fs::remove_file(&text).map_err(io_error("remove", &text))?;
        sync(&ready)?;
    }
    step("the prepared folder").map_err(io_error("remove", &ready))?;
    fs::remove_dir_all(&ready).map_err(io_error("remove", &ready))?;
    sync(dir)
}

/// Gives cfg/hp.cfg a new text, with the owner and mode that it had. A link stays a link.
fn replace_config(dir: &Path, text: &Path) -> Result<(), RecoverError> {
    let file = Config::path(dir);
    let file = fs::canonicalize(&file).map_err(io_error("find", &file))?;
    let was = fs::metadata(&file).map_err(io_error("look at", &file))?;
    let folder = file.parent().expect("a file is in a folder");
    let text = fs::read(text).map_err(io_error("read", text))?;
    let made = || -> io::Result<()> {
        let mut new = tempfile::Builder::new().prefix(".hp.cfg.").tempfile_in(folder)?;
        new.write_all(&text)?;
        keep_owner(new.as_file(), &was)?;
        new.as_file().set_permissions(was.permissions())?;
        new.as_file().sync_all()?;
        new.persist(&file).map_err(|error| error.error)?;
        Ok(())
    };
    made().map_err(io_error("write", &file))?;
    sync(folder)
}

fn keep_owner(file: &File, was: &Metadata) -> io::Result<()> {
    let is = file.metadata()?;
    match (is.uid(), is.gid()) == (was.uid(), was.gid()) {
        true => Ok(()),
        false => fchown(file, Some(was.uid()), Some(was.gid())),
    }
}

/// A file of mode 0600, on disk but for its name.
fn write(path: &Path, text: &str) -> Result<(), RecoverError> {
    let written = || -> io::Result<()> {
        let mut file = File::create_new(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    written().map_err(io_error("write", path))
}
