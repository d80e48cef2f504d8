//! The contract's `bin/` while its author works on it: when it has changed, and how all nodes go over to it at one ledger.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    cli::scratch,
    node::control::{self, NewBin, Request},
    types::Seq,
};

/// Silence after which a change is taken for complete.
const QUIET: Duration = Duration::from_millis(200);
/// A file that somebody has written to and not closed is waited for so long after the last word of it.
const OPEN_TIME: Duration = Duration::from_secs(5);
/// Changes that wait to be looked at. Past it they are dropped: one is enough to look at all.
const CHANGES_MAX: usize = 1_024;
/// Time for all nodes to end the runs that are under way.
const HOLD_TIME: Duration = Duration::from_secs(60);

/// Tells of changes below some folders.
pub(super) struct Changes {
    events: mpsc::Receiver<Event>,
    /// Files that are being written to.
    open: BTreeSet<PathBuf>,
    watcher: RecommendedWatcher,
}

impl Changes {
    /// Of these folders, each with everything below it, or of itself alone.
    pub(super) fn of(folders: &[(&Path, RecursiveMode)]) -> anyhow::Result<Changes> {
        let (sender, events) = mpsc::channel(CHANGES_MAX);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Ok(event) = event {
                let _ = sender.try_send(event);
            }
        })
        .context("cannot watch files")?;
        for (folder, mode) in folders {
            watcher.watch(folder, *mode).with_context(|| format!("cannot watch {}", folder.display()))?;
        }
        Ok(Changes { events, open: BTreeSet::new(), watcher })
    }

    /// Watches a folder that may have been removed and made anew.
    pub(super) fn watch_again(&mut self, folder: &Path) {
        // While it is not there its own folder tells when it is.
        let _ = self.watcher.watch(folder, RecursiveMode::Recursive);
    }

    /// Forgets what happened until now.
    pub(super) fn forget(&mut self) {
        while self.events.try_recv().is_ok() {}
    }

    /// The next change of a path that counts, at once. Reading is none.
    pub(super) async fn next(&mut self, counts: impl Fn(&Path) -> bool) {
        while let Some(event) = self.events.recv().await {
            if self.note(&event) && event.paths.iter().any(|path| counts(path)) {
                return;
            }
        }
        // The watcher ends with this.
        std::future::pending().await
    }

    /// The next change of a path that counts, when it is complete: all is quiet, and nobody is writing.
    pub(super) async fn settled(&mut self, counts: impl Fn(&Path) -> bool) {
        self.next(&counts).await;
        let mut heard = Instant::now();
        loop {
            let wait = if self.open.is_empty() { QUIET } else { OPEN_TIME };
            tokio::select! {
                Some(event) = self.events.recv() => {
                    if self.note(&event) && event.paths.iter().any(|path| counts(path)) {
                        heard = Instant::now();
                    }
                }
                () = sleep_until(heard + wait) => break,
            }
        }
        self.open.clear();
    }

    /// Whether something changed; who is writing is remembered.
    fn note(&mut self, event: &Event) -> bool {
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => self.open.extend(event.paths.iter().cloned()),
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_) => self.open.retain(|open| !event.paths.contains(open)),
            EventKind::Access(_) => return false,
            _ => {}
        }
        true
    }
}

/// Versions of `bin/`, each copied once from the author's folder.
pub(super) struct Versions {
    /// The author's.
    from: PathBuf,
    /// The executable in it.
    binary: PathBuf,
    /// Where copies are made.
    to: PathBuf,
    number: u64,
}

impl Versions {
    /// `binary` is a path in `from`.
    pub(super) fn new(from: PathBuf, binary: PathBuf, to: PathBuf) -> Versions {
        Versions { from, binary, to, number: 0 }
    }

    /// The author's folder.
    pub(super) fn from(&self) -> &Path {
        &self.from
    }

    /// The executable, as a node has it.
    pub(super) fn binary(&self) -> PathBuf {
        Path::new("bin").join(&self.binary)
    }

    fn at(&self, number: u64) -> PathBuf {
        self.to.join(format!("bin-{number}"))
    }

    /// The latest copy.
    pub(super) fn latest(&self) -> PathBuf {
        self.at(self.number)
    }

    /// Copies what there is now; `false` when that is no other than before.
    pub(super) fn take(&mut self) -> anyhow::Result<bool> {
        let binary = self.from.join(&self.binary);
        match binary.metadata() {
            Ok(meta) if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 => {
                bail!("{} is not an executable file (chmod +x?)", binary.display())
            }
            Ok(_) => {}
            Err(error) => bail!("cannot find {}: {error}", binary.display()),
        }
        let fresh = self.at(self.number + 1);
        if fresh.exists() {
            fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
        }
        scratch::copy(&self.from, &fresh, false).map_err(|failure| failure.error.expect("it says why"))?;
        if self.number > 0 && is_same(&self.latest(), &fresh).context("cannot compare two versions of bin/")? {
            return Ok(false);
        }
        self.number += 1;
        Ok(true)
    }

    /// Has all nodes run the latest version from one ledger on, which is returned. An error says whether they are still alike.
    pub(super) async fn swap(&self, nodes: &[PathBuf]) -> Result<Seq, Swap> {
        let name = |number| format!("bin.next-{number}");
        for node in nodes {
            // What the change before this one left over.
            if let Some(before) = self.number.checked_sub(1) {
                let _ = fs::remove_dir_all(node.join(format!("{}.was", name(before))));
            }
            let copied = scratch::copy(&self.latest(), &node.join(name(self.number)), false);
            copied.map_err(|failure| Swap::NotBegun(failure.error.expect("it says why")))?;
        }
        let begun = match timeout(HOLD_TIME, ask_all(nodes, |_| Request::HoldRuns)).await {
            Ok(Ok(answers)) => answers.iter().map(|answer| answer["begun"].as_u64()).collect::<Option<Vec<Seq>>>(),
            Ok(Err(_)) | Err(_) => None,
        };
        let Some(after) = begun.and_then(|begun| begun.into_iter().max()) else {
            // Those that hear it go on as before; all still have the same files.
            let _ = ask_all(nodes, |_| Request::GoOn { bin: None }).await;
            return Err(Swap::NotBegun(anyhow::anyhow!("not all nodes ended their runs in time")));
        };
        let bin = |node: &Path| Some(NewBin { after, from: node.join(name(self.number)) });
        ask_all(nodes, |node| Request::GoOn { bin: bin(node) }).await.map_err(Swap::Apart)?;
        Ok(after + 1)
    }
}

/// Why nodes did not go over to another version.
pub(super) enum Swap {
    /// All of them have the old one.
    NotBegun(anyhow::Error),
    /// Some may have the new one.
    Apart(anyhow::Error),
}

/// Asks all nodes at once.
async fn ask_all(nodes: &[PathBuf], request: impl Fn(&Path) -> Request) -> anyhow::Result<Vec<Value>> {
    let asks = nodes.iter().enumerate().map(|(at, node)| {
        let request = request(node);
        async move {
            let answer =
                control::ask(node, &request).await.with_context(|| format!("node {} does not answer", at + 1))?;
            match answer["error"].as_str() {
                Some(error) => bail!("node {}: {error}", at + 1),
                None => Ok(answer),
            }
        }
    });
    futures::future::try_join_all(asks).await
}

/// Whether two folders have the same paths, contents, links and executable bits.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (a, b) = (one.symlink_metadata()?, other.symlink_metadata()?);
    if a.file_type() != b.file_type() {
        return Ok(false);
    }
    if a.is_symlink() {
        return Ok(fs::read_link(one)? == fs::read_link(other)?);
    }
    if a.is_file() {
        let bits = |meta: &fs::Metadata| meta.permissions().mode() & 0o111;
        return Ok(bits(&a) == bits(&b) && a.len() == b.len() && fs::read(one)? == fs::read(other)?);
    }
    let names = |folder: &Path| {
        let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
        names.collect::<io::Result<BTreeSet<_>>>()
    };
    let found = names(one)?;
    if found != names(other)? {
        return Ok(false);
    }
    for name in found {
        if !is_same(&one.join(&name), &other.join(&name))? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn folder_with(text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        let file = folder.path().join("bin/contract");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    #[test]
    fn a_version_is_what_differs_in_a_byte_a_name_or_an_executable_bit() {
        let folder = folder_with("one");
        let bin = folder.path().join("bin");
        let mut versions = Versions::new(bin.clone(), "contract".into(), folder.path().to_owned());
        assert!(versions.take().unwrap());
        assert!(!versions.take().unwrap(), "nothing changed");
        fs::write(bin.join("contract"), "two").unwrap();
        assert!(versions.take().unwrap());
        assert_eq!(fs::read_to_string(versions.latest().join("contract")).unwrap(), "two");
        fs::create_dir(bin.join("lib")).unwrap();
        fs::write(bin.join("lib/a"), "").unwrap();
        assert!(versions.take().unwrap());
        fs::set_permissions(bin.join("lib/a"), fs::Permissions::from_mode(0o744)).unwrap();
        assert!(versions.take().unwrap());
        fs::set_permissions(bin.join("contract"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(versions.take().unwrap_err().to_string().contains("chmod +x"));
        fs::remove_file(bin.join("contract")).unwrap();
        assert!(versions.take().unwrap_err().to_string().contains("cannot find"));
    }

    #[tokio::test]
    async fn a_file_is_waited_for_until_its_writer_has_closed_it() {
        let folder = folder_with("one");
        let bin = folder.path().join("bin");
        let mut changes = Changes::of(&[(&bin, RecursiveMode::Recursive)]).unwrap();
        let mut file = fs::File::create(bin.join("contract")).unwrap();
        file.write_all(b"the first half").unwrap();
        // As long as the file is open nothing is settled, however quiet it is.
        if cfg!(target_os = "linux") {
            assert!(timeout(QUIET * 4, changes.settled(|_| true)).await.is_err());
        }
        file.write_all(b" and the rest").unwrap();
        drop(file);
        timeout(Duration::from_secs(60), changes.settled(|_| true)).await.unwrap();
        fs::read(bin.join("contract")).unwrap();
        assert!(timeout(QUIET * 2, changes.next(|_| true)).await.is_err(), "reading changes nothing");
    }
}
