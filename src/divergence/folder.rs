//! The folders in `diag/`: one a ledger, each there whole or not at all, and a bounded number of them.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::Report;
use crate::types::Seq;

/// Ledgers kept in `diag/` on which this node differed, or the network was split. Past it the lowest is removed.
pub const OWN_MAX: usize = 8;
/// Ledgers kept on which only others differed: what a node says of itself must not drive out what this node knows.
pub const OTHERS_MAX: usize = 2;
/// Bytes of a report. A longer file is not read.
pub const REPORT_BYTES_MAX: u64 = 16 << 20;

const REPORT: &str = "report.json";
/// Marks a folder of [`OTHERS_MAX`].
const OF_OTHERS: &str = "of-others";
/// What is being made, before it has its name.
const FRESH: &str = ".new";

/// Held while a folder is exchanged, or a report in it: the two come from different threads.
static CHANGING: Mutex<()> = Mutex::new(());

fn lock() -> MutexGuard<'static, ()> {
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder of one ledger.
pub fn of(dir: &Path, seq: Seq) -> PathBuf {
    dir.join("diag").join(seq.to_string())
}

/// Makes the folder of `seq`: `fill` gets an empty one, which replaces what was there when it is done.
pub fn make<E: From<io::Error>>(
    dir: &Path,
    seq: Seq,
    of_others: bool,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let diag = dir.join("diag");
    fs::create_dir_all(&diag)?;
    let fresh = diag.join(FRESH);
    remove(&fresh)?;
    fs::create_dir(&fresh)?;
    let filled = fill(&fresh);
    if let Err(error) = filled {
        // A full disk is not to stay full of this.
        remove(&fresh)?;
        return Err(error);
    }
    if of_others {
        fs::write(fresh.join(OF_OTHERS), b"")?;
    }
    let folder = of(dir, seq);
    let _changing = lock();
    // What was found out before is found in the new one too.
    match fs::copy(folder.join(REPORT), fresh.join(REPORT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    remove(&folder)?;
    fs::rename(&fresh, &folder)?;
    prune(&diag)?;
    Ok(folder)
}

/// From now on the folder counts as one on which this node differed.
pub fn claim(dir: &Path, seq: Seq) -> io::Result<()> {
    match fs::remove_file(of(dir, seq).join(OF_OTHERS)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Replaces the report of a ledger whose folder is there.
pub fn write_report(dir: &Path, report: &Report) -> io::Result<()> {
    let folder = of(dir, report.seq);
    let _changing = lock();
    let fresh = folder.join(format!("{REPORT}{FRESH}"));
    let mut file = fs::File::create(&fresh)?;
    file.write_all(&serde_json::to_vec_pretty(report)?)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(fresh, folder.join(REPORT))
}

/// The report of a ledger; `None` when there is none, or not yet.
pub fn read_report(dir: &Path, seq: Seq) -> io::Result<Option<Report>> {
    let path = of(dir, seq).join(REPORT);
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if meta.len() > REPORT_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} bytes are no report", meta.len())));
    }
    Ok(Some(serde_json::from_slice(&fs::read(&path)?)?))
}

/// Ledgers with a folder, ascending.
pub fn list(dir: &Path) -> io::Result<Vec<Seq>> {
    let entries = match fs::read_dir(dir.join("diag")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut seqs: Vec<Seq> = entries
        .filter_map(|entry| {
            let entry = entry.ok().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))?;
            let name = entry.file_name().into_string().ok()?;
            name.parse().ok().filter(|seq: &Seq| seq.to_string() == name)
        })
        .collect();
    seqs.sort_unstable();
    Ok(seqs)
}

/// Removes the lowest of each kind past their number.
fn prune(diag: &Path) -> io::Result<()> {
    let dir = diag.parent().expect("diag is in a contract folder");
    let (others, own): (Vec<Seq>, Vec<Seq>) =
        list(dir)?.into_iter().partition(|seq| of(dir, *seq).join(OF_OTHERS).exists());
    for (seqs, max) in [(others, OTHERS_MAX), (own, OWN_MAX)] {
        let too_many = seqs.len().saturating_sub(max);
        seqs.into_iter().take(too_many).try_for_each(|seq| remove(&of(dir, seq)))?;
    }
    Ok(())
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make_one(dir: &Path, seq: Seq, of_others: bool) {
        make(dir, seq, of_others, |folder| fs::write(folder.join("x"), seq.to_string())).unwrap();
    }

    #[test]
    fn the_oldest_go_and_those_of_others_never_drive_out_the_own_ones() {
        let dir = tempfile::tempdir().unwrap();
        (1..=10).for_each(|seq| make_one(dir.path(), seq, false));
        (11..=30).for_each(|seq| make_one(dir.path(), seq, true));
        assert_eq!(list(dir.path()).unwrap(), [3, 4, 5, 6, 7, 8, 9, 10, 29, 30]);
        claim(dir.path(), 29).unwrap();
        make_one(dir.path(), 31, true);
        assert_eq!(list(dir.path()).unwrap(), [4, 5, 6, 7, 8, 9, 10, 29, 30, 31]);
        // What is no ledger's is left alone.
        fs::create_dir(dir.path().join("diag/mine")).unwrap();
        make_one(dir.path(), 32, true);
        assert!(dir.path().join("diag/mine").is_dir());
    }

    #[test]
    fn a_folder_that_cannot_be_filled_leaves_nothing_and_keeps_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        make_one(dir.path(), 7, false);
        let failed = make(dir.path(), 7, false, |folder| {
            fs::write(folder.join("half"), "a")?;
            Err::<(), io::Error>(io::Error::other("full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(of(dir.path(), 7).join("x")).unwrap(), "7");
        assert_eq!(fs::read_dir(dir.path().join("diag")).unwrap().count(), 1);
    }
}
