//! What a backend is about to do, written down before the first change, so that a cut is finished at the next start.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use borsh::{BorshDeserialize, BorshSerialize};

use super::{
    StateError,
    disk::{Disk, at, open_write},
};

/// What a record may hold: small, and with a value for "nothing yet".
pub(super) trait Record: Copy + Default + BorshSerialize + BorshDeserialize {}

/// Bytes between the two places of the intent record: a sector or a page, so that writing one never tears the other.
const SLOT_BYTES: u64 = 4096;

/// Bytes of one record at most; a longer one is damage.
const RECORD_BYTES_MAX: usize = 128;

/// Where the intent is kept: two slots written in turn, each with a counter and a hash, so that one durable write of
/// one sector replaces the record and a torn write leaves the one before.
#[derive(Debug)]
pub(super) struct IntentFile<T> {
    file: File,
    path: PathBuf,
    counter: u64,
    pub intent: T,
    /// `intent` is what the disk says; not so after a write that failed.
    pub sure: bool,
}

impl<T: Record> IntentFile<T> {
    /// Opens the record, or makes it with the default one. Errors when neither slot holds a whole record.
    pub fn open(disk: &Disk, path: &Path) -> Result<IntentFile<T>, StateError> {
        match open_write(path) {
            Ok(file) => IntentFile::read(file, path),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => IntentFile::new(disk, path),
            Err(other) => Err(at("open", path)(other)),
        }
    }

    fn new(disk: &Disk, path: &Path) -> Result<IntentFile<T>, StateError> {
        let fresh = path.with_extension("new");
        match std::fs::symlink_metadata(&fresh) {
            Ok(_) => disk.remove_file(&fresh)?,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            Err(other) => return Err(at("look at", &fresh)(other)),
        }
        let file = disk.create(&fresh, 0o600)?;
        // Both slots in full, so that writing one later allocates nothing and its sync is one write.
        let mut slots = record(0, T::default());
        slots.resize(2 * SLOT_BYTES as usize, 0);
        disk.write_at(&file, &fresh, &slots, 0)?;
        disk.sync(&file, &fresh)?;
        disk.rename(&fresh, path)?;
        if let Some(folder) = path.parent() {
            disk.sync_path(folder)?;
        }
        Ok(IntentFile { file, path: path.to_path_buf(), counter: 0, intent: T::default(), sure: true })
    }

    fn read(file: File, path: &Path) -> Result<IntentFile<T>, StateError> {
        let slot = |number: u64| -> Result<Option<(u64, T)>, StateError> {
            let mut bytes = [0; RECORD_BYTES_MAX];
            match file.read_exact_at(&mut bytes, number * SLOT_BYTES) {
                Ok(()) => Ok(parse_record(&bytes)),
                Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                Err(other) => Err(at("read", path)(other)),
            }
        };
        let newest = [slot(0)?, slot(1)?].into_iter().flatten().max_by_key(|(counter, _)| *counter);
        let (counter, intent) = newest.ok_or_else(|| StateError::Intent { path: path.to_path_buf() })?;
        Ok(IntentFile { file, path: path.to_path_buf(), counter, intent, sure: true })
    }

    /// Replaces the record, durably. After an error either of the two may be on the disk.
    pub fn write(&mut self, disk: &Disk, intent: T) -> Result<(), StateError> {
        let counter = self.counter + 1;
        self.sure = false;
        disk.write_at(&self.file, &self.path, &record(counter, intent), counter % 2 * SLOT_BYTES)?;
        disk.sync_data(&self.file, &self.path)?;
        (self.counter, self.intent, self.sure) = (counter, intent, true);
        Ok(())
    }
}

fn record<T: Record>(counter: u64, intent: T) -> Vec<u8> {
    let body = borsh::to_vec(&(counter, intent)).expect("writing into memory does not fail");
    let mut bytes = vec![u8::try_from(body.len()).expect("a record is a few dozen bytes")];
    bytes.extend(&body);
    bytes.extend(blake3::hash(&body).as_bytes());
    bytes
}

fn parse_record<T: Record>(bytes: &[u8]) -> Option<(u64, T)> {
    let (&len, rest) = bytes.split_first()?;
    let (body, rest) = rest.split_at_checked(usize::from(len))?;
    let hash: [u8; 32] = rest.get(..32)?.try_into().ok()?;
    if blake3::hash(body) != hash {
        return None;
    }
    borsh::from_slice(body).ok()
}
