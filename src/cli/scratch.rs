//! A copy of a contract's folder, so that a run of the contract changes nothing of the folder itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tempfile::TempDir;

use super::Failure;

/// What a node, or an author, has in the folder that a run of the contract does not need, or must not touch. What builds
/// and old versions leave may be big, and is copied for every run.
const LEFT_OUT: [&str; 10] = ["state", "hist", "log", "run", "diag", "reads", "cfg", "tmp", "target", ".git"];

/// The copy; dropping it removes it.
pub(super) struct Scratch(TempDir);

impl Scratch {
    /// Copies what the contract may look at, and the state to begin with; none: an empty one.
    ///
    /// The copy is made in `place`, or where the system has its temporary files.
    pub(super) fn make(dir: &Path, state: Option<&Path>, place: Option<&Path>) -> Result<Scratch, Failure> {
        let made = match place {
            Some(folder) => TempDir::with_prefix_in("hp-scratch-", folder),
            None => TempDir::with_prefix("hp-scratch-"),
        };
        let scratch = Scratch(made.context("cannot make a folder for the copy (see --scratch)")?);
        fill(dir, state, &scratch.dir(), false)?;
        Ok(scratch)
    }

    /// Where it is.
    pub(super) fn dir(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

/// Copies what the contract in `dir` may look at to the empty folder `to`, and `state` to its state/. `reversed`: in the
/// opposite order of names.
pub(super) fn fill(dir: &Path, state: Option<&Path>, to: &Path, reversed: bool) -> Result<(), Failure> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        if !LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            copy(&entry.path(), &to.join(entry.file_name()), reversed)?;
        }
    }
    let into = to.join("state");
    match state {
        Some(given) => {
            // Not a link to it: the copy is written to.
            let given = given.canonicalize().with_context(|| format!("cannot read {}", given.display()))?;
            copy(&given, &into, reversed)
        }
        None => Ok(fs::create_dir(&into).with_context(|| format!("cannot create {}", into.display()))?),
    }
}

/// Copies a file, a folder with everything in it, or a symlink. Sockets and the like are left out.
///
/// Files are made in the order of their names, or in the opposite one: how a folder is listed may follow from that.
pub(super) fn copy(from: &Path, to: &Path, reversed: bool) -> Result<(), Failure> {
    let mut waiting = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = waiting.pop() {
        let copied = (|| -> io::Result<()> {
            let meta = fs::symlink_metadata(&from)?;
            if meta.is_symlink() {
                return std::os::unix::fs::symlink(fs::read_link(&from)?, &to);
            }
            if meta.is_file() {
                return fs::copy(&from, &to).map(|_| ());
            }
            if meta.is_dir() {
                fs::create_dir(&to)?;
                let mut entries = fs::read_dir(&from)?.collect::<io::Result<Vec<_>>>()?;
                entries.sort_by_key(fs::DirEntry::file_name);
                // The last one waiting is the next one copied.
                if !reversed {
                    entries.reverse();
                }
                for entry in entries {
                    waiting.push((entry.path(), to.join(entry.file_name())));
                }
            }
            Ok(())
        })();
        copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}
