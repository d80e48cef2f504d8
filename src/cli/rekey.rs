//! `hp rekey`: a new key for an existing contract folder.

use std::{
    fs::{self, File, Metadata, TryLockError},
    io,
    os::unix::fs::{MetadataExt as _, fchown},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    Exit, Failure, Outcome, answer,
    new::{has_history, sync, unl_line, write_aside},
};
use crate::{
    config::{Config, Format, rekeyed},
    crypto::SecretKey,
    node::recover::switch,
};

/// Old files that are kept side by side. One more is refused, so that no old key is lost unasked.
const OLD_FILES_MAX: usize = 100;

const EXAMPLES: &str = "\
Example:
  hp rekey mynode

Comments and order of cfg/hp.cfg stay. The old file is kept as cfg/hp.cfg.old (mode 0600).";

/// Draw a new key for a contract folder.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Rekey {
    /// The contract folder.
    dir: PathBuf,
    /// Change the key although hist/ holds a history.
    ///
    /// With a new key the node is no member any more: it observes. The votes that the old key has given stay binding
    /// for that key alone. A quorum of the operators can vote the new key in and the old one out (`hp unl`).
    #[arg(long)]
    force: bool,
}

impl Rekey {
    pub(super) fn run(self) -> Outcome {
        if switch::is_begun(&self.dir) {
            let what = "an `hp recover` was cut here: finish it first (`hp recover` or `hp run` do)";
            return Err(anyhow::anyhow!(what).into());
        }
        let (text, config) = Config::load_text(&self.dir)?;
        let _lock = lock(&self.dir)?;
        let has_run = has_history(&self.dir)?;
        if !self.force && has_run {
            return Err(anyhow::anyhow!(
                "{} holds a history, in which the network knows this node by its old key; with a new one it would only \
                 observe (--force does it all the same)",
                self.dir.join("hist").display()
            )
            .into());
        }
        let new = SecretKey::generate();
        let changed = rekeyed(&text, &config, &new)?;
        // A key file first: cut off between the two, the old hp.cfg says that pubkey and key file do not fit, and both
        // old files are still there.
        let mut kept = Vec::new();
        if let Some(key_file) = &config.seckey_file {
            let old = fs::read_to_string(key_file).with_context(|| format!("cannot read {}", key_file.display()))?;
            kept.push(replace(key_file, &old, &format!("{}\n", new.to_hex()))?);
        }
        kept.push(replace(&config.file, &text, &changed)?);

        let key = new.node_key();
        let mut report = format!("{} has a new key\n  old  {}\n  new  {key}\n", self.dir.display(), config.key);
        for old in kept {
            report.push_str(&format!("The old file is kept as {}; it holds the old secret.\n", old.display()));
        }
        if has_run {
            report.push_str(&format!(
                "The node observes until a quorum of the other operators votes, in the folders of their nodes:\n  hp unl add \
                 {key}\n  hp unl remove {}\n",
                config.key
            ));
        } else {
            let others = match config.is_member() {
                true => "In `unl` the new key stands for the old one. Every other operator does the same:",
                false => "The node observes until its key is in the UNL. Every operator adds this line to `unl`:",
            };
            report.push_str(&format!("{others}\n{}\n", unl_line(key)));
        }
        if config.format == Format::Legacy && config.is_member() {
            report.push_str("The contract id follows from `unl`: nodes with the old list are of another network.\n");
        }
        answer(&report)
    }
}

/// Holds the folder's lock, if there ever was one, so that no node runs while its key changes.
fn lock(dir: &Path) -> Result<Option<File>, Failure> {
    let path = dir.join("run/lock");
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(anyhow::Error::new(error).context(format!("cannot open {}", path.display())).into()),
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::new(Exit::Taken, anyhow::anyhow!("{} is locked: the node is running", path.display())))
        }
        Err(TryLockError::Error(error)) => {
            Err(anyhow::Error::new(error).context(format!("cannot lock {}", path.display())).into())
        }
    }
}

/// Gives `file` a new text, with the owner and mode it had, keeping the old text beside it. Returns where.
fn replace(file: &Path, old_text: &str, text: &str) -> Result<PathBuf, anyhow::Error> {
    let cannot = || format!("cannot write {}", file.display());
    // A link stays a link: what it leads to is replaced.
    let is_link = fs::symlink_metadata(file).with_context(cannot)?.is_symlink();
    let file = if is_link { &fs::canonicalize(file).with_context(cannot)? } else { file };
    let was = fs::metadata(file).with_context(cannot)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let kept = keep(file, folder, old_text, &was)?;
    let new = write_aside(folder, text).with_context(cannot)?;
    keep_owner(new.as_file(), &was).with_context(cannot)?;
    new.as_file().set_permissions(was.permissions()).with_context(cannot)?;
    new.persist(file).map_err(|error| error.error).with_context(cannot)?;
    sync(folder)?;
    Ok(kept)
}

/// Writes the old text to the first free name of `file`.old, `file`.old.2 and so on, mode 0600.
fn keep(file: &Path, folder: &Path, text: &str, was: &Metadata) -> Result<PathBuf, anyhow::Error> {
    let mut old = write_aside(folder, text).with_context(|| format!("cannot write beside {}", file.display()))?;
    keep_owner(old.as_file(), was).with_context(|| format!("cannot write beside {}", file.display()))?;
    for number in 1..=OLD_FILES_MAX {
        let mut name = file.as_os_str().to_owned();
        name.push(if number == 1 { ".old".to_owned() } else { format!(".old.{number}") });
        let name = PathBuf::from(name);
        match old.persist_noclobber(&name) {
            Ok(_) => return Ok(name),
            Err(taken) if taken.error.kind() == io::ErrorKind::AlreadyExists => old = taken.file,
            Err(error) => return Err(error.error).with_context(|| format!("cannot write {}", name.display())),
        }
    }
    anyhow::bail!("{} has {OLD_FILES_MAX} old files beside it; remove some", file.display())
}

/// Gives a file the owner another one had: root may give a key to a node that does not run as root.
fn keep_owner(file: &File, was: &Metadata) -> io::Result<()> {
    let is = file.metadata()?;
    match (is.uid(), is.gid()) == (was.uid(), was.gid()) {
        true => Ok(()),
        false => fchown(file, Some(was.uid()), Some(was.gid())),
    }
}
