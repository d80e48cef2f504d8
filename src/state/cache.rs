//! What the last process knew of the files, so that the next one need not read them all again.
//!
//! Only a help: it is used within the same boot of the machine alone (a power cut can take a stamp and leave the
//! content, or the other way round), each entry only while the stamps of its file are the same, and not at all when
//! its own hash is wrong.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{
    StateError,
    disk::{Disk, at, open_read},
    merkle::Leaf,
    scan::{Index, Stat},
};
use crate::types::Hash;

/// Bytes of a cache at most. A larger one is not written, and not read: everything is read again instead.
const CACHE_BYTES_MAX: u64 = 1 << 30;

/// One path of a folder.
#[derive(BorshSerialize, BorshDeserialize)]
pub(super) struct Row {
    pub path: Vec<u8>,
    pub leaf: Leaf,
    pub blocks: Vec<Hash>,
    pub stat: Stat,
}

#[derive(Default, BorshSerialize, BorshDeserialize)]
struct Saved {
    boot: String,
    live: Vec<Row>,
    copy: Vec<Row>,
}

/// Writes the cache. Not durable: it is worthless after a power cut.
pub(super) fn save(
    disk: &Disk,
    path: &Path,
    live: &Index,
    copy: Option<&Index>,
    now_ns: i128,
) -> Result<(), StateError> {
    let Some(boot) = boot() else { return Ok(()) };
    let copy = copy.map_or_else(Vec::new, |copy| copy.rows(Some(now_ns)));
    let saved = Saved { boot, live: live.rows(None), copy };
    let mut bytes = borsh::to_vec(&saved).map_err(at("encode", path))?;
    bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    if bytes.len() as u64 > CACHE_BYTES_MAX {
        return Ok(());
    }
    let fresh = path.with_extension("new");
    match disk.remove_file(&fresh) {
        Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    let file = disk.create(&fresh, 0o600)?;
    disk.write_at(&file, &fresh, &bytes, 0)?;
    disk.rename(&fresh, path)
}

/// Gives both folders what is known of them; nothing when the cache is missing, damaged or of another boot.
pub(super) fn load(path: &Path, live: &mut Index, copy: &mut Index) {
    let saved = read(path).unwrap_or_default();
    live.know(saved.live);
    copy.know(saved.copy);
}

fn read(path: &Path) -> Option<Saved> {
    let mut bytes = Vec::new();
    open_read(path).ok()?.take(CACHE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let (body, hash) = bytes.split_last_chunk::<32>()?;
    if blake3::hash(body) != *hash {
        return None;
    }
    let saved: Saved = borsh::from_slice(body).ok()?;
    (Some(&saved.boot) == boot().as_ref()).then_some(saved)
}

/// Names this run of the kernel; `None` where it has no name, and then there is no cache.
fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    (id.len() > 30).then_some(id)
}
