//! What a node keeps of one run of its own whose result is not everybody's, in `diag/<seq>/`: for its operator, and to
//! answer others from. Nothing but what is listed there is ever read for another node.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use nix::libc;
use tracing::warn;

use crate::{
    consensus::{
        details::{Changed, DETAILS_MAX, Details, Known, PathKind, PathState, Piece, PieceRef, Thing},
        header::ExecResult,
        merkle::{Tree, output_leaf},
    },
    divergence::folder,
    state::{BLOCK_BYTES, Before, Extent, StateError, StateStore, block_hash},
    types::{Seq, Status, UserKey, WallMs},
    wire,
};

/// Bytes of files of a run on which this node differs, or the network is split.
const OWN_BYTES_MAX: u64 = 256 << 20;
/// Bytes of files kept because others differ: it stands in the way of the next run.
const OTHERS_BYTES_MAX: u64 = 16 << 20;
/// Paths, and users, of which others are told more than a hash.
const THINGS_MAX: usize = 256;
/// Block hashes kept of all of them. Of what comes past it none are, so that nothing of it is proven.
const BLOCKS_KEPT_MAX: usize = 65_536;
/// Bytes of one user's output that are kept; of a longer one the beginning.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Bytes of all outputs that are kept.
const OUTPUTS_BYTES_MAX: usize = 16 << 20;
/// Bytes of the list. A longer file is not read.
const RUN_BYTES_MAX: u64 = 16 << 20;

/// Paths, and bytes of their files, that a run may have changed to be remembered after the state has moved on.
const RECENT_PATHS_MAX: usize = 64;
/// See [`RECENT_PATHS_MAX`].
const RECENT_BYTES_MAX: u64 = 128 << 10;
/// Paths in a state of which that is done: each run goes through all of them for it.
const RECENT_ENTRIES_MAX: u64 = 4_096;

/// The list, beside `state/`, `before/` and `outputs/`.
const RUN: &str = "run";

/// What is kept of one run, as `diag/<seq>/run` has it (borsh).
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KeptRun {
    /// What the run did.
    pub details: Details,
    /// The ledger's agreed time.
    pub time_ms: WallMs,
    /// Whether the files are all of the state.
    pub whole: bool,
    /// What others may ask more of.
    pub things: BTreeMap<Thing, Known>,
    /// What was at the changed paths before; nothing of those that are not here is known.
    pub before: BTreeMap<Vec<u8>, Option<PathState>>,
}

/// What a run left, where that is little: others may find out that their result differs when the next run has begun.
#[derive(Debug, Clone)]
pub(in crate::node) struct Recent {
    found: BTreeMap<Vec<u8>, Known>,
    files: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Recent {
    /// Reads what is in the state's folder `top` now; `None` when it is too much, or cannot be read.
    pub fn of(top: &Path, state: &dyn StateStore, entries: u64, changed: &[Changed]) -> Option<Recent> {
        let bytes: u64 = changed.iter().filter_map(|changed| Some(changed.now?.size)).sum();
        if entries > RECENT_ENTRIES_MAX || changed.len() > RECENT_PATHS_MAX || bytes > RECENT_BYTES_MAX {
            return None;
        }
        let found = state.found(&changed.iter().map(|changed| changed.path.clone()).collect());
        let file = |(path, known): (&Vec<u8>, &Known)| {
            (known.state.kind == PathKind::File).then(|| {
                Some((path.clone(), read_blocks(&top.join(OsStr::from_bytes(path)), known.blocks.len()).ok()?))
            })
        };
        let files = found.iter().filter_map(file).collect::<Option<_>>()?;
        Some(Recent { found, files })
    }
}

/// Where the files of a run are.
pub(in crate::node) enum Left<'a> {
    /// In the state's folder, as the run left it.
    State(&'a dyn StateStore),
    /// The state has moved on.
    Memory(&'a Recent),
}

/// A run to be kept.
#[derive(Debug)]
pub(in crate::node) struct ToKeep {
    pub seq: Seq,
    pub time_ms: WallMs,
    pub result: ExecResult,
    /// Of the run, while this process remembers it.
    pub changed: Option<Vec<Vec<u8>>>,
    /// Ascending by user.
    pub outputs: Vec<(UserKey, Bytes)>,
    /// Where the state may have moved on.
    pub recent: Option<Recent>,
    /// Whether it is this node that differs, or a split: then it is worth more.
    pub is_own: bool,
}

/// Copies what the run left into `diag/<seq>/`.
pub(in crate::node) fn keep(dir: &Path, left: &Left<'_>, run: ToKeep) -> Result<KeptRun, StateError> {
    let ToKeep { seq, time_ms, result, changed, outputs, is_own, recent: _ } = run;
    if let Some(known) = read(dir, seq)
        .filter(|known| known.details.result == result && (known.whole || !is_own || matches!(left, Left::Memory(_))))
    {
        if is_own {
            folder::claim(dir, seq).map_err(|source| failed(dir, seq, source))?;
        }
        return Ok(known);
    }
    // What a failed run left was rolled back: there is nothing in which it differs.
    let ok = result.status == Status::Ok;
    let changed: BTreeSet<Vec<u8>> = match changed {
        _ if !ok => BTreeSet::new(),
        Some(changed) => changed.into_iter().collect(),
        None => match left {
            Left::State(state) => state.changed().unwrap_or_default(),
            Left::Memory(recent) => recent.found.keys().cloned().collect(),
        },
    };
    let found = match left {
        Left::State(state) => state.found(&changed),
        Left::Memory(recent) => recent.found.clone(),
    };
    let now = |path: &Vec<u8>| Changed { path: path.clone(), now: found.get(path).map(|known| known.state) };
    let output_leaves: Vec<_> = outputs.iter().map(|(user, bytes)| output_leaf(user, bytes)).collect();
    let told = outputs.iter().map(|(user, _)| *user).zip(output_leaves.iter().copied());
    let details = Details {
        result,
        changed: changed.iter().take(DETAILS_MAX).map(now).collect(),
        outputs: told.take(DETAILS_MAX).collect(),
    };

    let mut blocks_left = BLOCKS_KEPT_MAX;
    let mut things = BTreeMap::new();
    for (path, mut known) in found.into_iter().take(THINGS_MAX) {
        known.blocks.truncate(blocks_left);
        blocks_left -= known.blocks.len();
        things.insert(Thing::Path(path), known);
    }
    let tree = Tree::new(output_leaves.clone());
    for (at, (user, bytes)) in (0_u32..).zip(&outputs).take(THINGS_MAX) {
        let mut blocks: Vec<_> = bytes.chunks(BLOCK_BYTES).map(block_hash).collect();
        blocks.truncate(blocks_left);
        blocks_left -= blocks.len();
        let (size, root) = (bytes.len() as u64, output_leaves[at as usize]);
        let state = PathState { kind: PathKind::File, executable: false, size, root };
        let proof = tree.proof(at).expect("a leaf for each output");
        things.insert(Thing::Output(*user), Known { state, proof, blocks });
    }
    let before = match left {
        Left::State(state) => {
            let known = changed.iter().take(DETAILS_MAX);
            known.filter_map(|path| Some((path.clone(), was(state.before(path))?))).collect()
        }
        Left::Memory(_) => BTreeMap::new(),
    };
    let whole = is_own && matches!(left, Left::State(_));
    let kept = KeptRun { details, time_ms, whole, things, before };

    let extent = Extent { whole: kept.whole, bytes_max: if is_own { OWN_BYTES_MAX } else { OTHERS_BYTES_MAX } };
    let fill = |into: &Path| {
        match left {
            Left::State(state) => state.keep_diagnosis(into, &changed, extent).map_err(io::Error::other)?,
            Left::Memory(recent) => {
                for (path, bytes) in &recent.files {
                    let file = into.join("state").join(OsStr::from_bytes(path));
                    fs::create_dir_all(file.parent().expect("it is in a folder"))?;
                    fs::write(file, bytes)?;
                }
            }
        }
        let outputs_folder = into.join("outputs");
        fs::create_dir(&outputs_folder)?;
        let mut bytes_left = OUTPUTS_BYTES_MAX;
        for (user, bytes) in outputs.iter().take(THINGS_MAX) {
            let part = &bytes[..bytes.len().min(OUTPUT_BYTES_MAX).min(bytes_left)];
            bytes_left -= part.len();
            fs::write(outputs_folder.join(user.to_string()), part)?;
        }
        fs::write(into.join(RUN), wire::encode(&kept))
    };
    folder::make(dir, seq, !is_own, fill).map_err(|source| failed(dir, seq, source))?;
    Ok(kept)
}

fn failed(dir: &Path, seq: Seq, source: io::Error) -> StateError {
    StateError::Io { op: "make", path: folder::of(dir, seq), source }
}

/// What a path was; `None` when that is not known. Its blocks are not looked at.
fn was(before: Before) -> Option<Option<PathState>> {
    use crate::types::Hash;
    let of = |kind, executable, size| Some(Some(PathState { kind, executable, size, root: Hash::ZERO }));
    match before {
        Before::Unknown => None,
        Before::Nothing => Some(None),
        Before::Folder => of(PathKind::Folder, false, 0),
        Before::Symlink => of(PathKind::Symlink, false, 0),
        Before::File(path) => {
            let meta = fs::symlink_metadata(path).ok()?;
            of(PathKind::File, meta.permissions().mode() & 0o100 != 0, meta.len())
        }
    }
}

/// What is kept of a run; `None` when nothing is, or it is damaged.
pub(in crate::node) fn read(dir: &Path, seq: Seq) -> Option<KeptRun> {
    let path = folder::of(dir, seq).join(RUN);
    if fs::metadata(&path).ok()?.len() > RUN_BYTES_MAX {
        return None;
    }
    let bytes = fs::read(&path).ok()?;
    let kept = wire::decode::<KeptRun>(&bytes);
    kept.inspect_err(|error| warn!(path = %path.display(), %error, "not what this node keeps of a run")).ok()
}

/// Answers another node from what is kept.
pub(in crate::node) fn answer(dir: &Path, kept: &KeptRun, asked: &PieceRef) -> Piece {
    let result = &kept.details.result;
    if (asked.of_seq, asked.of_hash) != (result.of_seq, result.of_hash) {
        return Piece::Gone;
    }
    let Some(known) = kept.things.get(&asked.of) else { return Piece::Gone };
    let Some(block) = asked.block else { return Piece::Known(known.clone()) };
    let bytes = file_of(dir, asked.of_seq, &asked.of).and_then(|file| read_block(&file, block).ok());
    // Nothing else than what the run left: somebody may have put another file there.
    match bytes {
        Some(bytes) if known.blocks.get(block as usize) == Some(&block_hash(&bytes)) => Piece::Block(bytes),
        _ => Piece::Gone,
    }
}

/// Where the bytes are that a run left. A name that was not the state's leads nowhere.
pub(in crate::node) fn file_of(dir: &Path, seq: Seq, of: &Thing) -> Option<PathBuf> {
    match of {
        Thing::Path(path) => in_folder(&folder::of(dir, seq).join("state"), path),
        Thing::Output(user) => Some(folder::of(dir, seq).join("outputs").join(user.to_string())),
    }
}

/// Where the bytes are that were at a path before the run.
pub(in crate::node) fn before_file(dir: &Path, seq: Seq, path: &[u8]) -> Option<PathBuf> {
    in_folder(&folder::of(dir, seq).join("before"), path)
}

fn in_folder(top: &Path, path: &[u8]) -> Option<PathBuf> {
    let plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    path.split(|byte| *byte == b'/').all(plain).then(|| top.join(OsStr::from_bytes(path)))
}

/// One block of a file; shorter at its end, and empty behind it.
pub(in crate::node) fn read_block(path: &Path, block: u32) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], u64::from(block) * BLOCK_BYTES as u64 + len as u64)? {
            0 => break,
            read => len += read,
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// So many blocks of a file, or what there is of them.
fn read_blocks(path: &Path, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for block in 0..count {
        bytes.extend(read_block(path, u32::try_from(block).expect("a bounded number"))?);
    }
    Ok(bytes)
}
