//! A backup of a folder, whether its node runs or not.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tar::{Builder, EntryType, Header};
use tempfile::{NamedTempFile, TempDir};

use super::{
    BUS, BackupError, FORMAT, Hashing, MANIFEST, Manifest, NO_STATE, OTHERS_MAX, Tell, io_error, refused, sync,
};
use crate::{
    config::{self, Config},
    crypto::SecretKey,
    ledger::{Archive, Stands, Store},
    node::{NodeError, recover::switch, settle::OWN_FOLDER, start::Lock},
    settlement::embedded,
    state::folder,
    types::{Hash, Seq, WallMs},
};

/// How long a result that the node has may take to its disk.
const RESULT_TIME: Duration = Duration::from_secs(60);

/// A backup that is begun: the folder it is of, and one to work in, beside the file that it will be.
pub struct Making {
    config: Config,
    text: String,
    to: PathBuf,
    work: TempDir,
    /// While the node does not run.
    lock: Option<Lock>,
}

/// The state is copied; the rest follows.
pub struct Prepared {
    making: Making,
    /// The ledger after whose run the state is.
    pub executed: Seq,
    /// Root of the state.
    pub root: Hash,
}

impl Making {
    /// Begins. `to` must not exist.
    pub fn begin(dir: &Path, to: &Path) -> Result<Making, BackupError> {
        if fs::symlink_metadata(to).is_ok() {
            return refused(format!("{} exists already; nothing was changed", to.display()));
        }
        if switch::is_begun(dir) {
            return refused("an `hp recover` was cut here: finish it first (`hp recover` or `hp run` do)");
        }
        let (text, config) = Config::load_text(dir)?;
        if !dir.join("hist/ledger.db").exists() {
            return refused(format!("{} has no ledgers: there is no hist/ledger.db", dir.display()));
        }
        let beside = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = tempfile::Builder::new()
            .prefix(".hp-backup-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(beside);
        let work = made.map_err(io_error("make a folder in", beside))?;
        let lock = match Lock::take(dir) {
            Ok(lock) => Some(lock),
            Err(NodeError::Locked(_)) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Making { config, text, to: to.to_owned(), work, lock })
    }

    /// Whether the node runs, so that it has to copy its state itself.
    pub fn is_running(&self) -> bool {
        self.lock.is_none()
    }

    /// Where the copy of the state belongs.
    pub fn state(&self) -> PathBuf {
        self.work.path().join("state")
    }

    /// Copies the state of a node that is stopped.
    pub fn copy_state(self) -> Result<Prepared, BackupError> {
        assert!(self.lock.is_some(), "the node is stopped");
        let dir = &self.config.dir;
        let Stands { executed, state_root: root, has_state, .. } = Archive::open(dir)?.stands()?;
        if !has_state {
            return refused(NO_STATE.to_owned());
        }
        let holds = |place: &PathBuf| folder::look(place).is_ok_and(|held| held.root == root);
        if let Some(place) = folder::places(dir).iter().find(|place| holds(place)) {
            folder::copy(place, &self.state(), root)?;
        } else if folder::has_before(dir, root)? {
            folder::copy_before(dir, root, &self.work.path().join("scratch"), &self.state())?;
        } else {
            return refused(format!(
                "no state of root {root}, which ledger {executed} left, is in {}: start the node, and make a backup when it is \
                 in sync",
                dir.display()
            ));
        }
        Ok(Prepared { making: self, executed, root })
    }

    /// Goes on after the node has copied its state.
    pub fn copied(self, executed: Seq, root: Hash) -> Prepared {
        Prepared { making: self, executed, root }
    }
}

impl Prepared {
    /// Makes the file. `made_ms` is the time now.
    pub fn finish(
        self,
        with_key: bool,
        made_ms: WallMs,
        tell: Tell<'_>,
    ) -> Result<(PathBuf, Manifest, u64), BackupError> {
        let Making { config, text, to, work, lock } = self.making;
        let held = folder::look(&work.path().join("state"))?;
        if held.root != self.root {
            return refused(format!("the copy of the state has root {}, not {}", held.root, self.root));
        }
        let hist = work.path().join("hist");
        fs::create_dir(&hist).map_err(io_error("create", &hist))?;
        let archive = Archive::open(&config.dir)?;
        let began = Instant::now();
        while archive.stands()?.executed < self.executed {
            // An observer's result goes on disk with the next ledger.
            if began.elapsed() > RESULT_TIME {
                return refused(format!("the node has not stored the result of ledger {}: try again", self.executed));
            }
            thread::sleep(Duration::from_millis(50));
        }
        archive.copy_to(&hist.join("ledger.db"), &mut |done, all| tell("copying the database", done, all))?;
        drop(archive);
        // The node may have run more ledgers meanwhile.
        let mut store = Store::open(work.path())?;
        store.rewind(self.executed)?;
        store.close()?;
        let stands = Archive::open(work.path())?.stands()?;
        if (stands.executed, stands.state_root) != (self.executed, self.root) {
            return refused(format!(
                "the state is that after ledger {}, root {}, but the database says ledger {}, root {}",
                self.executed, self.root, stands.executed, stands.state_root
            ));
        }
        // Behind the copy of the database: a bus knows of a settlement before the chain records it. And while nobody starts the
        // node, if it does not run.
        let bus = config.dir.join(OWN_FOLDER);
        let bus_bytes = embedded::copied_bytes(&bus).map_err(io_error("read the log in", &bus))?;
        drop(lock);

        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = NamedTempFile::with_prefix_in(".hp-backup-", folder).map_err(io_error("write in", folder))?;
        let mut tar = Tar { builder: Builder::new(file.as_file()), path: &to, files: BTreeMap::new() };
        let all = held.bytes;
        let mut done = 0;
        tar.folder(&work.path().join("state"), "state", false, &mut |bytes| {
            done += bytes;
            tell("writing the state", done, all);
        })?;
        let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        let all = size(&hist.join("ledger.db"));
        let mut done = 0;
        tar.file(&hist.join("ledger.db"), "hist/ledger.db", &mut |bytes| {
            done += bytes;
            tell("writing the database", done, all);
        })?;
        let text = if with_key { text } else { without_key(&text, &config)? };
        tar.bytes("cfg/hp.cfg", text.as_bytes())?;
        let mut others = vec!["bin"];
        if with_key {
            others.push("private");
        }
        for name in others {
            let from = config.dir.join(name);
            if from.is_dir() {
                tar.folder(&from, name, true, &mut |_| {})?;
            }
        }
        if let Some(bytes) = bus_bytes.filter(|_| with_key) {
            let [log, key] = BUS;
            tar.part(&config.dir.join(log), log, bytes)?;
            let path = config.dir.join(key);
            tar.bytes(key, &fs::read(&path).map_err(io_error("read", &path))?)?;
        }
        let files = std::mem::take(&mut tar.files);
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            made_ms,
            node: config.key.to_string(),
            contract_id: config.contract.id.to_string(),
            chain_id: stands.chain_id.to_string(),
            tip: stands.tip,
            executed: self.executed,
            state_root: self.root.to_string(),
            with_key: with_key && config.seckey_file.is_none(),
            files,
        };
        let json = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain data");
        tar.bytes(MANIFEST, &json)?;
        tar.builder.finish().map_err(io_error("write", &to))?;
        drop(tar);
        file.as_file().set_permissions(Permissions::from_mode(0o600)).map_err(io_error("chmod", &to))?;
        file.as_file().sync_all().map_err(io_error("write", &to))?;
        let bytes = size(file.path());
        file.persist_noclobber(&to).map_err(|error| io_error("write", &to)(error.error))?;
        sync(folder)?;
        Ok((to, manifest, bytes))
    }
}

/// The text with the published example's key, which no node starts with, for this node's.
fn without_key(text: &str, config: &Config) -> Result<String, BackupError> {
    if config.seckey_file.is_some() {
        return Ok(text.to_owned());
    }
    Ok(config::rekeyed(text, config, &SecretKey::from_seed(config::EXAMPLE_SEED))?)
}

/// The file as it grows.
struct Tar<'a, W: std::io::Write> {
    builder: Builder<W>,
    path: &'a Path,
    files: BTreeMap<String, (u64, String)>,
}

impl<W: std::io::Write> Tar<'_, W> {
    fn header(kind: EntryType, bytes: u64, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes);
        header.set_mode(mode);
        header.set_mtime(0);
        header
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), BackupError> {
        let mut header = Self::header(EntryType::Regular, bytes.len() as u64, 0o600);
        let mut nobody = |_| {};
        let mut reader = Hashing::new(bytes, &mut nobody);
        self.builder.append_data(&mut header, name, &mut reader).map_err(io_error("write", self.path))?;
        self.files.insert(name.to_owned(), reader.end());
        Ok(())
    }

    /// A file, which is listed.
    fn file(&mut self, from: &Path, name: &str, tell: &mut dyn FnMut(u64)) -> Result<(), BackupError> {
        let hash = self.append(from, Path::new(name), None, tell)?;
        self.files.insert(name.to_owned(), hash);
        Ok(())
    }

    /// The beginning of a file that grows, which is listed.
    fn part(&mut self, from: &Path, name: &str, bytes: u64) -> Result<(), BackupError> {
        let hash = self.append(from, Path::new(name), Some(bytes), &mut |_| {})?;
        self.files.insert(name.to_owned(), hash);
        Ok(())
    }

    /// A file, or so much of it.
    fn append(
        &mut self,
        from: &Path,
        name: &Path,
        part: Option<u64>,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(u64, String), BackupError> {
        let file = File::open(from).map_err(io_error("read", from))?;
        let meta = file.metadata().map_err(io_error("read", from))?;
        let mode = if meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
        let len = part.unwrap_or(meta.len());
        let mut header = Self::header(EntryType::Regular, len, mode);
        let mut reader = Hashing::new(std::io::Read::take(file, len), tell);
        self.builder.append_data(&mut header, name, &mut reader).map_err(io_error("write", self.path))?;
        let (bytes, hash) = reader.end();
        if bytes != len {
            return refused(format!("{} changed while it was read", from.display()));
        }
        Ok((bytes, hash))
    }

    /// A folder with what is in it: files, folders and symlinks. With `listed`, its files are listed, and few.
    fn folder(&mut self, from: &Path, name: &str, listed: bool, tell: &mut dyn FnMut(u64)) -> Result<(), BackupError> {
        let mut waiting = vec![(from.to_owned(), PathBuf::from(name))];
        let mut count = 0;
        while let Some((from, name)) = waiting.pop() {
            let meta = fs::symlink_metadata(&from).map_err(io_error("look at", &from))?;
            count += 1;
            if listed && count > OTHERS_MAX {
                return refused(format!("{} has more than {OTHERS_MAX} files, which are too many", from.display()));
            }
            if meta.is_dir() {
                let mut header = Self::header(EntryType::Directory, 0, 0o755);
                self.builder.append_data(&mut header, &name, std::io::empty()).map_err(io_error("write", self.path))?;
                let entries = fs::read_dir(&from).map_err(io_error("list", &from))?;
                for entry in entries {
                    let entry = entry.map_err(io_error("list", &from))?;
                    waiting.push((entry.path(), name.join(entry.file_name())));
                }
            } else if meta.is_symlink() {
                let target = fs::read_link(&from).map_err(io_error("read", &from))?;
                let mut header = Self::header(EntryType::Symlink, 0, 0o777);
                self.builder.append_link(&mut header, &name, &target).map_err(io_error("write", self.path))?;
            } else if meta.is_file() {
                let hash = self.append(&from, &name, None, tell)?;
                if listed {
                    let Some(name) = name.to_str() else {
                        return refused(format!("{} has no name in UTF-8", from.display()));
                    };
                    self.files.insert(name.to_owned(), hash);
                }
            }
        }
        Ok(())
    }
}
