//! Which stamps of files may be trusted: asks the file system for its time.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{StateError, disk::at, scan::Stat};

/// Changes in a row that must all get stamps of their own, before a file system is taken for one that always does.
const FINE_PROOFS: usize = 16;

/// A file that is written to learn the file system's time.
#[derive(Debug)]
pub(super) struct Clock {
    file: File,
    path: PathBuf,
    /// A change after a look always leaves another stamp, however soon it comes (Linux 6.13 and later on the usual
    /// file systems). Elsewhere two changes within a tick of the kernel's clock leave the same.
    pub fine: bool,
}

impl Clock {
    pub fn open(path: &Path) -> Result<Clock, StateError> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(at("open", path))?;
        let mut clock = Clock { file, path: path.to_path_buf(), fine: false };
        let mut last = clock.stamp()?;
        clock.fine = true;
        for _ in 0..FINE_PROOFS {
            let next = clock.stamp()?;
            clock.fine &= next > last;
            last = next;
        }
        Ok(clock)
    }

    /// A file whose stamps are older than this cannot change without their changing, if nobody writes to it now.
    ///
    /// What was looked at already counts as old where stamps are fine.
    pub fn trusted_before_ns(&self) -> Result<i128, StateError> {
        if self.fine { Ok(i128::MAX) } else { self.stamp() }
    }

    /// The file system's own time, in the ticks that it stamps files with.
    fn stamp(&self) -> Result<i128, StateError> {
        self.file.write_all_at(b".", 0).map_err(at("write", &self.path))?;
        let meta = self.file.metadata().map_err(at("look at", &self.path))?;
        Ok(Stat::of(&meta).mtime_ns())
    }
}
