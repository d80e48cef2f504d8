//! Where fetched blocks wait: `hist/sync/blocks`, each behind its length. What a cut left torn at the end is dropped,
//! and every block is hashed when the file is opened again: only what is whole and right counts.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::super::{
    StateError,
    disk::{Disk, at, open_write},
    ensure_dir,
    merkle::{BLOCK_BYTES, block_hash},
    mirror::Source,
    scan::Entry,
};
use crate::types::Hash;

/// Bytes before each block: its length, little-endian.
const LENGTH_BYTES: u64 = 4;

/// Blocks by their hash, on the disk.
#[derive(Debug)]
pub struct Stage {
    disk: Disk,
    file: File,
    path: PathBuf,
    len: u64,
    places: HashMap<Hash, (u64, usize)>,
    zeros: Hash,
}

impl Stage {
    /// Opens what is staged for the contract folder `dir`, and finds again what an earlier process fetched.
    pub fn open(dir: &Path) -> Result<Stage, StateError> {
        Stage::open_on(dir, Disk::default())
    }

    pub(in super::super) fn open_on(dir: &Path, disk: Disk) -> Result<Stage, StateError> {
        let folder = dir.join("hist/sync");
        ensure_dir(&disk, &dir.join("hist"))?;
        ensure_dir(&disk, &folder)?;
        let path = folder.join("blocks");
        let file = match open_write(&path) {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {
                let file = disk.create(&path, 0o600)?;
                disk.sync_path(&folder)?;
                file
            }
            opened => opened.map_err(at("open", &path))?,
        };
        let zeros = block_hash(&[0; BLOCK_BYTES]);
        let mut stage = Stage { disk, file, path, len: 0, places: HashMap::new(), zeros };
        stage.find()?;
        Ok(stage)
    }

    /// Reads the file up to the first thing that is no block.
    fn find(&mut self) -> Result<(), StateError> {
        let end = self.file.metadata().map_err(at("look at", &self.path))?.len();
        let mut block = vec![0; BLOCK_BYTES];
        while self.len + LENGTH_BYTES < end {
            let mut length = [0; LENGTH_BYTES as usize];
            self.file.read_exact_at(&mut length, self.len).map_err(at("read", &self.path))?;
            let (offset, length) = (self.len + LENGTH_BYTES, u32::from_le_bytes(length) as usize);
            if length == 0 || length > BLOCK_BYTES || offset + length as u64 > end {
                break;
            }
            self.file.read_exact_at(&mut block[..length], offset).map_err(at("read", &self.path))?;
            self.places.insert(block_hash(&block[..length]), (offset, length));
            self.len = offset + length as u64;
        }
        Ok(())
    }

    /// Blocks that are here.
    pub fn blocks(&self) -> usize {
        self.places.len()
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Whether this block is here, or needs no room.
    pub fn has(&self, hash: &Hash) -> bool {
        *hash == self.zeros || self.places.contains_key(hash)
    }

    /// Takes a block, whose hash was checked.
    pub(super) fn put(&mut self, hash: Hash, block: &[u8]) -> Result<(), StateError> {
        debug_assert_eq!(block_hash(block), hash, "only what was checked is staged");
        if self.has(&hash) {
            return Ok(());
        }
        let length = u32::try_from(block.len()).expect("a block is small").to_le_bytes();
        self.disk.write_at(&self.file, &self.path, &[&length[..], block].concat(), self.len)?;
        self.places.insert(hash, (self.len + LENGTH_BYTES, block.len()));
        self.len += LENGTH_BYTES + block.len() as u64;
        Ok(())
    }

    /// Drops all of it: nothing in it is of use.
    pub fn empty(&mut self) -> Result<(), StateError> {
        self.disk.set_len(&self.file, &self.path, 0)?;
        self.places.clear();
        self.len = 0;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), StateError> {
        self.disk.sync(&self.file, &self.path)
    }

    /// A block of this length that is here.
    pub(super) fn block(&self, hash: &Hash, len: usize) -> Result<Vec<u8>, StateError> {
        let mut block = vec![0; len];
        self.read(hash, &mut block).map(|()| block)
    }

    fn read(&self, hash: &Hash, block: &mut [u8]) -> Result<(), StateError> {
        if *hash == self.zeros {
            block.fill(0);
            return Ok(());
        }
        match self.places.get(hash) {
            Some((offset, length)) if *length == block.len() => {
                self.file.read_exact_at(block, *offset).map_err(at("read", &self.path))
            }
            _ => Err(StateError::Changed { path: self.path.clone() }),
        }
    }
}

/// The stage as what a folder is made from.
pub(in super::super) struct Staged<'a>(pub &'a Stage);

impl Source for Staged<'_> {
    fn read(&mut self, _: &[u8], _: usize, hash: &Hash, block: &mut [u8]) -> Result<(), StateError> {
        self.0.read(hash, block)
    }

    fn target(&mut self, _: &[u8], entry: &Entry) -> Result<Vec<u8>, StateError> {
        let mut target = vec![0; usize::try_from(entry.leaf.size).unwrap_or(0).min(BLOCK_BYTES)];
        self.0.read(&entry.leaf.root, &mut target)?;
        Ok(target)
    }

    fn place(&self, _: &[u8]) -> PathBuf {
        self.0.path.clone()
    }
}
