//! A folder that is made equal to a pinned state again and again, for somebody who may do in it what he likes: a run of
//! the contract that only reads. What differs is written and nothing else, so that putting it right costs a look at each
//! path and the blocks that changed.

use std::path::{Path, PathBuf};

use super::{
    StateError,
    clock::Clock,
    disk::{Disk, at, open_write},
    expect_root,
    merkle::Kind,
    mirror::{Modes, Source, mirror_from, prune},
    pin::{Pin, Pins},
    scan::{Entry, Index},
    shadow::differing,
};
use crate::types::Hash;

/// The folder. It is the caller's to remove. Not durable.
#[derive(Debug)]
pub struct Replica {
    disk: Disk,
    clock: Clock,
    index: Index,
    /// What it should be, as it was made last.
    wanted: Option<Index>,
}

impl Replica {
    /// Makes an empty folder at `top`, where nothing may be. `clock` is where a small file may be made, outside of it and
    /// on the same file system.
    pub fn make(top: &Path, clock: &Path) -> Result<Replica, StateError> {
        let disk = Disk::volatile();
        disk.create_dir(top)?;
        let clock = Clock::open(clock)?;
        Ok(Replica { disk, clock, index: Index::new(top.to_path_buf()), wanted: None })
    }

    /// Whether the folder is the state of this root as it stands, whatever was done in it.
    pub fn is(&mut self, root: &Hash) -> Result<bool, StateError> {
        let before_ns = self.clock.trusted_before_ns()?;
        // What a state cannot have is not the state.
        let looked = self.index.scan(&self.disk, before_ns);
        Ok(looked.is_ok() && self.index.root() == *root && self.index.entries.values().all(has_mode))
    }

    /// Makes the folder that state, whatever is in it. [`StateError::PinLost`] when the pin is of no more use.
    pub fn become_state(&mut self, pin: &Pin) -> Result<(), StateError> {
        let wanted = pin.index(self.index.top().to_path_buf());
        prune(&self.disk, self.index.top(), &wanted)?;
        let before_ns = self.clock.trusted_before_ns()?;
        self.index.scan(&self.disk, before_ns)?;
        for (path, entry) in self.index.entries.iter_mut().filter(|(_, entry)| !has_mode(entry)) {
            let full = wanted.full(path);
            self.disk.chmod(&full, mode_of(entry))?;
            // Its stamps are others now.
            entry.settled = false;
        }
        let differing = differing(&wanted, &self.index);
        let (disk, pins) = (&self.disk, &mut Pins::default());
        mirror_from(disk, &wanted, &mut Pinned(pin), &mut self.index, &differing, Modes::State, pins)?;
        self.index.take_changed();
        self.wanted = Some(wanted);
        expect_root(self.index.top(), pin.root(), self.index.root())
    }

    /// Whether no state was ever made here.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_none()
    }

    /// Gives back the room that somebody has filled: removes what the state has not, and cuts what has grown. The folder is
    /// not that state before it is made again.
    pub fn cut_back(&mut self) -> Result<(), StateError> {
        let Some(wanted) = &self.wanted else { return Ok(()) };
        prune(&self.disk, self.index.top(), wanted)?;
        for (path, entry) in wanted.entries.iter().filter(|(_, entry)| entry.leaf.kind == Kind::File) {
            let full = wanted.full(path);
            if std::fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_file() && meta.len() > entry.leaf.size) {
                self.disk.chmod(&full, mode_of(entry))?;
                let file = open_write(&full).map_err(at("open", &full))?;
                self.disk.set_len(&file, &full, entry.leaf.size)?;
            }
        }
        Ok(())
    }
}

/// The permissions that a contract finds: what one run takes away the next one has again.
fn mode_of(entry: &Entry) -> u32 {
    Modes::State.of(entry.leaf.kind == Kind::Folder || entry.leaf.executable)
}

fn has_mode(entry: &Entry) -> bool {
    entry.leaf.kind == Kind::Symlink || entry.stat.mode & 0o7777 == mode_of(entry)
}

/// The blocks of a pinned state.
struct Pinned<'a>(&'a Pin);

impl Source for Pinned<'_> {
    fn read(&mut self, _: &[u8], _: usize, hash: &Hash, block: &mut [u8]) -> Result<(), StateError> {
        match self.0.block(hash)? {
            Some(bytes) if bytes.len() == block.len() => block.copy_from_slice(&bytes),
            _ => return Err(StateError::PinLost { root: self.0.root() }),
        }
        Ok(())
    }

    fn target(&mut self, _: &[u8], entry: &Entry) -> Result<Vec<u8>, StateError> {
        self.0.block(&entry.leaf.root)?.ok_or(StateError::PinLost { root: self.0.root() })
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        Index::new(PathBuf::from("state")).full(path)
    }
}
