//! One folder as the hashes know it: walks it, reads what may have changed, remembers the rest.
//!
//! Assumes that nobody writes into the folder meanwhile; a file that changes under the reader is an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{
    Forbidden, StateError,
    cache::Row,
    disk::{Disk, at, open_read},
    merkle::{self, BLOCK_BYTES, Kind, Leaf, block_hash},
};
use crate::{
    consensus::details::{BLOCKS_MAX, Known},
    types::Hash,
};

/// Bytes of a path below `state/`. A longer one is forbidden, so that a node in a deep folder judges like one in `/`.
pub const PATH_BYTES_MAX: usize = 2048;

/// Files, folders and symlinks in `state/`. More are forbidden: every node keeps a few hundred bytes of memory for each.
pub const ENTRIES_MAX: usize = 1 << 20;

/// Bytes of all files in `state/`, holes counted. More are forbidden: every node must be able to read them.
pub const BYTES_MAX: u64 = 1 << 40;

/// From how many changed paths on the whole file system is synced instead of each path.
#[cfg(target_os = "linux")]
pub(super) const SYNC_EACH_MAX: usize = 64;

/// A file stamped less than this before it was read is read again next time: a later write in the same tick of the
/// kernel's clock (10 ms at most) would leave the same stamp.
const SETTLE_NS: i128 = 20_000_000;

/// What tells that a file was not touched since it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize)]
pub(super) struct Stat {
    dev: u64,
    ino: u64,
    pub size: u64,
    pub nlink: u64,
    pub mode: u32,
    mtime_ns: i128,
    ctime_ns: i128,
}

impl Stat {
    pub fn of(meta: &Metadata) -> Stat {
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Stat {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            nlink: meta.nlink(),
            mode: meta.mode(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// The file system's time in this stamp.
    pub fn mtime_ns(&self) -> i128 {
        self.mtime_ns
    }

    /// Whether any write after `now_ns` would leave another stamp.
    fn settled(&self, now_ns: i128) -> bool {
        self.mtime_ns.max(self.ctime_ns) + SETTLE_NS < now_ns
    }
}

/// One path of a folder.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub leaf: Leaf,
    /// The leaf's hash, path included.
    pub hash: Hash,
    /// Of a file: its blocks.
    pub blocks: Vec<Hash>,
    pub stat: Stat,
    /// The stamp may be trusted: see [`SETTLE_NS`].
    pub settled: bool,
    /// The walk that saw it last.
    pub seen: u64,
}

/// What a walk counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    pub entries: u64,
    pub bytes: u64,
    /// Of these, what was read.
    pub read: u64,
}

/// A folder, its leaves and the tree above them.
#[derive(Debug)]
pub(super) struct Index {
    top: PathBuf,
    pub entries: BTreeMap<Vec<u8>, Entry>,
    top_stat: Option<(Stat, bool)>,
    tree: merkle::Tree,
    /// Some leaf is not yet in `tree`.
    tree_stale: bool,
    walk: u64,
    /// Paths whose leaf changed, came or went since they were last taken.
    changed: BTreeSet<Vec<u8>>,
    /// Files and folders that may be newer in memory than on the disk. The empty path is the folder itself.
    unsynced: BTreeSet<Vec<u8>>,
    /// What blocks are read into.
    block: Vec<u8>,
}

impl Index {
    pub fn new(top: PathBuf) -> Index {
        Index {
            top,
            entries: BTreeMap::new(),
            top_stat: None,
            tree: merkle::Tree::default(),
            tree_stale: false,
            walk: 0,
            changed: BTreeSet::new(),
            unsynced: BTreeSet::new(),
            block: vec![0; BLOCK_BYTES],
        }
    }

    /// A folder of which everything is known.
    pub fn of(top: PathBuf, entries: BTreeMap<Vec<u8>, Entry>) -> Index {
        let mut index = Index { entries, tree_stale: true, ..Index::new(top) };
        index.retree();
        index
    }

    pub fn top(&self) -> &Path {
        &self.top
    }

    pub fn root(&self) -> Hash {
        debug_assert!(!self.tree_stale, "the tree is asked after it is brought up to date");
        self.tree.root()
    }

    /// The tree above the leaves.
    pub fn tree(&self) -> &merkle::Tree {
        debug_assert!(!self.tree_stale, "the tree is asked after it is brought up to date");
        &self.tree
    }

    /// Where a path of the folder is on the disk.
    pub fn full(&self, path: &[u8]) -> PathBuf {
        match path {
            [] => self.top.clone(),
            _ => self.top.join(OsStr::from_bytes(path)),
        }
    }

    /// Looks at every path, reads what may have changed since the last walk.
    ///
    /// After an error the leaves read so far are kept and still count as changed next time; the root is the old one.
    pub fn scan(&mut self, disk: &Disk, now_ns: i128) -> Result<Totals, StateError> {
        self.look(disk, now_ns, false)
    }

    /// The same, but what cannot be read or agreed on is passed over as if it were not there: for a folder of which
    /// only what is sound is of use.
    pub fn scan_what_is_sound(&mut self, disk: &Disk, now_ns: i128) -> Result<Totals, StateError> {
        self.look(disk, now_ns, true)
    }

    fn look(&mut self, disk: &Disk, now_ns: i128, passes_over: bool) -> Result<Totals, StateError> {
        self.walk += 1;
        let mut totals = Totals::default();
        let meta = match std::fs::symlink_metadata(&self.top) {
            Ok(meta) if meta.is_dir() => open_up(disk, &self.top, meta)?,
            Ok(_) if passes_over => return Ok(self.is_nothing()),
            Err(gone) if passes_over && gone.kind() == io::ErrorKind::NotFound => return Ok(self.is_nothing()),
            Ok(_) => return Err(Forbidden::NoFolder.at(b"")),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Err(Forbidden::NoFolder.at(b"")),
            Err(other) => return Err(at("look at", &self.top)(other)),
        };
        let stat = Stat::of(&meta);
        if self.top_stat != Some((stat, true)) {
            self.unsynced.insert(Vec::new());
            self.top_stat = Some((stat, stat.settled(now_ns)));
        }

        let mut folders = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            let full = self.full(&folder);
            let listed = match std::fs::read_dir(&full) {
                Err(_) if passes_over => continue,
                listed => listed.map_err(at("list", &full))?,
            };
            for entry in listed {
                let entry = entry.map_err(at("list", &full))?;
                let path = join(&folder, entry.file_name().as_bytes());
                if path.len() > PATH_BYTES_MAX {
                    if passes_over {
                        continue;
                    }
                    return Err(Forbidden::LongPath.at(&folder));
                }
                let meta = entry.metadata().map_err(|error| at("look at", &self.full(&path))(error))?;
                if passes_over && (totals.entries == ENTRIES_MAX as u64 || totals.bytes + meta.len() > BYTES_MAX) {
                    continue;
                }
                totals.entries += 1;
                totals.bytes = totals.bytes.saturating_add(if meta.is_file() { meta.len() } else { 0 });
                if totals.entries > ENTRIES_MAX as u64 {
                    return Err(Forbidden::TooMany.at(&path));
                }
                if totals.bytes > BYTES_MAX {
                    return Err(Forbidden::TooBig.at(&path));
                }
                if meta.is_dir() {
                    folders.push(path.clone());
                }
                match self.visit(disk, path, meta, now_ns) {
                    Err(_) if passes_over => {}
                    read => totals.read += read?,
                }
            }
        }

        let walk = self.walk;
        let (changed, unsynced) = (&mut self.changed, &mut self.unsynced);
        let before = self.entries.len();
        self.entries.retain(|path, entry| {
            let kept = entry.seen == walk;
            if !kept {
                changed.insert(path.clone());
                unsynced.remove(path);
            }
            kept
        });
        self.tree_stale |= before != self.entries.len();
        self.retree();
        Ok(totals)
    }

    /// There is no such folder.
    fn is_nothing(&mut self) -> Totals {
        self.changed.extend(std::mem::take(&mut self.entries).into_keys());
        self.unsynced.clear();
        self.tree_stale = true;
        self.retree();
        Totals::default()
    }

    /// Takes one path in; returns how many bytes were read for it.
    fn visit(&mut self, disk: &Disk, path: Vec<u8>, meta: Metadata, now_ns: i128) -> Result<u64, StateError> {
        let stat = Stat::of(&meta);
        if let Some(known) = self.entries.get_mut(&path)
            && known.settled
            && known.stat == stat
        {
            known.seen = self.walk;
            return Ok(0);
        }

        let full = self.full(&path);
        let (leaf, blocks, stat) = read_entry(disk, &path, &full, meta, &mut self.block)?;
        // A symlink has no content of its own to sync: it is in its folder's entry.
        match leaf.kind {
            Kind::File | Kind::Folder => self.unsynced.insert(path.clone()),
            Kind::Symlink => self.unsynced.remove(&path),
        };

        let (seen, settled) = (self.walk, stat.settled(now_ns));
        match self.entries.get_mut(&path) {
            Some(known) if known.leaf == leaf => {
                (known.stat, known.settled, known.seen) = (stat, settled, seen);
            }
            _ => {
                let hash = leaf.hash(&path);
                self.changed.insert(path.clone());
                self.tree_stale = true;
                self.entries.insert(path, Entry { leaf, hash, blocks, stat, settled, seen });
            }
        }
        Ok(leaf.size)
    }

    /// Brings the tree up to the leaves.
    pub fn retree(&mut self) {
        if self.tree_stale {
            self.tree.set(self.entries.values().map(|entry| entry.hash).collect());
            self.tree_stale = false;
        }
    }

    /// What is at a path.
    pub fn leaf(&self, path: &[u8]) -> Option<Leaf> {
        self.entries.get(path).map(|entry| entry.leaf)
    }

    /// The first `max` leaves as (path, leaf hash), by path.
    pub fn leaves(&self, max: usize) -> Vec<(Vec<u8>, Hash)> {
        self.entries.iter().take(max).map(|(path, entry)| (path.clone(), entry.hash)).collect()
    }

    /// What is known of those of `paths` that are there, and the way from each to the root.
    pub fn found(&self, paths: &BTreeSet<Vec<u8>>) -> BTreeMap<Vec<u8>, Known> {
        debug_assert!(!self.tree_stale, "the tree is asked after it is brought up to date");
        let there = self.entries.iter().enumerate().filter(|(_, (path, _))| paths.contains(*path));
        there
            .map(|(at, (path, entry))| {
                let blocks = match entry.leaf.kind {
                    // A symlink's target is its one block.
                    Kind::Symlink => vec![entry.leaf.root],
                    _ => entry.blocks.iter().take(BLOCKS_MAX).copied().collect(),
                };
                (path.clone(), Known { state: entry.leaf, proof: self.tree.proof(at), blocks })
            })
            .collect()
    }

    /// The paths that changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<Vec<u8>> {
        std::mem::take(&mut self.changed)
    }

    /// No longer trusts any stamp: the next scan reads everything.
    pub fn distrust(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.settled = false);
    }

    /// What another process may trust: the entries whose bytes are on the disk, and whose stamps were old enough when
    /// they were read - or are old enough by `written_before_ns`, where nobody but this process ever writes.
    pub fn rows(&self, written_before_ns: Option<i128>) -> Vec<Row> {
        let known = self.entries.iter().filter(|(path, entry)| {
            let settled = entry.settled || written_before_ns.is_some_and(|now_ns| entry.stat.settled(now_ns));
            settled && !self.unsynced.contains(*path)
        });
        known
            .map(|(path, Entry { leaf, blocks, stat, .. })| Row {
                path: path.clone(),
                leaf: *leaf,
                blocks: blocks.clone(),
                stat: *stat,
            })
            .collect()
    }

    /// Takes over what another process knew. It counts only where the next scan finds the same stamps.
    pub fn know(&mut self, rows: Vec<Row>) {
        for Row { path, leaf, blocks, stat } in rows {
            let hash = leaf.hash(&path);
            self.entries.insert(path, Entry { leaf, hash, blocks, stat, settled: true, seen: self.walk });
            self.tree_stale = true;
        }
    }

    /// Notes what was just written at `path`, as a copy of `leaf` and `blocks`.
    pub fn put(&mut self, path: Vec<u8>, leaf: Leaf, blocks: Vec<Hash>) -> Result<(), StateError> {
        let full = self.full(&path);
        let stat = Stat::of(&std::fs::symlink_metadata(&full).map_err(at("look at", &full))?);
        let hash = leaf.hash(&path);
        if leaf.kind != Kind::Symlink {
            self.unsynced.insert(path.clone());
        }
        self.entries.insert(path, Entry { leaf, hash, blocks, stat, settled: false, seen: self.walk });
        self.tree_stale = true;
        Ok(())
    }

    /// As [`Index::put`], of what is on the disk already but for its name.
    #[cfg(target_os = "linux")]
    pub fn put_synced(&mut self, path: Vec<u8>, leaf: Leaf, blocks: Vec<Hash>) -> Result<(), StateError> {
        self.put(path.clone(), leaf, blocks)?;
        if leaf.kind == Kind::File {
            self.unsynced.remove(&path);
        }
        Ok(())
    }

    /// Notes that `path` was removed.
    pub fn forget(&mut self, path: &[u8]) {
        self.entries.remove(path);
        self.unsynced.remove(path);
        self.tree_stale = true;
    }

    /// Notes that an entry came into, or went from, the folder of `path`.
    pub fn listed(&mut self, path: &[u8]) {
        self.unsynced.insert(parent(path).to_vec());
    }

    /// Makes everything that was read or written durable.
    pub fn sync(&mut self, disk: &Disk) -> Result<(), StateError> {
        #[cfg(target_os = "linux")]
        if self.unsynced.len() > SYNC_EACH_MAX {
            disk.sync_all_below(&self.top)?;
            self.unsynced.clear();
        }
        while let Some(path) = self.unsynced.first() {
            disk.sync_path(&self.full(path))?;
            self.unsynced.pop_first();
        }
        Ok(())
    }
}

/// `folder/name`, or `name` at the top.
pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

/// The folder a path is in; empty for the top.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'/').map_or(b"", |slash| &path[..slash])
}

fn kind_of(meta: &Metadata) -> Result<Kind, Forbidden> {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() && meta.nlink() > 1 => Err(Forbidden::HardLink),
        () if kind.is_file() => Ok(Kind::File),
        () if kind.is_dir() => Ok(Kind::Folder),
        () if kind.is_symlink() => Ok(Kind::Symlink),
        () if kind.is_fifo() => Err(Forbidden::Fifo),
        () if kind.is_socket() => Err(Forbidden::Socket),
        () => Err(Forbidden::Device),
    }
}

/// Reads what is at `full`, as what stands at `path` of a state.
pub(super) fn read_entry(
    disk: &Disk,
    path: &[u8],
    full: &Path,
    meta: Metadata,
    block: &mut [u8],
) -> Result<(Leaf, Vec<Hash>, Stat), StateError> {
    match kind_of(&meta).map_err(|kind| kind.at(path))? {
        Kind::Folder => Ok((Leaf::FOLDER, Vec::new(), Stat::of(&open_up(disk, full, meta)?))),
        Kind::Symlink => {
            let target = std::fs::read_link(full).map_err(at("read symlink", full))?;
            Ok((symlink_leaf(path, target.as_os_str().as_bytes())?, Vec::new(), Stat::of(&meta)))
        }
        Kind::File => {
            let (file, stat) = open_file(disk, full, meta)?;
            let blocks = read_blocks(&file, full, stat, block)?;
            Ok((file_leaf(stat, &blocks), blocks, stat))
        }
    }
}

fn file_leaf(stat: Stat, blocks: &[Hash]) -> Leaf {
    Leaf { kind: Kind::File, executable: stat.mode & 0o100 != 0, size: stat.size, root: merkle::root_of(blocks) }
}

/// The leaf of a symlink; an error when it leaves the folder.
pub(super) fn symlink_leaf(path: &[u8], target: &[u8]) -> Result<Leaf, StateError> {
    if !stays_inside(path, target) {
        return Err(Forbidden::Escape.at(path));
    }
    // The kernel cuts targets at 4,095 bytes; other file systems may not.
    if target.len() > BLOCK_BYTES {
        return Err(Forbidden::LongPath.at(path));
    }
    Ok(Leaf { kind: Kind::Symlink, executable: false, size: target.len() as u64, root: block_hash(target) })
}

/// Relative, and every `..` at the start and not above the top.
///
/// A `..` behind a name is refused because that name may be a symlink to a shallower folder, whose parent is outside.
fn stays_inside(path: &[u8], target: &[u8]) -> bool {
    if target.is_empty() || target[0] == b'/' {
        return false;
    }
    let mut depth = path.iter().filter(|&&byte| byte == b'/').count();
    let mut named = false;
    for part in target.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if named || depth == 0 => return false,
            b".." => depth -= 1,
            _ => named = true,
        }
    }
    true
}

/// Gives the owner back what reading and cleaning a folder needs. Mode bits but the executable one do not count, and
/// a node that runs as root would not notice that they are missing: so they never are, on any node.
///
/// A file takes nobody's rights on when it is executed: what a contract leaves must be of no use to others on the machine.
pub(super) fn open_up(disk: &Disk, full: &Path, meta: Metadata) -> Result<Metadata, StateError> {
    let (needed, never) = if meta.is_dir() { (0o700, 0) } else { (0o400, 0o6000) };
    if meta.mode() & needed == needed && meta.mode() & never == 0 {
        return Ok(meta);
    }
    disk.chmod(full, (meta.mode() | needed) & !never & 0o7777)?;
    std::fs::symlink_metadata(full).map_err(at("look at", full))
}

fn open_file(disk: &Disk, full: &Path, meta: Metadata) -> Result<(File, Stat), StateError> {
    let stat = Stat::of(&open_up(disk, full, meta)?);
    let file = open_read(full).map_err(at("open", full))?;
    let opened = Stat::of(&file.metadata().map_err(at("look at", full))?);
    // Opened as something else than it was listed as: somebody works in here.
    if opened != stat {
        return Err(StateError::Changed { path: full.to_path_buf() });
    }
    Ok((file, stat))
}

/// Hashes of all blocks; an error when the file is not what `stat` says, before or after.
fn read_blocks(mut file: &File, full: &Path, stat: Stat, block: &mut [u8]) -> Result<Vec<Hash>, StateError> {
    let mut blocks = Vec::new();
    let mut size = 0;
    loop {
        let len = fill(&mut file, block).map_err(at("read", full))?;
        size += len as u64;
        if len > 0 {
            blocks.push(block_hash(&block[..len]));
        }
        if len < block.len() || size > stat.size {
            break;
        }
    }
    let after = Stat::of(&file.metadata().map_err(at("look at", full))?);
    if after != stat || size != stat.size {
        return Err(StateError::Changed { path: full.to_path_buf() });
    }
    Ok(blocks)
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(again) if again.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_trusted_only_two_ticks_later() {
        let stat = |mtime_ns, ctime_ns| Stat { dev: 1, ino: 1, size: 1, nlink: 1, mode: 1, mtime_ns, ctime_ns };
        let now_ns = 1_000_000_000;
        for (age_ms, settled) in [(-1, false), (0, false), (19, false), (20, false), (21, true), (900, true)] {
            let stamp = now_ns - age_ms * 1_000_000;
            assert_eq!(stat(stamp, 0).settled(now_ns), settled, "written {age_ms} ms ago");
            assert_eq!(stat(0, stamp).settled(now_ns), settled, "changed {age_ms} ms ago");
        }
    }

    #[test]
    fn a_symlink_stays_inside_only_without_a_way_around() {
        let table: [(&str, &str, bool); 12] = [
            ("link", "file", true),
            ("link", "./a//b/", true),
            ("link", "..", false),
            ("a/link", "..", true),
            ("a/link", "../..", false),
            ("a/b/link", "../../c", true),
            ("a/b/link", "../../../c", false),
            ("link", "/etc/passwd", false),
            ("link", "a/../b", false),
            ("link", "a/../..", false),
            ("link", "", false),
            ("link", "..a/b..", true),
        ];
        for (path, target, inside) in table {
            assert_eq!(stays_inside(path.as_bytes(), target.as_bytes()), inside, "{path} -> {target}");
        }
    }
}
