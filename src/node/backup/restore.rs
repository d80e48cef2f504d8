//! A folder out of a backup. The file may come from anybody: nothing of it is used before it is checked, and nothing of
//! it can get outside of the new folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Read, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{OpenOptionsExt as _, PermissionsExt as _, symlink},
    },
    path::{Component, Path, PathBuf},
};

use tar::{Entry, EntryType};

use super::{
    BUS, BackupError, FORMAT, Hashing, MANIFEST, MANIFEST_BYTES_MAX, Manifest, NAME_BYTES_MAX, OTHERS_MAX, Tell,
    io_error, refused, sync,
};
use crate::{
    config::{self, Config},
    crypto::SecretKey,
    ledger::Archive,
    node::settle::OWN_FOLDER,
    state::{self, folder},
    verify::{self, Ask, Stopped},
};

/// Entries in a backup. With more it is refused: no node makes such a one.
const ENTRIES_MAX: usize = state::ENTRIES_MAX + 2 * OTHERS_MAX + 8;
/// Files that stand by themselves.
const SINGLE: [&str; 2] = ["hist/ledger.db", "cfg/hp.cfg"];
/// Folders that may hold anything.
const FOLDERS: [&str; 3] = ["state", "bin", "private"];

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// The configuration now.
    pub config: Config,
}

/// Makes the folder `dir`, which must not exist or be empty, out of the backup `from`. `key` replaces the one in the backup, or
/// the one that is not in it. `reason` says, given the manifest, why the node starts silent.
pub fn restore(
    from: &Path,
    dir: &Path,
    key: Option<&SecretKey>,
    reason: impl FnOnce(&Manifest) -> String,
    tell: Tell<'_>,
) -> Result<Restored, BackupError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return refused(format!("{} is not empty; nothing was changed", dir.display()));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("list", dir)(error)),
    }
    let beside = dir.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = tempfile::Builder::new().prefix(".hp-restore-").tempdir_in(beside);
    let work = made.map_err(io_error("make a folder in", beside))?;
    let file = File::open(from).map_err(io_error("open", from))?;
    let all = file.metadata().map_err(io_error("look at", from))?.len();
    let mut unpacked = Unpacked {
        from,
        to: work.path(),
        folders: BTreeSet::new(),
        files: BTreeMap::new(),
        manifest: None,
        done: 0,
        all,
        tell,
    };
    unpacked.read(file)?;
    let Unpacked { files, manifest, tell, .. } = unpacked;
    let manifest = check_files(from, &files, manifest)?;
    check_contents(from, work.path(), &manifest, key, tell)?;

    let mark = work.path().join("hist/silent");
    write_new(&mark, format!("{}\n", reason(&manifest)).as_bytes(), 0o600).map_err(io_error("write", &mark))?;
    for folder in ["state", "bin", "log"] {
        let folder = work.path().join(folder);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
    }
    fs::set_permissions(work.path(), Permissions::from_mode(0o755)).map_err(io_error("chmod", work.path()))?;
    let bus = manifest.with_bus().then_some(OWN_FOLDER);
    for folder in ["hist", "cfg"].into_iter().chain(bus).chain([""]) {
        sync(&work.path().join(folder))?;
    }
    // Onto an empty folder as onto none.
    let work = work.keep();
    if let Err(error) = fs::rename(&work, dir) {
        let _ = fs::remove_dir_all(&work);
        return Err(io_error("rename the restored folder to", dir)(error));
    }
    sync(beside)?;
    // Its paths are those of the new place.
    Ok(Restored { manifest, config: read_config(dir, key)? })
}

/// The file, as far as it was read into the folder `to`.
struct Unpacked<'a> {
    from: &'a Path,
    to: &'a Path,
    /// Folders that were made, relative to `to`. Whatever comes is put into one of these, which no symlink is.
    folders: BTreeSet<PathBuf>,
    /// Bytes and hash of each file outside of state/.
    files: BTreeMap<String, (u64, String)>,
    manifest: Option<Manifest>,
    done: u64,
    all: u64,
    tell: Tell<'a>,
}

impl Unpacked<'_> {
    fn unsound<T>(&self, what: impl Into<String>) -> Result<T, BackupError> {
        Err(BackupError::Unsound { path: self.from.to_owned(), what: what.into() })
    }

    fn read(&mut self, file: File) -> Result<(), BackupError> {
        let mut tar = tar::Archive::new(io::BufReader::with_capacity(1 << 18, file));
        let entries = tar.entries().map_err(io_error("read", self.from))?;
        for (number, entry) in entries.enumerate() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.unsound(format!("it does not read as a tar file: {error}")),
            };
            if number == ENTRIES_MAX {
                return self.unsound(format!("it has more than {ENTRIES_MAX} entries"));
            }
            if self.manifest.is_some() {
                return self.unsound("something stands behind its manifest");
            }
            self.entry(entry)?;
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), BackupError> {
        let bytes = entry.path_bytes().into_owned();
        let shown = bytes.escape_ascii().to_string();
        let kind = entry.header().entry_type();
        let Some(path) = inside(&bytes) else {
            return self.unsound(format!("it has an entry {shown:?}, which leads elsewhere"));
        };
        if path == Path::new(MANIFEST) {
            return self.read_manifest(entry);
        }
        let single = SINGLE.iter().chain(&BUS).any(|name| path == Path::new(name));
        let top = path.components().next().and_then(|part| part.as_os_str().to_str()).unwrap_or_default();
        if !single && !FOLDERS.contains(&top) {
            return self.unsound(format!("it has an entry {shown:?}, which is no part of a backup"));
        }
        if single {
            let folder = path.parent().expect("all of them are in a folder").to_owned();
            if !self.folders.contains(&folder) {
                self.make_folder(&folder)?;
            }
        }
        let above = path.parent().unwrap_or(Path::new(""));
        let is_top = above == Path::new("");
        if !is_top && !self.folders.contains(above) {
            return self.unsound(format!("it has an entry {shown:?} before the folder that it is in"));
        }
        let full = self.to.join(&path);
        match kind {
            EntryType::Directory if !single => self.make_folder(&path),
            EntryType::Symlink if !single && !is_top => {
                let Some(target) = entry.link_name_bytes().map(|target| target.into_owned()) else {
                    return self.unsound(format!("its symlink {shown:?} has no target"));
                };
                symlink(OsStr::from_bytes(&target), &full).map_err(io_error("make", &full))
            }
            EntryType::Regular if single || !is_top => {
                let mode = match (single, entry.header().mode().unwrap_or(0) & 0o100 != 0) {
                    (true, _) => 0o600,
                    (false, true) => 0o755,
                    (false, false) => 0o644,
                };
                let size = entry.size();
                let (done, all) = (&mut self.done, self.all);
                let tell = &mut *self.tell;
                let mut heard = |bytes| {
                    *done += bytes;
                    tell("unpacking", *done, all);
                };
                let mut reader = Hashing::new(&mut entry, &mut heard);
                let mut file = create_new(&full, mode).map_err(io_error("create", &full))?;
                io::copy(&mut reader, &mut file).map_err(io_error("write", &full))?;
                file.sync_all().map_err(io_error("write", &full))?;
                let hash = reader.end();
                if hash.0 != size {
                    return self.unsound(format!("it ends within {shown:?}"));
                }
                if top != "state" {
                    match path.to_str() {
                        Some(name) => drop(self.files.insert(name.to_owned(), hash)),
                        None => return self.unsound(format!("it has an entry {shown:?}, which is not UTF-8")),
                    }
                }
                Ok(())
            }
            other => self.unsound(format!("its entry {shown:?} is of a kind that no backup has ({other:?})")),
        }
    }

    fn make_folder(&mut self, path: &Path) -> Result<(), BackupError> {
        let full = self.to.join(path);
        fs::create_dir(&full).map_err(io_error("create", &full))?;
        self.folders.insert(path.to_owned());
        Ok(())
    }

    fn read_manifest<R: Read>(&mut self, entry: Entry<'_, R>) -> Result<(), BackupError> {
        if entry.size() > MANIFEST_BYTES_MAX {
            return self.unsound(format!("its manifest is longer than {MANIFEST_BYTES_MAX} bytes"));
        }
        let mut text = Vec::new();
        entry.take(MANIFEST_BYTES_MAX).read_to_end(&mut text).map_err(io_error("read", self.from))?;
        match serde_json::from_slice::<Manifest>(&text) {
            Ok(manifest) if manifest.format == FORMAT => {
                self.manifest = Some(manifest);
                Ok(())
            }
            Ok(manifest) => self.unsound(format!("its format is {:?}, expected {FORMAT:?}", manifest.format)),
            Err(error) => self.unsound(format!("its manifest does not read: {error}")),
        }
    }
}

/// A path of plain names; `None` for whatever could lead elsewhere.
fn inside(bytes: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(bytes));
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let fits = !bytes.is_empty() && bytes.len() <= NAME_BYTES_MAX && !bytes.contains(&0);
    // Not as it stands there: without `/` at the end or twice.
    (plain && fits).then(|| path.components().collect())
}

fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    // What is there already, a symlink too, is an error.
    let file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = create_new(path, mode)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Whether the files are those of the manifest.
fn check_files(
    from: &Path,
    files: &BTreeMap<String, (u64, String)>,
    manifest: Option<Manifest>,
) -> Result<Manifest, BackupError> {
    let unsound = |what: String| Err(BackupError::Unsound { path: from.to_owned(), what });
    let Some(manifest) = manifest else { return unsound("its manifest is missing: it was cut".to_owned()) };
    for (name, (bytes, hash)) in &manifest.files {
        match files.get(name) {
            None => return unsound(format!("{name:?} is missing")),
            Some((found, _)) if found != bytes => {
                return unsound(format!("{name:?} has {found} bytes instead of {bytes}"));
            }
            Some((_, found)) if found != hash => return unsound(format!("{name:?} was changed")),
            Some(_) => {}
        }
    }
    if let Some(name) = files.keys().find(|name| !manifest.files.contains_key(*name)) {
        return unsound(format!("{name:?} is not in its manifest"));
    }
    let of_bus = BUS.iter().filter(|name| manifest.files.contains_key(**name)).count();
    if of_bus == 1 {
        return unsound(format!("it has one of {} and {}, which belong together", BUS[0], BUS[1]));
    }
    match SINGLE.iter().find(|name| !manifest.files.contains_key(**name)) {
        Some(name) => unsound(format!("{name:?} is missing")),
        None => Ok(manifest),
    }
}

/// Whether the chain is right, the state that of the chain, and the configuration that of the chain. Writes the key.
fn check_contents(
    from: &Path,
    dir: &Path,
    manifest: &Manifest,
    key: Option<&SecretKey>,
    tell: Tell<'_>,
) -> Result<(), BackupError> {
    let unsound = |what: String| Err(BackupError::Unsound { path: from.to_owned(), what });
    let mut archive = Archive::open(dir)?;
    let ask = Ask { from: 1, genesis: manifest.chain_id() };
    match verify::verify(&mut archive, ask, &mut |seq, to| tell("checking the chain", seq, to)) {
        Ok(_) => {}
        Err(Stopped::Source(error)) => return Err(error.into()),
        Err(Stopped::Wrong(wrong)) => return Err(BackupError::Chain(wrong)),
    }
    let stands = archive.stands()?;
    let genesis = archive.genesis()?;
    drop(archive);
    let state = dir.join("state");
    if !state.is_dir() {
        return unsound("it has no state".to_owned());
    }
    tell("checking the state", 0, 0);
    let held = folder::look(&state)?;
    if held.root != stands.state_root {
        return unsound(format!("its state has root {}, but the chain says {}", held.root, stands.state_root));
    }
    let said = (manifest.tip, manifest.executed, manifest.chain_id(), manifest.state_root());
    if said != (stands.tip, stands.executed, Some(stands.chain_id), Some(stands.state_root)) {
        return unsound("its manifest is not of its database".to_owned());
    }
    let file = Config::path(dir);
    if let Some(key) = key {
        let text = fs::read_to_string(&file).map_err(io_error("read", &file))?;
        let same = |_: &Path| Ok(key.to_hex());
        let config = Config::parse(&text, &file, dir, &same)?;
        let changed = config::rekeyed(&text, &config, key)?;
        fs::write(&file, changed).map_err(io_error("write", &file))?;
        sync(&file)?;
    }
    let config = read_config(dir, key)?;
    if genesis.is_none_or(|genesis| genesis.contract_id != config.contract.id) {
        return unsound("its configuration is of another contract than its chain".to_owned());
    }
    Ok(())
}

/// The configuration of a folder. A key in a file of its own is not in a backup; whether it is right is told at the start.
fn read_config(dir: &Path, key: Option<&SecretKey>) -> Result<Config, BackupError> {
    let file = Config::path(dir);
    match key {
        Some(key) => {
            let text = fs::read_to_string(&file).map_err(io_error("read", &file))?;
            Ok(Config::parse(&text, &file, dir, &|_| Ok(key.to_hex()))?)
        }
        None => match Config::load_text(dir) {
            Ok((_, config)) => Ok(config),
            Err(_) => Ok(Config::load_of_another(&file)?),
        },
    }
}
